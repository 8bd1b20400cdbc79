"""How far a set of clips lies from a reference set, and from single clips, on any audio embedding.

Fréchet distance is biased upwards by few clips and by the same amount for all that are compared at equal n; the kernel
distance is not biased. Both are resampled by whole prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from alignment.errors import ShapeError
from alignment.evaluation.frechet import frechet_distance
from alignment.evaluation.intervals import Interval, check_bootstrap, label_codes

FEWEST_CLUSTERS = 3  # two prompts drawn with replacement are one prompt half of the time
FRECHET_ROUNDS = 200  # at most: each takes a decomposition


@dataclass(frozen=True)
class SetFigure:
    """A figure of a whole set: its value, its bootstrap draws (rounds,), and n and clusters behind it.

    Figures of sets with the same clusters, drawn with the same seed, have their draws in pairs."""

    value: float
    draws: np.ndarray
    n: int
    clusters: int
    confidence: float = 0.95

    def interval(self, *, least: float = -np.inf) -> Interval:
        """The value with its interval: -/+ t x the deviation of the draws; nan where nothing could be resampled."""
        return self._around(self.value, self.draws, least)

    def minus(self, other: SetFigure) -> Interval:
        """The difference to another set's figure, drawn in pairs."""
        rounds = min(len(self.draws), len(other.draws))
        return self._around(self.value - other.value, self.draws[:rounds] - other.draws[:rounds], -np.inf)

    def _around(self, value: float, draws: np.ndarray, least: float) -> Interval:
        low = high = float("nan")
        if self.clusters >= FEWEST_CLUSTERS and len(draws):
            error = float(np.nanstd(draws)) * np.sqrt(self.clusters / (self.clusters - 1))
            half = float(stats.t.ppf(0.5 + self.confidence / 2, self.clusters - 1)) * error
            low, high = max(least, value - half), value + half
        return Interval(value, low, high, n=self.n, clusters=self.clusters, confidence=self.confidence)


def kernel_distance(
    clips: np.ndarray, prompts: Sequence[Hashable], reference: np.ndarray, reference_prompts: Sequence[Hashable], *,
    confidence: float = 0.95, rounds: int = 1000, seed: int = 0,
) -> SetFigure:  # fmt: skip
    """Squared maximum mean discrepancy between embeddings (n, D) and (m, D), without bias: 0 in the mean for equal
    sources, so single values may fall below 0.

    The kernel is KID's, (1 + x.y / D)^3 (arXiv:1801.01401), on embeddings of length sqrt(D): (1 + cosine)^3. Pairs of
    clips of one prompt, within a set or across both, are no independent draws and are left out. Raises ShapeError
    unless both sets are finite, of one width and of two prompts at least."""
    check_bootstrap(confidence, rounds)
    ours, theirs = _units(clips), _units(reference)
    one, two = _labels(prompts, reference_prompts, len(ours), len(theirs))
    own, other = np.unique(one, return_inverse=True), np.unique(two, return_inverse=True)
    parts = [
        _sums(ours, own[1], ours, own[1], own[0], own[0]),
        _sums(theirs, other[1], theirs, other[1], other[0], other[0]),
        _sums(ours, own[1], theirs, other[1], own[0], other[0]),
    ]
    if min(len(own[0]), len(other[0])) < 2 or not parts[2][1].any():
        raise ShapeError(
            f"{len(own[0])} and {len(other[0])} prompts; a kernel distance needs clips of two prompts at least on each "
            "side."
        )

    def squared(w: np.ndarray, v: np.ndarray) -> np.ndarray:
        means = [
            np.einsum("rp,rp->r", a @ total, b) / np.einsum("rp,rp->r", a @ count, b)
            for (total, count), a, b in zip(parts, (w, v, w), (w, v, v), strict=True)
        ]
        return means[0] + means[1] - 2 * means[2]

    value = float(squared(np.ones((1, len(own[0]))), np.ones((1, len(other[0]))))[0])
    w, v = _weights(own[0], other[0], rounds, seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # a round that drew one prompt alone says nothing
        draws = squared(w, v)
    return SetFigure(value, draws, len(ours), min(len(own[0]), len(other[0])), confidence)


def frechet_figure(
    clips: np.ndarray, prompts: Sequence[Hashable], reference: np.ndarray, reference_prompts: Sequence[Hashable], *,
    confidence: float = 0.95, rounds: int = 1000, seed: int = 0,
) -> SetFigure:  # fmt: skip
    """``frechet_distance`` of embeddings (n, D) to a reference (m, D), resampled by prompt in both.

    The value is that at this n: with fewer clips it is higher, for equal sources too."""
    check_bootstrap(confidence, rounds)
    value = frechet_distance(clips, reference)
    ours, theirs = np.asarray(clips, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    one, two = _labels(prompts, reference_prompts, len(ours), len(theirs))
    own, other = np.unique(one, return_inverse=True), np.unique(two, return_inverse=True)
    w, v = _weights(own[0], other[0], min(rounds, FRECHET_ROUNDS), seed)
    draws = np.array(
        [weighted_frechet(ours, a[own[1]], theirs, b[other[1]]) for a, b in zip(w, v, strict=True)], dtype=np.float64
    )
    return SetFigure(value, draws, len(ours), min(len(own[0]), len(other[0])), confidence)


def weighted_frechet(first: np.ndarray, weights: np.ndarray, second: np.ndarray, others: np.ndarray) -> float:
    """``frechet_distance`` of embeddings (n, D) and (m, D) that are there ``weights`` (n,) and ``others`` (m,) times.

    tr (S1 S2)^(1/2) is the nuclear norm of A B^T, where A^T A = S1 and B^T B = S2: no covariance is needed, which is
    quick where there are fewer clips than dimensions. nan when a set has fewer than two clips."""
    roots, means, traces = [], [], []
    for values, times in ((first, weights), (second, others)):
        kept, total = times > 0, float(times.sum())
        if total < 2:
            return float("nan")
        values, times = values[kept], times[kept]
        mean = times @ values / total
        root = (values - mean) * np.sqrt(times / (total - 1))[:, None]  # (n', D)
        if root.shape[0] > root.shape[1]:
            root = np.linalg.qr(root, mode="r")
        roots.append(root)
        means.append(mean)
        traces.append(float((root**2).sum()))
    gap = means[0] - means[1]
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(gap @ gap) + traces[0] + traces[1] - 2 * shared)


def nearest_other(
    clips: np.ndarray, names: Sequence[Hashable], others: np.ndarray, other_names: Sequence[Hashable]
) -> np.ndarray:
    """(n,) cosine distance in [0, 2] of each clip (n, D) to the nearest of ``others`` (m, D) that is not the very same
    one by name; nan where nothing is left."""
    ours, theirs = _units(clips), _units(others)
    positions: dict[Hashable, list[int]] = {}
    for at, name in enumerate(other_names):
        positions.setdefault(name, []).append(at)
    out = np.empty(len(ours))
    for start in range(0, len(ours), 256):
        cosine = ours[start : start + 256] @ theirs.T
        for row, name in enumerate(names[start : start + 256]):
            cosine[row, positions.get(name, [])] = -np.inf
        out[start : start + 256] = 1.0 - cosine.max(1)
    return np.where(np.isfinite(out), out, np.nan)


def _units(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True) if values.ndim == 2 else np.zeros(1)
    if values.ndim != 2 or not len(values) or not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ShapeError(f"embeddings have shape {values.shape}; needed is (n, D), finite and none of them zero.")
    return values / lengths


def _labels(
    prompts: Sequence[Hashable], reference_prompts: Sequence[Hashable], n: int, m: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) and (m,) of the prompts, the same code for the same prompt on both sides."""
    if len(prompts) != n or len(reference_prompts) != m:
        raise ShapeError(f"{len(prompts)} and {len(reference_prompts)} labels for {n} and {m} clips; each needs one.")
    codes = label_codes([*prompts, *reference_prompts])
    return codes[:n], codes[n:]


def _weights(own: np.ndarray, other: np.ndarray, rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rounds, P) and (rounds, Q): how often each prompt is drawn; the same draw for both where they share them all."""
    rng = np.random.default_rng(seed)
    first = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=rounds).astype(np.float64)
    if np.array_equal(own, other):
        return first, first
    return first, rng.multinomial(len(other), np.full(len(other), 1 / len(other)), size=rounds).astype(np.float64)


def _sums(
    first: np.ndarray, groups: np.ndarray, second: np.ndarray, others: np.ndarray, labels: np.ndarray,
    other_labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sums (P, Q) of the kernel over pairs of clips, by prompts, and how many pairs those are; none of one prompt."""
    total = np.zeros((len(labels), len(other_labels)))
    members = sparse.csr_array((np.ones(len(others)), (others, np.arange(len(others)))))  # (Q, m)
    for start in range(0, len(first), 512):
        kernel = (1.0 + first[start : start + 512] @ second.T) ** 3
        np.add.at(total, groups[start : start + 512], (members @ kernel.T).T)
    count = np.outer(np.bincount(groups), np.bincount(others)).astype(np.float64)
    same = labels[:, None] == other_labels[None, :]
    total[same] = count[same] = 0.0
    return total, count
