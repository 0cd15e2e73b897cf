"""The corpus at scale: what a million recordings cost to open and to hold, and how fast sound is decoded.

    python -m benchmarks.bench_corpus [--files 1000000] [--minutes 60] [--dir DIR]

The million recordings are empty files, their cache is of the real format with holes for samples and log mel: all that
a training does with them but decoding and computing is done for real. DIR should lie on a disk that can hold an entry
for each file and holes; it is emptied at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.machine import machine_line, one_thread
from edgeasd.features.mel import MelSpec
from edgeasd_train.corpus import WindowIndex, logmel, open_corpus
from edgeasd_train.corpus.discover import discover
from edgeasd_train.corpus.ledger import sealed
from edgeasd_train.corpus.load import Cache, file_states
from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows, record_pieces
from edgeasd_train.corpus.shards import SHARD_BYTES, SOUND
from edgeasd_train.recipe import DataRecipe

RATE_HZ = 16_000
CLIP_FRAMES = 10 * RATE_HZ
"""Of the million: ten seconds each, as DCASE's clips."""
FOLDER_FILES = 1000
BATCH = 256
N_BATCHES = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=int, default=60, help="sound to decode, of each format")
    parser.add_argument("--dir", type=Path, help="work below here instead of the system's place for such files")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)  # the part that needs a process of its own
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(open_large(arguments.open)))
        return
    os.environ.update(one_thread())
    work = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        print(f"{machine_line()}; load average {os.getloadavg()[0]:.1f} at the start\n")
        report_large(work / "large", n_files=arguments.files)
        report_speed(work / "speed", minutes=arguments.minutes)
    finally:
        shutil.rmtree(work)


def report_large(work: Path, *, n_files: int) -> None:
    """Make a corpus of `n_files` and print what a process that opens it says."""
    make_large(work, n_files=n_files)
    command = [sys.executable, "-m", "benchmarks.bench_corpus", "--open", str(work)]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"| {n_files:,} recordings of 10 s | |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {value} |")
    print(flush=True)


def make_large(work: Path, *, n_files: int) -> None:
    """Make empty recordings and the cache that says what is in them."""
    for first in range(0, n_files, FOLDER_FILES):
        folder = work / "in" / f"{first // FOLDER_FILES:05}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + FOLDER_FILES, n_files)):
            (folder / f"recording-{number:08}.wav").touch()
    cache = Cache(work / "cache", RATE_HZ)
    keys = file_states(discover([work / "in"]), cache).keys
    cache.shards.mkdir(parents=True)
    shard_files = SHARD_BYTES // (2 * CLIP_FRAMES)
    for first in range(0, n_files, shard_files):
        records = np.zeros(len(keys[first : first + shard_files]), SOUND)
        records["key"] = keys[first : first + shard_files]
        records["first_frame"] = np.arange(len(records)) * CLIP_FRAMES
        records["n_frames"] = CLIP_FRAMES
        path = cache.shards / f"{first:016x}.ledger"
        path.write_bytes(sealed(records))
        make_hole(path.with_suffix(".i16"), 2 * CLIP_FRAMES * len(records))


def make_hole(path: Path, n_bytes: int) -> None:
    """Let a file have at least so many bytes, of which none is on disk."""
    with path.open("ab") as file:
        file.truncate(max(n_bytes, file.tell()))


def write_holes(task: Any) -> None:
    """Stand in for the front end: leave holes where log mel would be, and record that it is there."""
    make_hole(task.path, int((task.first_rows + task.n_rows).max()) * 4 * task.spec.n_rows)
    record_pieces(task)


def no_front_end() -> AbstractContextManager[Any]:
    """Return what takes the place of PieceWriter."""
    return nullcontext(write_holes)


def open_large(work: Path) -> dict[str, str]:
    """Open the corpus, its log mel and its windows; return what that took."""
    spec, cache_dir, start_bytes = MelSpec(), work / "cache", resident_bytes()
    recipe = DataRecipe(paths=[work / "in"])
    began_s = time.monotonic()
    discover(recipe.paths)
    discover_s, began_s, began_cpu_s = time.monotonic() - began_s, time.monotonic(), cpu_s()
    corpus = open_corpus(recipe, cache_dir=cache_dir, grid_frames=spec.hop_frames)
    open_s, open_cpu_s, corpus_bytes = time.monotonic() - began_s, cpu_s() - began_cpu_s, resident_bytes()
    real, logmel.PieceWriter = logmel.PieceWriter, no_front_end  # type: ignore[misc,assignment]
    LogMelStore(corpus, spec, cache_dir=cache_dir, workers=1)
    logmel.PieceWriter, began_s = real, time.monotonic()  # type: ignore[misc]
    store = LogMelStore(corpus, spec, cache_dir=cache_dir)
    store_s, store_bytes = time.monotonic() - began_s, resident_bytes()
    index = WindowIndex(corpus.train, window_frames=RATE_HZ, hop_frames=RATE_HZ // 10)
    batch_ms = batch_time_ms(LogMelWindows(corpus, index, store))
    n_files, millions = len(corpus.sounds), len(index) / 1e6
    return {
        "find the files, s": f"{discover_s:.1f}",
        "open the corpus, finding included, s": f"{open_s:.1f}",
        "processor time of that, s": f"{open_cpu_s:.1f}",
        "open its log mel, s": f"{store_s:.1f}",
        "resident bytes per recording, corpus and log mel": f"{(store_bytes - start_bytes) / n_files:.0f}",
        "of which the corpus": f"{(corpus_bytes - start_bytes) / n_files:.0f}",
        "windows of 1 s to train on, 0.1 s apart": f"{len(index):,}",
        "resident bytes per million windows, all together": f"{(resident_bytes() - start_bytes) / millions:,.0f}",
        "of which the columns that number them": f"{32 * len(corpus.train) / millions:,.0f}",
        "peak, mapped files included, MB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
        f"batch of {BATCH} random windows in memory, ms": f"{batch_ms:.2f}",
    }


def resident_bytes() -> int:
    """Return what of this process is in memory, without the pages of mapped files."""
    fields = Path("/proc/self/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def batch_time_ms(windows: LogMelWindows) -> float:
    """Return the median time of random batches whose log mel has been read before."""
    random, times_s = np.random.default_rng(0), []
    for _ in range(N_BATCHES):
        asked = random.integers(0, len(windows), BATCH)
        windows.batch(asked)
        began_s = time.perf_counter()
        windows.batch(asked)
        times_s.append(time.perf_counter() - began_s)
    return 1e3 * float(np.median(times_s))


def report_speed(work: Path, *, minutes: int) -> None:
    """Print how fast sound is decoded and turned into log mel, by one process and by two."""
    print("| step | workers | times real time | seconds of sound per CPU second |\n|---|---|---|---|")
    formats = ((".wav", 48_000), (".flac", 48_000), (".flac", RATE_HZ))
    for suffix, rate_hz in formats:
        write_minutes(work / f"{rate_hz}{suffix}", minutes, suffix=suffix, rate_hz=rate_hz)
    for suffix, rate_hz in formats:
        recipe = DataRecipe(paths=[work / f"{rate_hz}{suffix}"])
        for workers in (1, 2):
            with timed(f"{suffix[1:].upper()} of {rate_hz} Hz to 16 kHz", workers, minutes):
                corpus = open_corpus(recipe, cache_dir=work / f"{workers}", grid_frames=400, workers=workers)
            if rate_hz == RATE_HZ:
                with timed("log mel", workers, minutes):
                    store = LogMelStore(corpus, MelSpec(), cache_dir=work / f"{workers}", workers=workers)
    index = WindowIndex(corpus.train, window_frames=RATE_HZ, hop_frames=RATE_HZ // 10)
    batch_ms = batch_time_ms(LogMelWindows(corpus, index, store))
    print(f"\nbatch of {BATCH} random windows of 1 s in memory: {batch_ms:.2f} ms", flush=True)


@contextmanager
def timed(step: str, workers: int, minutes: int) -> Iterator[None]:
    """Print a row of the table on how fast what is done within went."""
    began_s, began_cpu_s = time.monotonic(), cpu_s()
    yield
    wall_s, spent_s = time.monotonic() - began_s, cpu_s() - began_cpu_s
    print(f"| {step} | {workers} | {60 * minutes / wall_s:.0f} | {60 * minutes / spent_s:.0f} |", flush=True)


def cpu_s() -> float:
    """Return the processor time of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def write_minutes(folder: Path, minutes: int, *, suffix: str, rate_hz: int) -> None:
    """Write mono recordings of a minute each: noise that fades with frequency, as most sound does."""
    folder.mkdir(parents=True)
    for number in range(minutes):
        white = np.random.default_rng(number).standard_normal(60 * rate_hz)
        brown = np.cumsum(white - white.mean())
        samples = (0.2 * brown / np.abs(brown).max() + 0.005 * white).astype(np.float32)
        soundfile.write(folder / f"{number:04}{suffix}", samples, rate_hz, subtype="PCM_16")


if __name__ == "__main__":
    main()
