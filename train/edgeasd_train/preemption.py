"""SLURM's warning that a job is about to end, before the first step of a fit and after its last.

Between the steps `checkpoints.py` answers it. Elsewhere there is nothing to save: what was decoded lies in the cache,
what was fitted in the checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeasd.errors import TemporaryError
from edgeasd_train.ranks import Ranks


@contextmanager
def queued_again(ranks: Ranks) -> Iterator[None]:
    """Have SIGUSR1 end what runs in here with a TemporaryError, and queue the SLURM job again."""
    if ranks.launcher != "slurm" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        if ranks.is_first:
            requeue()
        raise TemporaryError(f"training was ended by {signal.Signals(number).name}; --resume goes on from there")

    before = signal.signal(signal.SIGUSR1, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def requeue() -> None:
    """Put this SLURM job back into the queue; where that cannot be, TemporaryError says how to do it by hand."""
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False)  # noqa: S603, S607  # SLURM's own, from PATH
    except OSError as exc:
        raise TemporaryError(f"scontrol requeue {job}: {exc.strerror}; submit the job again, --resume goes on") from exc
    if done.returncode:
        raise TemporaryError(f"scontrol requeue {job}: refused; submit the job again, --resume goes on from there")
