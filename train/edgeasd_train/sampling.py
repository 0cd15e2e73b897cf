"""Which windows make up which batch: a matter of seed, epoch and what is kept, of nothing else.

The windows of a step are the same under any number of ranks; each rank draws its share of them. Nothing is padded or
drawn twice; what does not fill a batch waits for an epoch in which it comes earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeasd.errors import InputError, SettingsError
from edgeasd_train.ranks import Ranks

Numbers = NDArray[np.int64]

_PERMUTED_WINDOWS = 1 << 22
"""Up to so many windows an epoch is a permutation in memory, 8 bytes a window; beyond, it is computed where needed."""
_ROUNDS = 6
"""Of the Feistel network: four make a pseudo-random permutation (Luby and Rackoff, 1988), two more cost little."""


class Kept:
    """The windows of a set that are still there: n less those dropped, by position, without a list of them."""

    def __init__(self, n_windows: int, dropped: Numbers | None = None) -> None:
        self.n_windows = n_windows
        self.dropped: Numbers = np.unique(np.empty(0, np.int64) if dropped is None else dropped)
        self._before = self.dropped - np.arange(len(self.dropped))  # how many kept windows lie before each dropped one

    def __len__(self) -> int:
        """Return how many are kept."""
        return self.n_windows - len(self.dropped)

    def numbers(self, positions: Numbers) -> Numbers:
        """Return the window numbers at `positions` (n,) among the kept ones, which are in order."""
        if len(self.dropped) == 0:
            return positions
        return positions + np.searchsorted(self._before, positions, side="right")

    def without(self, dropped: Numbers) -> Kept:
        """Return what is left when these go too."""
        return Kept(self.n_windows, np.concatenate([self.dropped, dropped]))

    def blocks(self, size: int) -> Iterator[Numbers]:
        """Yield all kept windows in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.numbers(np.arange(first, min(first + size, len(self)), dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Shares:
    """How a batch is cut: over the ranks, and on each into parts of which the gradients are added up."""

    batch_size: int
    ranks: Ranks
    accumulate: int

    def __post_init__(self) -> None:
        if self.batch_size % (self.ranks.size * self.accumulate):
            raise SettingsError(
                f"fit.batch_size: {self.batch_size} windows cannot be shared evenly by {self.ranks.size} ranks with "
                f"fit.accumulate {self.accumulate}"
            )

    def batch_of(self, n_windows: int) -> int:
        """Return the windows of a step: those asked for, or as many of `n_windows` as can be shared evenly."""
        n_parts = self.ranks.size * self.accumulate
        if n_windows < n_parts:
            raise InputError(f"{n_windows} windows to train on are too few for {n_parts} parts of a batch")
        return min(self.batch_size, n_windows // n_parts * n_parts)

    def parts(self, batch: Numbers) -> Iterator[Numbers]:
        """Yield what this rank takes of a batch, part by part."""
        mine = batch[self.ranks.rank :: self.ranks.size]
        yield from mine.reshape(self.accumulate, -1)


class SeededBatches:
    """One epoch of this rank, part by part, from step `first_step` on; what lies before is not drawn."""

    def __init__(
        self, kept: Kept, shares: Shares, *, max_steps: int, seed: int, epoch: int = 0, first_step: int = 0
    ) -> None:
        self._kept = kept
        self._shares = shares
        self._batch_size = shares.batch_of(len(kept))
        self._seed = (seed, epoch)
        self._first_step = first_step
        self.n_steps = min(len(kept) // self._batch_size, max_steps)
        """Of the whole epoch."""

    def __len__(self) -> int:
        """Return the number of parts to come."""
        return (self.n_steps - self._first_step) * self._shares.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the window numbers of each part."""
        order = Order(len(self._kept), seed=self._seed)
        for step in range(self._first_step, self.n_steps):
            batch = order.positions(step * self._batch_size, (step + 1) * self._batch_size)
            for part in self._shares.parts(self._kept.numbers(batch)):
                yield part.tolist()


class Order:
    """A shuffled order of the numbers below n, any stretch of which can be asked for."""

    def __init__(self, n: int, *, seed: tuple[int, ...], permuted: int = _PERMUTED_WINDOWS) -> None:
        self._n = n
        random = np.random.default_rng(seed)
        self._order = random.permutation(n) if n <= permuted else None
        self._half_bits = (max(n - 1, 1).bit_length() + 1) // 2
        self._keys = random.integers(1 << 63, size=_ROUNDS, dtype=np.uint64)

    def positions(self, first: int, end: int) -> Numbers:
        """Return the numbers at places [first, end) of the order."""
        if self._order is not None:
            return self._order[first:end]
        found = self._encrypt(np.arange(first, end, dtype=np.uint64))
        while (outside := found >= self._n).any():  # the cipher's domain is up to four times n: walk on until inside
            found[outside] = self._encrypt(found[outside])
        return found.astype(np.int64)

    def _encrypt(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Map numbers of two half-words one to one on such numbers: a Feistel network."""
        bits, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        left, right = numbers >> bits, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        return (left << bits) | right


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words of which every bit depends on every bit of the word before (the finaliser of splitmix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class HeldOutBatches:
    """This rank's share of a set, in order: each window on one rank only, and as many batches on every rank."""

    def __init__(self, n_windows: int, ranks: Ranks, *, at_most: int) -> None:
        if n_windows < ranks.size:
            raise InputError(f"{n_windows} windows held out are too few for {ranks.size} ranks")
        self._n_windows = n_windows
        self._ranks = ranks
        self._n_batches = -(-n_windows // (at_most * ranks.size))

    def __len__(self) -> int:
        """Return the number of batches of a rank."""
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the window numbers of each batch: cells of a set cut into equal ones, as near as can be."""
        n_cells = self._n_batches * self._ranks.size
        for cell in range(self._ranks.rank * self._n_batches, (self._ranks.rank + 1) * self._n_batches):
            yield list(range(cell * self._n_windows // n_cells, (cell + 1) * self._n_windows // n_cells))
