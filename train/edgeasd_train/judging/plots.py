"""Pictures of an evaluation of clips: ROC curves, and where normal clips and anomalies score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from edgeasd_train.corpus.facts import DOMAIN_CODES, Domain
from edgeasd_train.judging.clipfiles import ClipReport
from edgeasd_train.judging.clips import MachineScores
from edgeasd_train.judging.dcase import DOMAINS, Clips, section_name
from edgeasd_train.judging.roc import MAX_FPR, auc, curve
from edgeasd_train.pictures import GREY, NORMAL, STRANGE, picture


def draw_clips(out: Path, report: ClipReport) -> None:
    """Draw roc.png, a curve for each machine, and for each machine its curves and histogram."""
    machines = [machine for machine in report.machines if _has_both(_labels(machine))]
    if not machines:
        return
    with picture(out / "roc.png", size_in=(6.4, 6.0)) as drawn:
        axes = _roc_axes(drawn.add_subplot())
        for machine in machines:
            clips = [clips.labelled for clips in machine.sections]
            _draw_curve(axes, clips, machine.machine)
        axes.legend(loc="lower right", fontsize=8)
    for machine in machines:
        _draw_machine(out / f"{machine.machine}.png", machine, year=report.judgement.year)


def _draw_machine(path: Path, machine: MachineScores, *, year: int) -> None:
    with picture(path, size_in=(11.0, 4.8)) as drawn:
        left, right = drawn.subplots(1, 2)
        axes = _roc_axes(left)
        for clips in machine.sections:
            name = f"section {section_name(clips.section)}" if len(machine.sections) > 1 else "all clips"
            _draw_curve(axes, [clips.labelled], name)
            for domain in DOMAINS if year > 2020 else ():
                _draw_curve(axes, [_of_domain(clips.labelled, domain, year)], f"{name}, {domain}", thin=True)
        axes.legend(loc="lower right", fontsize=8)
        _draw_histogram(right, machine)
        drawn.suptitle(machine.machine)


def _of_domain(clips: Clips, domain: Domain, year: int) -> Clips:
    """Return what the AUC of a domain is taken of: its normal clips against its anomalies, since 2022 against all."""
    keep = clips.domain == DOMAIN_CODES[domain]
    if year > 2021 and (keep & (clips.label == 0)).any():
        keep |= clips.label == 1
    files = tuple(file for file, kept in zip(clips.files, keep.tolist(), strict=True) if kept)
    return Clips(clips.machine, clips.section, files, clips.label[keep], clips.domain[keep], clips.score[keep])


def _roc_axes(axes: Axes) -> Axes:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axes.axvspan(0, MAX_FPR, color=GREY, alpha=0.12, linewidth=0)
    axes.set(xlabel="false positive rate (grey: what the pAUC counts)", ylabel="true positive rate")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return axes


def _draw_curve(axes: Axes, sections: list[Clips], name: str, *, thin: bool = False) -> None:
    label, score = (np.concatenate([getattr(clips, part) for clips in sections]) for part in ("label", "score"))
    if not _has_both(label):
        return
    fpr, tpr = curve(label, score)
    areas = f"AUC {auc(label, score):.3f}"
    if not thin:  # the pAUC of a domain is taken of other clips than its curve
        areas += f", pAUC {auc(label, score, max_fpr=MAX_FPR):.3f}"
    axes.plot(fpr, tpr, linewidth=1.0 if thin else 1.8, linestyle="--" if thin else "-", label=f"{name}: {areas}")


def _draw_histogram(axes: Axes, machine: MachineScores) -> None:
    label = _labels(machine)
    score = np.concatenate([clips.score for clips in machine.sections])
    # Anomalies may score a hundred times what is normal: a logarithmic axis keeps both in sight.
    wide = score.min() > 0 and score.max() > 8 * np.median(score[label == 0])
    low, high = float(score.min()), float(score.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.geomspace(low, high, 41) if wide else np.linspace(low, high, 41)
    for code, name, colour in ((0, "normal", NORMAL), (1, "anomaly", STRANGE)):
        own = score[label == code]
        axes.hist(own, edges.tolist(), color=colour, alpha=0.6, label=f"{name} ({len(own)})")
    axes.axvline(machine.threshold.value, color="black", linewidth=1.2, label=f"threshold ({machine.threshold.rule})")
    axes.set(xlabel="score of a clip", ylabel="clips", xscale="log" if wide else "linear")
    axes.legend(fontsize=8)


def _labels(machine: MachineScores) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.concatenate([clips.label for clips in machine.sections])


def _has_both(label: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool:
    return bool((label == 0).any() and (label == 1).any())
