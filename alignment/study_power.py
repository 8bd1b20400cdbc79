"""How many more decisive votes would separate two versions, when votes of one rater or prompt resemble each other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from alignment.errors import DataError
from alignment.evaluation.intervals import clustered_share, label_codes, two_way_draws

MOST_SHOWN = 100_000  # beyond this nobody plans a study, and the normal approximation is beside the point


@dataclass(frozen=True)
class VotesNeeded:
    """Decisive votes for a two-sided test at 5% to tell the share from one half with 80% power.

    ``more`` is what is missing if the true share is the observed one, ``fewest`` and ``most`` if it is at the ends of
    its 95% interval; None stands for more than 100,000, and for no number at all at a share of one half. ``share`` has
    ``n`` votes behind it, and each counts as 1 / ``design_effect`` of an independent one."""

    share: float
    n: int
    design_effect: float
    total: int | None
    more: int | None
    fewest: int | None
    most: int | None

    @property
    def separated(self) -> bool:
        """Whether the votes there are would have 80% power at the observed share."""
        return self.more == 0


def decisive_votes_needed(
    share: float, *, design_effect: float = 1.0, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Votes for a two-sided test of share = 1/2 to have this power when the true share is ``share``; inf at 1/2.

    n = d (z_{1-alpha/2} / 2 + z_power sqrt(p (1 - p)))^2 / (p - 1/2)^2: the normal approximation for one proportion
    (Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, 3rd ed., section 2.5, without their
    continuity correction), times Kish's design effect d for clustered votes (Kish 1965, Survey Sampling, section 5.4:
    d = 1 + (m - 1) rho for clusters of m). Raises DataError on a share, power or alpha outside (0, 1)."""
    if not 0 <= share <= 1 or not 0 < power < 1 or not 0 < alpha < 1 or not design_effect > 0:
        raise DataError(
            f"share {share}, power {power}, alpha {alpha}, design effect {design_effect}: the first lies in 0 to 1, "
            "power and alpha between, the last is above 0."
        )
    if share == 0.5:
        return math.inf
    wanted = stats.norm.ppf(1 - alpha / 2) * 0.5 + stats.norm.ppf(power) * math.sqrt(share * (1 - share))
    return float(design_effect * wanted**2 / (share - 0.5) ** 2)


def design_effect(
    credits: np.ndarray, rater_ids: Sequence[Hashable], prompt_ids: Sequence[Hashable], *, rounds: int = 400,
    seed: int = 0,
) -> float:  # fmt: skip
    """Variance of the mean of 0/1 ``credits`` (n,) under two-way clustering over that of independent votes, at least
    1. It is 1 when all votes agree, for then nothing varies."""
    credits = np.asarray(credits, dtype=np.float64)
    share = float(credits.mean())
    if not 0 < share < 1:
        return 1.0
    draws = two_way_draws(
        np.column_stack([credits, np.ones_like(credits)]), label_codes(rater_ids), label_codes(prompt_ids),
        lambda totals: totals[:, :1] / totals[:, 1:], rounds=rounds, seed=seed,
    )  # fmt: skip
    return max(1.0, draws.variance(np.ones(1)) / (share * (1 - share) / credits.size))


def votes_to_separate(
    credits: np.ndarray, rater_ids: Sequence[Hashable], prompt_ids: Sequence[Hashable], *, rounds: int = 400,
    seed: int = 0,
) -> VotesNeeded:  # fmt: skip
    """What is missing to separate the two versions of these decisive votes; 1 in ``credits`` (n,) is a win of the
    first. Raises DataError without votes."""
    interval = clustered_share(np.asarray(credits, dtype=np.float64), rater_ids, prompt_ids, rounds=rounds, seed=seed)
    effect = design_effect(credits, rater_ids, prompt_ids, rounds=rounds, seed=seed)

    def total(share: float) -> int | None:
        wanted = decisive_votes_needed(share, design_effect=effect)
        return None if wanted > MOST_SHOWN else math.ceil(wanted)

    def more(share: float) -> int | None:
        wanted = total(share)
        return None if wanted is None else max(0, wanted - interval.n)

    far, near = sorted((interval.low, interval.high), key=lambda share: -abs(share - 0.5))
    straddles = interval.low <= 0.5 <= interval.high
    return VotesNeeded(
        share=interval.value, n=interval.n, design_effect=effect, total=total(interval.value),
        more=more(interval.value), fewest=more(far), most=None if straddles else more(near),
    )  # fmt: skip
