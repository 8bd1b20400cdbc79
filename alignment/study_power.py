"""How many more decisive votes would separate two versions, when votes of one rater or prompt resemble each other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.evaluation.intervals import clustered_share
from alignment.evaluation.power import decisive_votes_needed, design_effect

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
