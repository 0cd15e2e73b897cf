"""Where windows lie on the map, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeasd.records import FloatArray

_MAX_FITTED = 50_000
"""Clusters are found on so many windows at most; the others join the nearest."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Windows whose embeddings lie together."""

    n_windows: int
    typical: int
    """The window nearest to the centre."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The map of n windows."""

    places: FloatArray
    """Shape (n, 3): along the principal axes, most variance first; the third may be all zero."""
    explained: tuple[float, float, float]
    """Share of the variance along each."""
    cluster: NDArray[np.int64]
    """Shape (n,): number of the cluster, the largest is 0."""
    clusters: tuple[Cluster, ...]


def lay_out(vectors: FloatArray, *, n_clusters: int, seed: int = 0) -> Geometry:
    """Project vectors (n, E) onto their three principal axes, and cluster them by k-means (Lloyd, k-means++)."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    places, explained = _principal(centred)
    cluster, clusters = _clusters(centred, n_clusters=n_clusters, seed=seed)
    return Geometry(places.astype(np.float32), explained, cluster, clusters)


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """Return coordinates (n, 3) and the shares of variance, by the eigenvectors of the covariance."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    top = axes[:, ::-1][:, :3]
    # An eigenvector has no sign of its own: the longest entry points up, so that a map looks the same every time.
    top = top * np.sign(top[np.argmax(np.abs(top), axis=0), np.arange(top.shape[1])])
    places = np.zeros((len(centred), 3))
    places[:, : top.shape[1]] = centred @ top
    shares = np.zeros(3)
    shares[: top.shape[1]] = np.maximum(variances[::-1][:3], 0.0) / max(float(variances.sum()), 1e-30)
    return places, (float(shares[0]), float(shares[1]), float(shares[2]))


def _clusters(
    centred: NDArray[np.float64], *, n_clusters: int, seed: int
) -> tuple[NDArray[np.int64], tuple[Cluster, ...]]:
    from sklearn.cluster import KMeans  # noqa: PLC0415  # a second to import

    fitted_on = centred[:: -(-len(centred) // _MAX_FITTED)]
    n_clusters = min(n_clusters, len(np.unique(fitted_on, axis=0)))
    means = KMeans(n_clusters=n_clusters, n_init=4, random_state=seed).fit(fitted_on)
    found = means.predict(centred)
    rank = np.empty(n_clusters, np.int64)
    order = np.argsort(-np.bincount(found, minlength=n_clusters), kind="stable")
    rank[order] = np.arange(n_clusters)
    away = np.square(centred - means.cluster_centers_[found]).sum(axis=1)
    clusters = []
    for number in order.tolist():
        members = np.flatnonzero(found == number)
        if members.size:
            clusters.append(Cluster(len(members), int(members[np.argmin(away[members])])))
    return rank[found], tuple(clusters)
