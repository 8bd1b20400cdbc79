"""Two-way clustered bootstrap: the one source of every interval that rests on votes.

Votes of one rater resemble each other, and so do votes on one prompt; an interval that treats them as independent
is too narrow. Three bootstraps are drawn, each resampling whole clusters with multinomial weights: by rater, by
prompt, and by rater x prompt cell. Their variances are combined as in Cameron, Gelbach and Miller (2011, "Robust
inference with multiway clustering"): rater + prompt - cell.

Owen's pigeonhole bootstrap (2007, Annals of Applied Statistics 1(2), 386-411), the product of rater and prompt
weights, is not used: it counts the votes' own noise three times, so without rater and prompt effects its intervals are
1.7 times too wide. Two small-sample measures keep the coverage honest with few raters: the variance is never taken to
be smaller than any of the three parts, and the quantile is Student's t with (smaller number of clusters - 1) degrees
of freedom (Cameron and Miller 2015). Simulated with 4, 8 and 12 raters and
with rater and prompt effects from none to strong, nominal 95% intervals covered the truth in 94 to 100% of studies;
most of the excess is with four raters or with no effects at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from alignment.errors import DataError

_CHUNK_CELLS = 4_000_000  # weights held at once: about 64 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. ``n`` counts what was averaged; ``clusters`` what was resampled, if fewer."""

    value: float
    low: float
    high: float
    n: int
    clusters: int | None = None
    confidence: float = 0.95


def label_codes(labels: Sequence[Hashable]) -> np.ndarray:
    """(n,) int64: each label's position among the distinct labels, in order of first appearance."""
    positions: dict[Hashable, int] = {}
    return np.array([positions.setdefault(label, len(positions)) for label in labels], dtype=np.int64)


def integer_codes(labels: np.ndarray) -> np.ndarray:
    """(n,) int64: ``label_codes`` of integers (n,), without a step of Python for each."""
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]


def resample_totals(features: np.ndarray, clusters: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """(rounds, M) column totals of ``features`` when whole clusters (n,) are drawn with replacement.

    features (n, M), or (n,) integers: the one column of M that a row adds 1 to."""
    count = int(clusters.max()) + 1
    if features.ndim == 1:
        shared, alone = _by_cluster(features, clusters)
    else:
        membership = sparse.csr_array((np.ones(len(clusters)), (clusters, np.arange(len(clusters)))))
        shared, alone = membership @ features, np.zeros(0)  # (G, M)
    chances = np.concatenate([alone / count, np.full(shared.shape[0], 1.0 / count)])
    chunk = max(1, _CHUNK_CELLS // len(chances))
    totals = np.empty((rounds, shared.shape[1]))
    for start in range(0, rounds, chunk):
        size = min(chunk, rounds - start)
        weights = rng.multinomial(count, chances, size=size)  # (size, columns + G)
        totals[start : start + size] = (shared.T @ weights[:, len(alone) :].T).T
        if len(alone):
            totals[start : start + size] += weights[:, : len(alone)]
    return totals


def _by_cluster(columns: np.ndarray, clusters: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """Counts (G', M) of each cluster of two rows or more, and (M,) how many clusters hold one row in each column.

    Clusters of one row in the same column are alike: how often any of them is drawn is all that counts, so a million
    votes in a million clusters are drawn as M numbers and not as a million."""
    width = int(columns.max()) + 1
    single = np.bincount(clusters)[clusters] == 1
    rows = integer_codes(clusters[~single])
    shape = (int(rows.max()) + 1 if len(rows) else 0, width)
    shared = sparse.coo_array((np.ones(len(rows)), (rows, columns[~single])), shape=shape).tocsr()
    return shared, np.bincount(columns[single], minlength=width).astype(np.float64)


@dataclass(frozen=True)
class TwoWayDraws:
    """Bootstrap estimates by scheme, each (rounds, D), and the number of clusters behind each.

    ``robust`` reads the spread off the 5th and 95th percentiles, for estimates that a rare resample leaves unbounded.
    """

    by_rater: np.ndarray | None
    by_prompt: np.ndarray | None
    by_cell: np.ndarray
    raters: int
    prompts: int
    cells: int
    robust: bool = False

    @property
    def degrees_of_freedom(self) -> int:
        """Smaller number of clusters less one, of the dimensions that have two or more."""
        return max(1, min((g for g in (self.raters, self.prompts) if g > 1), default=self.cells) - 1)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        if not self.robust:
            return np.var(values, axis=0)
        low, high = np.percentile(values, [5, 95], axis=0)
        return ((high - low) / (2 * 1.6448536269514722)) ** 2  # a normal's 95th percentile

    def variances(self, directions: np.ndarray) -> np.ndarray:
        """(K,) two-way variances of the linear combinations ``directions`` (K, D) of the estimates, never negative."""
        parts = {}
        for name, draws, count in (
            ("rater", self.by_rater, self.raters),
            ("prompt", self.by_prompt, self.prompts),
            ("cell", self.by_cell, self.cells),
        ):
            if draws is not None and count > 1:
                # Drawing G of G clusters loses one degree of freedom: G / (G - 1) gives it back.
                parts[name] = self._spread(draws @ directions.T) * count / (count - 1)
        if "rater" in parts and "prompt" in parts:
            parts["both"] = parts["rater"] + parts["prompt"] - parts["cell"]
        return np.max([np.zeros(len(directions)), *parts.values()], axis=0)

    def variance(self, direction: np.ndarray) -> float:
        """Two-way variance of the linear combination ``direction`` (D,) of the estimates, never negative."""
        return float(self.variances(direction[None])[0])


def two_way_draws(
    features: np.ndarray,
    raters: np.ndarray,
    prompts: np.ndarray,
    estimate: Callable[[np.ndarray], np.ndarray],
    *,
    rounds: int,
    seed: int,
    robust: bool = False,
) -> TwoWayDraws:
    """Bootstrap draws of ``estimate``, which maps column totals (rounds, M) to estimates (rounds, D).

    features as in ``resample_totals``; raters and prompts (n,) int codes. With one rater (or one prompt) that
    dimension cannot be resampled: its draws are None and the interval speaks for this rater (prompt) alone. With one
    of both, single votes are resampled.
    """
    rng = np.random.default_rng(seed)
    rater_count, prompt_count = int(raters.max()) + 1, int(prompts.max()) + 1
    cells = integer_codes(raters * prompt_count + prompts)
    if int(cells.max()) == 0:
        cells = np.arange(len(raters))

    def draw(clusters: np.ndarray) -> np.ndarray:
        return estimate(resample_totals(features, clusters, rounds, rng))

    return TwoWayDraws(
        by_rater=draw(raters) if rater_count > 1 else None,
        by_prompt=draw(prompts) if prompt_count > 1 else None,
        by_cell=draw(cells),
        raters=rater_count,
        prompts=prompt_count,
        cells=int(cells.max()) + 1,
        robust=robust,
    )


def check_bootstrap(confidence: float, rounds: int) -> None:
    """Raises DataError unless 0 < confidence < 1 and rounds >= 100."""
    if not 0 < confidence < 1:
        raise DataError(f"confidence is {confidence}; it must lie between 0 and 1. 0.95 is usual.")
    if rounds < 100:
        raise DataError(f"rounds is {rounds}; an interval needs at least 100 bootstrap rounds. 1000 is usual.")


def wilson(share: float, effective_n: float, quantile: float) -> tuple[float, float]:
    """(low, high) of Wilson's score interval (1927) for a share of ``effective_n`` independent votes."""
    q2 = quantile * quantile
    centre = (share + q2 / (2 * effective_n)) / (1 + q2 / effective_n)
    half = (
        quantile
        / (1 + q2 / effective_n)
        * math.sqrt(share * (1 - share) / effective_n + q2 / (4 * effective_n * effective_n))
    )
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_share(
    credits: np.ndarray,
    rater_ids: Sequence[Hashable],
    prompt_ids: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of ``credits`` (n,), each in [0, 1], with its two-way clustered interval inside [0, 1].

    Wilson's interval with the effective sample size p (1 - p) / variance, as advised for clustered surveys (Franco,
    Little, Louis and Slud 2019, J. Survey Statistics and Methodology 7(3)). When the resamples do not vary (all
    won, all tied), each cluster of the smaller dimension counts as one vote, so the interval never shrinks to a point.
    Raises DataError without any vote.
    """
    check_bootstrap(confidence, rounds)
    credits = np.asarray(credits, dtype=np.float64)
    if credits.size == 0:
        raise DataError("No counted votes: an interval needs at least one. Collect votes, or widen the selection.")
    raters, prompts = label_codes(rater_ids), label_codes(prompt_ids)
    features = np.column_stack([credits, np.ones_like(credits)])
    draws = two_way_draws(
        features, raters, prompts, lambda totals: totals[:, :1] / totals[:, 1:], rounds=rounds, seed=seed
    )
    share = float(credits.mean())
    variance = draws.variance(np.ones(1))
    smallest = min((g for g in (draws.raters, draws.prompts) if g > 1), default=draws.cells)
    if variance > 1e-12 and 0 < share < 1:
        effective_n = min(share * (1 - share) / variance, 4.0 * credits.size)
    else:
        effective_n = float(smallest)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, draws.degrees_of_freedom))
    low, high = wilson(share, effective_n, quantile)
    return Interval(share, low, high, n=int(credits.size), clusters=smallest, confidence=confidence)
