"""What travels inside the publish stage: messages as the wire knows them, parcels as they wait to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

Payload = Mapping[str, object] | str
"""A JSON object, or a plain word such as `online` or `ON`."""


class Kind(StrEnum):
    """What a message is, which decides how hard it is held on to."""

    SCORE = "score"
    """Kept in memory while the broker answers, in the outbox while it does not."""
    EVENT = "event"
    """Committed to the outbox before it counts as accepted; likewise `NOTICE` and `GAP`."""
    NOTICE = "notice"
    GAP = "gap"
    STATE = "state"
    """Retained: only the latest of a topic matters; sent again on every connect."""
    LEVEL = "level"
    """Worth something only now: discarded, and counted, while the broker is away; likewise `HEALTH`."""
    HEALTH = "health"

    @property
    def committed(self) -> bool:
        """Return whether acceptance means that the message lies on disk."""
        return self in (Kind.EVENT, Kind.NOTICE, Kind.GAP)

    @property
    def numbered(self) -> bool:
        """Return whether the message carries an `id` and a `seq`, so that a subscriber can count losses."""
        return self is Kind.SCORE or self.committed


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to say, with its topic; what `Wire` makes and a `Publisher` takes."""

    topic: str
    payload: Payload
    kind: Kind
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Parcel:
    """An accepted message: encoded, numbered, on its way."""

    topic: str
    kind: Kind
    body: bytes
    qos: int = 1
    retain: bool = False
    id: str = ""
    """The same on every copy; empty for what is not numbered."""
    number: int = 0
    """Position among the numbered messages of this boot, from 1."""
    row: int = 0
    """Place in the outbox; 0 when it lives in memory only."""

    @property
    def key(self) -> str:
        """Return what identifies the parcel from one connection to the next."""
        return self.id or self.topic


class Verb(StrEnum):
    """What a command is about; the only words that a command topic may hold."""

    THRESHOLD = "threshold"
    ENABLED = "enabled"
    FEEDBACK = "feedback"


class Verdict(StrEnum):
    """What a person says of an event."""

    FALSE_ALARM = "false_alarm"
    REAL = "real"


@dataclass(frozen=True, slots=True)
class SetThreshold:
    """Let events of a source start at another score."""

    source: str
    score: float | None
    """None: the one that the false-alarm budget gives."""


@dataclass(frozen=True, slots=True)
class SetEnabled:
    """Judge a source, or leave it alone."""

    source: str
    enabled: bool


@dataclass(frozen=True, slots=True)
class Feedback:
    """Take down what a person says of an event."""

    source: str
    verdict: Verdict
    event_id: str | None = None
    """None: the last event of the source."""
    note: str = ""


Command = SetThreshold | SetEnabled | Feedback


@dataclass(frozen=True, slots=True)
class Override:
    """What was set by command for one source."""

    threshold: float | None = None
    """None: as the settings say."""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class GapRecord:
    """Which messages a full outbox gave up; ids between the two that did arrive are not among them."""

    from_id: str
    to_id: str
    count: int


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """How publishing fares; counters run from the start of the process."""

    connected: bool
    protocol: str
    """`5` or `3.1.1` for MQTT (with 3.1.1 a broker refuses messages without a word), else `jsonl`."""
    reconnects: int = 0
    published: int = 0
    """Messages that the broker acknowledged; QoS 0 counts once written."""
    in_flight: int = 0
    waiting: int = 0
    """Messages in memory that wait for their turn."""
    spool_rows: int = 0
    """Messages in the outbox."""
    dropped: int = 0
    """Scores and events given up because a bound was reached."""
    discarded: int = 0
    """Levels and health reports not sent because the broker was away."""
    quarantined: int = 0
    """Messages that the broker refused or that broke the connection; kept aside in the outbox."""
    stalls: int = 0
    """Connections in a row that stopped acknowledging; from 3 on the process is better restarted."""
    commands: int = 0
    """Commands that were taken."""
    commands_refused: int = 0
    """Commands that were malformed, out of bounds, too many, or could not be carried out."""
    durable: bool = True
    """False while the state directory does not take events, so that they live in memory only."""


class AccountLike(Protocol):
    """What became of the sound of one source, in seconds; `edgeasd.health.ledger.Account` is one."""

    @property
    def scored_s(self) -> float:
        """Return the seconds that were judged."""
        ...

    @property
    def dropped_s(self) -> Mapping[str, float]:
        """Return the seconds captured but not judged, by reason."""
        ...

    @property
    def absent_s(self) -> Mapping[str, float]:
        """Return the seconds never captured, by reason."""
        ...

    @property
    def unexplained_s(self) -> float:
        """Return the seconds nobody accounts for; more than zero is a bug."""
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which bundle runs, and why that one."""

    version: int
    origin: str
    """`settings`, `installed`, or `previous`: the one before an installed one that is refused."""
    why: str
    signed_by: str | None
    """None where the node asks for no signatures."""
    on_trial: bool
    """It has replaced another and has not run for an hour yet."""
    shadow: Mapping[str, float] | None = None
    """What it made of the windows that it heard beside its predecessor."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs the bundle, and why that."""

    name: str
    precision: str
    device: str
    """`cpu`, or the name of a GPU."""
    why: str
    ms_a_window: float | None
    """As measured when it was chosen; None where there was no choice."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node is: retained on the info topic."""

    version: str
    backend: str | None
    bundle: str | None
    bundle_sha256: str | None
    config_sha256: str | None
    sources: tuple[str, ...]
    mqtt_protocol: str
    engine: EngineInfo | None = None
    """None without a bundle."""
    warnings: tuple[str, ...] = ()
    overrides: Mapping[str, Override] = field(default_factory=dict)
    """By source name."""
    model: ModelInfo | None = None


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """How a node fares: said every half minute, events or not."""

    uptime_s: float
    realtime_factor: float
    """Seconds of sound judged in a second of computing."""
    backlog_s: float
    overruns: int
    dropped_frames: int
    rss_bytes: int
    clock_synced: bool | None
    publisher: PublisherStats
    gpu_temperature_c: float | None = None
    accounts: Mapping[str, AccountLike] = field(default_factory=dict)
    """By source name."""
