"""What the novelty detector keeps of the past: the last seconds in full, and of all before them one of each kind."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import FloatArray

MOST_AT_ONCE = 64
"""Most rows a track takes at once."""
_BLOCK_NUMBERS = 1 << 16


class Track:
    """The last `n_kept` rows of an endless table, addressed by absolute row number; what is asked of it is a view.

    Rows before the beginning are there too and hold `before`, so that whoever looks back need not ask how far.
    """

    def __init__(self, n_kept: int, width: int, *, before: float = 0.0) -> None:
        self._n_kept = n_kept
        self._rows = np.full((n_kept + max(n_kept // 2, MOST_AT_ONCE), width), before, np.float32)
        self._first = -n_kept  # absolute number of the first row held
        self._count = n_kept  # rows held
        self._spans: dict[int, FloatArray] = {}

    def append(self, rows: FloatArray) -> None:
        """Add up to `MOST_AT_ONCE` rows (k, width); a row leaves once `n_kept` newer ones are held, or later."""
        if self._count + len(rows) > len(self._rows):
            surplus = self._count - self._n_kept
            self._rows[: self._n_kept] = self._rows[surplus : self._count]
            self._first += surplus
            self._count = self._n_kept
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def rows(self, first: int, stop: int) -> FloatArray:
        """Return rows [first, stop), (stop - first, width); they must be held."""
        assert self._first <= first <= stop <= self._first + self._count
        return self._rows[first - self._first : stop - self._first]

    def spans(self, first: int, stop: int, *, length: int) -> FloatArray:
        """Return (stop - first, length, width): for each row number in [first, stop) the rows from that one on."""
        assert self._first <= first
        assert stop - 1 + length <= self._first + self._count
        if length not in self._spans:
            windows = np.lib.stride_tricks.sliding_window_view(self._rows, length, axis=0)
            self._spans[length] = windows.transpose(0, 2, 1)
        return self._spans[length][first - self._first : stop - self._first]

    def pick(self, numbers: NDArray[np.int64]) -> FloatArray:
        """Return copies of the rows of these numbers (k,), (k, width)."""
        return self._rows[numbers - self._first]


class Known(NamedTuple):
    """All that a memory held at any of several moments: row c at those from `since[c]` to before `until[c]`."""

    rows: FloatArray
    """(n, width)."""
    since: NDArray[np.int64] | None = None
    """(n,); None: all of it at all moments."""
    until: NDArray[np.int64] | None = None

    def blot_out(self, *tables: FloatArray) -> None:
        """Put infinity into tables (moments, n) where a row was not held."""
        if self.since is None or self.until is None:
            return
        moments = np.arange(len(tables[0]))[:, None]
        absent = (moments < self.since) | (moments >= self.until)
        for table in tables:
            table[absent] = np.inf


class Memory:
    """Vectors of the past, no two closer than `radius_db`; at most `capacity`: then the one unused longest leaves."""

    def __init__(self, capacity: int, width: int, *, radius_db: float) -> None:
        self._rows = np.full((capacity, width), 0.0, np.float32)  # written: a node's memory is what it will be
        self._used = np.zeros(capacity, np.int64)
        self._radius2 = radius_db**2 * width
        self._count = 0
        self._clock = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> FloatArray:
        """Return what is remembered, a view (len(self), width)."""
        return self._rows[: self._count]

    def learn(self, vectors: FloatArray, *, n_moments: int | None = None) -> Known:
        """Remember each of `vectors` (k, width) in turn, unless one like it is: then note that it was heard again.

        Return what was known right after each: the moments are numbered from 0, and the k vectors are those of the
        last k of `n_moments`.
        """
        before, count = self.rows, self._count
        if not len(vectors):
            return Known(before)
        several = n_moments != 1
        squared = square_distances(vectors, before)
        least, nearest = _nearest(squared)
        changes: list[tuple[int, int]] = []  # (number of the vector, slot it went to)
        for number, vector in enumerate(vectors):
            if least[number] <= self._radius2:
                self._clock += 1
                self._used[nearest[number]] = self._clock
                continue
            if several and not changes:
                before = before.copy()
                squared = np.pad(
                    squared, ((0, 0), (0, min(len(vectors), len(self._rows) - count))), constant_values=np.inf
                )
            changes.append((number, self._take(vector)))
            if several:
                later = slice(number + 1, None)
                squared[later, changes[-1][1]] = square_distances(vectors[later], vector[None])[:, 0]
                least[later], nearest[later] = _nearest(squared[later])
        if not changes or not several:
            return Known(self.rows)
        return _known(before, vectors, changes, 0 if n_moments is None else n_moments - len(vectors))

    def _take(self, vector: FloatArray) -> int:
        """Put a vector into a free slot, or the one unused longest; return the slot."""
        self._clock += 1
        if self._count < len(self._rows):
            slot, self._count = self._count, self._count + 1
        else:
            slot = int(self._used.argmin())
        self._rows[slot] = vector
        self._used[slot] = self._clock
        return slot


def _nearest(squared: FloatArray) -> tuple[list[float], list[int]]:
    """Return the least of each row of (k, n), infinity where n is 0, and its place."""
    if not squared.shape[1]:
        return [np.inf] * len(squared), [0] * len(squared)
    return squared.min(axis=1).tolist(), squared.argmin(axis=1).tolist()


def _known(rows: FloatArray, vectors: FloatArray, changes: list[tuple[int, int]], n_before: int) -> Known:
    """Return what was known at each moment: `rows` before the changes, and what each change brought."""
    count = len(rows)
    since = np.zeros(count + len(changes), np.int64)
    until = np.full(count + len(changes), np.iinfo(np.int64).max)
    holder = {slot: slot for slot in range(count)}  # which row is in a slot
    for row, (number, slot) in enumerate(changes, count):
        since[row] = number + n_before
        if slot in holder:
            until[holder[slot]] = number + n_before
        holder[slot] = row
    return Known(np.concatenate([rows, vectors[[number for number, _ in changes]]]), since, until)


class RunningQuantile:
    """A quantile of the last `n_kept` numbers."""

    def __init__(self, n_kept: int, quantile: float = 0.5) -> None:
        self.n_kept = n_kept
        self._quantile = quantile
        self._arrived = array("d", bytes(8 * n_kept))  # a ring
        self._ordered = array("d")
        self._count = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, number: float) -> None:
        """Take a number and forget the one that came `n_kept` before it."""
        slot, ordered = self._count % self.n_kept, self._ordered
        if self._count >= self.n_kept:
            del ordered[bisect_left(ordered, self._arrived[slot])]
        self._arrived[slot] = number
        insort(ordered, number)
        self._count += 1

    def value(self) -> float:
        """Return the quantile, interpolated; there must be at least one number."""
        last = len(self._ordered) - 1
        position = self._quantile * last
        low = int(position)
        at = self._ordered[low]
        return at + (position - low) * (self._ordered[low + 1] - at) if low < last else at


def square_distances(vectors: FloatArray, *tables: FloatArray) -> FloatArray:
    """Return the sums of squared differences (k, n) of `vectors` (k, width) to the rows of tables.

    A table has shape (n_rows, width) or (k, n_rows, width); n is the number of rows in all. Each sum is made by itself,
    in one order, so that it does not depend on what else is asked for.
    """
    squares = np.empty((len(vectors), sum(table.shape[-2] for table in tables)), np.float32)
    first = 0
    for rows in tables:
        for block in blocks(len(vectors), rows):
            differences = vectors[block, None, :] - rows_for(block, rows)
            np.vecdot(differences, differences, out=squares[block, first : first + rows.shape[-2]])
        first += rows.shape[-2]
    return squares


def blocks(count: int, rows: FloatArray) -> Iterable[slice]:
    """Return slices of `count` vectors whose differences to `rows` stay in the processor's cache; none without rows."""
    n_each = rows.shape[-2] * rows.shape[-1]
    if count * n_each <= _BLOCK_NUMBERS:
        return (slice(0, count),) if n_each else ()
    step = max(1, _BLOCK_NUMBERS // n_each)
    return [slice(first, first + step) for first in range(0, count, step)]


def rows_for(block: slice, rows: FloatArray) -> FloatArray:
    """Return what of a table (n, width) or (k, n, width) the vectors of a block are compared with."""
    return rows if rows.ndim == 2 else rows[block]
