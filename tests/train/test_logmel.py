"""Log mel is computed once, to the bit as a node computes it, and windows of it come by the batch."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgeasd.errors import CannotWriteError
from edgeasd.features.mel import MelFrontEnd, MelSpec
from edgeasd.records import FloatArray
from edgeasd_train.calibrate import node_inputs
from edgeasd_train.corpus import Corpus, WindowIndex, logmel, open_corpus
from edgeasd_train.corpus.logmel import LogMelStore, LogMelWindows
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import DataRecipe
from tests.wav import RATE_HZ, noise, write

SPECS = {
    "default": MelSpec(),
    "upper half": MelSpec(n_mels=128, hop_frames=512, rows=(64, 128), mel_scale="slaney", norm="slaney"),
    "power, hop as long as the FFT": MelSpec(n_fft=256, hop_frames=256, n_mels=20, scale="power"),
}


def corpus_of(folder: Path, cache: Path) -> Corpus:
    return open_corpus(DataRecipe(paths=[folder]), cache_dir=cache, grid_frames=400)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    for i, duration_s in enumerate((61.0, 2.0, 3.3, 0.05, 1.0)):  # the fourth is shorter than one FFT
        write(tmp_path / "in" / f"{i}.wav", noise(duration_s, seed=i))
    return corpus_of(tmp_path / "in", tmp_path / "cache")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of the front end got."""
    lengths: list[int] = []
    plain = MelFrontEnd.window_log_mel

    def counted(self: MelFrontEnd, samples: FloatArray) -> FloatArray:
        lengths.append(len(samples))
        return plain(self, samples)

    monkeypatch.setattr(MelFrontEnd, "window_log_mel", counted)
    return lengths


def as_float(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> FloatArray:
    return samples.astype(np.float32) / np.float32(32768.0)


def check(store: LogMelStore, corpus: Corpus) -> None:
    """Compare every frame with what a node computes, of the whole sound and of the sound as it streams in."""
    whole, streaming = MelFrontEnd(store.spec), MelFrontEnd(store.spec)
    for number, sound in enumerate(corpus.sounds):
        samples = as_float(sound.samples())
        frames = store.frames(number)
        assert frames.shape == (store.spec.n_frames(sound.n_frames), store.spec.n_rows)
        assert np.array_equal(frames, whole.window_log_mel(samples).T)
        pushed = [streaming.push(samples[first : first + 1600]) for first in range(0, len(samples), 1600)]
        assert np.array_equal(frames, np.concatenate(pushed))
        streaming.reset()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("piece_frames", "chunk_frames"), [(16_384, 2048), (257, 93), (128, 1)])
def test_every_frame_is_to_the_bit_what_a_node_computes(
    name: str, piece_frames: int, chunk_frames: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logmel, "PIECE_FRAMES", piece_frames)
    monkeypatch.setattr(logmel, "_CHUNK_FRAMES", chunk_frames)
    check(LogMelStore(corpus, SPECS[name], cache_dir=tmp_path / "cache"), corpus)


def test_worker_processes_write_the_same(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logmel, "_SMALL_FRAMES", 0)
    monkeypatch.setattr(logmel, "_TASK_FRAMES", 200_000)
    monkeypatch.setattr(logmel, "PIECE_FRAMES", 500)
    told: list[float] = []
    check(LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache", workers=2, on_piece=told.append), corpus)
    assert told == sorted(told)
    assert len(told) > 2
    assert told[-1] == 1.0


def test_real_recordings_are_to_the_bit_what_a_node_computes(recordings: Path, tmp_path: Path) -> None:
    path = min((recordings / "streams").glob("*.flac"), key=lambda path: path.stat().st_size)
    corpus = corpus_of(path, tmp_path)
    check(LogMelStore(corpus, MelSpec(), cache_dir=tmp_path), corpus)


def test_log_mel_is_computed_once_and_mapped(corpus: Corpus, tmp_path: Path, computed: list[int]) -> None:
    first = LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    assert isinstance(first.frames(0), np.memmap)
    assert computed
    computed.clear()
    again = LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    assert np.array_equal(again.frames(0), first.frames(0))
    assert computed == []
    other = LogMelStore(corpus, MelSpec(n_mels=32), cache_dir=tmp_path / "cache")
    assert other.frames(0).shape[1] == 32
    assert computed


def test_of_a_corpus_that_grows_only_what_is_new_is_computed(
    corpus: Corpus, tmp_path: Path, computed: list[int]
) -> None:
    LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    computed.clear()
    write(tmp_path / "in" / "9.wav", noise(4.0, seed=9))
    grown = corpus_of(tmp_path / "in", tmp_path / "cache")
    store = LogMelStore(grown, MelSpec(), cache_dir=tmp_path / "cache")
    assert len(computed) == 1
    check(store, grown)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [(".done", _cut), (".done", _zero), (".done", Path.unlink), (".f32", _cut), (".f32", Path.unlink)],
)
def test_what_a_crash_left_half_done_is_computed_again(
    suffix: str, spoil: Callable[[Path], None], corpus: Corpus, tmp_path: Path, computed: list[int]
) -> None:
    LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    spoil(next(tmp_path.rglob(f"*{suffix}")))
    computed.clear()
    check(LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache"), corpus)
    computed.clear()
    LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    assert computed == []


def test_records_of_a_file_that_was_lost_are_not_believed_when_it_grows_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logmel, "_TASK_FRAMES", 16_000)
    monkeypatch.setattr(logmel, "PIECE_FRAMES", 100)
    LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")
    path = next(tmp_path.rglob("*.f32"))
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(logmel, "work", lambda *_, **__: iter(()))
        LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")  # killed before anything was computed
    path.write_bytes(bytes(4 << 20))  # a worker got as far as the last piece
    check(LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache"), corpus)


def test_a_disk_that_is_full_is_named(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full_disk)
    with pytest.raises(CannotWriteError, match="No space left"):
        LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache")


def windows_of(corpus: Corpus, tmp_path: Path, spec: MelSpec | None = None) -> LogMelWindows:
    index = WindowIndex(corpus.train, window_frames=RATE_HZ, hop_frames=1600)
    return LogMelWindows(corpus, index, LogMelStore(corpus, spec or MelSpec(), cache_dir=tmp_path / "cache"))


def test_windows_hold_to_the_bit_what_a_node_would_hear(corpus: Corpus, tmp_path: Path) -> None:
    windows = windows_of(corpus, tmp_path)
    numbers = np.random.default_rng(0).integers(0, len(windows), 200)
    batch = windows.batch(numbers)
    assert batch["log_mel"].shape == (200, 64, 38)
    assert batch["log_mel"].flags.c_contiguous
    assert batch["index"].tolist() == numbers.tolist()
    sounds, firsts = windows.index.locate(numbers)
    assert len(set(sounds.tolist())) > 1
    front_end = MelFrontEnd(MelSpec())
    waves = node_inputs(windows, numbers, waveform=True)["waveform"]
    for log_mel, wave, sound, first in zip(batch["log_mel"], waves, sounds.tolist(), firsts.tolist(), strict=True):
        samples = as_float(corpus.sounds[sound].samples()[first : first + RATE_HZ])
        assert np.array_equal(wave, samples)
        assert np.array_equal(log_mel, front_end.window_log_mel(samples))
    assert np.array_equal(node_inputs(windows, numbers)["log_mel"], batch["log_mel"])


def test_a_batch_says_section_and_domain_of_each_window(tmp_path: Path) -> None:
    for section, domain in ((0, "source"), (2, "target")):
        name = f"section_{section:02}_{domain}_train_normal_0001_a.wav"
        write(tmp_path / "fan" / "train" / name, noise(5.0))
    batch = windows_of(corpus_of(tmp_path / "fan", tmp_path / "cache"), tmp_path).batch(np.array([0, 40, 60, 3]))
    assert batch["section"].tolist() == [0, 2, 2, 0]
    assert batch["domain"].tolist() == [0, 1, 1, 0]
    assert {batch[name].dtype for name in ("index", "section", "domain")} == {np.dtype(np.int64)}


def test_tensors_are_the_same_numbers(corpus: Corpus, tmp_path: Path) -> None:
    from edgeasd_train.features import TorchWindows

    windows = windows_of(corpus, tmp_path)
    dataset, numbers = TorchWindows(windows), [7, 1, 300]
    assert len(dataset) == len(windows)
    batch, tensors = windows.batch(np.array(numbers)), dataset.__getitems__(numbers)
    assert set(batch) == set(tensors)
    assert all(np.array_equal(batch[name], tensors[name].numpy()) for name in batch)
    assert dataset[7]["log_mel"].shape == (1, 64, 38)


def test_another_process_gets_places_not_sound(corpus: Corpus, tmp_path: Path) -> None:
    windows = windows_of(corpus, tmp_path)
    before = windows.batch(np.arange(5))
    pickled = pickle.dumps(windows)
    assert len(pickled) < 10_000
    assert np.array_equal(pickle.loads(pickled).batch(np.arange(5))["log_mel"], before["log_mel"])


def test_ranks_share_the_shards_and_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    from edgeasd_train.corpus import shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    for i in range(6):
        write(tmp_path / "in" / f"{i}.wav", noise(2.0, seed=i))
    corpus = corpus_of(tmp_path / "in", tmp_path / "cache")
    meeting = threading.Barrier(2)
    monkeypatch.setattr(Ranks, "barrier", lambda self: meeting.wait(timeout=30) and None)

    def in_rank(rank: int) -> None:
        check(LogMelStore(corpus, MelSpec(), cache_dir=tmp_path / "cache", ranks=Ranks(rank, 2, rank)), corpus)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(in_rank, range(2)))
    assert len(corpus.sounds.shards) == 6
    assert len(computed) == 6 + 2 * 6  # once each to store, and for each rank to check
