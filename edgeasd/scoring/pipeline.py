"""What happens to a second of sound: front end, model, second opinion, alarm. One object, live and in replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeasd.errors import SelfTestError
from edgeasd.features.mel import MelSpec
from edgeasd.manifest import Manifest
from edgeasd.records import FloatArray, Opinion, Skipped, Window
from edgeasd.scoring.front import SharedFrontEnd
from edgeasd.scoring.jury import AlarmPolicy, Grid, Jury, Model, policy_at, swear_in
from edgeasd.scoring.listener import Heard, Inspect, Listener, Said


class Pipeline:
    """Judges the windows of any number of sources with one engine.

    `process` takes what the window readers hand out, in order, and returns what there is to say, in order. The state of
    a source is made when its first window comes and dropped by `finish`.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        model: Model | None,
        novelty: MelSpec | None,
        policy: AlarmPolicy,
        inspect: Inspect,
    ) -> None:
        """`novelty` is the front end of the second opinion; None leaves the model to judge alone."""
        assert model is not None or novelty is not None
        self._grid = grid
        self._model = model
        self._novelty = novelty
        self._model_spec = None if model is None else model.manifest.inputs.log_mel
        self._policy = policy
        self._thresholds: dict[str, float] = {}
        self._juries: dict[str, Jury] = {}
        self._jury = self._sworn_in(policy)
        self._inspect = inspect
        self._listeners: dict[str, Listener] = {}
        self._fronts: dict[str, SharedFrontEnd] = {}
        self._standby: Model | None = None
        self.failure: SelfTestError | None = None
        """Why the standby has taken over; None while it has not."""
        self.overheard_by: Callable[[Sequence[Window | Skipped]], None] | None = None
        """Is given what was judged, after it was."""

    @property
    def confirms(self) -> bool:
        """Return whether windows get a second look."""
        return self._novelty is not None

    def threshold(self, source: str) -> float:
        """Return the score at which an event of the source starts at once."""
        return self._jury_of(source).threshold

    def set_policy(self, policy: AlarmPolicy) -> None:
        """Judge by another policy from now on; SettingsError, and nothing changed, when it names a judge who is absent.

        Sources with a threshold of their own keep it.
        """
        self._jury, self._policy = self._sworn_in(policy), policy
        self._reseat()

    def set_threshold(self, source: str, score: float | None) -> None:
        """Let events of the source start at once from `score` on, -log10 p; None: as the budget says.

        All levels of the source move with it, as if the budget were the one that gives this threshold.
        """
        if score is None:
            self._thresholds.pop(source, None)
        else:
            self._thresholds[source] = score
        self._reseat()

    def takes(self, manifest: Manifest) -> bool:
        """Return whether `set_model` can take a model of this manifest: one whose sound is cut and framed alike."""
        grid, spec = self._grid, manifest.inputs.log_mel
        return (
            self._model is not None
            and (manifest.sample_rate_hz, manifest.window_frames) == (grid.rate_hz, grid.window_frames)
            and _framing(spec) == _framing(self._model_spec)
        )

    def set_model(self, model: Model, *, standby: Model | None = None) -> None:
        """Ask another model from now on, one that `takes` allows.

        The past of each source is kept. The engine of the former model is not closed. When the model fails, `standby`
        takes over with the same windows, and `failure` says why.
        """
        assert self.takes(model.manifest), "another framing needs another line"
        self._model, self._model_spec = model, model.manifest.inputs.log_mel
        self._standby, self.failure = standby, None
        self._jury = self._sworn_in(self._policy)
        self._fronts.clear()
        self._reseat()

    def join(self, novelty: Opinion | None, model: Opinion | None) -> Opinion:
        """Return the joined opinion; its score is -log10 of its p-value."""
        return self._jury.join(novelty, model)

    def process(self, items: Sequence[Window | Skipped]) -> list[tuple[str, Said]]:
        """Judge windows of one or several sources, those of a source in order; return what is said of which source."""
        looked_at = [self._listener(item.source).hear(item) if isinstance(item, Window) else item for item in items]
        heard = [one for one in looked_at if isinstance(one, Heard)]
        try:
            self._examine(heard)
        except SelfTestError as exc:
            if self._standby is None:
                raise
            self.set_model(self._standby)
            self.failure = exc
            self._examine(heard)
        told = self._judged(looked_at)
        if self.overheard_by is not None:
            self.overheard_by(items)
        return told

    def _judged(self, items: Sequence[Heard | Skipped]) -> list[tuple[str, Said]]:
        """Return what the listeners say, each asked once, in the order of the items."""
        of_source: dict[str, list[Heard | Skipped]] = {}
        for item in items:
            of_source.setdefault(item.source, []).append(item)
        said = {source: iter(self._listener(source).judge(own)) for source, own in of_source.items()}
        return [(item.source, one) for item in items for one in next(said[item.source])]

    def finish(self, source: str) -> list[Said]:
        """Say what is left to say of a source whose sound has ended, and forget it."""
        self._fronts.pop(source, None)
        listener = self._listeners.pop(source, None)
        return [] if listener is None else listener.finish()

    def alarm_active(self, source: str) -> bool:
        """Return whether an event of the source is under way."""
        return source in self._listeners and self._listeners[source].alarm_active

    def _sworn_in(self, policy: AlarmPolicy) -> Jury:
        return swear_in(self._grid, model=self._model, has_novelty=self._novelty is not None, policy=policy)

    def _jury_of(self, source: str) -> Jury:
        if source not in self._thresholds:
            return self._jury
        if source not in self._juries:
            has_novelty = self._novelty is not None
            policy = policy_at(
                self._thresholds[source], self._grid, model=self._model, has_novelty=has_novelty, policy=self._policy
            )
            self._juries[source] = self._sworn_in(policy)
        return self._juries[source]

    def _reseat(self) -> None:
        self._juries.clear()
        for source, listener in self._listeners.items():
            listener.seat(self._jury_of(source), self._model)

    def _listener(self, source: str) -> Listener:
        if source not in self._listeners:
            self._listeners[source] = Listener(
                source,
                self._grid,
                jury=self._jury_of(source),
                model=self._model,
                novelty=self._novelty,
                inspect=self._inspect,
            )
        return self._listeners[source]

    def _examine(self, heard: Sequence[Heard]) -> None:
        """Fill in what the front end and the model make of windows."""
        of_source: dict[str, list[Heard]] = {}
        for one in heard:
            of_source.setdefault(one.source, []).append(one)
        for source, own in of_source.items():
            self._add_features(source, own)
        self._ask_model([one for one in heard if one.fault is None])

    def _add_features(self, source: str, heard: Sequence[Heard]) -> None:
        """Fill in the log mel of one source's windows."""
        specs = [spec for spec in (self._model_spec, self._novelty) if spec is not None]
        if not specs:
            return
        if source not in self._fronts:
            self._fronts[source] = SharedFrontEnd(
                specs, window_frames=self._grid.window_frames, hop_frames=self._grid.hop_frames
            )
        rows = self._fronts[source].push([one.window for one in heard], [one.samples for one in heard])
        if self._model_spec is not None:
            for one, own in zip(heard, rows[0], strict=True):
                one.model_rows = own
        if self._novelty is not None:
            for one, own in zip(heard, rows[-1], strict=True):
                one.novelty_rows = own

    def _ask_model(self, heard: Sequence[Heard]) -> None:
        """Fill in the model's scores of all windows, of all sources, in one batch."""
        if self._model is None or not heard:
            return
        inputs: dict[str, FloatArray] = {}
        if self._model_spec is not None:
            rows = [one.model_rows for one in heard if one.model_rows is not None]
            inputs["log_mel"] = np.stack(rows)  # (B, n_rows, n_frames)
        if self._model.manifest.inputs.waveform:
            inputs["waveform"] = np.stack([one.samples for one in heard])  # (B, window_frames)
        outputs = self._model.engine.score(inputs)
        for index, one in enumerate(heard):
            one.model_score = float(outputs.score[index])
            one.model_residual = None if outputs.residual is None else outputs.residual[index]


def _framing(spec: MelSpec | None) -> tuple[int, int, int] | None:
    return None if spec is None else (spec.sample_rate_hz, spec.n_fft, spec.hop_frames)
