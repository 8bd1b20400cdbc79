"""What first place hangs on: each rater left out in turn, and the votes that would have to say the opposite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from alignment.evaluation import davidson
from alignment.evaluation.ratings import ELO_PER_NAT
from alignment.evaluation.vote_arrays import LEFT_WON, RIGHT_WON, VoteArrays

MOST_RATERS = 200  # left out in turn: those with most votes, which can move most
MOST_CHALLENGERS = 5


@dataclass(frozen=True)
class LeaveOneOut:
    """Refits without each of ``tried`` raters (of ``raters``; those with most votes). ``leaders`` counts who leads
    without one of them; ``shift_elo`` is the furthest that leaving one out moved a version, namely ``version``."""

    tried: int
    raters: int
    leaders: tuple[tuple[str, int], ...]
    shift_elo: float
    version: str


@dataclass(frozen=True)
class Flip:
    """``votes`` decisive votes that, had they said the opposite, would put ``challenger`` above the first: enough, and
    chosen as those that move most, so nearly the fewest. ``of`` decisive votes were given."""

    leader: str
    challenger: str
    votes: int
    of: int


def _fit(votes: VoteArrays, ridge: float, side: bool):
    matchups, columns = davidson.aggregate(votes, side=side)
    counts = davidson.count_columns(columns, matchups)
    pull = davidson.penalty(matchups, ridge)
    return matchups, columns, counts, pull, davidson.fit(np.zeros(matchups.dimensions), matchups, counts[None], pull)[0]


def leave_one_rater_out(
    votes: VoteArrays, *, ridge: float = 0.1, side: bool = True, among: Collection[str] | None = None
) -> LeaveOneOut | None:
    """The ratings without each rater in turn; None with a single rater. Leaders and shifts are looked for ``among``
    these versions, if given; all votes are fitted either way."""
    raters, codes = np.unique(votes.rater, return_inverse=True)
    if len(raters) < 2:
        return None
    matchups, columns, counts, pull, beta = _fit(votes, ridge, side)
    tried = np.argsort(-np.bincount(codes), kind="stable")[:MOST_RATERS]
    place = np.full(len(raters), -1)
    place[tried] = np.arange(len(tried))
    rows = place[codes] >= 0
    cell = place[codes[rows]] * counts.size + columns[rows]
    own = np.bincount(cell, minlength=len(tried) * counts.size).reshape(-1, *counts.shape)
    without = davidson.fit(beta, matchups, counts - own, pull)[:, : len(votes.versions)]
    kept = _positions(votes, among)
    left, before = without[:, kept], beta[kept]
    moved = left - left.mean(axis=1, keepdims=True) - (before - before.mean())
    furthest = np.unravel_index(np.abs(moved).argmax(), moved.shape)
    leaders = Counter(votes.versions[kept[i]] for i in left.argmax(axis=1))
    return LeaveOneOut(
        len(tried), len(raters), tuple(leaders.most_common()), float(abs(moved[furthest])) * ELO_PER_NAT,
        votes.versions[kept[int(furthest[1])]],
    )  # fmt: skip


def _positions(votes: VoteArrays, among: Collection[str] | None) -> np.ndarray:
    return np.array([i for i, version in enumerate(votes.versions) if among is None or version in among])


def votes_to_flip(
    votes: VoteArrays, *, ridge: float = 0.1, side: bool = True, among: Collection[str] | None = None
) -> Flip | None:
    """The fewest decisive votes found that, turned round, put another version first; None where none would. The first
    and its challengers are looked for ``among`` these versions, if given.

    Each vote's pull on the challenger's lead is its influence: the inverse Hessian times its score (Broderick,
    Giordano and Meager 2020, arXiv:2011.14999; on leaderboards Huang et al. 2025, arXiv:2508.11847). Votes are turned
    in the order of their influence, and a refit, not the influence, says when it is enough."""
    kept = _positions(votes, among)
    if len(kept) < 2 or not votes.decisive.any():
        return None
    matchups, _, counts, pull, beta = _fit(votes, ridge, side)
    order = kept[np.argsort(-beta[kept], kind="stable")]
    leader = int(order[0])
    _, hessian = davidson.derivatives(beta[None], matchups, counts[None], pull)
    best: Flip | None = None
    for challenger in order[1 : 1 + MOST_CHALLENGERS].tolist():
        contrast = np.zeros(matchups.dimensions)
        contrast[[challenger, leader]] = 1.0, -1.0
        weight = np.linalg.solve(hessian[0], contrast)
        pulled = weight[matchups.left] - weight[matchups.right] + (weight[matchups.versions] if side else 0.0)
        gain = np.stack([-pulled, pulled], axis=1)  # (M, 2) of turning a left win, a right win
        turn = np.argsort(-gain, axis=None, kind="stable")
        turn = turn[gain.reshape(-1)[turn] > 0]
        room = counts[:, [LEFT_WON, RIGHT_WON]].reshape(-1)[turn]
        found = _fewest(challenger, leader, turn, room, beta, matchups, counts, pull, best.votes if best else None)
        if found is not None and (best is None or found < best.votes):
            best = Flip(votes.versions[leader], votes.versions[challenger], found, int(votes.decisive.sum()))
    return best


def _fewest(challenger, leader, turn, room, beta, matchups, counts, pull, bound) -> int | None:
    """How many votes, taken in the order of ``turn`` up to ``room`` of each kind, put the challenger first."""

    def ahead(number: int) -> bool:
        taken = np.clip(number - (np.cumsum(room) - room), 0, room)
        changed = counts.copy()
        match, won = np.divmod(turn, 2)
        np.subtract.at(changed, (match, won), taken)
        np.add.at(changed, (match, 1 - won), taken)
        refit = davidson.fit(beta, matchups, changed[None], pull)[0]
        return bool(refit[challenger] > refit[leader] + 1e-9)

    most = int(room.sum()) if bound is None else min(bound, int(room.sum()))
    if most < 1 or not ahead(most):
        return None
    low, high = 0, most  # not ahead at low, ahead at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ahead(middle) else (middle, high)
    return high
