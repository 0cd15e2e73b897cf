"""P6: a line that looks alive and is dead is noticed, whatever killed it, and costs no message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig.broker import Broker, BrokerSetup, Certificates, Subscriber, make_certificates, wait_for
from tests.rig.bursts import BurstyRig, needs
from tests.rig.conservation import Ledger, read_outbox
from tests.rig.node import RunningNode
from tests.rig.promise import Measured, Promise
from tests.rig.proxy import Conduct, Proxy
from tests.rig.scripted import ACCEPT_5, ScriptedBroker

_NOTICED_WITHIN_S = 45.0
_BACK_WITHIN_S = 90.0
_CUT_S = 50.0


@dataclass(frozen=True, slots=True)
class _Fault:
    name: str
    begin: Callable[[], None]
    end: Callable[[], None]
    lasts_s: float | None = None
    """None: until it is noticed."""
    bearable: bool = False
    """Whether it may be waited out: the line is slow, or it is over before it must be noticed."""


def notice(scratch: Path, *, pause_s: float, slow_s: float, freeze_s: float) -> Measured:
    """Garble, close, reset, freeze, throttle and cut the line of a node; what lasts long only with a `freeze_s`."""
    certificates = make_certificates(scratch / "certificates")
    setup = BrokerSetup(certificates=certificates, lines=("max_queued_messages 0",))
    with (
        BurstyRig(scratch / "pulse", n_microphones=2) as rig,
        Broker(scratch / "broker", setup) as broker,
        Subscriber(broker.port, "edgeasd/busy/#", certificates=certificates) as subscriber,
        ExitStack() as stack,
    ):
        proxy, node = stack.enter_context(_line(scratch, rig, broker.port, certificates, name="busy"))
        told: list[Measured] = []
        for fault in _passing_faults(proxy, broker, pause_s=pause_s, slow_s=slow_s):
            told += _tried(fault, [proxy], subscriber, rig)
        if freeze_s:
            idle, _ = stack.enter_context(_line(scratch, rig, broker.port, certificates, name="idle"))
            cut = _Fault(f"cut for {_CUT_S:g} s", proxy.stall, proxy.behave, _CUT_S)
            frozen = _Fault(f"broker frozen for {freeze_s:g} s", broker.freeze, broker.thaw, freeze_s)
            told += _tried(cut, [proxy], subscriber, rig)
            told += _tried(frozen, [proxy, idle], subscriber, rig)
            told += [_never_acknowledged(scratch, rig)]
        code, _ = node.stop()
        assert code == 0, f"exit {code}: {node.log[-2000:]}"
        subscriber.wait(lambda all_: all_[-1].text == "stopped", suffix="/busy/status", timeout_s=30.0)
        received = subscriber.messages()
    balance = Ledger().balance(received)
    lost = balance.lost + balance.score_holes + len(read_outbox(node.state_dir, scratch / "copy").committed)
    figures = f"{lost} lost of {balance.received}, {balance.doubled} doubled, {balance.altered} altered"
    kept = lost == balance.altered == 0 and all(each.kept for each in told)
    return Measured("; ".join([*(each.text for each in told), figures]), kept=kept)


@contextmanager
def _line(
    scratch: Path, rig: BurstyRig, broker_port: int, certificates: Certificates, *, name: str
) -> Iterator[tuple[Proxy, RunningNode]]:
    """Run a node behind a proxy, over TLS; the idle one waits for a microphone that never comes."""
    with Proxy(broker_port) as proxy:
        tls = {"tls": True, "ca_file": str(certificates.ca)}
        settings = rig.settings(scratch / name, port=proxy.port, mqtt=tls, microphones=["mic_0"])
        settings["node"] = {"name": name}
        if name == "idle":
            settings["sources"] = [{"name": "mic0", "device": "nothing_there"}]
            settings["health_interval_s"] = 3600.0
        with RunningNode(scratch / name, settings, environment=rig.environment) as node:
            wait_for(lambda: "connected to" in node.log, what=f"{name} to connect", timeout_s=60.0)
            yield proxy, node


def _passing_faults(proxy: Proxy, broker: Broker, *, pause_s: float, slow_s: float) -> list[_Fault]:
    garbled, slow = Conduct(garble_one_in=20), Conduct(bytes_per_s=1.0)
    faults = [
        _Fault("TLS garbled", lambda: proxy.behave(down=garbled), proxy.behave),
        _Fault("half-closed", lambda: proxy.close(way="down"), proxy.behave),
        _Fault("reset", proxy.close, proxy.behave),
        _Fault(f"broker frozen for {pause_s:g} s", broker.freeze, broker.thaw, pause_s, bearable=True),
    ]
    if slow_s:
        name = f"a byte a second for {slow_s:g} s"
        faults.append(_Fault(name, lambda: proxy.behave(up=slow, down=slow), proxy.behave, slow_s, bearable=True))
    return faults


def _tried(fault: _Fault, proxies: Sequence[Proxy], subscriber: Subscriber, rig: BurstyRig) -> list[Measured]:
    """Commit a fault upon lines at work; tell when each was given up, once messages flow again."""
    rig.keep_sounding()
    _wait_fresh(subscriber)
    watches = [_Watch(proxy) for proxy in proxies]
    until_s = None if fault.lasts_s is None else time.monotonic() + fault.lasts_s

    def over() -> bool:
        seen = [watch.look() for watch in watches]
        return all(seen) if until_s is None else time.monotonic() >= until_s

    fault.begin()
    wait_for(over, what=f"the end of: {fault.name}", timeout_s=(fault.lasts_s or _BACK_WITHIN_S) + 10.0)
    fault.end()
    _wait_fresh(subscriber)
    names = [fault.name, *("the same with nothing to say" for _ in watches[1:])]
    return [watch.told(name, bearable=fault.bearable) for watch, name in zip(watches, names, strict=True)]


class _Watch:
    """Sees a node give a connection up: by the next one that it opens."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._n_before = proxy.connections
        self._began_s = time.monotonic()
        self._noticed_s: float | None = None

    def look(self) -> bool:
        """Return whether it has happened."""
        if self._noticed_s is None and self._proxy.connections > self._n_before:
            self._noticed_s = time.monotonic() - self._began_s
        return self._noticed_s is not None

    def told(self, name: str, *, bearable: bool) -> Measured:
        """Return what was seen, in words."""
        if self._noticed_s is None:
            return Measured(f"{name}: {'waited out' if bearable else 'NOT noticed'}", kept=bearable)
        return Measured(f"{name}: {self._noticed_s:.1f} s", kept=self._noticed_s <= _NOTICED_WITHIN_S)


def _wait_fresh(subscriber: Subscriber) -> None:
    """Wait for a score of sound that was heard after this call."""
    now_ns = time.time_ns()
    subscriber.wait(
        lambda all_: all_ and all_[-1].json["ts_ns"] > now_ns and not all_[-1].json["late"],
        suffix="/score",
        timeout_s=_BACK_WITHIN_S,
    )


def _never_acknowledged(scratch: Path, rig: BurstyRig) -> Measured:
    """Run a node on a broker that takes everything and acknowledges nothing; all it took must stay in the outbox."""
    rig.keep_sounding()
    with ScriptedBroker(connack=lambda _: ACCEPT_5, puback=lambda _mid, _body: b"") as broker:
        settings = rig.settings(scratch / "silent", port=broker.target.port, microphones=["mic_1"])
        with RunningNode(scratch / "silent", settings, environment=rig.environment) as node:
            wait_for(lambda: broker.published, what="the first message", timeout_s=60.0)
            wait_for(lambda: len(broker.levels) > 1, what="another connection", timeout_s=_BACK_WITHIN_S)
            noticed_s = time.monotonic() - broker.published[0].at_ns / 1e9
            node.stop()
        held = read_outbox(node.state_dir, scratch / "silent/copy").committed
    said = {each.json["id"] for each in broker.published if each.topic.endswith(("/score", "/event"))}
    lost = len(said - held.keys())
    text = f"never acknowledged: {noticed_s:.1f} s, {lost} of {len(said)} not in the outbox"
    return Measured(text, kept=lost == 0 and noticed_s <= _NOTICED_WITHIN_S)


PROMISES = (
    Promise(
        number="P6",
        title="No connection is stuck",
        target="noticed in <= 45 s, 0 lost",
        run=notice,
        short={"pause_s": 1.0, "slow_s": 0, "freeze_s": 0},
        long={"pause_s": 25.0, "slow_s": 60.0, "freeze_s": 300.0},
        needs=needs,
    ),
)
