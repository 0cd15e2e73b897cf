"""`edgeasd service`: the node under systemd."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeasd.commands.common import JsonOption, print_json
from edgeasd.errors import NoPermissionError, UnavailableError

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

_CONFIG = Path("/etc/edgeasd/config.yaml")
_BOOTED = Path("/run/systemd/system")
_SHOWN = (
    *("LoadState", "ActiveState", "SubState", "StatusText", "UnitFileState", "MainPID", "NRestarts"),
    *("ActiveEnterTimestamp", "Result", "ExecMainStatus", "MemoryCurrent", "FragmentPath", "DropInPaths"),
)


class Gpu(StrEnum):
    """Machines whose GPU needs more of the sandbox."""

    NVIDIA = "nvidia"
    JETSON = "jetson"


DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, do nothing.")]


@app.command()
def install(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="Settings file of the service.")
    ] = _CONFIG,
    *,
    gpu: Annotated[Gpu | None, typer.Option(help="Add what this GPU needs, as a drop-in.")] = None,
    now: Annotated[bool, typer.Option("--now", help="Start it as well.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Install the unit for this very edgeasd, and enable it; changes made by drop-ins survive."""
    from edgeasd.commands.unitfiles import UNIT, UNIT_DIR, packaged, put_drop_in, put_unit, this_installation

    installation = this_installation(config)
    drop_in = None if gpu is None else f"{gpu.value}.conf"
    if dry_run:
        print(f"# {UNIT_DIR / UNIT}\n{installation.unit}", end="")
        if drop_in is not None:
            print(f"\n# {UNIT_DIR / UNIT}.d/{drop_in}\n{packaged(f'drop-ins/{drop_in}')}", end="")
        print(f"\n# systemctl daemon-reload\n# systemctl enable {'--now ' if now else ''}{UNIT}")
        installation.refuse_unreachable()
        return
    _require_systemd()
    _require_root()
    installation.refuse_unreachable()
    for line in put_unit(UNIT_DIR, installation.unit):
        print(line)
    for line in put_drop_in(UNIT_DIR, drop_in) if drop_in is not None else ():
        print(line)
    _systemctl("daemon-reload")
    _systemctl("enable", *(["--now"] if now else []), UNIT)
    print(f"enabled {UNIT}{' and started it' if now else ''}")
    if not installation.config.exists():
        print(f"still to do: edgeasd config init {installation.config}, and fill it in")
    elif not installation.config.stat().st_mode & stat.S_IROTH:
        print(f"still to do: chmod 644 {installation.config}: the service has a user of its own")
    if not now:
        print(f"start it with: systemctl start {UNIT}")


@app.command()
def uninstall(*, dry_run: DryRunOption = False) -> None:
    """Stop and remove the service; settings, credentials and state stay, and drop-ins that were changed by hand."""
    from edgeasd.commands.unitfiles import UNIT, UNIT_DIR, remove

    if dry_run:
        print(f"# systemctl disable --now {UNIT}\n# remove {UNIT_DIR / UNIT}\n# systemctl daemon-reload")
        return
    _require_systemd()
    _require_root()
    if (UNIT_DIR / UNIT).exists():
        _systemctl("disable", "--now", UNIT)
    for line in remove(UNIT_DIR):
        print(line)
    _systemctl("daemon-reload")
    print("kept /etc/edgeasd and /var/lib/edgeasd")


@app.command()
def status(*, as_json: JsonOption = False) -> None:
    """Say how the service fares; exit 69 when it does not run."""
    from edgeasd.commands.unitfiles import UNIT

    _require_systemd()
    answer = _systemctl("show", UNIT, f"--property={','.join(_SHOWN)}")
    said = dict(line.partition("=")[::2] for line in answer.splitlines())
    if as_json:
        print_json(said)
    else:
        print("\n".join(_told(UNIT, said)))
    if said["ActiveState"] not in ("active", "reloading"):
        raise typer.Exit(UnavailableError.exit_code)


def _told(unit: str, said: dict[str, str]) -> list[str]:
    if said["LoadState"] == "not-found":
        return [f"{unit} is not installed: edgeasd service install"]
    since = f" since {said['ActiveEnterTimestamp']}" if said["ActiveEnterTimestamp"] else ""
    lines = [f"{unit} is {said['ActiveState']} ({said['SubState']}){since}, {said['UnitFileState']}"]
    if said["StatusText"]:
        lines.append(f"it says: {said['StatusText']}")
    if said["MainPID"] != "0":
        memory = said["MemoryCurrent"]
        mib = f", {int(memory) / 2**20:.0f} MiB" if memory.isdecimal() else ""
        lines.append(f"process {said['MainPID']}{mib}, restarted {said['NRestarts']} times")
    elif said["Result"] != "success":
        lines.append(f"it ended: {said['Result']}, status {said['ExecMainStatus']}; journalctl -u {unit} says more")
    drop_ins = f", with {said['DropInPaths']}" if said["DropInPaths"] else ""
    lines.append(f"unit {said['FragmentPath']}{drop_ins}")
    return lines


def _require_systemd() -> None:
    if shutil.which("systemctl") is None or not _BOOTED.is_dir():
        raise UnavailableError("systemd does not run here; `edgeasd run` under another supervisor does as well")


def _require_root() -> None:
    if os.geteuid() != 0:
        raise NoPermissionError("only root may change services: use sudo, or --dry-run to see what would be done")


def _systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode != 0:
        raise UnavailableError(f"systemctl {' '.join(arguments)}: {done.stderr.strip() or 'failed'}")
    return done.stdout
