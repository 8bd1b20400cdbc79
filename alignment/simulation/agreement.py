"""How simulated listeners vote, measured: ties, agreement with a perfect scorer, side bias, consistency.

The *perfect scorer* of a profile or population knows its mean utility exactly: the weights on adherence and
cleanliness, averaged over the profiles by their shares, without anyone's likes, noise or side bias. *Agreement* is the
share of decisive votes that pick the clip it scores higher. A reward model can agree more often only by learning the
likes of the very listeners it is tested on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignment.domain import Outcome
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval, clustered_share
from alignment.simulation.judge import Judgement
from alignment.simulation.listeners import Listener, ListenerProfile, Listeners


@dataclass(frozen=True)
class HeardPair:
    """Two clips of one prompt, as the judge heard them. ``prompt`` tells prompts apart."""

    prompt: Hashable
    tags: Mapping[str, str]
    left: Judgement
    right: Judgement

    @property
    def swapped(self) -> HeardPair:
        return replace(self, left=self.right, right=self.left)


@dataclass(frozen=True)
class CastVote:
    """What one listener said about a pair, as shown. ``listener`` tells listeners apart."""

    pair: HeardPair
    listener: Hashable
    outcome: Outcome

    @property
    def chosen(self) -> Judgement | None:
        """The clip that was preferred; None without a preference."""
        return {Outcome.A: self.pair.left, Outcome.B: self.pair.right}.get(self.outcome)


@dataclass(frozen=True)
class PerfectScorer:
    """Scores a clip by its mean utility to a population."""

    adherence_weight: float
    cleanliness_weight: float

    @classmethod
    def of_profile(cls, profile: ListenerProfile) -> PerfectScorer:
        return cls(profile.adherence_weight, profile.cleanliness_weight)

    @classmethod
    def of_population(cls, listeners: Listeners, population: str) -> PerfectScorer:
        """Raises ConfigError for an unknown population."""
        mixed = [(listeners.profiles[name], share) for name, share in listeners.population(population).items()]
        return cls(
            sum(share * profile.adherence_weight for profile, share in mixed),
            sum(share * profile.cleanliness_weight for profile, share in mixed),
        )

    def score(self, heard: Judgement, tags: Mapping[str, str]) -> float:
        """The clip's mean utility, when the caption asks for ``tags``."""
        return self.adherence_weight * heard.adherence(tags) + self.cleanliness_weight * heard.cleanliness

    def difference(self, pair: HeardPair) -> float:
        """Mean utility of the left clip less that of the right one."""
        return self.score(pair.left, pair.tags) - self.score(pair.right, pair.tags)


def agreement(votes: Sequence[CastVote], scorer: PerfectScorer) -> Interval:
    """Share of decisive votes that pick the clip with the higher score, clustered by listener and prompt.

    A decisive vote between equally scored clips counts half. Raises DataError without a decisive vote."""
    decisive = [vote for vote in votes if vote.outcome.is_decisive]
    signs = [np.sign(scorer.difference(vote.pair)) * (1 if vote.outcome is Outcome.A else -1) for vote in decisive]
    return _share([(1 + sign) / 2 for sign in signs], decisive)


@dataclass(frozen=True)
class PanelFigures:
    """How a panel voted. ``undecided`` is ties and both-bad together; figures of decisive votes are None without any.

    ``left`` is the share of decisive votes for the clip shown left. The same listener heard each pair again with the
    sides swapped: ``repeat`` is the share that chose the same clip, of those decisive both times; ``repeat_answer`` the
    share that gave the same answer of three (one clip, the other, neither). ``between`` is the share of pairs of
    listeners who chose the same clip, of those both decisive."""

    listeners: int
    votes: int
    ties: Interval
    both_bad: Interval
    undecided: Interval
    agreement: Interval | None
    left: Interval | None
    repeat: Interval | None
    repeat_answer: Interval
    between: Interval | None


def measure_panel(
    panel: Sequence[Listener], pairs: Sequence[HeardPair], scorer: PerfectScorer, *, hearings: int = 4, seed: int = 0
) -> PanelFigures:
    """Let ``hearings`` listeners of the panel vote on each pair, each twice: sides drawn, then swapped.

    All figures but ``repeat`` rest on first votes alone. Raises DataError without pairs or with too few listeners."""
    if not pairs or not 1 <= hearings <= len(panel):
        raise DataError(f"{len(pairs)} pairs, {len(panel)} listeners, {hearings} hearings a pair: there must be pairs, "
                        "and as many listeners as hearings.")  # fmt: skip
    rng = random.Random(seed)
    first: list[CastVote] = []
    again: list[CastVote] = []
    mates: list[tuple[CastVote, CastVote]] = []
    for pair in pairs:
        heard = []
        for number in rng.sample(range(len(panel)), hearings):
            shown = pair if rng.random() < 0.5 else pair.swapped
            for votes, sides in ((heard, shown), (again, shown.swapped)):
                outcome, _ = panel[number].vote(sides.left, sides.right, sides.tags, rng)
                votes.append(CastVote(sides, number, outcome))
        mates += itertools.combinations(heard, 2)
        first += heard
    repeats = list(zip(first, again, strict=True))
    decisive = [vote for vote in first if vote.outcome.is_decisive]

    def share_of(*outcomes: Outcome) -> Interval:
        return _share([vote.outcome in outcomes for vote in first], first)

    def same_clip(couples: Sequence[tuple[CastVote, CastVote]], *, by_prompt: bool) -> Interval | None:
        both = [(a, b) for a, b in couples if a.outcome.is_decisive and b.outcome.is_decisive]
        return _share([a.chosen is b.chosen for a, b in both], [a for a, _ in both], by_prompt) if both else None

    return PanelFigures(
        listeners=len(panel),
        votes=len(first),
        ties=share_of(Outcome.TIE),
        both_bad=share_of(Outcome.BOTH_BAD),
        undecided=share_of(Outcome.TIE, Outcome.BOTH_BAD),
        agreement=agreement(first, scorer) if decisive else None,
        left=_share([vote.outcome is Outcome.A for vote in decisive], decisive) if decisive else None,
        repeat=same_clip(repeats, by_prompt=False),
        repeat_answer=_share([a.chosen is b.chosen for a, b in repeats], first),
        between=same_clip(mates, by_prompt=True),
    )


def _share(credits: Sequence[float], votes: Sequence[CastVote], by_prompt: bool = False) -> Interval:
    """The mean with an interval clustered by listener and prompt, or by prompt alone."""
    prompts = [vote.pair.prompt for vote in votes]
    listeners = prompts if by_prompt else [vote.listener for vote in votes]
    return clustered_share(np.array(credits, dtype=float), listeners, prompts)
