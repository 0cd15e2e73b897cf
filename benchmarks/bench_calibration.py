"""The budget of false alarms: what is asked for, against what comes out on normal sound that nobody has heard before.

    python -m benchmarks.bench_calibration [AUDIO] [--hours 24] [--by dealt|order] [--each]

Normal sound is parted in three: a detector is measured on the first part, calibrated on the second, and the node's own
event tracker counts events in the third, at the levels of the node's own jury; then the parts change places, so that
all sound is counted once. AUDIO holds streams/ (recordings with a CSV of events beside each; what lies within 2 s of an
event is left out) and machines/*/train (clips); default ../shared/audio. `dealt` deals blocks of 10 s, or clips, in
turn: the three parts are alike. `order` takes the thirds of each recording in time: what changes is news. Generated
stationary sound, --hours of it to count in, tests budgets that no recording is long enough for.

Prints a Markdown table: budget, events expected and counted, their ratio with the 95 % interval of a Poisson count
(events that come in groups vary more). A budget is tested where three events or more are expected.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from benchmarks.machine import machine_line
from edgeasd.bundle import Inputs, Manifest, Provenance
from edgeasd.engine.onnx import OnnxEngine
from edgeasd.features.mel import MelFrontEnd
from edgeasd.records import EventType, FloatArray, Opinion
from edgeasd.scoring.alarm import EventTracker, Verdict
from edgeasd.scoring.calibration import Calibration, fit_calibration
from edgeasd.scoring.jury import AlarmPolicy, Grid, Jury, Model, swear_in
from edgeasd_train.detectors.mahalanobis import KIND
from edgeasd_train.detectors.options import Shapes
from edgeasd_train.listen import read_samples
from edgeasd_train.recipe import load_recipe

Deal = Literal["dealt", "order"]
Scores = NDArray[np.float64]

RATE_HZ, WINDOW_S, HOP_S = 16_000, 1.0, 0.5
BLOCK_S = 10.0
PER_HOUR = (120.0, 60.0, 30.0, 12.0, 6.0, 3.0, 1.0, 0.5, 6 / 24, 3 / 24)
MACHINES = ("UAVprop", "lathe", "vmc")
GUARD_S = 2.0
LEAST_EXPECTED = 3.0


@dataclass(frozen=True, slots=True)
class Count:
    """What came of one budget on one source."""

    source: str
    per_hour: float
    expected: float
    events: int


def stretches(recording: Path) -> list[FloatArray]:
    """Return the sound of a stream that lies farther than `GUARD_S` from every annotated event."""
    samples = read_samples(recording, rate_hz=RATE_HZ)
    with recording.with_suffix(".csv").open(newline="") as file:
        events = sorted((float(row["onset"]), float(row["offset"])) for row in csv.DictReader(file))
    found, at_s = [], 0.0
    for onset_s, offset_s in [*events, (len(samples) / RATE_HZ + GUARD_S, 0.0)]:
        first, end = round(at_s * RATE_HZ), round((onset_s - GUARD_S) * RATE_HZ)
        if end - first >= WINDOW_S * RATE_HZ:
            found.append(samples[first:end])
        at_s = max(at_s, offset_s + GUARD_S)
    return found


def parts(sound: Sequence[FloatArray], deal: Deal) -> list[list[FloatArray]]:
    """Part stretches in three: blocks dealt in turn, or thirds in time; a stretch of a block or less stays whole."""
    block_frames = round(BLOCK_S * RATE_HZ)
    blocks = [one[i : i + block_frames] for one in sound for i in range(0, len(one), block_frames)]
    blocks = [block for block in blocks if len(block) >= WINDOW_S * RATE_HZ]
    if deal == "dealt":
        return [blocks[k::3] for k in range(3)]
    return [blocks[k * len(blocks) // 3 : (k + 1) * len(blocks) // 3] for k in range(3)]


def generated(hours: float, *, seed: int) -> Iterator[FloatArray]:
    """Yield minutes of a machine hall that never changes: a hum that breathes, over noise that falls with frequency."""
    random = np.random.default_rng(seed)
    n = 60 * RATE_HZ
    hertz = np.arange(n // 2 + 1) / 60.0
    shape = 0.02 / np.sqrt(1.0 + hertz / 10.0)
    for k in range(1, 9):  # lines half a hertz wide: their level wanders within seconds
        shape += 1.0 / k * np.exp(-0.5 * np.square((hertz - 97.0 * k) / 0.25))
    for _ in range(round(60 * hours)):
        spectrum = fft.rfft(random.standard_normal(n, np.float32)) * shape.astype(np.float32)
        yield fft.irfft(spectrum, n)


class Judge:
    """A detector measured on some sound and calibrated on other, before the node's own jury."""

    def __init__(self, learned: Sequence[FloatArray], calibrated: Sequence[FloatArray]) -> None:
        recipe = load_recipe("mahalanobis")
        self._spec, window_frames = recipe.features, recipe.data.window_frames
        n_frames = self._spec.n_frames(window_frames)
        detector = KIND.build(Shapes(self._spec.n_rows, n_frames, window_frames, RATE_HZ), KIND.options())
        self._front_end, self._n_frames = MelFrontEnd(self._spec), n_frames
        self._grid = Grid(RATE_HZ, window_frames, round(HOP_S * RATE_HZ))
        detector.measure({"log_mel": self._windows(sound)} for sound in learned)
        self._engine = OnnxEngine(detector.model_onnx())
        scores = np.concatenate([self.scores(sound) for sound in calibrated])
        self._model = self._sworn_model(scores)

    def scores(self, sound: FloatArray) -> Scores:
        """Return the scores of the windows of a stretch."""
        outputs = self._engine.score({"log_mel": self._windows(sound)}, wanted=frozenset({"score"}))
        return outputs.score.astype(np.float64)

    def jury(self, per_hour: float) -> Jury:
        """Return the rules of judgement that a node has with this model alone and this budget."""
        policy = AlarmPolicy(false_alarms_per_hour=per_hour, by="model")
        return swear_in(self._grid, model=self._model, has_novelty=False, policy=policy)

    def events(self, scores: Scores, jury: Jury) -> int:
        """Return how many events the node starts in a stretch."""
        levels = jury.prompt_levels["model"]
        if scores.max() < levels.enter:
            return 0
        tracker = EventTracker("bench", jury.timing, {"model": levels}, None)
        started = 0
        for i, score in enumerate(scores.tolist()):
            first_frame = i * self._grid.hop_frames
            end_frame = first_frame + self._grid.window_frames
            told = tracker.prompt("model", Verdict(first_frame, end_frame, Opinion(score, 1.0), tuple))
            started += sum(event.event_type is EventType.START for event in told)
            tracker.settle(end_frame)
        return started

    def _windows(self, sound: FloatArray) -> FloatArray:
        frames = np.lib.stride_tricks.sliding_window_view(self._front_end.window_log_mel(sound), self._n_frames, axis=1)
        hop = self._grid.hop_frames // self._spec.hop_frames
        return np.ascontiguousarray(frames[:, ::hop].transpose(1, 0, 2))

    def _sworn_model(self, scores: Scores) -> Model:
        manifest = Manifest(
            name="bench",
            version=1,
            detector="mahalanobis",
            sample_rate_hz=RATE_HZ,
            window_frames=self._grid.window_frames,
            inputs=Inputs(log_mel=self._spec),
            outputs=["score"],
            calibration=fit_calibration(scores, window_s=WINDOW_S, hop_s=HOP_S),
            provenance=Provenance(
                created_utc="", code_version="", seed=0, seconds_heard=0.0, corpus_sha256="", recipe={}
            ),
        )
        return Model(self._engine, manifest, Calibration(manifest.calibration))


def count_recording(source: str, sound: Sequence[FloatArray], deal: Deal) -> list[Count]:
    """Count each third after measuring on one of the others and calibrating on the third, in rotation."""
    thirds = parts(sound, deal)
    hours = sum(len(one) for third in thirds for one in third) / RATE_HZ / 3600.0
    events = dict.fromkeys(PER_HOUR, 0)
    for turn in range(3):
        judge = Judge(thirds[turn], thirds[(turn + 1) % 3])
        scored = [judge.scores(one) for one in thirds[(turn + 2) % 3]]
        for per_hour in PER_HOUR:
            jury = judge.jury(per_hour)
            events[per_hour] += sum(judge.events(scores, jury) for scores in scored)
    return [Count(source, per_hour, per_hour * hours, found) for per_hour, found in events.items()]


def count_generated(hours: float) -> list[Count]:
    """Count events in generated sound, after ten minutes of measuring and an hour of calibrating."""
    judge = Judge(list(generated(1 / 6, seed=1)), list(generated(1.0, seed=2)))
    juries = {per_hour: judge.jury(per_hour) for per_hour in PER_HOUR}
    events = dict.fromkeys(PER_HOUR, 0)
    for sound in generated(hours, seed=3):
        scores = judge.scores(sound)
        for per_hour, jury in juries.items():
            events[per_hour] += judge.events(scores, jury)
    return [Count(f"generated, {hours:g} h", per_hour, per_hour * hours, found) for per_hour, found in events.items()]


def pooled(name: str, counts: Sequence[Count]) -> list[Count]:
    """Return the counts of several sources as one."""
    return [
        Count(name, b, sum(c.expected for c in own), sum(c.events for c in own))
        for b in PER_HOUR
        if (own := [c for c in counts if c.per_hour == b])
    ]


def print_rows(counts: Sequence[Count]) -> None:
    """Print a row for each budget that can be tested."""
    for count in counts:
        if count.expected < LEAST_EXPECTED:
            continue
        ends = (
            stats.chi2.ppf(0.025, 2 * count.events) / 2 if count.events else 0.0,
            stats.chi2.ppf(0.975, 2 * count.events + 2) / 2,
        )
        ratio = count.events / count.expected
        cells = (
            count.source,
            f"{count.per_hour:g}/hour" if count.per_hour >= 1 else f"{24 * count.per_hour:g}/day",
            f"{count.expected:.1f}",
            count.events,
            f"{ratio:.2f}",
            " to ".join(f"{end / count.expected:.2f}" for end in ends),
            "yes" if 0.5 <= ratio <= 2.0 else "no",
        )
        print("|", " | ".join(map(str, cells)), "|")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[2] / "shared" / "audio"
    parser.add_argument("audio", type=Path, nargs="?", default=default)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--by", choices=("dealt", "order"), default="dealt")
    parser.add_argument("--each", action="store_true", help="a row for each recording too")
    arguments = parser.parse_args()
    print(f"{machine_line()}; thirds {arguments.by}\n")
    print("| normal sound | budget | expected | counted | ratio | 95 % | within 2 |\n|---|---|---|---|---|---|---|")
    recordings = sorted(
        path for path in (arguments.audio / "streams").glob("*") if path.suffix in {".flac", ".ogg", ".wav"}
    )
    streams = [count for path in recordings for count in count_recording(path.stem, stretches(path), arguments.by)]
    machines = []
    for machine in MACHINES:
        clips = sorted((arguments.audio / "machines" / machine / "train").glob("*"))
        if clips:
            sound = [read_samples(path, rate_hz=RATE_HZ) for path in clips]
            machines += count_recording(machine, sound, arguments.by)
    if arguments.each:
        print_rows([*streams, *machines])
    print_rows(pooled("streams", streams))
    print_rows(pooled("machines", machines))
    if arguments.hours:
        print_rows(count_generated(arguments.hours))


if __name__ == "__main__":
    main()
