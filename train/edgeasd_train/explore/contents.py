"""What stands on the page, as facts (JSON) and columns (arrays) for its scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeasd.bundle import Bundle
from edgeasd.features.mel import MelSpec, mel_points_hz
from edgeasd.scoring.calibration import Calibration
from edgeasd.scoring.explain import MAX_BANDS, strongest_bands
from edgeasd_train.explore.facets import Facet, holds_event
from edgeasd_train.explore.gather import HeardRecording, ShownWindows
from edgeasd_train.explore.geometry import Geometry
from edgeasd_train.explore.pictures import BLOCK_WINDOWS, PackedPictures

BUDGETS_PER_DAY = {
    "1 a week": 1 / 7,
    "1 a day": 1.0,
    "12 a day": 12.0,
    "1 an hour": 24.0,
    "12 an hour": 288.0,
    "60 an hour": 1440.0,
}
_N_BINS = 80
_MAX_TIMELINE_POINTS = 200_000
_LOG_FROM_RATIO = 20.0
"""Scores whose largest is so many times the median are drawn on a logarithmic scale."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything on the page but its sound."""

    bundle: Bundle
    spec: MelSpec
    """Of the pictures."""
    hop_s: float
    recordings: Sequence[HeardRecording]
    windows: ShownWindows
    geometry: Geometry
    facets: Sequence[Facet]
    pictures: PackedPictures

    @property
    def rate_hz(self) -> int:
        """Return the model's sample rate."""
        return self.bundle.manifest.sample_rate_hz

    @property
    def n_windows(self) -> int:
        """Return how many windows were heard."""
        return sum(len(one.scores) for one in self.recordings)


def columns_of(contents: Contents) -> Columns:
    """Return what there is of each shown window, the scores of all, and the pictures, by the name of their element."""
    windows, geometry = contents.windows, contents.geometry
    calibration = Calibration(contents.bundle.manifest.calibration)
    columns: Columns = {
        "recording": windows.recording.astype(np.uint32),
        "start_s": windows.first_frame / contents.rate_hz,
        "score": windows.score,
        "log_p": np.log10([calibration.p_value(score) for score in windows.score.tolist()]).astype(np.float32),
        "places": geometry.places,
        "cluster": geometry.cluster.astype(np.uint16),
        "picture": contents.pictures.number.astype(np.int32),
        "timeline": np.concatenate([_pooled(one.scores, _pool(contents)) for one in contents.recordings]),
    }
    columns |= {f"facet-{i}": facet.codes.astype(np.uint32) for i, facet in enumerate(contents.facets)}
    columns |= {f"pictures-{i}": block for i, block in enumerate(contents.pictures.blocks)}
    if windows.residual is not None:
        most = np.maximum(windows.residual.max(axis=1, keepdims=True), 1e-30)
        columns["residual"] = np.rint(255.0 * np.maximum(windows.residual, 0.0) / most).astype(np.uint8)
        columns["bands"] = _bands(windows.residual, contents.spec)
    return columns


def meta_of(contents: Contents, *, title: str | None, notes: Sequence[str], sound: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts, ready for JSON."""
    manifest, pool = contents.bundle.manifest, _pool(contents)
    made = manifest.provenance
    return {
        "title": title or f"{manifest.name}: what it hears",
        "made_utc": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "notes": list(notes),
        "bundle": {
            "name": manifest.name,
            "version": str(manifest.version),
            "detector": manifest.detector,
            "sha256": contents.bundle.sha256,
            "rate_hz": manifest.sample_rate_hz,
            "outputs": list(manifest.outputs),
            "made_utc": made.created_utc,
            "heard_s": made.seconds_heard,
        },
        "card": contents.bundle.card,
        "hop_s": contents.hop_s,
        "window_s": manifest.window_frames / manifest.sample_rate_hz,
        "n_windows": contents.n_windows,
        "recordings": [_recording(one, pool=pool, rate_hz=contents.rate_hz) for one in contents.recordings],
        "pool": pool,
        "facets": [{"name": facet.name, "values": facet.values} for facet in contents.facets],
        "clusters": [asdict(cluster) for cluster in contents.geometry.clusters],
        "explained": contents.geometry.explained,
        "embedding": "embedding" in manifest.outputs,
        "budgets": _budgets(contents),
        "histogram": _histogram(contents),
        "picture": _picture(contents),
        "sound": sound,
    }


def _recording(one: HeardRecording, *, pool: int, rate_hz: int) -> dict[str, Any]:
    median, high, most = (float(value) for value in np.quantile(one.scores, (0.5, 0.95, 1.0)))
    return {
        "name": one.label,
        "duration_s": one.n_frames / rate_hz,
        "n_windows": len(one.scores),
        "n_points": -(-len(one.scores) // pool),
        "rms_dbfs": round(one.rms_dbfs, 1),
        "peak_dbfs": round(one.peak_dbfs, 1),
        "clipped_pct": round(one.clipped_pct, 4),
        "median": median,
        "p95": high,
        "most": most,
        "events": [[event.onset_s, event.offset_s, event.label] for event in one.events],
        "label": one.facts.label,
    }


def _budgets(contents: Contents) -> list[dict[str, Any]]:
    """Return for each budget of false alarms the score it asks for, and how many windows here reach it."""
    calibration = Calibration(contents.bundle.manifest.calibration)
    scores = np.concatenate([one.scores for one in contents.recordings])
    budgets = []
    for name, per_day in BUDGETS_PER_DAY.items():
        p_value = calibration.p_for_alarms(per_day, hop_s=contents.hop_s)
        threshold = calibration.score_at(p_value)
        budgets.append(
            {
                "name": name,
                "p": p_value,
                "score": threshold,
                "extrapolation": calibration.extrapolation(p_value),
                "n_over": int(np.count_nonzero(scores >= threshold)),
            }
        )
    return budgets


def _histogram(contents: Contents) -> dict[str, Any]:
    """Return how often scores occur, windows that hold an event apart, and the p-value at the edges of the bins."""
    scores = np.concatenate([one.scores for one in contents.recordings]).astype(np.float64)
    window_frames, rate_hz = contents.bundle.manifest.window_frames, contents.rate_hz
    marked = np.concatenate(
        [
            holds_event(one, one.first_frames, window_frames=window_frames, rate_hz=rate_hz) >= 0
            for one in contents.recordings
        ]
    )
    low, middle, high = (float(value) for value in np.quantile(scores, (0.0, 0.5, 1.0)))
    is_log = low > 0.0 and high > _LOG_FROM_RATIO * middle
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    edges = np.geomspace(low, high, _N_BINS + 1) if is_log else np.linspace(low, high, _N_BINS + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss its ends by a rounding
    calibration = Calibration(contents.bundle.manifest.calibration)
    return {
        "log": is_log,
        "edges": edges.tolist(),
        "plain": np.histogram(scores[~marked], edges)[0].tolist(),
        "marked": np.histogram(scores[marked], edges)[0].tolist(),
        "p": [calibration.p_value(edge) for edge in edges.tolist()],
    }


def _picture(contents: Contents) -> dict[str, Any]:
    spec, pictures = contents.spec, contents.pictures
    n_kinds, _, n_frames, n_rows = pictures.blocks[0].shape
    centres_hz = mel_points_hz(spec)[1:-1]
    if spec.rows is not None:
        centres_hz = centres_hz[spec.rows[0] : spec.rows[1]]
    return {
        "n_kinds": n_kinds,
        "n_frames": n_frames,
        "n_rows": n_rows,
        "block": BLOCK_WINDOWS,
        "low_db": pictures.low_db,
        "step_db": pictures.step_db,
        "dark_db": pictures.dark_db,
        "high_db": pictures.high_db,
        "hop_s": spec.hop_frames / spec.sample_rate_hz,
        "first_s": (spec.n_fft - spec.hop_frames) / 2 / spec.sample_rate_hz,  # where the first frame's column begins
        "centres_hz": np.round(centres_hz, 1).tolist(),
    }


def _bands(residual: NDArray[np.float32], spec: MelSpec) -> NDArray[np.float32]:
    """Return the bands that carry each window, (n, MAX_BANDS, 3): from, to (Hz) and share; zero where none is left."""
    edges_hz = spec.band_edges_hz()
    bands = np.zeros((len(residual), MAX_BANDS, 3), np.float32)
    for i, weight in enumerate(residual):
        for k, band in enumerate(strongest_bands(weight, edges_hz)):
            bands[i, k] = band.low_hz, band.high_hz, band.share
    return bands


def _pool(contents: Contents) -> int:
    """Return of how many windows each point of the timeline is the highest score."""
    return -(-contents.n_windows // _MAX_TIMELINE_POINTS)


def _pooled(scores: NDArray[np.float32], pool: int) -> NDArray[np.float32]:
    return np.maximum.reduceat(scores, np.arange(0, len(scores), pool))
