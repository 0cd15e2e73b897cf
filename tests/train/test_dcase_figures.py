"""The figures of each year: against cases counted by hand, and read back from the files with scikit-learn."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import hmean
from sklearn import metrics

from edgeasd.bundle import read_bundle
from edgeasd_train.judging.clipfiles import ClipReport, write_files
from edgeasd_train.judging.clips import MachineScores
from edgeasd_train.judging.dcase import EPS, Clips, Judgement, Year, judge_clips
from edgeasd_train.judging.threshold import Threshold
from tests.small_bundle import write_small_bundle

Floats = NDArray[np.float64]

# Source: normal 1, 2, anomaly 3; target: normal 2.5, 4, anomaly 2.2. In a ROC of all: 1n 2n 2.2a 2.5n 3a 4n.
SCORES = (1.0, 2.0, 3.0, 2.5, 4.0, 2.2)
LABELS = (0, 0, 1, 0, 0, 1)
DOMAINS = (0, 0, 0, 1, 1, 1)


def _clips(
    scores: Sequence[float] = SCORES,
    labels: Sequence[int] = LABELS,
    domains: Sequence[int] = DOMAINS,
    *,
    machine: str = "fan",
    section: int = 0,
) -> Clips:
    files = tuple(f"{i:04d}.wav" for i in range(len(scores)))
    label, domain = np.array(labels, np.int64), np.array(domains, np.int64)
    return Clips(machine, section, files, label, domain, np.array(scores, np.float64))


def _random_clips(*, machine: str, section: int, seed: int, n: int = 60) -> Clips:
    random = np.random.default_rng(seed)
    labels, domains = np.arange(n) % 2, np.arange(n) // 2 % 2
    scores = np.round(random.normal(0.8 * labels + 0.3 * domains), 1)  # with ties
    order = random.permutation(n)
    clips = _clips(scores[order].tolist(), labels[order].tolist(), domains[order].tolist(), machine=machine)
    return Clips(machine, section, clips.files, clips.label, clips.domain, clips.score)


def _judge(*sections: Clips, year: Year, threshold: float = 2.3, n_draws: int = 0) -> Judgement:
    thresholds = {clips.machine: threshold for clips in sections}
    return judge_clips(sections, thresholds=thresholds, year=year, n_draws=n_draws)


def _value(judgement: Judgement, name: str, **place: str) -> float:
    found = judgement.find(name, **place)
    assert found is not None, (name, place)
    return found.value


def test_2020_by_hand() -> None:
    # id 0: anomalies 3 and 2.2 against normals 1, 2, 2.5, 4: 3 beats 3 of 4, 2.2 beats 2 of 4. id 2: perfect.
    perfect = _clips((1.0, 2.0), (0, 1), (-1, -1), section=2)
    pump = _clips((2.0, 1.0), (0, 1), (-1, -1), machine="pump", section=4)
    first = _clips(domains=(-1,) * 6)
    judged = _judge(first, perfect, pump, year=2020)
    assert _value(judged, "AUC", machine="fan", section="00") == 5 / 8
    # Up to a false positive rate of 0.1 nothing is found: the area 0 is 0.5 (1 - 0.005 / 0.095) after McClish.
    assert _value(judged, "pAUC", machine="fan", section="00") == pytest.approx(0.5 * (1 - 0.005 / 0.095))
    assert _value(judged, "AUC, mean", machine="fan") == pytest.approx((5 / 8 + 1) / 2)
    assert _value(judged, "AUC, mean") == pytest.approx(((5 / 8 + 1) / 2 + 0.0) / 2)  # machines weigh the same
    low = 0.5 * (1 - 0.005 / 0.095)
    assert _value(judged, "pAUC, mean") == pytest.approx(((low + 1) / 2 + low) / 2)
    assert _value(judged, "official") == pytest.approx((_value(judged, "AUC, mean") + _value(judged, "pAUC, mean")) / 2)
    assert _value(judged, "AUC, mean of worst ids") == pytest.approx((5 / 8 + 0.0) / 2)


def test_2021_by_hand() -> None:
    judged = _judge(_clips(), year=2021)
    place = {"machine": "fan", "section": "00"}
    assert _value(judged, "AUC", domain="source", **place) == 1.0  # 3 against 1 and 2
    assert _value(judged, "AUC", domain="target", **place) == 0.0  # 2.2 against 2.5 and 4
    assert _value(judged, "pAUC", domain="source", **place) == pytest.approx(1.0)
    low = 0.5 * (1 - 0.005 / 0.095)
    assert _value(judged, "pAUC", domain="target", **place) == pytest.approx(low)
    # An AUC of 0 counts as the machine epsilon, and with it the harmonic mean is next to nothing.
    assert _value(judged, "official") == pytest.approx(4 / (1 + 1 / EPS + 1 + 1 / low))


@pytest.mark.parametrize("year", [2022, 2023, 2024, 2025, 2026])
def test_2022_to_2026_by_hand(year: Year) -> None:
    judged = _judge(_clips(), year=year)
    place = {"machine": "fan", "section": "00"}
    assert _value(judged, "AUC", domain="source", **place) == 1.0  # 3 and 2.2 against 1 and 2
    assert _value(judged, "AUC", domain="target", **place) == 1 / 4  # 3 beats 2.5 alone
    low = 0.5 * (1 - 0.005 / 0.095)
    assert _value(judged, "pAUC", **place) == pytest.approx(low)
    assert _value(judged, "pAUC", domain="source", **place) == pytest.approx(1.0)  # of its own anomaly
    assert _value(judged, "official") == pytest.approx(3 / (1 + 4 + 1 / low))
    # Above 2.3: of source the anomaly alone; of target both normal clips, and not the anomaly.
    decided = {
        d: [_value(judged, n, domain=d, **place) for n in ("precision", "recall", "F1")] for d in ("source", "target")
    }
    assert decided == {"source": [1.0, 1.0, 1.0], "target": [0.0, 0.0, 0.0]}
    assert _value(judged, "precision", **place) == pytest.approx(1 / 3)
    assert _value(judged, "recall", **place) == pytest.approx(1 / 2)
    assert _value(judged, "F1", **place) == pytest.approx(0.4)


def test_a_score_on_the_threshold_is_not_above_it() -> None:
    judged = _judge(_clips(), year=2023, threshold=3.0)
    assert _value(judged, "recall", machine="fan", section="00", domain="source") == 0.0


def test_sections_pool_into_their_machine() -> None:
    one, other = _random_clips(machine="fan", section=0, seed=0), _random_clips(machine="fan", section=1, seed=1)
    judged = _judge(one, other, year=2023)
    labels, scores = np.concatenate([one.label, other.label]), np.concatenate([one.score, other.score])
    assert _value(judged, "AUC", machine="fan") == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


def test_what_cannot_be_taken_is_left_out() -> None:
    source_only = _clips((1.0, 2.0, 3.0), (0, 0, 1), (0, 0, 0))
    judged = _judge(source_only, year=2023)
    assert judged.find("AUC", machine="fan", section="00", domain="target") is None
    assert _value(judged, "official") == pytest.approx(1.0)  # of AUC (source) and pAUC
    nothing = _judge(_clips((1.0, 2.0), (-1, -1), (0, 1)), year=2023)
    assert nothing.figures == ()


def test_unknown_labels_count_nowhere() -> None:
    more = _clips((*SCORES, 99.0), (*LABELS, -1), (*DOMAINS, 0))
    assert [f.value for f in _judge(more, year=2023).figures] == [f.value for f in _judge(_clips(), year=2023).figures]


def test_intervals_hold_the_figure_and_cover_the_truth() -> None:
    random = np.random.default_rng(5)
    truth = 0.7602499389065233  # of a normal distribution one standard deviation above another
    covered = 0
    for seed in range(40):
        labels = np.arange(120) % 2
        clips = _clips(random.normal(labels).tolist(), labels.tolist(), [-1] * 120)
        judged = judge_clips([clips], thresholds={"fan": 0.5}, year=2020, n_draws=400, seed=seed)
        figure = judged.find("AUC", machine="fan")
        assert figure is not None
        low, high = figure.interval
        assert low < figure.value < high
        assert high - low == pytest.approx(4 * 0.043, rel=0.35)  # the standard error of an AUC of 0.76 of 60 and 60
        covered += low < truth < high
    assert 33 <= covered <= 40


def test_the_same_seed_draws_the_same() -> None:
    clips = _random_clips(machine="fan", section=0, seed=0)

    def interval(seed: int) -> tuple[float, float]:
        figure = judge_clips([clips], thresholds={"fan": 0.5}, year=2023, n_draws=100, seed=seed).find("official")
        assert figure is not None
        return figure.interval

    assert interval(1) == interval(1) != interval(2)


# The evaluators: files by name, rows by sorted name, scikit-learn.


def _read(path: Path) -> Floats:
    with path.open(newline="") as file:
        return np.array([float(row[1]) for row in sorted(csv.reader(file))])


def _submit(tmp_path: Path, year: Year, machines: Mapping[str, Sequence[int]]) -> tuple[Path, Judgement]:
    """Judge random clips and write the files; ground truth lies beside them, as the organisers keep it."""
    bundle = read_bundle(write_small_bundle(tmp_path / "small.edgeasd"))
    sections = [
        _random_clips(machine=machine, section=number, seed=10 * i + number)
        for i, (machine, numbers) in enumerate(machines.items())
        for number in numbers
    ]
    judged = _judge(*sections, year=year, threshold=0.7)
    scored = [
        MachineScores(
            machine, bundle, tuple(c for c in sections if c.machine == machine), Threshold(0.7, "gamma", 9), ()
        )
        for machine in machines
    ]
    out = tmp_path / "team"
    write_files(out, ClipReport(tuple(scored), judged), root=tmp_path)
    for clips in sections:
        for what in ("label", "domain"):
            rows = zip(clips.files, getattr(clips, what).tolist(), strict=True)
            lines = "".join(f"{file},{value}\n" for file, value in rows)
            (tmp_path / f"{what}_{clips.machine}_{clips.section:02d}.csv").write_text(lines)
    return out, judged


def _f1(labels: Floats, decisions: Floats) -> list[float]:
    _, false_alarms, missed, hits = metrics.confusion_matrix(labels, decisions).ravel()
    precision, recall = hits / max(hits + false_alarms, EPS), hits / max(hits + missed, EPS)
    return [precision, recall, 2 * precision * recall / max(precision + recall, EPS)]


def _result(out: Path) -> list[list[str]]:
    with (out / "result.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_files_of_2023_give_the_figures_back(tmp_path: Path) -> None:
    machines = {"bearing": (0,), "fan": (0, 2)}
    out, judged = _submit(tmp_path, 2023, machines)
    official, rows = [], {}
    for machine, sections in machines.items():
        for section in sections:
            scores = _read(out / f"anomaly_score_{machine}_section_{section:02d}_test.csv")
            decisions = _read(out / f"decision_result_{machine}_section_{section:02d}_test.csv")
            labels, domains = (_read(tmp_path / f"{what}_{machine}_{section:02d}.csv") for what in ("label", "domain"))
            row = []
            for domain in (0, 1):
                either = (domains == domain) | (labels == 1)
                row.append(metrics.roc_auc_score(labels[either], scores[either]))
            row.append(metrics.roc_auc_score(labels, scores, max_fpr=0.1))
            official += row
            own = [domains == domain for domain in (0, 1)]
            row = [*row, *(metrics.roc_auc_score(labels[d], scores[d], max_fpr=0.1) for d in own)]
            decided = [_f1(labels[d], decisions[d]) for d in own]
            row += [value for pair in zip(*decided, strict=True) for value in pair]
            rows[machine, f"{section:02d}"] = row
    written = _result(out)
    assert ",".join(written[1]) == (
        "section,AUC (source),AUC (target),pAUC,pAUC (source),pAUC (target),precision (source),precision (target),"
        "recall (source),recall (target),F1 score (source),F1 score (target)"
    )
    at = written.index(["fan"])
    for machine, line in (("bearing", 2), ("fan", at + 2), ("fan", at + 3)):
        name, *cells = written[line]
        np.testing.assert_allclose([float(cell) for cell in cells], rows[machine, name], atol=1e-12)
    fan = np.array([rows["fan", "00"], rows["fan", "02"]])
    assert [line[0] for line in written[at + 4 : at + 6]] == ["arithmetic mean", "harmonic mean"]
    np.testing.assert_allclose([float(cell) for cell in written[at + 4][1:]], fan.mean(axis=0), atol=1e-12)
    expected = hmean(np.maximum(fan, EPS), axis=0)
    np.testing.assert_allclose([float(cell) for cell in written[at + 5][1:]], expected, atol=1e-12)
    assert float(written[-1][1]) == pytest.approx(hmean(np.maximum(official, EPS)), abs=1e-12)
    assert _value(judged, "official") == float(written[-1][1])


def test_the_files_of_2021_give_the_figures_back(tmp_path: Path) -> None:
    out, judged = _submit(tmp_path, 2021, {"fan": (3, 4)})
    rows = []
    for code, domain in enumerate(("source", "target")):
        for section in ("03", "04"):
            scores = _read(out / f"anomaly_score_fan_section_{section}_{domain}_test.csv")
            decisions = _read(out / f"decision_result_fan_section_{section}_{domain}_test.csv")
            own = _read(tmp_path / f"domain_fan_{section}.csv") == code
            labels = _read(tmp_path / f"label_fan_{section}.csv")[own]
            areas_of = [metrics.roc_auc_score(labels, scores, max_fpr=p) for p in (None, 0.1)]
            rows.append([*areas_of, *_f1(labels, decisions)])
    written = _result(out)
    assert written[:2] == [["fan"], ["section", "domain", "AUC", "pAUC", "precision", "recall", "F1 score"]]
    assert [line[:2] for line in written[2:6]] == [
        ["03", "source"],
        ["04", "source"],
        ["03", "target"],
        ["04", "target"],
    ]
    np.testing.assert_allclose([[float(cell) for cell in line[2:]] for line in written[2:6]], rows, atol=1e-12)
    assert [line[:2] for line in written[6:8]] == [["arithmetic mean", ""], ["harmonic mean", ""]]
    means = [[float(cell) for cell in line[2:]] for line in written[6:8]]
    np.testing.assert_allclose(means, [np.mean(rows, axis=0), hmean(np.maximum(rows, EPS), axis=0)], atol=1e-12)
    expected = hmean(np.maximum(np.array(rows)[:, :2], EPS), axis=None)
    assert _value(judged, "official") == pytest.approx(expected, abs=1e-12)


def test_the_files_of_2020_give_the_figures_back(tmp_path: Path) -> None:
    out, judged = _submit(tmp_path, 2020, {"ToyCar": (1, 2), "fan": (6,)})
    written = iter(_result(out))
    means = []
    for machine, ids in (("ToyCar", ("01", "02")), ("fan", ("06",))):
        rows = []
        assert next(written) == [machine]
        assert next(written) == ["id", "AUC", "pAUC"]
        for name in ids:
            scores = _read(out / f"anomaly_score_{machine}_id_{name}.csv")
            labels = _read(tmp_path / f"label_{machine}_{name}.csv")
            rows.append([metrics.roc_auc_score(labels, scores, max_fpr=p) for p in (None, 0.1)])
            line = next(written)
            assert line[0] == name
            np.testing.assert_allclose([float(cell) for cell in line[1:]], rows[-1], atol=1e-12)
        line = next(written)
        assert line[0] == "Average"
        means.append(np.mean(rows, axis=0))
        np.testing.assert_allclose([float(cell) for cell in line[1:]], means[-1], atol=1e-12)
        assert next(written) == []
    assert _value(judged, "official") == pytest.approx(np.mean(means), abs=1e-12)
