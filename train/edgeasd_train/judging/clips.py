"""Clips whose names say what they are: found, heard as a node hears them, and given one score each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.capture.convert import Channel
from edgeasd.engine import Engine, open_engine
from edgeasd.errors import InputError, UsageError
from edgeasd.manifest import Precision
from edgeasd.records import FloatArray
from edgeasd_train.corpus.facts import DOMAIN_CODES, Facts, facts_of
from edgeasd_train.judging.dcase import Clips
from edgeasd_train.judging.roc import Array
from edgeasd_train.judging.threshold import Threshold, fit_threshold, held_out_clips
from edgeasd_train.listen import hear

log = logging.getLogger(__name__)

Aggregate = Literal["mean", "max", "median"]
AGGREGATES: dict[Aggregate, Callable[[FloatArray], float]] = {
    "mean": lambda scores: float(np.mean(scores, dtype=np.float64)),
    "max": lambda scores: float(np.max(scores)),
    "median": lambda scores: float(np.median(scores)),
}
LABEL_CODES = {"normal": 0, "anomaly": 1, "": -1}


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """How clips are heard, and how their windows become one score."""

    hop_s: float = 0.5
    aggregate: Aggregate = "mean"
    channel: Channel = "mix"
    precision: Precision = "fp32"


@dataclass(frozen=True, slots=True)
class Clip:
    """A file and what its name says."""

    path: Path
    facts: Facts


@dataclass(frozen=True, slots=True)
class MachineClips:
    """What there is to judge one machine by."""

    machine: str
    train: tuple[Clip, ...]
    """Normal clips of the training part; they set the threshold."""
    test: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class MachineScores:
    """One machine, heard."""

    machine: str
    bundle: Bundle
    sections: tuple[Clips, ...]
    threshold: Threshold
    bad: tuple[str, ...]
    """One line for each clip that could not be read; it counts nowhere."""


def clip_facts(path: Path) -> Facts:
    """Return what DCASE's names say, or else a name that begins with normal_ or anomaly_; split and machine by folder.

    Elsewhere normal and anomaly may also be the folders that clips lie in.
    """
    path = path.absolute()
    facts = facts_of(path)
    if facts.known:
        return facts
    folders = [parent.name for parent in path.parents]
    words = (path.stem.split("_")[0], folders[0])
    label: Literal["normal", "anomaly", ""] = "normal" if "normal" in words else "anomaly" if "anomaly" in words else ""
    split: Literal["train", "test", ""] = "train" if "train" in folders[:2] else "test" if "test" in folders[:2] else ""
    machine = next((name for name in folders if name not in ("train", "test", "normal", "anomaly")), "")
    return Facts(machine, label=label, split=split)


def find_clips(paths: Iterable[Path]) -> list[MachineClips]:
    """Return the clips to judge by machine, in order of name; none where names say neither label nor test split.

    Where some names say that they belong to the test part only these are judged, otherwise all that are labelled.
    """
    clips = [Clip(path, clip_facts(path)) for path in paths]
    test = [clip for clip in clips if clip.facts.split == "test"]
    test = test or [clip for clip in clips if clip.facts.label and clip.facts.split != "train"]
    train = [clip for clip in clips if clip.facts.split == "train" and clip.facts.label != "anomaly"]
    machines = sorted({clip.facts.machine for clip in test})
    return [
        MachineClips(machine, *(tuple(c for c in part if c.facts.machine == machine) for part in (train, test)))
        for machine in machines
    ]


def bundle_for(bundles: Path, machine: str) -> Path:
    """Return the bundle that judges a machine: `bundles` itself, or in a folder of bundles the one of its name."""
    if not bundles.is_dir():
        return bundles
    path = bundles / f"{machine}.edgeasd"
    if not path.is_file():
        raise InputError(f"{bundles}: holds no {path.name} to judge {machine} with")
    return path


def hear_machine(
    clips: MachineClips, bundle_path: Path, options: ClipOptions, *, on_clip: Callable[[], None] = lambda: None
) -> MachineScores:
    """Score every clip of a machine with a bundle; InputError when none can be read."""
    bundle = read_bundle(bundle_path)
    if round(options.hop_s * bundle.manifest.sample_rate_hz) < 1:
        raise UsageError(f"--hop {options.hop_s:g}: is no step forward")
    engine = open_engine(bundle, "onnx", precision=options.precision)
    try:
        bad: list[str] = []
        heard = [
            _score_clips(part, bundle, engine, options, bad=bad, on_clip=on_clip) for part in (clips.train, clips.test)
        ]
    finally:
        engine.close()
    (_, train_scores, train_frames), (test, scores, _) = heard
    unseen = held_out_clips(train_frames, bundle.manifest)
    if not test:
        raise InputError(f"{clips.machine}: none of its {len(clips.test)} clips can be read: {bad[-1]}")
    return MachineScores(
        machine=clips.machine,
        bundle=bundle,
        sections=_by_section(clips.machine, test, scores),
        threshold=fit_threshold(train_scores, bundle.calibration(options.precision), unseen=unseen),
        bad=tuple(bad),
    )


def _score_clips(
    clips: Sequence[Clip],
    bundle: Bundle,
    engine: Engine,
    options: ClipOptions,
    *,
    bad: list[str],
    on_clip: Callable[[], None],
) -> tuple[list[Clip], Array, NDArray[np.int64]]:
    """Return the clips that could be heard, their scores and their lengths; the others are told in `bad`."""
    kept, scores, n_frames = [], [], []
    for clip in clips:
        try:
            heard = hear(
                clip.path, bundle, engine, hop_s=options.hop_s, channel=options.channel, wanted=frozenset({"score"})
            )
        except InputError as exc:
            log.warning("left out: %s", exc)
            bad.append(str(exc))
        else:
            kept.append(clip)
            n_frames.append(len(heard.samples))
            scores.append(AGGREGATES[options.aggregate](heard.outputs.score))
        on_clip()
    return kept, np.array(scores, np.float64), np.array(n_frames, np.int64)


def _by_section(machine: str, clips: Sequence[Clip], scores: Array) -> tuple[Clips, ...]:
    """Part the clips of a machine by section, each in order of file name, as the evaluators sort them."""
    found = []
    for section in sorted({clip.facts.section for clip in clips}):
        own = [i for i, clip in enumerate(clips) if clip.facts.section == section]
        own.sort(key=lambda i: clips[i].path.name)
        facts = [clips[i].facts for i in own]
        found.append(
            Clips(
                machine=machine,
                section=section,
                files=tuple(str(clips[i].path) for i in own),
                label=np.array([LABEL_CODES[one.label] for one in facts], np.int64),
                domain=np.array([DOMAIN_CODES[one.domain] for one in facts], np.int64),
                score=scores[own],
            )
        )
    return tuple(found)
