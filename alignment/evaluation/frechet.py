"""Fréchet audio distance between two sets of clips (arXiv:1812.08466), on any audio embedding."""

from __future__ import annotations

import numpy as np

from alignment.errors import ShapeError


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance, >= 0, of Gaussians fitted to embeddings (n, D) and (m, D).

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Smaller is closer; it falls with more clips even between equal
    sets, so compare sets of equal size only, and name the embedding: another one gives another distance. Raises
    ShapeError unless both are finite, of one width and of at least two clips.
    """
    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ShapeError(f"embeddings have shapes {first.shape} and {second.shape}; needed are (n, D) and (m, D).")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ShapeError("embeddings are not finite; leave silent or broken clips out.")
    gap = first.mean(0) - second.mean(0)
    root = _root(np.cov(first, rowvar=False))
    other = np.atleast_2d(np.cov(second, rowvar=False))
    # tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2), whose argument is symmetric.
    shared = np.sqrt(np.clip(np.linalg.eigvalsh(root @ other @ root), 0, None)).sum()
    return float(max(0.0, gap @ gap + np.trace(root @ root) + np.trace(other) - 2 * shared))


def nearest_distance(clips: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine distance in [0, 2] of each of ``clips`` (n, D) to the nearest of ``others`` (m, D), both unit-norm."""
    return 1.0 - np.concatenate([(part @ others.T).max(1) for part in np.array_split(clips, max(1, len(clips) // 256))])


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
