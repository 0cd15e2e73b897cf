"""The processes of one training: who this one is, as torchrun or SLURM says, and how they wait for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from edgeasd.errors import SettingsError, UnavailableError

_PATIENCE = timedelta(hours=24)
"""So long may one rank be busy while the others wait: decoding a million files takes hours. Who started the ranks
ends them all when one dies."""
_SLURM_SHELLS = ("bash", "interactive")
"""Names of SLURM jobs in which a person types: what is started there stands alone unless torchrun starts it."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    size: int
    local_rank: int
    """Rank among those of this machine: which GPU is its own."""
    n_nodes: int = 1
    """Machines, with as many ranks each."""
    launcher: Literal["", "torchrun", "slurm"] = ""

    @property
    def is_first(self) -> bool:
        """Return whether this is the rank that writes files and talks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Return whether there are no others."""
        return self.size == 1

    def barrier(self) -> None:
        """Wait until all ranks came here."""
        if not self.is_alone:
            import torch  # noqa: PLC0415

            torch.distributed.barrier()


ALONE = Ranks(rank=0, size=1, local_rank=0)


def current_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return which rank the environment makes of this process; SettingsError when it contradicts itself."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE")
        n_local = _number(environment, "LOCAL_WORLD_SIZE", default=size)
        ranks = Ranks(
            _number(environment, "RANK"), size, _number(environment, "LOCAL_RANK"), size // n_local, "torchrun"
        )
    elif "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in _SLURM_SHELLS:
        size = _number(environment, "SLURM_NTASKS", default=1)
        if size > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
            raise SettingsError("SLURM: say how many tasks a node runs with --ntasks-per-node, not with --ntasks")
        n_nodes = _number(environment, "SLURM_NNODES", default=1)
        ranks = Ranks(
            _number(environment, "SLURM_PROCID"), size, _number(environment, "SLURM_LOCALID"), n_nodes, "slurm"
        )
    else:
        return ALONE
    if not (0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.size and ranks.size % ranks.n_nodes == 0):
        raise SettingsError(f"{ranks.launcher}: rank {ranks.rank} of {ranks.size} on {ranks.n_nodes} nodes cannot be")
    return ranks


def _number(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise SettingsError(f"{name}: {text!r} is no number")
    return int(text)


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Bring the ranks together: gloo for what lies in memory, NCCL for what lies on GPUs. Lightning takes it over."""
    if ranks.is_alone:
        yield
        return
    import torch  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    address, port = _meeting_place(ranks)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpu else "gloo",
            init_method=f"tcp://{address}:{port}" if ranks.launcher == "slurm" else "env://",
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as exc:
        who, reason = f"rank {ranks.rank} of {ranks.size}", str(exc).splitlines()[0]
        raise UnavailableError(f"{who} cannot join the others at {address}:{port}: {reason}") from exc
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _meeting_place(ranks: Ranks) -> tuple[str, int]:
    """Return address and port of the first rank."""
    if ranks.launcher == "slurm":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # noqa: PLC0415

        cluster = SLURMEnvironment(auto_requeue=False)
        return cluster.main_address, cluster.main_port
    return os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
