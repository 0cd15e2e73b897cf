"""How many processes read recordings."""

from __future__ import annotations

from edgeasd.workers import usable_cores

MAX_WORKERS = 8


def default_workers(n_ranks: int) -> int:
    """Return how many processes a rank should use when `n_ranks` share this machine."""
    return max(1, min(MAX_WORKERS, usable_cores() // n_ranks))
