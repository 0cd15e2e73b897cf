"""The files of the systemd service: what comes with edgeasd, what is refused before anything is written."""

from __future__ import annotations

import fnmatch
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from edgeasd.cli import main
from edgeasd.commands.service import _BOOTED
from edgeasd.commands.unitfiles import Installation, packaged, packaged_drop_ins
from edgeasd.errors import UnavailableError

OUTSIDE = Path("/opt/edgeasd/bin/edgeasd")


def test_every_file_of_the_service_is_packaged(project_root: Path) -> None:
    patterns = tomllib.loads((project_root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "edgeasd"
    ]
    files = [path for path in (project_root / "systemd").rglob("*") if path.suffix in (".service", ".conf")]
    names = [f"units/{path.relative_to(project_root / 'systemd')}" for path in files]
    assert {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)} == set(names)
    assert packaged("edgeasd.service") == (project_root / "systemd/edgeasd.service").read_text()
    assert packaged_drop_ins() == ["jetson.conf", "nvidia.conf"]


def test_the_unit_starts_this_edgeasd_with_these_settings() -> None:
    plain = Installation(OUTSIDE, Path("/etc/edgeasd/config.yaml")).unit
    assert plain == packaged("edgeasd.service")
    odd = Installation(Path("/opt/50% $HOME/edgeasd"), Path('/etc/a "b"/c.yaml')).unit
    assert 'ExecStart="/opt/50%% $$HOME/edgeasd" run --config "/etc/a \\"b\\"/c.yaml"\n' in odd


@pytest.mark.parametrize("config", ["/root/config.yaml", "/home/me/config.yaml", "/tmp/config.yaml"])
def test_what_the_sandbox_would_hide_is_refused(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, "/usr")
    hidden = Path(config).parent
    with pytest.raises(UnavailableError, match=f"^{hidden} is in .*, hidden from the service: give --config in"):
        Installation(Path("/usr/bin/true"), Path(config)).refuse_unreachable()
    with pytest.raises(UnavailableError, match=r"hidden from the service: install edgeasd elsewhere, python3 -m venv"):
        Installation(Path("/root/venv/bin/edgeasd"), OUTSIDE).refuse_unreachable()


def test_what_only_its_owner_may_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeasd.commands.unitfiles._UNSEEN", ())
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, "/usr")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UnavailableError, match=" is closed to the service's user: install edgeasd elsewhere"):
        Installation(closed / "edgeasd", Path("/etc/edgeasd/config.yaml")).refuse_unreachable()


def test_a_dry_run_prints_all_and_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["service", "install", "--dry-run", "--gpu", "jetson", "--now"])
    out, err = capsys.readouterr()
    assert "# /etc/systemd/system/edgeasd.service\n" in out
    assert packaged("drop-ins/jetson.conf") in out
    assert out.endswith("# systemctl daemon-reload\n# systemctl enable --now edgeasd.service\n")
    assert (code, err) == (0, "") or err.count("\n") == 1  # one line where this environment would be refused


@pytest.mark.skipif(_BOOTED.is_dir() and shutil.which("systemctl") is not None, reason="systemd runs here")
@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_without_systemd_each_verb_is_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", verb]) == 69
    assert capsys.readouterr().err == (
        "edgeasd: systemd does not run here; `edgeasd run` under another supervisor does as well\n"
    )
