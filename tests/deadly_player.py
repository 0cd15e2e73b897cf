"""A player that some recordings kill, as the kernel does when memory runs out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from edgeasd.archive.parts import Played
from edgeasd.archive.playing import Broke, Player, Setup, open_player
from edgeasd.archive.takes import Take


@contextmanager
def open_deadly_player(setup: Setup) -> Iterator[Player]:
    """Seat the judges; `deadly` kills the process that plays it each time, `risky` the first time only."""
    with open_player(setup) as play:

        def play_unless_deadly(take: Take) -> Played | Broke:
            scar = take.path.with_suffix(".scar")
            if "deadly" in take.path.name or ("risky" in take.path.name and not scar.exists()):
                scar.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return play(take)

        yield play_unless_deadly
