"""P18: a password and a key go to the broker and nowhere else."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.rig.broker import MOSQUITTO, NO_MOSQUITTO, Broker, BrokerSetup, Certificates, make_certificates, wait_for
from tests.rig.node import RunningNode
from tests.rig.promise import Measured, Promise
from tests.rig.recorder import Recorder, without_connect

_USER = "edgeasd"
_PATIENCE_S = 90.0

_CRASH = """
import sys
from edgeasd import cli
from edgeasd.publish.mqtt import MqttPublisher
def crash(self, connection):
    raise RuntimeError(f"{vars(self)!r} {vars(connection)!r}")
MqttPublisher._serve = crash
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command with a bug that tells all that is at hand."""
_MANY = """
import json, sys, traceback
from edgeasd import cli
for name, argv in json.load(sys.stdin):
    try:
        code = cli.main(argv)
    except SystemExit as exc:
        code = exc.code
    except Exception:
        traceback.print_exc()
        code = "crash"
    print(f"[{name}] exit {code}", flush=True)
"""
"""Commands one after the other in one process: starting many takes most of the time."""

_BAD_LINES = {
    "list": "  password: [{secret}]",
    "url-port": "  url: mqtt://{user}:{secret}@127.0.0.1:nought",
    "open-quote": '  password: "{secret}',
    "typo": "  pasword: {secret}",
    "neighbour": "  password: {secret}\n  port: zero",
    "group": "  password: {{{secret}: 1}}",
    "alias": "  password: *{secret}",
    "tag": "  password: !{secret} x",
    "colon": "  password: {secret}: more",
    "at": "  password: @{secret}",
    "tab": "\t password: {secret}",
    "twice": "  password: {secret}\n  password: {secret}",
    "both": "  url: mqtt://{user}:{secret}@127.0.0.1\n  password: {secret}",
    "url-scheme": "  url: amqp://{user}:{secret}@127.0.0.1",
    "url-space": '  url: "mqtt://{user}:{secret} @127.0.0.1"',
    "url-twice": "  url: mqtt://{user}:{secret}@127.0.0.1\n  host: elsewhere",
}
"""Settings that are wrong on, or beside, the line with the password; the commonest mistakes first."""


@dataclass(frozen=True)
class _Canary:
    """Secrets that can be recognised anywhere."""

    password: str
    certificates: Certificates

    def needles(self) -> dict[str, bytes]:
        plain, key_lines = self.password.encode(), self.certificates.client_key.read_bytes().splitlines()
        return {
            "password": plain,
            "password in base64": base64.b64encode(plain)[:-4],
            "password in hexadecimal": plain.hex().encode(),
            "key": key_lines[1],
        }


@dataclass
class _Search:
    """What was looked through, and what was found in it."""

    needles: dict[str, bytes]
    n_places: int = 0
    n_bytes: int = 0
    hits: list[str] = field(default_factory=list)

    def look(self, place: str, data: bytes) -> None:
        self.n_places += 1
        self.n_bytes += len(data)
        self.hits += [f"{name} in {place}" for name, needle in self.needles.items() if needle in data]

    def look_at_directory(self, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file():
                self.look(f"{directory.name}/{path.name}", path.read_bytes())

    def look_at_process(self, pid: int) -> None:
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            for name in ("cmdline", "environ"):
                self.look(f"/proc/PID/{name}", Path(f"/proc/{one.pid}/{name}").read_bytes())


@dataclass(frozen=True)
class _Site:
    """One broker that asks for a password, the line to it, and a node."""

    name: str
    broker: Broker
    recorder: Recorder
    node: RunningNode
    word: str
    """What the node logs once it got where it should."""


def keep_secrets(scratch: Path, *, mistakes: int) -> Measured:
    """Run what handles secrets, rightly and wrongly, and look through all that it leaves behind."""
    canary = _Canary(f"canary-{secrets.token_hex(12)}", make_certificates(scratch / "certificates"))
    search = _Search(canary.needles())
    (scratch / "password").write_text(canary.password + "\n")
    (scratch / "password").chmod(0o600)
    with ExitStack() as stack:
        sites = [stack.enter_context(_site(scratch, name, canary)) for name in _SITES]
        crash = _python(_CRASH, "run", "-c", str(_crash_config(scratch, sites[0])))
        commands = {**dict(_good_commands(sites)), **_bad_commands(scratch, canary, mistakes)}
        many = _python(_MANY)
        core_limits = [_look_at_running(search, site) for site in sites]
        for site in sites:
            site.node.send(signal.SIGABRT if site.name == "encrypted" else signal.SIGTERM)
        printed, _ = many.communicate(json.dumps(list(commands.items())).encode(), _PATIENCE_S)
        crashed, _ = crash.communicate(timeout=_PATIENCE_S)
        for site in sites:
            site.node.wait(_PATIENCE_S)
            _look_at_rest(search, site)
    search.look("commands", printed)
    (scratch / "printed").write_bytes(printed + crashed)
    search.look("crash", crashed)
    search.look_at_directory(scratch / "crash-state")
    n_refused = sum(f"[{name}] exit 78" in printed.decode() for name in commands)
    n_wrong = mistakes + 2
    text = (
        f"{len(search.hits)} hits{': ' if search.hits else ''}{', '.join(sorted(set(search.hits))[:3])} in "
        f"{search.n_places} places ({search.n_bytes / 1e6:.1f} MB) of {len(sites)} nodes, {len(commands)} commands, a "
        f"traceback and an abort; {n_refused} of {n_wrong} wrong settings and shared secrets refused with 78; "
        f"core limit {', '.join(sorted(set(core_limits)))}"
    )
    crashed_loudly = b"Traceback" in crashed and b"RuntimeError" in crashed
    kept = not search.hits and n_refused == n_wrong and set(core_limits) == {"0"} and crashed_loudly
    return Measured(text, kept=kept)


_SITES = {
    "right": ("json", "connected to"),
    "wrong": ("text", "refuses us"),
    "encrypted": ("journal", "connected to"),
}
"""Name, form of the log, and what a node says once it got where it should."""


@contextmanager
def _site(scratch: Path, name: str, canary: _Canary) -> Iterator[_Site]:
    form, word = _SITES[name]
    tls = name == "encrypted"
    setup = BrokerSetup(
        users={_USER: "another" if name == "wrong" else canary.password},
        certificates=canary.certificates if tls else None,
        client_certificates=tls,
        lines=("log_type all",),
    )
    credentials = scratch / "credentials"
    credentials.mkdir(exist_ok=True)
    (credentials / "mqtt-password").write_text(canary.password + "\n")
    files = canary.certificates
    mqtt: dict[str, Any] = {"username": _USER, "commands": True}
    if tls:
        mqtt |= {"tls": True, "ca_file": str(files.ca), "cert_file": str(files.client)}
        mqtt |= {"key_file": str(files.client_key), "password_file": str(scratch / "password")}
    elif name == "wrong":
        mqtt["password_file"] = str(scratch / "password")
    with Broker(scratch / f"broker-{name}", setup) as broker, Recorder(broker.port) as recorder:
        settings = {
            "sources": [{"device": "no such microphone"}],
            "mqtt": {**mqtt, "host": "127.0.0.1", "port": recorder.port},
            "log": {"level": "debug", "format": form},
            "health_interval_s": 1,
        }
        environment = {"CREDENTIALS_DIRECTORY": str(credentials)} if name == "right" else {}
        with RunningNode(scratch / f"node-{name}", settings, environment=environment) as node:
            yield _Site(name, broker, recorder, node, word)


def _crash_config(scratch: Path, site: _Site) -> Path:
    """Return settings like those of a site's node, with a state directory of their own."""
    settings = yaml.safe_load(site.node.config.read_text())
    settings["state_dir"] = str(scratch / "crash-state")
    settings["mqtt"] |= {"password_file": str(scratch / "password"), "client_id": "crash"}
    path = scratch / "crash.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _good_commands(sites: Sequence[_Site]) -> Iterator[tuple[str, list[str]]]:
    for site in sites:
        config = str(site.node.config)
        yield f"show {site.name}", ["config", "show", "-c", config]
        if site.name != "right":  # whose password only the node is given
            yield f"check {site.name}", ["check", "--json", "-c", config]
    yield "version", ["version", "--json"]
    yield "bundle", ["bundle", "verify", str(sites[0].node.config)]


def _bad_commands(scratch: Path, canary: _Canary, n_mistakes: int) -> dict[str, list[str]]:
    commands = {}
    folder = scratch / "mistakes"
    folder.mkdir()
    for name, line in islice(_BAD_LINES.items(), n_mistakes):
        path = folder / f"{name}.yaml"
        filled = line.format(secret=canary.password, user=_USER)
        path.write_text(f"mqtt:\n  username: {_USER}\n  {'host: h' * ('url' not in line)}\n{filled}\n")
        path.chmod(0o600)
        commands[name] = ["config", "validate", str(path)]
    for name, key in (("shared password", "password_file"), ("shared key", "key_file")):
        secret = folder / key
        own_key = canary.certificates.client_key.read_text()
        secret.write_text(own_key if key == "key_file" else canary.password)
        secret.chmod(0o644)
        path = folder / f"{key}.yaml"
        extra = f"\n  tls: true\n  cert_file: {canary.certificates.client}" if key == "key_file" else ""
        path.write_text(f"mqtt:\n  host: h\n  username: {_USER}\n  {key}: {secret}{extra}\n")
        commands[name] = ["config", "validate", str(path)]
    return commands


def _python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _look_at_running(search: _Search, site: _Site) -> str:
    """Look at a node that runs; return its limit of core files."""
    wait_for(partial(_says, site), what=f"the node of {site.name}", timeout_s=_PATIENCE_S)
    search.look_at_process(site.node.pid)
    limits = Path(f"/proc/{site.node.pid}/limits").read_text()
    return limits.partition("Max core file size")[2].split()[0]


def _says(site: _Site) -> bool:
    code = None if site.node.process is None else site.node.process.poll()
    assert code is None, f"the node of {site.name} ended with {code}: {site.node.log}"
    return site.word in site.node.log


def _look_at_rest(search: _Search, site: _Site) -> None:
    """Look at what a node leaves behind, and at what it said on its line."""
    search.look(f"log of {site.name}", site.node.log.encode())
    search.look(f"broker's log of {site.name}", site.broker.log.encode())
    search.look_at_directory(site.node.state_dir)
    for stream in filter(None, map(bytes, site.recorder.up)):
        if site.name == "encrypted":
            search.look("traffic of encrypted", stream)
        else:
            assert search.needles["password"] in stream, "what we look for is not what was sent"
            search.look(f"traffic of {site.name}", without_connect(stream))
    for answer in site.recorder.down:
        search.look(f"traffic to {site.name}", bytes(answer))


PROMISES = (
    Promise(
        number="P18",
        title="no secret in log, argv, environment, core, config dump",
        target="0 hits; secret file 0600 or credential, else refused",
        run=keep_secrets,
        short={"mistakes": 5},
        long={"mistakes": len(_BAD_LINES)},
        needs=lambda: None if MOSQUITTO else NO_MOSQUITTO,
    ),
)
