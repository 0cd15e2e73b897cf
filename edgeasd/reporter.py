"""From what is said to messages: where records meet the wire, the ledger and the standing state of each source."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from edgeasd import __version__
from edgeasd.assembly import Bench
from edgeasd.health.inputs import FaultLatch
from edgeasd.health.ledger import Ledger
from edgeasd.line import Line, Track
from edgeasd.publish import Message, ModelInfo, NodeHealth, NodeInfo, Override, Publisher, Wire
from edgeasd.publishing import open_publisher
from edgeasd.records import Confirmation, Event, Fault, LossReason, Score, Skipped, StateNotice
from edgeasd.scoring.listener import Said
from edgeasd.settings import Settings, digest, without_effect
from edgeasd.steering.feedback import EventHistory

_LEVEL_EVERY_S = 1.0
_FAULT_WORDS = {
    Fault.DEAD: "the microphone is silent",
    Fault.CONSTANT: "the microphone stands still",
    Fault.CLIPPED: "clipping",
    Fault.DC_OFFSET: "DC offset",
    Fault.NOT_FINITE: "samples that are no numbers",
    Fault.DEVICE_ABSENT: "the microphone is away",
}


@dataclass(slots=True)
class _Standing:
    """What is retained about a source, as last told."""

    latch: FaultLatch
    enabled: bool = True
    online: bool | None = None
    alarm: bool = False
    level_frame: int = 0
    """From here on another level may be told."""
    last_score: float = 0.0


class Reporter:
    """Publishes what is said of the sources, keeps the ledger, and tells what changes of what is retained."""

    def __init__(self, bench: Bench, publisher: Publisher, wire: Wire, *, sources: Sequence[str]) -> None:
        self.ledger = Ledger()
        self.history = EventHistory()
        self.overrides: Mapping[str, Override] = {}
        """What was set by command, by source; a new mapping when it changes."""
        self.model: ModelInfo | None = None
        """Which bundle runs, and why; another object when that changes."""
        self.publisher = publisher
        self._bench = bench
        self._wire = wire
        self._rate_hz = bench.grid.rate_hz
        self._standing = {source: _Standing(FaultLatch(self._rate_hz)) for source in sources}
        self._began_s = time.monotonic()
        self._told: tuple[object, ...] = ()
        self._warnings: Mapping[str, tuple[str, ...]] = {}
        for source in sources:
            self._tell(wire.alarm(source, active=False), *wire.fault(source, None, since_ns=time.time_ns()))
            self.threshold(source)
            self._tell(wire.enabled(source, enabled=True))

    @property
    def bundle_label(self) -> str | None:
        """Return the bundle in use, as scores name it."""
        return _label(self._bench)

    @property
    def engine_name(self) -> str | None:
        """Return what runs the bundle."""
        return self._bench.engine_name

    def judged_by(self, bench: Bench, settings: Settings) -> None:
        """Go on with the scores of another bench."""
        self._bench, self._wire = bench, _wire(settings, bench)
        for source in self._standing:
            self.threshold(source)

    def skipped(self, track: Track, skipped: Skipped) -> None:
        """Enter a loss into the ledger; an absent device is a fault."""
        self.ledger.skipped(skipped)
        if skipped.reason is LossReason.DEVICE_ABSENT:
            self._device_lost(track, frame=skipped.first_frame)

    def said(self, track: Track, said: Said, *, infer_ms: float) -> None:
        """Publish one thing."""
        source, utc_ns = track.source.name, track.clock.utc_ns
        if isinstance(said, Score):
            self._score(track, said, infer_ms)
        elif isinstance(said, Event):
            threshold = self._bench.pipeline.threshold(source)
            message = self._wire.event(said, utc_ns=utc_ns, rate_hz=self._rate_hz, threshold=threshold)
            self._tell(message)
            assert not isinstance(message.payload, str)
            self.history.note(source, said.event_id, message.payload)
            self._alarm(source)
        elif isinstance(said, StateNotice):
            self._tell(self._wire.notice(said, utc_ns=utc_ns, rate_hz=self._rate_hz))
        else:
            assert isinstance(said, Confirmation)  # only where no score can carry it: the tables show it, nobody waits

    def ended(self, track: Track) -> None:
        """Say that a source brings no more sound; the next recording of a replay counts its frames from 0 again."""
        source = track.source.name
        self._alarm(source)
        self._online(source, online=False)
        self._standing[source] = _Standing(
            FaultLatch(self._rate_hz), enabled=self._standing[source].enabled, online=False
        )
        self.ledger.restart(source)

    def threshold(self, source: str) -> None:
        """Say the score at which an event of the source starts."""
        self._tell(self._wire.threshold(source, self._bench.pipeline.threshold(source)))

    def enabled(self, source: str, *, enabled: bool) -> None:
        """Say whether a source is judged; whether it delivers sound is said again with the next of it."""
        standing = self._standing[source]
        standing.enabled, standing.online = enabled, None
        self._tell(self._wire.enabled(source, enabled=enabled))
        if not enabled:
            self._tell(self._wire.source_status(source, "disabled"))

    def info(self, settings: Settings) -> None:
        """Say what the node is, unless that was said already."""
        protocol = self.publisher.stats().protocol
        told = (protocol, self._bench, settings, self.overrides, self.model, self._warnings)
        if told == self._told:
            return
        self._told = told
        bundle = self._bench.bundle
        fallen_back = protocol == "3.1.1" and settings.mqtt.protocol == "5"
        warnings = ["the broker does not speak MQTT 5: what it refuses is lost without a word"] if fallen_back else []
        warnings += [*without_effect(settings), *self._bench.warnings]
        info = NodeInfo(
            version=__version__,
            backend=self._bench.engine_name,
            bundle=None if bundle is None else bundle.manifest.name,
            bundle_sha256=None if bundle is None else bundle.sha256,
            config_sha256=digest(settings),
            sources=tuple(self._standing),
            mqtt_protocol=protocol,
            engine=self._bench.engine_info,
            warnings=(*warnings, *chain.from_iterable(self._warnings.values())),
            overrides=self.overrides,
            model=self.model,
        )
        self._tell(self._wire.info(info))

    def health(self, line: Line) -> None:
        """Say how the node fares."""
        stats = [track.thread.stats for track in line.tracks]
        late = sum(track.reader.late_windows for track in line.tracks) * self._bench.grid.hop_frames
        health = NodeHealth(
            uptime_s=time.monotonic() - self._began_s,
            realtime_factor=self.realtime_factor(line),
            backlog_s=max((track.reader.backlog_frames for track in line.tracks), default=0) / self._rate_hz,
            overruns=sum(one.gaps.get(LossReason.OVERRUN, 0) for one in stats),
            dropped_frames=late + sum(track.reader.overwritten_frames for track in line.tracks),
            rss_bytes=_resident_bytes(),
            clock_synced=None,
            publisher=self.publisher.stats(),
            accounts={source: self.ledger.account(source, self._rate_hz) for source in self._standing},
        )
        self._tell(self._wire.health(health, ts_ns=time.time_ns()))

    def realtime_factor(self, line: Line) -> float:
        """Return the seconds of sound judged in a second of computing."""
        scored_s = sum(self.ledger.account(source, self._rate_hz).scored_s for source in self._standing)
        return scored_s / max(1e-9, line.judging_s)

    def device_hung(self, track: Track) -> None:
        """Say that a microphone has stopped answering altogether."""
        self._device_lost(track, frame=track.ring.head_frame)

    def heard(self, source: str) -> bool:
        """Return whether the source has been judged since it last came back."""
        return self._standing[source].online is True

    def warn(self, about: str, lines: Sequence[str]) -> None:
        """Let `info` say these warnings about something, in place of the former ones about it."""
        self._warnings = {**self._warnings, about: tuple(lines)}

    def status_line(self) -> str:
        """Return the state of the node in words, for `systemctl status`."""
        stats = self.publisher.stats()
        parts = [f"{source}: {self._state_of(source)}" for source in self._standing]
        if stats.protocol != "jsonl":
            parts.append("broker connected" if stats.connected else "broker away")
        if stats.spool_rows:
            parts.append(f"{stats.spool_rows} messages wait on disk")
        return "; ".join(parts)

    def _state_of(self, source: str) -> str:
        standing = self._standing[source]
        if not standing.enabled:
            return "switched off"
        if standing.latch.standing is not None:
            return _FAULT_WORDS[standing.latch.standing]
        if not standing.online:
            return "no sound yet"
        word = "ALARM" if standing.alarm else "normal"
        return f"{word}, score {standing.last_score:.1f} of {self._bench.pipeline.threshold(source):.1f}"

    def _score(self, track: Track, score: Score, infer_ms: float) -> None:
        source, standing = score.source, self._standing[score.source]
        end_frame = score.first_frame + score.n_frames
        if score.valid:
            self.ledger.scored(source, score.first_frame, end_frame)
        else:
            self.ledger.skipped(Skipped(source, score.first_frame, score.n_frames, LossReason.FAULT))
        self._online(source, online=True)
        if standing.latch.observe(score.fault, first_frame=score.first_frame, end_frame=end_frame):
            self._fault(track, frame=score.first_frame)
        utc_ns = track.clock.utc_ns
        self._tell(self._wire.score(score, utc_ns=utc_ns, rate_hz=self._rate_hz, infer_ms=infer_ms))
        standing.last_score = score.score
        if end_frame >= standing.level_frame:
            standing.level_frame = end_frame + round(_LEVEL_EVERY_S * self._rate_hz)
            self._tell(self._wire.level(source, score.level, ts_ns=utc_ns(score.first_frame)))
        self._alarm(source)

    def _alarm(self, source: str) -> None:
        active = self._bench.pipeline.alarm_active(source)
        if active != self._standing[source].alarm:
            self._standing[source].alarm = active
            self._tell(self._wire.alarm(source, active=active))

    def _online(self, source: str, *, online: bool) -> None:
        standing = self._standing[source]
        if standing.enabled and online is not standing.online:
            standing.online = online
            self._tell(self._wire.source_status(source, "online" if online else "offline"))

    def _device_lost(self, track: Track, *, frame: int) -> None:
        if self._standing[track.source.name].latch.device_lost():
            self._fault(track, frame=frame)
        self._online(track.source.name, online=False)

    def _fault(self, track: Track, *, frame: int) -> None:
        source = track.source.name
        fault = self._standing[source].latch.standing
        self._tell(*self._wire.fault(source, fault, since_ns=track.clock.utc_ns(frame)))

    def _tell(self, *messages: Message) -> None:
        for message in messages:
            self.publisher.publish(message)


@contextmanager
def reporting(settings: Settings, bench: Bench, sources: Sequence[str]) -> Iterator[Reporter]:
    """Open the way out and a reporter on it; on leaving, what is at hand is sent or kept."""
    wire = _wire(settings, bench)
    with open_publisher(settings, wire) as publisher:
        reporter = Reporter(bench, publisher, wire, sources=sources)
        reporter.info(settings)
        yield reporter


def _wire(settings: Settings, bench: Bench) -> Wire:
    return Wire(settings.node.name, base_topic=settings.mqtt.base_topic, model=_label(bench), backend=bench.engine_name)


def _label(bench: Bench) -> str | None:
    return None if bench.bundle is None else f"{bench.bundle.manifest.name}@{bench.bundle.sha256[:6]}"


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: the peak is the best there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
