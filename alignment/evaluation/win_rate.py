"""How often listeners prefer one version: ties count half, both-bad half but apart, sides checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval, clustered_share

_CREDITS = {Outcome.A: 1.0, Outcome.B: 0.0, Outcome.TIE: 0.5, Outcome.BOTH_BAD: 0.5}


@dataclass(frozen=True)
class WinRate:
    """One version's win rate over the counted votes in which it took part.

    ``value`` = (wins + (ties + both_bad) / 2) / votes with its interval [low, high]; ``decisive_value`` = wins /
    (wins + losses), None without a decisive vote; ``left_share`` = share of decisive votes won by the clip shown left.
    ``raters`` 1 means that the interval speaks for this rater only.
    """

    candidate: str
    opponents: tuple[str, ...]
    value: float
    low: float
    high: float
    votes: int
    decisive: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    raters: int
    prompts: int
    decisive_value: float | None
    decisive_low: float | None
    decisive_high: float | None
    left_share: Interval | None
    confidence: float = 0.95

    @property
    def verdict(self) -> str:
        """ "gain" when the interval's lower bound is above one half, else "no gain"."""
        return "gain" if self.low > 0.5 else "no gain"

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high, self.votes, min(self.raters, self.prompts), self.confidence)


def counted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons that count: SKIP and FAULT dropped. Raises DataError on a credit its outcome denies."""
    kept = [comparison for comparison in comparisons if comparison.outcome.trains]
    for comparison in kept:
        if comparison.credit != _CREDITS[comparison.outcome]:
            raise DataError(
                f"A vote by {comparison.rater_id} has outcome {comparison.outcome} and credit {comparison.credit}; "
                f"that outcome needs {_CREDITS[comparison.outcome]}. Build comparisons from the votes' own outcome."
            )
        if comparison.version_left == comparison.version_right:
            raise DataError(
                f"A vote compares {comparison.version_left} with itself; leave such battles out of win rates."
            )
    return kept


def win_rate(
    comparisons: Sequence[Comparison],
    candidate: str,
    *,
    opponent: str | None = None,
    confidence: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> WinRate:
    """Win rate of ``candidate`` over all others (or ``opponent`` alone), interval clustered by rater and prompt.

    Votes in which the candidate took no part are left out. The method is ``intervals.clustered_share``'s. Raises
    DataError when no counted vote is left.
    """
    chosen = [
        c
        for c in counted(comparisons)
        if candidate in (c.version_left, c.version_right) and opponent in (None, c.version_left, c.version_right)
    ]
    if not chosen:
        against = f" against {opponent}" if opponent else ""
        known = sorted({v for c in comparisons for v in (c.version_left, c.version_right)})
        raise DataError(
            f"No counted vote on {candidate}{against}: {len(comparisons)} votes were given, on "
            f"{', '.join(known) or 'no version'}. Collect votes on this pair first."
        )
    options = {"confidence": confidence, "rounds": rounds, "seed": seed}
    credits = np.array([c.credit if c.version_left == candidate else 1.0 - c.credit for c in chosen])
    raters, prompts = [c.rater_id for c in chosen], [c.prompt_id for c in chosen]
    overall = clustered_share(credits, raters, prompts, **options)

    decided = [i for i, c in enumerate(chosen) if c.outcome.is_decisive]
    decisive = left = None
    if decided:
        where = ([raters[i] for i in decided], [prompts[i] for i in decided])
        decisive = clustered_share(credits[decided], *where, **options)
        left = clustered_share(np.array([float(chosen[i].outcome is Outcome.A) for i in decided]), *where, **options)
    wins = int((credits == 1).sum())
    return WinRate(
        candidate=candidate,
        opponents=tuple(sorted({c.version_right if c.version_left == candidate else c.version_left for c in chosen})),
        value=overall.value,
        low=overall.low,
        high=overall.high,
        votes=len(chosen),
        decisive=len(decided),
        wins=wins,
        losses=len(decided) - wins,
        ties=sum(c.outcome is Outcome.TIE for c in chosen),
        both_bad=sum(c.outcome is Outcome.BOTH_BAD for c in chosen),
        raters=len(set(raters)),
        prompts=len(set(prompts)),
        decisive_value=decisive.value if decisive else None,
        decisive_low=decisive.low if decisive else None,
        decisive_high=decisive.high if decisive else None,
        left_share=left,
        confidence=confidence,
    )
