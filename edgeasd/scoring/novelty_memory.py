"""What the novelty detector keeps of the past: the last seconds in full, and of all before them one of each kind."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort

import numpy as np

from edgeasd.records import FloatArray


class Track:
    """The last `n_kept` rows of an endless table, addressed by absolute row number; a slice is one contiguous view."""

    def __init__(self, n_kept: int, width: int) -> None:
        self._n_kept = n_kept
        self._rows = np.zeros((n_kept + n_kept // 2 + 1, width), np.float32)
        self._first = 0  # absolute number of the first row held
        self._count = 0  # rows held

    def append(self, row: FloatArray) -> None:
        """Add one row (width,); the oldest leaves once `n_kept` newer ones are held."""
        if self._count == len(self._rows):
            surplus = self._count - self._n_kept
            self._rows[: self._n_kept] = self._rows[surplus:]
            self._first += surplus
            self._count = self._n_kept
        self._rows[self._count] = row
        self._count += 1

    def rows(self, first: int, stop: int) -> FloatArray:
        """Return rows [first, stop) as a view (k, width), fewer where they are no longer or not yet held."""
        oldest = self._first + max(0, self._count - self._n_kept)
        low = max(first, oldest) - self._first
        return self._rows[low : max(low, min(stop - self._first, self._count))]

    def row(self, number: int) -> FloatArray:
        """Return one row (width,) as a view."""
        row: FloatArray = self._rows[number - self._first]
        return row


class Memory:
    """Vectors of the past, no two closer than `radius_db`; at most `capacity`: then the one unused longest leaves."""

    def __init__(self, capacity: int, width: int, *, radius_db: float) -> None:
        self._rows = np.zeros((capacity, width), np.float32)
        self._used = np.zeros(capacity, np.int64)
        self._radius2 = radius_db**2
        self._count = 0
        self._clock = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> FloatArray:
        """Return what is remembered, a view (len(self), width)."""
        return self._rows[: self._count]

    def learn(self, vector: FloatArray) -> None:
        """Remember `vector` (width,), unless one like it is: then note that this one was heard again."""
        self._clock += 1
        if self._count:
            squared = mean_squares(self.rows - vector)
            nearest = int(squared.argmin())
            if squared[nearest] <= self._radius2:
                self._used[nearest] = self._clock
                return
        if self._count < len(self._rows):
            slot, self._count = self._count, self._count + 1
        else:
            slot = int(self._used.argmin())
        self._rows[slot] = vector
        self._used[slot] = self._clock


class RunningQuantile:
    """A quantile of the last `n_kept` numbers."""

    def __init__(self, n_kept: int, quantile: float = 0.5) -> None:
        self._quantile = quantile
        self._arrived = array("d", bytes(8 * n_kept))  # a ring
        self._ordered = array("d")
        self._count = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, number: float) -> None:
        """Take a number and forget the one that came `n_kept` before it."""
        slot = self._count % len(self._arrived)
        if self._count >= len(self._arrived):
            del self._ordered[bisect_left(self._ordered, self._arrived[slot])]
        self._arrived[slot] = number
        insort(self._ordered, number)
        self._count += 1

    def value(self) -> float:
        """Return the quantile, interpolated; there must be at least one number."""
        position = self._quantile * (len(self._ordered) - 1)
        low = int(position)
        high = min(low + 1, len(self._ordered) - 1)
        return self._ordered[low] + (position - low) * (self._ordered[high] - self._ordered[low])


def mean_squares(differences: FloatArray) -> FloatArray:
    """Return the mean square of each row of (k, width)."""
    squares: FloatArray = np.einsum("ij,ij->i", differences, differences)
    return np.divide(squares, np.float32(differences.shape[1]), out=squares)
