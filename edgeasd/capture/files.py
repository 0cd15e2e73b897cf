"""Recordings as sources: WAV by our own reader, FLAC and Ogg by libsndfile."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeasd.capture.convert import Channel, RateConverter, to_mono
from edgeasd.capture.timestamps import start_utc_ns
from edgeasd.capture.wav import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, WavReader, open_regular, shown_name
from edgeasd.clock import NS_PER_S, steady_ns
from edgeasd.errors import InputError
from edgeasd.records import AudioBlock, FloatArray, Gap

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac", ".ogg")
_PACED_BLOCK_S = 0.1
_FULL_SPEED_BLOCK_S = 4.0
_MAX_BLOCK_SAMPLES = 1 << 20
"""Of all channels together, whatever rate and number of channels a file claims."""
_MOST_FRAMES_PER_BYTE = 65535
"""What FLAC makes of silence at best; more cannot be in a file, so its header does not know its length."""
_SNDFILE_FORMATS = {".flac": (b"fLaC", "FLAC"), ".ogg": (b"OggS", "OGG")}


class Reader(Protocol):
    """An open recording."""

    truncated: bool

    def read(self, n_frames: int) -> FloatArray:
        """Return the next frames, shape (k, n_channels); k < n_frames only at the end."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class FileSource:
    """Plays one recording, from its first frame to its last.

    `speed` is how many times faster than it was recorded, paced by the monotonic clock; None is as fast as it is
    taken. `n_frames` and `duration_s` are what the file holds, in its own frames and in seconds; `began_utc_ns` is
    None when neither file nor name tells. Memory does not depend on the length of the recording.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        rate_hz: int,
        channel: Channel = "mix",
        speed: float | None = None,
        block_frames: int | None = None,
    ) -> None:
        """Open the file; `block_frames` counts frames of the file, by default 0.1 s paced, 4 s at full speed."""
        assert speed is None or speed > 0
        self.path = path
        self.name = name
        self.rate_hz = rate_hz
        self._channel = channel
        self._speed = speed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._playing = False
        self._reader, self.native_rate_hz, self.n_channels, self.n_frames, self.began_utc_ns = _open(path)
        if channel != "mix" and channel >= self.n_channels:
            self._reader.close()
            count = "1 channel" if self.n_channels == 1 else f"{self.n_channels} channels"
            raise InputError(f"{shown_name(path)}: has {count}, no channel {channel} (counted from 0)")
        block_s = _FULL_SPEED_BLOCK_S if speed is None else _PACED_BLOCK_S
        most_frames = _MAX_BLOCK_SAMPLES // self.n_channels
        self._block_frames = block_frames or min(round(block_s * self.native_rate_hz), most_frames)

    @property
    def duration_s(self) -> float:
        """Return the length of the recording."""
        return self.n_frames / self.native_rate_hz

    @property
    def truncated(self) -> bool:
        """Return whether the file turned out shorter than its header promises."""
        return self._reader.truncated

    def blocks(self) -> Iterator[AudioBlock | Gap]:
        """Yield the recording as contiguous blocks; there are no gaps in a file."""
        with self._lock:
            if self._stop.is_set():
                return
            assert not self._playing, "a source plays once"
            self._playing = True
        with closing(self._reader):
            first_frame = 0
            began_ns = steady_ns()
            for samples in self._samples():
                end_frame = first_frame + len(samples)
                if not self._await(end_frame, began_ns):
                    return
                yield AudioBlock(first_frame, samples, steady_ns())
                first_frame = end_frame

    def close(self) -> None:
        """End `blocks` and close the file."""
        with self._lock:
            self._stop.set()
            if not self._playing:
                self._reader.close()

    def _samples(self) -> Iterator[FloatArray]:
        """Yield non-empty mono arrays at the model's rate."""
        converter = RateConverter(self.native_rate_hz, self.rate_hz)
        while not self._stop.is_set():
            raw = self._reader.read(self._block_frames)
            samples = converter.push(to_mono(raw, self._channel))
            if len(samples):
                yield samples
            if len(raw) < self._block_frames:
                break
        else:
            return
        rest = converter.finish()
        if len(rest):
            yield rest

    def _await(self, end_frame: int, began_ns: int) -> bool:
        """Wait until the sound before `end_frame` would have happened; False when closed meanwhile."""
        if self._speed is None:
            return not self._stop.is_set()
        due_ns = began_ns + end_frame * NS_PER_S / (self.rate_hz * self._speed)
        return not self._stop.wait(max(0.0, (due_ns - steady_ns()) / NS_PER_S))


class _SndfileReader:
    """Reads FLAC or Ogg through libsndfile."""

    def __init__(self, path: Path, suffix: str) -> None:
        import soundfile  # noqa: PLC0415  # only FLAC and Ogg need libsndfile

        self._shown = shown_name(path)
        self._errors: Any = soundfile.LibsndfileError
        magic, kind = _SNDFILE_FORMATS[suffix]
        with open_regular(path) as file:
            if os.pread(file.fileno(), 4, 0) != magic:
                raise InputError(f"{self._shown}: does not hold the {kind} its name promises")
            self._n_bytes = os.fstat(file.fileno()).st_size
            try:  # by descriptor: behind the name there may be something else by now
                self._file = soundfile.SoundFile(os.dup(file.fileno()))
            except (self._errors, OSError) as error:
                raise InputError(f"{self._shown}: cannot be read as {kind}") from error
        self.rate_hz, self.n_channels = int(self._file.samplerate), int(self._file.channels)
        self.n_frames = int(self._file.frames)
        self.truncated = False
        self._frames_left = self.n_frames
        try:
            self._check(kind)
        except InputError:
            self._file.close()
            raise

    def _check(self, kind: str) -> None:
        if self._file.format != kind:
            raise InputError(f"{self._shown}: holds {self._file.format}, not the {kind} its name promises")
        if not 1 <= self.n_channels <= MAX_CHANNELS:
            raise InputError(f"{self._shown}: has {self.n_channels} channels; 1 to {MAX_CHANNELS} are read")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            limits = f"{MIN_RATE_HZ} to {MAX_RATE_HZ}"
            raise InputError(f"{self._shown}: has a sample rate of {self.rate_hz} Hz; {limits} are read")
        if self.n_frames <= 0:
            raise InputError(f"{self._shown}: holds no audio")
        if self.n_frames > self._n_bytes * _MOST_FRAMES_PER_BYTE:
            raise InputError(f"{self._shown}: does not say how long it is (a stream that was cut off?); encode it anew")

    def read(self, n_frames: int) -> FloatArray:
        """Return the next frames, shape (k, n_channels)."""
        try:
            samples = self._file.read(n_frames, dtype="float32", always_2d=True)
        except (self._errors, OSError) as error:
            raise InputError(f"{self._shown}: damaged behind frame {self.n_frames - self._frames_left}") from error
        self._frames_left -= len(samples)
        self.truncated = len(samples) < n_frames and self._frames_left > 0
        return np.asarray(samples, dtype=np.float32)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: Path) -> tuple[Reader, int, int, int, int | None]:
    """Return the reader, rate, number of channels, number of frames and start of a recording."""
    suffix = path.suffix.lower()
    if suffix in _SNDFILE_FORMATS:
        other = _SndfileReader(path, suffix)
        return other, other.rate_hz, other.n_channels, other.n_frames, start_utc_ns(path.name)
    wav = WavReader(path)
    info = wav.info
    return wav, info.rate_hz, info.n_channels, info.n_frames, start_utc_ns(path.name, info)


def length_s(path: Path) -> float:
    """Return the length of a recording as its header says, s; InputError when it cannot be read."""
    reader, rate_hz, _, n_frames, _ = _open(path)
    reader.close()
    return n_frames / rate_hz


def discover(paths: Sequence[Path], *, glob: str | None = None) -> list[Path]:
    """Return the recordings among files and directory trees, sorted, each once; InputError when there are none.

    In a tree, WAV, FLAC and Ogg files count whose path below it, or name, matches `glob`; hidden files do not, nor
    what lies behind links: whoever may write into the tree would choose what is read. A file that is named is taken
    whatever it is called, and through a link too.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(_in_tree(path, glob))
        elif path.exists():
            found.add(path)
        else:
            raise InputError(f"{shown_name(path)}: no such file or directory")
    if not found:
        where = ", ".join(shown_name(path) for path in paths[:3]) or "nothing"
        raise InputError(f"{where}: no WAV, FLAC or Ogg recording" + (f" that matches {glob}" if glob else ""))
    return sorted(found)


def _in_tree(root: Path, glob: str | None) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            wanted = glob is None or fnmatch(name, glob) or fnmatch(str(path.relative_to(root)), glob)
            if not wanted or name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if path.is_symlink():
                log.warning("%s: is a link and is passed over; name it to have it read", shown_name(path))
            elif path.is_file():
                yield path
