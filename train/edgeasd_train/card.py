"""The model card: what a person should know before trusting a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from edgeasd.bundle import Manifest
from edgeasd_train.corpus import Corpus

_MAX_FILES_NAMED = 20


def model_card(manifest: Manifest, corpus: Corpus, *, limits: Sequence[str]) -> str:
    """Return the card as Markdown; `limits` are the detector's own."""
    made, table = manifest.provenance, manifest.calibration
    quantiles = ", ".join(f"{percent} %: {table.quantiles[round(2.56 * percent)]:.3g}" for percent in (50, 90, 99, 100))
    names = sorted(sound.path.name for sound in corpus.sounds)
    more = f" and {len(names) - _MAX_FILES_NAMED} more" if len(names) > _MAX_FILES_NAMED else ""
    heard = f"{made.metrics['held_out_s']:.0f} s held out: {table.n_scores} windows, as good as {table.n_effective:.0f}"
    own_limits = "".join(f"\n- {limit}" for limit in limits)
    losses = f"{made.metrics['train_loss']:.4g} (training), {made.metrics['held_out_loss']:.4g} (held out)"
    return f"""# {manifest.name}

Judges windows of {manifest.window_frames / manifest.sample_rate_hz:g} s at {manifest.sample_rate_hz} Hz by how unlike
they are to the sound it was trained on. A score is no verdict on what is heard or whether it matters.

| | |
|---|---|
| detector | {manifest.detector} |
| version | {manifest.version} |
| made | {made.created_utc}, edgeasd {made.code_version}, seed {made.seed} |
| trained on | {made.metrics["train_s"]:.0f} s |
| calibrated on | {heard} independent ones |
| training | {made.metrics["steps"]:.0f} steps in {made.metrics["epochs"]:.0f} epochs |
| loss | {losses} |
| held-out scores | {quantiles} |
| corpus sha256 | {made.corpus_sha256} |

Recordings: {", ".join(names[:_MAX_FILES_NAMED])}{more}.

## Limits

- It knows the microphone, gain, place and hours it was trained on. Elsewhere, or after a change, calibrate on site or
  train again.
- All training sound was taken to be normal. What was strange in it is normal to this model.
- Probabilities below 1 in {table.n_effective:.0f} are extrapolated: no such rare score was heard.{own_limits}
"""
