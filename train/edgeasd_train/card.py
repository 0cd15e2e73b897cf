"""The model card: what a person should know before trusting a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from edgeasd.bundle import Manifest
from edgeasd_train.corpus import Corpus
from edgeasd_train.reducing import Reduction, Refusal

_MAX_FILES_NAMED = 20
DEBUG_WARNING = "Made with --debug, from a handful of files: it shows that the parts work together, and judges nothing."


def model_card(manifest: Manifest, corpus: Corpus, *, limits: Sequence[str], graphs: str, debug: bool) -> str:
    """Return the card as Markdown; `limits` are the detector's own, `graphs` comes from `graph_table`."""
    made, table = manifest.provenance, manifest.calibration
    quantiles = ", ".join(f"{percent} %: {table.quantiles[round(2.56 * percent)]:.3g}" for percent in (50, 90, 99, 100))
    heard = f"{_unseen(made.metrics)}: {table.n_scores} windows, as good as {table.n_effective:.0f}"
    own_limits = "".join(f"\n- {limit}" for limit in limits)
    warning = f"\n**{DEBUG_WARNING}**\n" if debug else ""
    return f"""# {manifest.name}
{warning}
Judges windows of {manifest.window_frames / manifest.sample_rate_hz:g} s at {manifest.sample_rate_hz} Hz by how unlike
they are to the sound it was trained on. A score is no verdict on what is heard or whether it matters.

| | |
|---|---|
| detector | {manifest.detector} |
| version | {manifest.version} |
| made | {made.created_utc}, edgeasd {made.code_version}, seed {made.seed} |
| trained on | {_learned_s(made.metrics):.0f} s{_pruned(made.metrics)} |
| calibrated on | {heard} independent ones |
| training | {_course(made.metrics)} |
| held-out scores | {quantiles} |
| corpus sha256 | {made.corpus_sha256} |

Recordings: {_recordings(corpus)}.

## Graphs

{graphs}

## Limits

- It knows the microphone, gain, place and hours it was trained on. Elsewhere, or after a change, calibrate on site or
  train again.
- {_trust(made.metrics)}
- Probabilities below 1 in {table.n_effective:.0f} are extrapolated: no such rare score was heard.{own_limits}
"""


def graph_table(model_onnx: bytes, reductions: Sequence[Reduction | Refusal]) -> str:
    """Return, as Markdown, the graph in every precision and what fewer bits cost; then what did not ship."""
    rows = [("fp32", _size(model_onnx), "", "", "", _sha256(model_onnx))]
    missing = []
    for one in reductions:
        if isinstance(one, Refusal):
            missing.append(f"\n- No {one.precision}: {one.reason}.")
            continue
        costs = f"{one.deviation:.2g}", f"{one.rank_agreement:.4f}", f"{one.p_factor:.3f}"
        rows.append((one.precision, _size(one.graph), *costs, _sha256(one.graph)))
    head = (
        "| precision | MB | golden outputs off by | same order (Spearman) | p off by a factor | sha256 |\n" + "|---" * 6
    )
    table = "\n".join((f"{head}|", *(f"| {' | '.join(row)} |" for row in rows)))
    return f"{table}\n{''.join(missing)}".rstrip()


def _size(graph: bytes) -> str:
    return f"{len(graph) / 1e6:.2f}"


def _sha256(graph: bytes) -> str:
    return hashlib.sha256(graph).hexdigest()


def _learned_s(metrics: dict[str, float]) -> float:
    learned_all = metrics["folds"] or metrics["held_out_learned"]
    return metrics["train_s"] + (metrics["held_out_s"] if learned_all else 0.0)


def _unseen(metrics: dict[str, float]) -> str:
    """Return which sound the calibration rests on."""
    if metrics["folds"]:
        return f"all of it, {metrics['folds']:.0f} parts left out in turn"
    if metrics["held_out_learned"]:
        return f"{metrics['held_out_s']:.0f} s that it learned from as well: unseen normal sound will look rare"
    return f"{metrics['held_out_s']:.0f} s held out"


def _pruned(metrics: dict[str, float]) -> str:
    """Return, after the sound trained on, what of it was left out."""
    if not metrics["windows_pruned"]:
        return ""
    return f", without {metrics['windows_pruned']:.0f} of {metrics['windows']:.0f} windows that did not fit the rest"


def _course(metrics: dict[str, float]) -> str:
    train, held_out = metrics["train_loss"], metrics["held_out_loss"]
    if not metrics["steps"]:
        return f"measured in one pass; mean deviation {train:.4g}, held out {held_out:.4g}"
    return f"{metrics['steps']:.0f} steps in {metrics['epochs']:.0f} epochs; loss {train:.4g}, held out {held_out:.4g}"


def _trust(metrics: dict[str, float]) -> str:
    if metrics["windows_pruned"]:
        return (
            "Training sound that was not pruned was taken to be normal. What is strange in it is normal to this model."
        )
    return "All training sound was taken to be normal. What was strange in it is normal to this model."


def _recordings(corpus: Corpus) -> str:
    n_sounds = len(corpus.sounds)
    names = [corpus.sounds[number].path.name for number in range(min(n_sounds, _MAX_FILES_NAMED))]
    more = f" and {n_sounds - _MAX_FILES_NAMED} more" if n_sounds > _MAX_FILES_NAMED else ""
    return f"{', '.join(names)}{more}"
