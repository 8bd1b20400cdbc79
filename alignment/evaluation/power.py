"""How many decisive votes tell two versions apart: of one comparison alone, and of neighbours on a leaderboard."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from alignment.errors import DataError
from alignment.evaluation.intervals import Interval, label_codes, two_way_draws
from alignment.evaluation.ratings import Ratings

MOST_SAID = 100_000  # beyond this nobody plans a study


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


@dataclass(frozen=True)
class Gap:
    """How far two rated versions are from being told apart. ``difference`` is in nats, ``share`` the decisive votes of
    each two that the ratings expect ``better`` to win; ``more`` the decisive votes between the two that are missing
    for a two-sided test at 5% to have ``power``, None for more than 100,000; each counts as 1 / ``design_effect`` of an
    independent one."""

    better: str
    worse: str
    difference: Interval
    share: float
    design_effect: float
    more: int | None
    power: float

    @property
    def sentence(self) -> str:
        """The same for people."""
        if self.difference.low > 0:
            return f"{self.better} is separated from {self.worse}."
        if self.more is None:
            return f"No reachable number of votes would separate {self.better} from {self.worse}: they are too close."
        count = f"{self.more:,} more decisive vote{'' if self.more == 1 else 's'}"
        return f"{count} would separate {self.better} from {self.worse} at {self.power:.0%} power."


def votes_to_part(ratings: Ratings, version: str, other: str, *, power: float = 0.8) -> Gap:
    """What is missing to tell two rated versions apart, all votes counted that bear on them, direct or not.

    A direct decisive vote adds p (1 - p) to the information on the difference, the inverse of its variance (Fisher), at
    the p that the strengths give. So the votes so far are worth 1 / (variance p (1 - p)) direct ones, and that is taken
    from ``decisive_votes_needed`` with the design effect of this very difference: clustered over model variance."""
    difference = ratings.difference(version, other)
    if difference.value < 0:
        version, other = other, version
        difference = ratings.difference(version, other)
    clustered, alone = ratings.standard_error(version, other)
    share = float(special.expit(difference.value))
    effect = (clustered / alone) ** 2
    there = 1 / (alone**2 * share * (1 - share))
    wanted = effect * decisive_votes_needed(share, power=power)
    more = None if wanted - there > MOST_SAID else max(1, math.ceil(wanted - there))
    return Gap(version, other, difference, share, effect, 0 if difference.low > 0 else more, power)
