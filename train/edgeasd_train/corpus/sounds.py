"""Decoded recordings as columns: a Sound is made when it is asked for, and none is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeasd_train.corpus.discover import Recordings
from edgeasd_train.corpus.shards import SoundIndex


class MappedFiles:
    """Files of one type of number, each mapped when first used; another process maps them for itself."""

    def __init__(self, paths: Iterable[Path], dtype: DTypeLike, *, width: int | None = None) -> None:
        """Map `paths` as vectors, or as matrices of `width` columns."""
        self._paths = tuple(paths)
        self._dtype = np.dtype(dtype)
        self._width = width
        self._maps: list[NDArray[Any] | None] = [None] * len(self._paths)

    def __getitem__(self, number: int) -> NDArray[Any]:
        """Return all numbers (n,) of a file, or (n, width), mapped, not read."""
        mapped = self._maps[number]
        if mapped is None:
            path, width = self._paths[number], self._width or 1
            n_rows = path.stat().st_size // (self._dtype.itemsize * width)  # whole ones: a kill may leave part of one
            shape = (n_rows,) if self._width is None else (n_rows, width)
            mapped = self._maps[number] = np.memmap(path, self._dtype, mode="r", shape=shape)
        return mapped

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": [None] * len(self._paths)}


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording as the workshop uses it: mono, at the model's rate, on disk as raw int16."""

    path: Path
    """The recording it was made from."""
    key: str
    """Names the recording's state, the rate and the channel."""
    n_frames: int
    sha256: str
    """Of the decoded samples: the same sound has the same digest wherever it lies."""
    _samples: NDArray[np.int16] = field(compare=False, repr=False)

    def samples(self) -> NDArray[np.int16]:
        """Return all samples (n_frames,), mapped, not read."""
        return self._samples


class Sounds(Sequence[Sound]):
    """The recordings of a corpus that could be decoded, in the order of their paths."""

    def __init__(
        self, recordings: Recordings, numbers: NDArray[np.int64], index: SoundIndex, entries: NDArray[np.int64]
    ) -> None:
        """Take, of `recordings`, those `numbers` (n,), whose sound is in the `entries` (n,) of `index`."""
        self._recordings = recordings
        self.numbers = numbers
        self.shards = index.shards
        self.shard = index.shard[entries]
        self.first_frame = index.first_frame[entries]
        self.n_frames = index.n_frames[entries]
        self.keys = index.keys[entries]
        self._sha256 = index.sha256[entries]
        self._samples = MappedFiles(index.shards, np.int16)

    def __len__(self) -> int:
        """Return the number of sounds."""
        return len(self.n_frames)

    @overload
    def __getitem__(self, index: int) -> Sound: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sound]: ...
    def __getitem__(self, index: int | slice) -> Sound | Sequence[Sound]:
        """Return one sound, or those of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return Sound(
            path=Path(self.name(number)),
            key=self.keys[number : number + 1].tobytes().hex(),
            n_frames=int(self.n_frames[number]),
            sha256=self.sha256(number),
            _samples=self.samples(number),
        )

    def name(self, number: int) -> str:
        """Return the path of the recording of a sound as text: quicker than a Path."""
        return self._recordings.name(int(self.numbers[number]))

    def sha256(self, number: int) -> str:
        """Return the digest of the samples of a sound."""
        digest: bytes = self._sha256[number].tobytes()
        return digest.hex()

    def samples(self, number: int) -> NDArray[np.int16]:
        """Return all samples (n_frames,) of a sound, mapped, not read."""
        first_frame = int(self.first_frame[number])
        return self._samples[int(self.shard[number])][first_frame : first_frame + int(self.n_frames[number])]
