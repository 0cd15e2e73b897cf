"""What travels between the stages: small frozen records, units in every name.

Positions are frame indices: integers that count audio frames of one source at its model rate since the source was
opened. Only `edgeasd.clock` turns them into time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class LossReason(StrEnum):
    """Why frames of a source were never scored."""

    DEVICE_ABSENT = "device_absent"
    """The device was not there (unplugged, not yet enumerated, being reopened)."""
    OVERRUN = "overrun"
    """The sound card or its driver lost frames before we could read them."""
    OVERWRITTEN = "overwritten"
    """The scorer fell behind and the ring overwrote what it had not read."""
    LATE = "late"
    """The scorer fell behind and skipped whole windows to catch up."""
    GAP = "gap"
    """The window would have straddled a gap."""
    FAULT = "fault"
    """The input was dead, clipped, shifted or not finite: measured, but not judged."""
    DISABLED = "disabled"
    """The source was switched off: heard, but not judged."""
    TAIL = "tail"
    """The recording ended before another window was full."""


class Fault(StrEnum):
    """What can be wrong with an input, as opposed to with what is heard."""

    DEAD = "dead"
    CONSTANT = "constant"
    CLIPPED = "clipped"
    DC_OFFSET = "dc_offset"
    NOT_FINITE = "not_finite"
    DEVICE_ABSENT = "device_absent"


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """Contiguous mono sound as it came from a source."""

    first_frame: int
    samples: FloatArray
    """Shape (n_frames,), full scale is 1.0."""
    captured_ns: int
    """Monotonic clock when the last frame of the block was in our hands."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Frames that passed without being captured; the next block starts behind them."""

    first_frame: int
    n_frames: int
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Window:
    """One window of contiguous sound, ready to be scored."""

    source: str
    first_frame: int
    samples: FloatArray
    """Shape (window_frames,), full scale is 1.0; shared with windows that overlap it, and never written to."""
    captured_ns: int
    """Monotonic clock when the last frame of the window was in our hands."""
    follows: bool
    """True when it starts exactly one hop after the window before it, of the same source."""

    @property
    def end_frame(self) -> int:
        """Return the index just past the last frame."""
        return self.first_frame + len(self.samples)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Frames that the windows of a source pass over."""

    source: str
    first_frame: int
    n_frames: int
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Level:
    """How loud a window is and whether the converter copes."""

    rms_dbfs: float
    """Root mean square, dB re full scale; floor -120."""
    peak_dbfs: float
    clip_pct: float
    """Share of samples at full scale, percent."""
    dc: float
    """Mean, full scale 1.0."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one judge says of a window."""

    score: float
    """Higher is stranger; finite."""
    p_value: float
    """Probability of at least this score in normal sound, in (0, 1]."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The second look at an older window, once the seconds behind it are known."""

    first_frame: int
    n_frames: int
    opinion: Opinion


@dataclass(frozen=True, slots=True)
class Score:
    """Everything said of a window at the moment it is complete."""

    source: str
    first_frame: int
    n_frames: int
    captured_ns: int
    score: float
    """The score the prompt alarm goes by; higher is stranger, finite."""
    p_value: float
    threshold: float
    """The level of `score` at which an event starts."""
    model: Opinion | None
    """The bundle's opinion; None without a bundle."""
    prompt: Opinion | None
    """The untrained second opinion, at once."""
    confirmed: Confirmation | None
    """The second look that became possible with this window."""
    level: Level
    fault: Fault | None
    """Set when the input, not the scene, is wrong: then `valid` is false."""
    warmup: bool
    """True while too little past is known to judge."""

    @property
    def valid(self) -> bool:
        """Return whether the score may be used."""
        return self.fault is None


@dataclass(frozen=True, slots=True)
class Band:
    """A frequency band and its share of what made a window strange."""

    low_hz: float
    high_hz: float
    share: float
    """Between 0 and 1."""


class EventType(StrEnum):
    """Where in its life an event is."""

    START = "start"
    UPDATE = "update"
    END = "end"


@dataclass(frozen=True, slots=True)
class Event:
    """One message in the life of a detected event."""

    event_type: EventType
    event_id: str
    """A ULID: sorts by time, the same in start, update and end."""
    source: str
    start_frame: int
    end_frame: int
    """Just past the last window that belongs to the event so far."""
    peak_score: float
    peak_frame: int
    p_value: float
    """Of the peak."""
    bands: tuple[Band, ...]
    confirmed: bool | None
    """None until the seconds behind the sound are known; False: it was the onset of something that stays."""


@dataclass(frozen=True, slots=True)
class StateNotice:
    """News, once: what is heard has turned into a lasting state unlike the last minutes."""

    source: str
    first_frame: int
    """Where the new state is thought to begin."""
    distance_db: float
    """How far the new state lies from everything heard before, root mean square dB per feature."""
