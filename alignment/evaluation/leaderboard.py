"""The leaderboard: who is best, how sure that is, and what it hangs on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from alignment.errors import DataError
from alignment.evaluation.power import Gap, votes_to_part
from alignment.evaluation.ratings import Rating, Ratings, islands, rate_votes
from alignment.evaluation.robustness import Flip, LeaveOneOut, leave_one_rater_out, votes_to_flip
from alignment.evaluation.vote_arrays import BOTH_BAD, LEFT_WON, RIGHT_WON, VoteArrays

METHOD, METHOD_VERSION = "davidson", "1"
FEWEST_VOTES = 30  # below these a rating is provisional
FEWEST_RATERS = 3


@dataclass(frozen=True)
class Entry:
    """A version's line. ``rank_low`` to ``rank_high`` are the ranks that the votes leave open; ``provisional`` says in
    words why the rating is not to be relied on yet, and is empty where it is."""

    rank: int
    rank_low: int
    rank_high: int
    rating: Rating
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    raters: int
    provisional: tuple[str, ...]

    @property
    def version(self) -> str:
        return self.rating.version


@dataclass(frozen=True)
class Leaderboard:
    """Entries, best first, provisional ones after the others. Ranks, ``gaps`` between neighbours, ``flip`` and
    ``left_out`` are among those that are not provisional, unless all are; a provisional one's own rank is among all.

    ``apart`` are versions that no chain of votes connects with these: they have no place here. ``simulated`` is True
    when programs voted: people's votes and theirs never mix."""

    entries: tuple[Entry, ...]
    ratings: Ratings
    apart: tuple[tuple[str, ...], ...]
    gaps: tuple[Gap, ...]
    left_out: LeaveOneOut | None
    flip: Flip | None
    simulated: bool
    both_bad: str
    slice: Mapping[str, Any] = field(default_factory=dict)
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __getitem__(self, version: str) -> Entry:
        for entry in self.entries:
            if entry.version == version:
                return entry
        raise DataError(
            f"{version} is not on this leaderboard; on it are {', '.join(e.version for e in self.entries)}."
        )

    def sentences(self) -> list[str]:
        """What there is to say beside the table, most important first."""
        said = []
        if self.apart:
            groups = "; ".join(", ".join(group) for group in self.apart)
            said.append(
                f"Not rated, because no chain of votes connects them with these: {groups}. Pair them with these."
            )
        said += [gap.sentence for gap in self.gaps[:3]]
        if self.flip is not None:
            f = self.flip
            word = "vote" if f.votes == 1 else "votes"
            said.append(
                f"{f.votes:,} decisive {word} of {f.of:,}, had they said the opposite, would put {f.challenger} before "
                f"{f.leader}."
            )
        if self.left_out is not None:
            said.append(self._left_out_sentence(self.left_out))
        side = self.ratings.side
        if side is not None and (side.low > 0 or side.high < 0):
            favoured = "left" if side.value > 0 else "right"
            said.append(
                f"The clip on the {favoured} wins {1 / (1 + math.exp(-abs(side.value))):.1%} of decisive votes between "
                "equals; the ratings take that out."
            )
        return said

    def _left_out_sentence(self, out: LeaveOneOut) -> str:
        first = self.entries[0].version
        others = [f"{name} ({count})" for name, count in out.leaders if name != first]
        of = f"any of its {out.raters} raters" if out.tried == out.raters else f"any of the {out.tried} busiest raters"
        if not others:
            return f"Without {of}, {first} is still first; none moves a version by more than {out.shift_elo:.0f} Elo."
        return (
            f"First place hangs on single raters: leaving out one of {out.tried} puts another first in some cases, "
            f"{', '.join(others)}."
        )

    def to_json(self) -> dict[str, Any]:
        """The same of plain values."""
        side = self.ratings.side
        return {
            "simulated": self.simulated,
            "slice": dict(self.slice),
            "made_at": self.made_at.isoformat(timespec="seconds"),
            "method": f"{METHOD} {METHOD_VERSION}",
            "both_bad": self.both_bad,
            "votes": self.ratings.votes,
            "raters": self.ratings.raters,
            "prompts": self.ratings.prompts,
            "confidence": self.ratings.confidence,
            "side": asdict(side) if side else None,
            "tie": self.ratings.tie,
            "versions": [
                {
                    "rank": e.rank, "version": e.version, "rating": e.rating.elo.value, "low": e.rating.elo.low,
                    "high": e.rating.elo.high, "rank_low": e.rank_low, "rank_high": e.rank_high, "votes": e.votes,
                    "wins": e.wins, "losses": e.losses, "ties": e.ties, "both_bad": e.both_bad, "raters": e.raters,
                    "provisional": list(e.provisional),
                }
                for e in self.entries
            ],
            "apart": [list(group) for group in self.apart],
            "gaps": [{**asdict(gap), "sentence": gap.sentence} for gap in self.gaps],
            "leave_one_rater_out": asdict(self.left_out) if self.left_out else None,
            "votes_to_flip_first_place": asdict(self.flip) if self.flip else None,
            "sentences": self.sentences(),
        }  # fmt: skip


def make_leaderboard(
    votes: VoteArrays, *, simulated: bool, both_bad: str = "tie", slice: Mapping[str, Any] | None = None,
    rounds: int = 400, seed: int = 0, ridge: float = 0.1, confidence: float = 0.95, power: float = 0.8,
) -> Leaderboard:  # fmt: skip
    """The leaderboard of the votes, which are all of people or all of programs (``simulated``).

    Where the versions fall into groups that no votes connect, the group with most votes is rated and the others are
    named. Raises DataError without a counted vote."""
    if both_bad not in ("tie", "drop"):
        raise DataError(f"both_bad is {both_bad!r}; it must be 'tie' or 'drop'.")
    if both_bad == "drop":
        votes = votes.take(votes.outcome != BOTH_BAD)
    if not len(votes):
        raise DataError("No counted vote in this selection; widen it, or collect votes first.")
    votes, apart = _largest_group(votes)
    ratings = rate_votes(votes, ridge=ridge, confidence=confidence, rounds=rounds, seed=seed)
    standing = {rating.version: _entry(votes, ratings, rating) for rating in ratings.ratings}
    # What is provisional has no say in who is first, unless everything is.
    settled = [name for name, entry in standing.items() if not entry.provisional] or list(standing)
    ranks = {**ratings.ranks(), **ratings.ranks(settled)}
    order = settled + [name for name in standing if name not in settled]
    entries = tuple(
        replace(standing[name], rank=place, rank_low=ranks[name][0], rank_high=ranks[name][1])
        for place, name in enumerate(order, start=1)
    )
    return Leaderboard(
        entries=entries,
        ratings=ratings,
        apart=apart,
        gaps=tuple(votes_to_part(ratings, a, b, power=power) for a, b in zip(settled, settled[1:], strict=False)),
        left_out=leave_one_rater_out(votes, ridge=ridge, among=settled),
        flip=votes_to_flip(votes, ridge=ridge, among=settled),
        simulated=simulated,
        both_bad=both_bad,
        slice=dict(slice or {}),
    )


def _largest_group(votes: VoteArrays) -> tuple[VoteArrays, tuple[tuple[str, ...], ...]]:
    """The votes of the connected group with most of them, and the names in the other groups."""
    votes = votes.take(np.arange(len(votes)))
    groups = islands(votes)
    if len(groups) == 1:
        return votes, ()
    of = np.zeros(len(votes.versions), dtype=np.int64)
    for number, group in enumerate(groups):
        of[list(group)] = number
    largest = int(np.bincount(of[votes.left]).argmax())
    others = tuple(tuple(votes.versions[i] for i in g) for n, g in enumerate(groups) if n != largest)
    return votes.take(of[votes.left] == largest), others


def _entry(votes: VoteArrays, ratings: Ratings, rating: Rating) -> Entry:
    """The version's line, its rank still open."""
    own = votes.versions.index(rating.version)
    left, right = votes.left == own, votes.right == own
    mine = left | right
    outcome = votes.outcome[mine]
    won = int(((left & (votes.outcome == LEFT_WON)) | (right & (votes.outcome == RIGHT_WON))).sum())
    decisive = int((outcome <= RIGHT_WON).sum())
    bad = int((outcome == BOTH_BAD).sum())
    raters = len(np.unique(votes.rater[mine]))
    reasons = []
    if len(outcome) < FEWEST_VOTES:
        reasons.append(f"{len(outcome)} votes, fewer than {FEWEST_VOTES}")
    if raters < FEWEST_RATERS:
        reasons.append(f"{raters} rater{'' if raters == 1 else 's'}, fewer than {FEWEST_RATERS}")
    if rating.version in ratings.unbounded:
        reasons.append("never lost, or never won, against the rest: only the prior bounds it")
    return Entry(
        rank=0, rank_low=0, rank_high=0, rating=rating, votes=len(outcome), wins=won,
        losses=decisive - won, ties=len(outcome) - decisive - bad, both_bad=bad, raters=raters,
        provisional=tuple(reasons),
    )  # fmt: skip
