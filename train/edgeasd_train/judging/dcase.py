"""The figures of DCASE's task 2, by the rule of each year, with bootstrap confidence intervals.

    2020        per machine and id: AUC and pAUC; means over ids, then over machines
    2021        per section and domain, its own clips only; the official figure is the harmonic mean of all
    2022-2026   AUC of a domain: its normal clips against the anomalies of both; pAUC of both domains together;
                the official figure is the harmonic mean of AUC (source), AUC (target) and pAUC over all sections

The formulas are those of the organisers' evaluators: dcase2020_, 2021_ and 2023_task2_evaluator, dcase2022_evaluator.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgeasd_train.corpus.facts import DOMAIN_CODES, Domain
from edgeasd_train.judging.roc import MAX_FPR, Array, areas, bootstrap_weights, rank

BoolArray = NDArray[np.bool_]
Year = Literal[2020, 2021, 2022, 2023, 2024, 2025, 2026]
YEARS: tuple[Year, ...] = (2020, 2021, 2022, 2023, 2024, 2025, 2026)
DOMAINS: tuple[Domain, ...] = ("source", "target")
EPS = sys.float_info.epsilon
"""Floor of what goes into a harmonic mean, and of the denominators of precision, recall and F1."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Clips:
    """The judged clips of one section (or id) of one machine."""

    machine: str
    section: int
    """-1 where names say none."""
    files: tuple[str, ...]
    label: NDArray[np.int64]
    """Shape (n,): 0 normal, 1 anomaly, -1 unknown."""
    domain: NDArray[np.int64]
    """Shape (n,): 0 source, 1 target, -1 unknown."""
    score: Array
    """Shape (n,): higher is stranger."""

    @property
    def labelled(self) -> Clips:
        """Return those whose label is known."""
        known = self.label >= 0
        files = tuple(file for file, keep in zip(self.files, known.tolist(), strict=True) if keep)
        return Clips(self.machine, self.section, files, self.label[known], self.domain[known], self.score[known])


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of merit: of a section, a machine (section and domain empty) or of all (machine empty too)."""

    machine: str
    section: str
    domain: str
    name: str
    values: Array
    """Shape (1 + n_draws,): the figure, then what it came to in each bootstrap draw."""

    @property
    def value(self) -> float:
        """Return the figure itself."""
        return float(self.values[0])

    @property
    def interval(self) -> tuple[float, float]:
        """Return the ends of the 95 % percentile interval over the draws; NaN without draws."""
        if len(self.values) == 1:
            return float("nan"), float("nan")
        edge = (1.0 - CONFIDENCE) / 2.0
        low, high = np.quantile(self.values[1:], [edge, 1.0 - edge])
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Judgement:
    """All figures of an evaluation of clips."""

    year: Year
    figures: tuple[Figure, ...]

    def find(self, name: str, *, machine: str = "", section: str = "", domain: str = "") -> Figure | None:
        """Return one figure; None where it could not be taken for want of normal clips or of anomalies."""
        place = (machine, section, domain, name)
        return next((f for f in self.figures if (f.machine, f.section, f.domain, f.name) == place), None)


def section_name(section: int) -> str:
    """Return the number of a section as file names write it; 00 where none is known."""
    return f"{max(0, section):02d}"


def judge_clips(
    sections: Sequence[Clips], *, thresholds: Mapping[str, float], year: Year, n_draws: int = 1000, seed: int = 0
) -> Judgement:
    """Take all figures of the year; `thresholds` holds that of each machine, above which a clip is called strange.

    Clips are drawn within label and domain of each section; the threshold stays as it is.
    """
    figures: list[Figure] = []
    weighted = [(clips, _draw(clips, n_draws, (seed, i))) for i, clips in enumerate(c.labelled for c in sections)]
    for clips, weights in weighted:
        figures += _take(clips, weights, section_name(clips.section), threshold=thresholds[clips.machine], year=year)
    for machine in dict.fromkeys(clips.machine for clips in sections):
        own = [(clips, weights) for clips, weights in weighted if clips.machine == machine]
        pooled = _pool([clips for clips, _ in own]), np.concatenate([weights for _, weights in own], axis=1)
        figures += _take(*pooled, "", threshold=thresholds[machine], year=year)
    return Judgement(year, (*figures, *_means(figures, year)))


def _draw(clips: Clips, n_draws: int, seed: tuple[int, int]) -> NDArray[np.uint16]:
    strata = 3 * clips.label + clips.domain
    return bootstrap_weights(strata, n_draws=n_draws, random=np.random.default_rng(seed))


def _pool(sections: Sequence[Clips]) -> Clips:
    """Return the clips of all sections of a machine as one."""
    columns = (np.concatenate([getattr(clips, name) for clips in sections]) for name in ("label", "domain", "score"))
    return Clips(sections[0].machine, -1, tuple(file for clips in sections for file in clips.files), *columns)


def _take(clips: Clips, weights: NDArray[np.uint16], section: str, *, threshold: float, year: Year) -> list[Figure]:
    """Return the figures of one section, or of a machine with its sections pooled."""
    everything = np.ones(len(clips.files), bool)
    normal, anomaly = clips.label == 0, clips.label == 1
    parts: list[tuple[str, BoolArray, BoolArray]] = [("", everything, anomaly)]
    for domain in DOMAINS if year > 2020 else ():  # in 2020 there were none
        own: BoolArray = clips.domain == DOMAIN_CODES[domain]
        parts.append((domain, own, anomaly if year > 2021 else anomaly & own))
    ranking, over = rank(clips.score), clips.score > threshold
    found = []
    for name_of_domain, own, strange in parts:
        usual = normal & own
        if usual.any() and strange.any():
            area = areas(ranking, normal=weights * usual, anomaly=weights * strange)
            found.append(Figure(clips.machine, section, name_of_domain, "AUC", area))
        if usual.any() and (own & anomaly).any():
            area = areas(ranking, normal=weights * usual, anomaly=weights * (own & anomaly), max_fpr=MAX_FPR)
            found.append(Figure(clips.machine, section, name_of_domain, "pAUC", area))
            decided = _decisions(weights, over=over, usual=usual, strange=own & anomaly)
            found += [Figure(clips.machine, section, name_of_domain, name, values) for name, values in decided.items()]
    return found


def _decisions(
    weights: NDArray[np.uint16], *, over: BoolArray, usual: BoolArray, strange: BoolArray
) -> dict[str, Array]:
    """Return precision, recall and F1 (1 + n_draws,) of calling strange what is over the threshold."""
    hits, false_alarms, all_strange = (
        weights @ mask.astype(np.float64) for mask in (over & strange, over & usual, strange)
    )
    precision = hits / np.maximum(hits + false_alarms, EPS)
    recall = hits / np.maximum(all_strange, EPS)
    return {
        "precision": precision,
        "recall": recall,
        "F1": 2.0 * precision * recall / np.maximum(precision + recall, EPS),
    }


def harmonic_mean(values: Sequence[Array]) -> Array:
    """Return the harmonic mean over the first axis, of values floored at the machine epsilon, as the evaluators do."""
    mean: Array = len(values) / np.sum(1.0 / np.maximum(np.stack(values), EPS), axis=0)
    return mean


def _mean(values: Sequence[Array]) -> Array:
    mean: Array = np.mean(np.stack(values), axis=0)
    return mean


def _means(figures: Sequence[Figure], year: Year) -> list[Figure]:
    """Return the means over sections and machines, and the official figure of the year."""
    by_section = [figure for figure in figures if figure.section]
    found: list[Figure] = []
    for name in ("AUC", "pAUC", "precision", "recall", "F1"):
        for domain in ("", *DOMAINS):
            own = [figure for figure in by_section if (figure.name, figure.domain) == (name, domain)]
            found += _means_of(own, name=name, domain=domain, year=year)
    for name in ("AUC", "pAUC"):
        pooled = [f.values for f in figures if f.name == name and not f.section and not f.domain]
        if pooled:
            found.append(Figure("", "", "", f"{name}, mean of machines", _mean(pooled)))
    return found + _official([*by_section, *found], year)


def _means_of(own: Sequence[Figure], *, name: str, domain: str, year: Year) -> list[Figure]:
    """Return the means of one figure of sections: of each machine, and of all."""
    found = []
    for machine in dict.fromkeys(figure.machine for figure in own):
        values = [figure.values for figure in own if figure.machine == machine]
        found.append(Figure(machine, "", domain, f"{name}, mean", _mean(values)))
        found.append(Figure(machine, "", domain, f"{name}, harmonic mean", harmonic_mean(values)))
    if own:
        # In 2020 every machine weighs the same however many ids it has, later every section.
        of_machines = [figure.values for figure in found if figure.name.endswith(", mean")]
        mean = _mean(of_machines if year == 2020 else [figure.values for figure in own])
        found.append(Figure("", "", domain, f"{name}, mean", mean))
        found.append(Figure("", "", domain, f"{name}, harmonic mean", harmonic_mean([f.values for f in own])))
    return found


def _official(figures: Sequence[Figure], year: Year) -> list[Figure]:
    """Return what the challenge of that year ranks or sums up by."""
    by_section = [figure for figure in figures if figure.section]
    if year == 2020:
        means = [f.values for f in figures if not f.machine and f.name in ("AUC, mean", "pAUC, mean")]
        aucs = [figure for figure in by_section if figure.name == "AUC"]
        machines = dict.fromkeys(figure.machine for figure in aucs)
        worst = [np.min([f.values for f in aucs if f.machine == machine], axis=0) for machine in machines]
        return [
            *([Figure("", "", "", "official", _mean(means))] if means else []),
            *([Figure("", "", "", "AUC, mean of worst ids", _mean(worst))] if worst else []),
        ]
    wanted = {("AUC", "source"), ("AUC", "target"), ("pAUC", "source"), ("pAUC", "target")}
    if year > 2021:
        wanted = {("AUC", "source"), ("AUC", "target"), ("pAUC", "")}
    terms = [figure.values for figure in by_section if (figure.name, figure.domain) in wanted]
    return [Figure("", "", "", "official", harmonic_mean(terms))] if terms else []
