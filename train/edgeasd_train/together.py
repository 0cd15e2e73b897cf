"""What the first rank alone does, told to all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from edgeasd.errors import EdgeasdError
from edgeasd_train.ranks import Ranks

T = TypeVar("T")
_INTERRUPTED = 130


def once(ranks: Ranks, do: Callable[[], T]) -> T:
    """Have the first rank do it while the others wait, and return to all what came of it.

    When it fails, the error is raised on the first rank, and the others leave, without a word, with its exit code.
    """
    if ranks.is_alone:
        return do()
    if not ranks.is_first:
        outcome: T
        outcome, exit_code = _broadcast((None, 0))
        if exit_code:
            raise SystemExit(exit_code)
        return outcome
    try:
        outcome = do()
    except BaseException as exc:
        _broadcast((None, _exit_code(exc)))
        raise
    _broadcast((outcome, 0))
    return outcome


def _exit_code(exc: BaseException) -> int:
    if isinstance(exc, EdgeasdError):
        return exc.exit_code
    return _INTERRUPTED if isinstance(exc, KeyboardInterrupt) else 1


def _broadcast(told: tuple[Any, int]) -> tuple[Any, int]:
    """Return what the first rank passed."""
    import torch  # noqa: PLC0415  # only where there are several ranks

    objects = [told]
    torch.distributed.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
    return objects[0]
