"""Whether a probability means what it says: reliability bins and the expected calibration error (ECE)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.errors import ShapeError
from alignment.evaluation.intervals import Interval, check_bootstrap, clustered_share, label_codes

MOST_BINS = 10
FEWEST_A_BIN = 20


@dataclass(frozen=True)
class ReliabilityBin:
    """Votes of similar predicted probability: its mean, and the share that came true."""

    predicted: float
    came_true: Interval


@dataclass(frozen=True)
class Calibration:
    """``ece``: mean distance of the bins' shares from their predictions, weighted by votes (Naeini et al. 2015; Guo et
    al., arXiv:1706.04599); its interval resamples prompts. ``by_chance`` is the ECE that a perfectly calibrated model
    would show on as many independent votes: few votes never give 0."""

    bins: tuple[ReliabilityBin, ...]
    ece: Interval
    by_chance: float


def calibration(
    probability: np.ndarray,
    came_true: np.ndarray,
    raters: Sequence[Hashable],
    prompts: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Calibration of probabilities (n,) given to what came true (n,), 1 or 0.

    Bins hold equally many votes, at least 20 where there are so many, at most ten bins. Raises ShapeError on mismatch
    or values outside [0, 1]."""
    check_bootstrap(confidence, rounds)
    probability, came_true = (np.asarray(values, dtype=np.float64) for values in (probability, came_true))
    if probability.shape != came_true.shape or probability.ndim != 1 or not probability.size:
        raise ShapeError(f"Found probabilities {probability.shape}, outcomes {came_true.shape}; needs (n,) of both.")
    for values in (probability, came_true):
        if not ((values >= 0) & (values <= 1)).all():
            raise ShapeError("Probabilities and outcomes must lie between 0 and 1.")
    count = min(MOST_BINS, max(1, len(probability) // FEWEST_A_BIN))
    order = np.argsort(probability, kind="stable")
    bin_of = np.empty(len(probability), dtype=np.int64)
    for number, members in enumerate(np.array_split(order, count)):
        bin_of[members] = number
    bins = []
    for number in range(count):
        inside = np.flatnonzero(bin_of == number)
        share = clustered_share(came_true[inside], [raters[i] for i in inside], [prompts[i] for i in inside],
                                confidence=confidence, rounds=rounds, seed=seed)  # fmt: skip
        bins.append(ReliabilityBin(float(probability[inside].mean()), share))

    # Per prompt and bin: the sum of (came true - predicted); resampling prompts sums these up anew.
    groups = label_codes(list(prompts))
    sums = np.zeros((int(groups.max()) + 1, count))
    np.add.at(sums, (groups, bin_of), came_true - probability)
    sizes = np.bincount(groups, minlength=len(sums))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=rounds)  # (rounds, prompts)
    drawn = np.abs(weights @ sums).sum(1) / np.maximum(weights @ sizes, 1)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = float(np.abs(sums.sum(0)).sum() / len(probability))
    return Calibration(
        tuple(bins),
        Interval(value, float(low), float(high), n=len(probability), clusters=len(sums), confidence=confidence),
        _ece_by_chance(probability, bin_of, count, rounds, rng),
    )


def _ece_by_chance(probability: np.ndarray, bin_of: np.ndarray, count: int, rounds: int, rng) -> float:
    """Mean ECE when each vote comes true with just its predicted probability."""
    total = 0.0
    for _ in range(rounds):
        drawn = (rng.random(len(probability)) < probability) - probability
        total += np.abs(np.bincount(bin_of, weights=drawn, minlength=count)).sum() / len(probability)
    return total / rounds
