"""A real systemd, booted by systemd-nspawn on an overlay of this machine's files, gone without a trace at the end.

The container lives in mount and process namespaces of its own whose first process dies with us, so that the kernel
clears up whatever happens. It shares the network with us: a broker on loopback is the same inside and outside.
"""

from __future__ import annotations

import os
import shlex
import shutil
import site
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import psutil

_PROGRAMS = {"systemd-nspawn": "systemd-container", "systemctl": "systemd", "dbus-daemon": "dbus"}
_TOOLS = ("unshare", "nsenter", "setpriv")
_CGROUPS = tuple(Path("/sys/fs/cgroup", name) for name in ("", "unified", "systemd"))
_NAME = "edgeasd-rig-"
_MASKED = (
    *("systemd-udevd.service", "systemd-resolved.service", "systemd-networkd.service", "systemd-timesyncd.service"),
    *("systemd-logind.service", "systemd-sysctl.service", "systemd-modules-load.service", "getty.target"),
    *("systemd-remount-fs.service", "console-getty.service", "systemd-journal-flush.service", "timers.target"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "remote-fs.target", "dev-hugepages.mount"),
    *("systemd-binfmt.service", "systemd-random-seed.service", "systemd-sysusers.service", "systemd-pstore.service"),
)
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_BOOT = """
set -eu
for group in {cgroups}; do mkdir "$group" && echo $$ > "$group/cgroup.procs"; done
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd  # where nspawn leaves things
mount -t tmpfs tmpfs {scratch}
mkdir {scratch}/upper {scratch}/work {scratch}/root
mount -t overlay overlay -o lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work {scratch}/root
rm -rf {scratch}/root/etc/systemd/system/* {scratch}/root/opt
cp -a {seed}/. {scratch}/root/
exec systemd-nspawn --quiet --register=no --keep-unit --boot --console=read-only --machine={name} \\
    -D {scratch}/root {binds}
"""


def available() -> str | None:
    """Return why no systemd can be booted on this machine, None when it can be tried."""
    missing = {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    missing |= {"util-linux" for tool in _TOOLS if shutil.which(tool) is None}
    if missing:
        return f"needs the packages {' '.join(sorted(missing))}"
    return None if os.geteuid() == 0 else "needs root"


class RefusedError(Exception):
    """Raised when the kernel, or the container we are in, does not let systemd boot; says why."""


class Machine:
    """A booted systemd with edgeasd in /opt/edgeasd, as pip would have put it there.

    `seed` holds files to lay over the root; `binds` are directories of this machine by their place inside, to be read.
    """

    def __init__(self, folder: Path, *, binds: Mapping[str, Path] | None = None) -> None:
        self._folder = folder
        self.seed = folder / "seed"
        self._binds = {
            "/opt/python": Path(sys.base_prefix),
            "/opt/site-packages": Path(site.getsitepackages()[0]),
            **(binds or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        (folder / "overlay").mkdir(parents=True)
        _seed(self.seed)

    def boot(self, *, timeout_s: float = 60.0) -> Self:
        """Start it and wait until it has come up; RefusedError when it cannot."""
        _remove_cgroups_of_the_dead()
        groups = [group / f"{_NAME}{os.getpid()}" for group in _CGROUPS if (group / "cgroup.procs").exists()]
        script = _BOOT.format(
            name=f"{_NAME}{os.getpid()}",
            cgroups=" ".join(map(str, groups)),
            scratch=shlex.quote(str(self._folder / "overlay")),
            seed=shlex.quote(str(self.seed)),
            binds=" ".join(shlex.quote(f"--bind-ro={path}:{inside}") for inside, path in self._binds.items()),
        )
        with (self._folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--mount-proc"),
                    *("--kill-child=KILL", "bash", "-c", script),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_booted(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Kill everything in it; its files vanish with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
        _remove_cgroups_of_the_dead(mine=True)

    def path(self, inside: str) -> Path:
        """Return where a file of the machine is seen from outside."""
        return Path(f"/proc/{self._init}/root{inside}")

    def run(self, *command: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-n", "-C", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/opt/edgeasd/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def show(self, unit: str) -> dict[str, str]:
        """Return what systemd knows about a unit."""
        return dict(line.partition("=")[::2] for line in self.run("systemctl", "show", unit).stdout.splitlines())

    def journal(self, unit: str) -> str:
        """Return what a unit has logged, and systemd about it."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit).stdout

    def wait(
        self, unit: str, condition: Callable[[dict[str, str]], bool], *, what: str, timeout_s: float = 60.0
    ) -> dict[str, str]:
        """Wait until a condition holds for what `show` returns, and return that."""
        until_s = time.monotonic() + timeout_s
        while not condition(said := self.show(unit)):
            assert time.monotonic() < until_s, f"waited {timeout_s:g} s for {what}:\n{self.journal(unit)[-3000:]}"
            threading.Event().wait(0.1)
        return said

    def _wait_booted(self, until_s: float) -> None:
        assert self._process is not None
        while True:
            self._init = self._init or _init_of(self._process.pid)
            asked = ("systemctl", "is-active", "multi-user.target")
            if self._init and self.run(*asked, check=False).stdout.strip() == "active":
                return
            if self._process.poll() is not None or time.monotonic() > until_s:
                log = (self._folder / "boot.log").read_text(errors="replace")
                raise RefusedError(f"systemd does not boot in a container here: {' '.join(log.split())[-300:]}")
            threading.Event().wait(0.1)


def _seed(seed: Path) -> None:
    """Lay out the files of the machine: few units, and an environment of its own with a copy of edgeasd."""
    units = seed / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in _MASKED:
        (units / unit).symlink_to("/dev/null")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    libraries = seed / "etc/ld.so.conf.d"
    libraries.mkdir()
    (libraries / "python.conf").write_text("/opt/python/lib\n")
    packages = seed / f"opt/edgeasd/lib/{_PYTHON}/site-packages"
    source = Path(__file__).parents[2] / "edgeasd"
    shutil.copytree(source, packages / "edgeasd", ignore=shutil.ignore_patterns("__pycache__"))
    (packages / "others.pth").write_text("/opt/site-packages\n")
    programs = seed / "opt/edgeasd/bin"
    programs.mkdir()
    (programs / "python").symlink_to(f"/opt/python/bin/{_PYTHON}")
    (programs / "edgeasd").write_text(
        "#!/opt/edgeasd/bin/python\nimport sys\nfrom edgeasd.cli import main\nsys.exit(main())\n"
    )
    (programs / "edgeasd").chmod(0o755)
    (seed / "opt/edgeasd/pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")


def _init_of(pid: int) -> int:
    """Return the process id, as seen here, of the container's systemd; 0 while there is none."""
    for process in psutil.Process(pid).children(recursive=True):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        spaces = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        if status.startswith("Name:\tsystemd\n") and spaces[-1] == "1":
            return int(process.pid)
    return 0


def _remove_cgroups_of_the_dead(*, mine: bool = False) -> None:
    for root in _CGROUPS:
        for group in root.glob(f"{_NAME}*"):
            pid = int(group.name.removeprefix(_NAME))
            if mine if pid == os.getpid() else not psutil.pid_exists(pid):
                _remove_cgroup(group)


def _remove_cgroup(group: Path) -> None:
    until_s = time.monotonic() + 5.0
    while group.exists() and time.monotonic() < until_s:  # what was killed may still be leaving
        for path, _, _ in os.walk(group, topdown=False):
            try:
                Path(path).rmdir()
            except OSError:
                threading.Event().wait(0.05)
