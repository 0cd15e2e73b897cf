"""Thirty days of sound through the replay line in one process, to see whether it grows, loses or invents anything.

    python -m benchmarks.bench_thirty_days [--hours 720] [--distinct 6] [--bundle FILE] [--hop 0.5]

A few hours of a generated machine hall with two events each, repeated under the names of 720, go through the installed
`edgeasd replay`. Prints memory over the run, rows against windows, events against the budget, and whether an hour gave
the same rows on the last day as on the first. Needs about 120 MB of disk for each distinct hour and 160 MB a day.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.machine import machine_line, one_thread
from deploy.demo.soundscape import RATE_HZ
from tests.rig.node import EDGEASD
from tests.rig.samples import Sample, take_sample
from tests.rig.sound import chunks
from tests.rig.trend import trend

_HOUR_FRAMES = 3600 * RATE_HZ
_CHUNK_S, _JOIN_S, _EVENT_EVERY = 600.0, 10.0, 3
"""Two events an hour."""
_SAMPLE_EVERY_S = 2.0
_WARM_UP_S = 60.0
_BUDGET_PER_H = 12.0


@dataclass(slots=True)
class Rows:
    """What the table of scores came to."""

    by_file: Counter[str] = field(default_factory=Counter)
    not_finite: int = 0
    invalid: int = 0
    out_of_order: int = 0
    digests: dict[str, int] = field(default_factory=dict)
    """By file: checksum of all but its name and date."""


def make_hours(folder: Path, *, hours: int, distinct: int) -> dict[str, int]:
    """Write the distinct hours and link them under dated names; return which hour lies behind each name."""
    sources = [folder / f"hour{number}" for number in range(min(distinct, hours))]
    for number, path in enumerate(sources):
        with soundfile.SoundFile(path, "w", RATE_HZ, 1, subtype="PCM_16", format="WAV") as file:
            for chunk in chunks(number, chunk_s=_CHUNK_S, join_s=_JOIN_S, event_every=_EVENT_EVERY):
                file.write(chunk[: _HOUR_FRAMES - file.frames])
                if file.frames == _HOUR_FRAMES:
                    break
    began = datetime(2026, 1, 1, tzinfo=UTC)
    behind = {}
    for hour in range(hours):
        name = f"hall_{began + timedelta(hours=hour):%Y%m%d_%H%M%S}.wav"
        (folder / name).hardlink_to(sources[hour % len(sources)])
        behind[name] = hour % len(sources)
    for path in sources:
        path.unlink()
    return behind


def replay(folder: Path, out: Path, more: Sequence[str]) -> tuple[list[Sample], float, float]:
    """Replay everything; return what the process weighed, and its wall and CPU seconds."""
    command = [EDGEASD, "replay", str(folder), "--out", str(out / "scores.csv"), "--events", str(out / "events.csv")]
    samples = []
    began_s = time.monotonic()
    with (out / "log").open("wb") as log, subprocess.Popen([*command, *more], env=one_thread(), stderr=log) as process:
        while process.poll() is None:
            time.sleep(_SAMPLE_EVERY_S)
            try:
                samples.append(take_sample(process.pid, out))
            except OSError:
                break
    if process.returncode:
        raise SystemExit(f"edgeasd replay ended with {process.returncode}: {(out / 'log').read_text()[-500:]}")
    return samples, time.monotonic() - began_s, samples[-1].cpu_s


def read_rows(path: Path, *, hop_s: float) -> Rows:
    """Read the table of scores once."""
    rows = Rows()
    digests: defaultdict[str, int] = defaultdict(int)
    with path.open(newline="") as handle:
        reader = csv.reader(handle)
        columns = {name: place for place, name in enumerate(next(reader))}
        scores = [columns[name] for name in ("score", "p_value")]
        start, valid, utc = columns["start_s"], columns["valid"], columns["start_utc"]
        for row in reader:
            file = row[0]
            rows.out_of_order += abs(float(row[start]) - rows.by_file[file] * hop_s) > 1e-6
            rows.by_file[file] += 1
            rows.invalid += row[valid] != "true"
            rows.not_finite += not all(math.isfinite(float(row[place])) for place in scores)
            row[0] = row[utc] = ""
            digests[file] = zlib.crc32(",".join(row).encode(), digests[file])
    rows.digests = dict(digests)
    return rows


def report(behind: dict[str, int], samples: Sequence[Sample], out: Path, *, hop_s: float) -> None:
    """Print the table's rows about what came out."""
    steady = [one for one in samples if one.at_s >= samples[0].at_s + _WARM_UP_S] or list(samples)
    times_s = np.array([one.at_s for one in steady])
    slope = trend([(times_s, np.array([one.rss_mb for one in steady]))], block_s=20.0)
    parts = np.array_split([one.rss_mb for one in steady], min(10, len(steady)))
    course = ", ".join(f"{np.median(part):.1f}" for part in parts)
    print(f"| resident memory, MB: tenth after tenth of the run; peak | {course}; {_peak(samples):.1f} |")
    print(f"| its slope per hour of the clock (95 %) | {slope} MB |")
    print(f"| descriptors, first and last | {steady[0].descriptors}, {steady[-1].descriptors} |")
    rows = read_rows(out / "scores.csv", hop_s=hop_s)
    expected = (_HOUR_FRAMES - RATE_HZ) // round(hop_s * RATE_HZ) + 1
    wrong = sum(count != expected for count in rows.by_file.values()) + len(behind) - len(rows.by_file)
    print(f"| rows; expected | {rows.by_file.total()}; {expected * len(behind)} |")
    print(f"| recordings with another number of rows than {expected} | {wrong} |")
    print(f"| rows out of order, not finite, invalid | {rows.out_of_order}, {rows.not_finite}, {rows.invalid} |")
    faces = defaultdict(set)
    for name, digest in rows.digests.items():
        faces[behind[name]].add(digest)
    print(f"| hours whose rows differ from one day to another | {sum(len(one) > 1 for one in faces.values())} |")
    with (out / "events.csv").open(newline="") as handle:
        per_file = Counter(row["file"] for row in csv.DictReader(handle))
    events = per_file.total()
    by_hour = [per_file[name] for name, _ in sorted(behind.items())[: len(faces)]]
    print(
        f"| events per day and per hour, 2 planted per hour, budget {_BUDGET_PER_H:g} | "
        f"{24 * events / len(behind):.1f}, {events / len(behind):.2f} |"
    )
    print(f"| events of each distinct hour | {', '.join(map(str, by_hour))} |")


def _peak(samples: Sequence[Sample]) -> float:
    return max(one.rss_mb for one in samples)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=int, default=720)
    parser.add_argument("--distinct", type=int, default=6)
    parser.add_argument("--hop", type=float, default=0.5)
    parser.add_argument("--bundle", type=Path, help="without: the second opinion alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeasd-month-") as work:
        folder, out = Path(work, "hall"), Path(work, "out")
        folder.mkdir()
        out.mkdir()
        behind = make_hours(folder, hours=arguments.hours, distinct=arguments.distinct)
        more = ["--hop", str(arguments.hop), *(["--bundle", str(arguments.bundle)] if arguments.bundle else [])]
        samples, wall_s, cpu_s = replay(folder, out, more)
        print(machine_line())
        print("\n| figure | value |\n|---|---|")
        judges = "model and second opinion" if arguments.bundle else "second opinion alone"
        print(f"| judges; hop | {judges}; {arguments.hop} s |")
        print(f"| sound | {arguments.hours} h, of which {min(arguments.distinct, arguments.hours)} distinct |")
        speed = f"{3600 * arguments.hours / wall_s:.0f} ({3600 * arguments.hours / cpu_s:.0f} by CPU time)"
        print(f"| wall, CPU | {wall_s:.0f}, {cpu_s:.0f} s |\n| times real time | {speed} |")
        report(behind, samples, out, hop_s=arguments.hop)


if __name__ == "__main__":
    main()
