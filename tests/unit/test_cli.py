"""The command line as a shell sees it: exit codes, one line, nothing leaked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from edgeasd import cli, errors

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(*args, **variables): edgeasd in a process of its own, with a bare environment."""

    def call(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
        return subprocess.run(
            [sys.executable, "-m", "edgeasd.cli", *args],
            env=environment,
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    return call


def _refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("edgeasd: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_help_lists_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.help.split()[0] in done.stdout


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.extra is None])
def test_a_command_says_of_itself_what_the_list_says(name: str) -> None:
    command = cli.COMMANDS[name]
    loaded = cli.load(command)
    if not isinstance(loaded, typer.Typer):
        assert (loaded.__doc__ or "").splitlines()[0] == command.help


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.extra is None])
def test_every_command_of_the_node_has_help(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: edgeasd {name}" in done.stdout


def test_version(run: Run) -> None:
    assert run("version").stdout == run("--version").stdout
    assert json.loads(run("version", "--json").stdout)["libraries"]["numpy"]


@pytest.mark.parametrize("args", [[], ["nonsense"], ["config"], ["config", "nonsense"], ["version", "--nonsense"]])
def test_a_usage_error_is_exit_2(run: Run, args: list[str]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error", [kind for kind in vars(errors).values() if isinstance(kind, type)
                                   and issubclass(kind, errors.EdgeasdError)])  # fmt: skip
def test_each_error_becomes_its_exit_code_and_one_line(
    error: type[errors.EdgeasdError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error("first line\nsecond line")

    monkeypatch.setattr(cli, "load", lambda _command: fails)
    assert cli.main(["version"]) == error.exit_code
    assert capsys.readouterr().err == "edgeasd: first line second line\n"


def test_the_workshop_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("edgeasd_train", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)

    def missing(_command: cli.Command) -> object:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli, "load", missing)
    assert cli.main(["train", "DIR"]) == errors.UnavailableError.exit_code
    assert capsys.readouterr().err == (
        "edgeasd: `edgeasd train` needs torch, which is not installed: pip install 'edgeasd[train]'\n"
    )


def test_config_init_writes_once_and_validates(run: Run, tmp_path: Path) -> None:
    assert run("config", "init", "node.yaml").stdout == "wrote node.yaml\n"
    assert "node.yaml: file exists" in _refused(run("config", "init", "node.yaml"), 73)
    done = run("config", "validate", "node.yaml")
    assert (done.returncode, done.stdout) == (0, "ok: node.yaml\n")
    assert run("config", "init").stdout == (tmp_path / "node.yaml").read_text()


def test_config_validate_says_everything_that_is_wrong(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("engine: cuda\nmqtt:\n  port: 70000\n")
    done = run("config", "validate", "node.yaml")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        "edgeasd: engine: 'cuda' is not one of 'auto', 'onnx', 'torch', 'tensorrt' (from node.yaml line 1)\n"
        "edgeasd: mqtt.port: 70000 is above 65535 (from node.yaml line 3)\n"
    )


def test_config_validate_warns_of_what_has_no_effect(run: Run) -> None:
    done = run("config", "validate", EDGEASD_ENGINE="onnx")
    assert done.returncode == 0
    assert done.stderr == "warning: engine has no effect unless a bundle is installed: none is set\n"


def test_config_is_found_in_the_home_directory(run: Run, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "edgeasd" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("node: {name: from-home}")
    if Path("/etc/edgeasd/config.yaml").exists():
        pytest.skip("this machine has /etc/edgeasd/config.yaml, which comes first")
    assert json.loads(run("config", "show", "--json").stdout)["node"]["name"] == "from-home"


def test_a_wrong_setting_is_one_line_and_exit_78(run: Run) -> None:
    said = _refused(run("config", "show", EDGEASD_MQTT__PORT="0"), 78)
    assert said == "edgeasd: mqtt.port: 0 is below 1 (from EDGEASD_MQTT__PORT)\n"


def test_secrets_are_in_no_output(run: Run, tmp_path: Path, free_port: int) -> None:
    canary = "c4n4ry-Passw0rd"
    (tmp_path / "node.yaml").write_text(
        f"mqtt: {{host: 127.0.0.1, port: {free_port}, username: u, password: {canary}}}"
    )
    (tmp_path / "node.yaml").chmod(0o600)
    outputs = [
        run("config", "show", "-c", "node.yaml"),
        run("config", "show", "-c", "node.yaml", "--json"),
        run("config", "validate", "node.yaml"),
        run("config", "validate", "node.yaml", EDGEASD_MQTT__KEEPALIVE_S="0"),
        run("watch", "-c", "node.yaml", "--duration", "0.3"),
        run("watch", "--mqtt", f"mqtt://u:{canary}@127.0.0.1:{free_port}"),
    ]
    assert "**********" in outputs[0].stdout
    for done in outputs:
        assert canary not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_watch_needs_a_broker(run: Run) -> None:
    assert "no broker" in _refused(run("watch"), 2)


def test_bundle_refuses_what_is_none(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.edgeasd").write_bytes(b"PK\3\4 nothing")
    for verb in ("info", "verify"):
        assert "x.edgeasd" in _refused(run("bundle", verb, "x.edgeasd"), 65)
        assert "absent.edgeasd" in _refused(run("bundle", verb, "absent.edgeasd"), 65)


def test_a_closed_pipe_is_no_traceback(run: Run) -> None:
    shell = f"{sys.executable} -m edgeasd.cli config init | head -n 1"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_free_port_is_free(free_port: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port))
