"""Which pair a rater hears next: drawn at random, the chance of what was drawn known exactly.

A ``Pool`` holds a study's battles in memory, sorted into bins of battles that are equally likely: same kind, same pair
of versions, same number of votes. A draw costs what the rater's own history costs, however many battles there are.

Policies: ``random`` draws evenly; ``balanced`` draws evenly among the least voted; ``active`` draws in proportion to
what one more vote is expected to tell about the versions' strengths, divided by one more than the votes that the
battle has (votes on the same two clips say ever less). The last two draw evenly from everything open with chance MIX.
"""

from __future__ import annotations

import math
import random
import uuid
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.domain import BattleKind, Outcome

MIX = 0.1
RIDGE = 0.25  # precision of the prior on a strength: a standard deviation of 2 nats
TIE_PRIOR = 1.0  # ties, and as many decisive votes, believed in before any vote
STRICT = "balanced-1"  # the least voted and nothing else: studies made without a recipe
POLICIES = {"random": "random-1", "balanced": "balanced-2", "active": "active-1"}

Bin = tuple[BattleKind, int, int]  # kind, number of the pair of versions, votes


@dataclass(frozen=True)
class Chosen:
    """A battle that was drawn, and the chance that it had among those of its kind."""

    battle_id: uuid.UUID
    chance: float


class Pool:
    """A study's battles by kind, pair of versions and votes. Not safe for threads: its owner locks."""

    def __init__(self) -> None:
        self.newest: uuid.UUID | None = None
        self.knows_versions = False  # whether its owner tells the versions and what votes said
        self.any_kind = False  # whether its owner takes battles of every kind for ordinary ones
        self.pairs: list[tuple[str, str]] = []  # of versions; the first one's wins count in ``results[...][0]``
        self.results: dict[int, list[float]] = {}  # wins of one, wins of the other, ties; by number of the pair
        self._pair: dict[tuple[str, str], int] = {}
        self._ids: list[uuid.UUID] = []
        self._index: dict[uuid.UUID, int] = {}
        self._bin: list[Bin] = []
        self._bins: dict[Bin, list[int]] = {}
        self._sizes: Counter[BattleKind] = Counter()
        self._gains: dict[int, float] | None = None
        self._stale = 0

    def add(self, battle_id: uuid.UUID, kind: BattleKind, votes: int, versions: tuple[str, str] = ("", "")) -> None:
        """Adds a battle. Battles come in order of their ids."""
        if battle_id in self._index:
            return
        pair = self._pair.get(versions)
        if pair is None:
            pair = self._pair[versions] = len(self.pairs)
            self.pairs.append(versions)
            self.results[pair] = [0.0, 0.0, 0.0]
        key = (kind, pair, votes)
        self._index[battle_id] = len(self._ids)
        self._bins.setdefault(key, []).append(len(self._ids))
        self._ids.append(battle_id)
        self._bin.append(key)
        self._sizes[kind] += 1
        self.newest = battle_id if self.newest is None else max(self.newest, battle_id)

    def count(self, kind: BattleKind = BattleKind.NORMAL) -> int:
        return self._sizes[kind]

    def kind(self, battle_id: uuid.UUID) -> BattleKind:
        return self._bin[self._index[battle_id]][0]

    def votes(self, battle_id: uuid.UUID) -> int:
        return self._bin[self._index[battle_id]][2]

    def versions(self, battle_id: uuid.UUID) -> tuple[str, str]:
        return self.pairs[self._bin[self._index[battle_id]][1]]

    def __contains__(self, battle_id: uuid.UUID) -> bool:
        return battle_id in self._index

    def note_vote(self, battle_id: uuid.UUID) -> None:
        """One more vote on the battle."""
        place = self._index.get(battle_id)
        if place is None:
            return
        kind, pair, votes = self._bin[place]
        old = self._bins[kind, pair, votes]
        del old[bisect_left(old, place)]
        if not old:
            del self._bins[kind, pair, votes]
        self._bin[place] = (kind, pair, votes + 1)
        insort(self._bins.setdefault(self._bin[place], []), place)

    def note_result(self, pair: int, result: int, weight: float = 1.0) -> None:
        """``result`` 0: the first version won, 1: the second, 2: neither."""
        self.results[pair][result] += weight
        self._stale += 1
        # A fit costs a fraction of a millisecond and moves little with every single vote.
        if self._stale * 20 > sum(map(sum, self.results.values())):
            self._gains = None

    def note_answer(self, battle_id: uuid.UUID, outcome: Outcome, left_is_clip_1: bool, weight: float = 1.0) -> None:
        """What a vote on the battle said, for the versions' strengths; ``versions`` names clip 1's first."""
        place = self._index.get(battle_id)
        if place is None or not outcome.trains or self._bin[place][0] is not BattleKind.NORMAL:
            return
        first_won = (outcome is Outcome.A) == left_is_clip_1
        self.note_result(self._bin[place][1], (0 if first_won else 1) if outcome.is_decisive else 2, weight)

    def draw(
        self,
        policy: str,
        rng: random.Random,
        *,
        without: Collection[uuid.UUID] = (),
        kind: BattleKind = BattleKind.NORMAL,
    ) -> Chosen | None:
        """A battle of the kind, none of ``without``; None when there is no other. ``policy``: a key or a value of
        POLICIES, or STRICT."""
        taken: dict[Bin, list[int]] = defaultdict(list)
        for battle_id in without:
            place = self._index.get(battle_id)
            if place is not None and self._bin[place][0] is kind:
                taken[self._bin[place]].append(place)
        open_ = {key: len(bin_) - len(taken.get(key, ())) for key, bin_ in self._bins.items() if key[0] is kind}
        open_ = {key: size for key, size in sorted(open_.items()) if size}
        if not open_:
            return None
        chances = self._chances(POLICIES.get(policy, policy), open_)
        key = _pick({key: chance * open_[key] for key, chance in chances.items()}, rng)
        place = _nth(self._bins[key], sorted(taken.get(key, ())), rng.randrange(open_[key]))
        return Chosen(self._ids[place], chances[key])

    def _chances(self, policy: str, open_: Mapping[Bin, int]) -> dict[Bin, float]:
        """The chance of each single battle of a bin; over all battles they sum to 1."""
        total = sum(open_.values())
        even = dict.fromkeys(open_, 1 / total)
        if policy == POLICIES["random"]:
            return even
        if policy in (STRICT, POLICIES["balanced"]):
            fewest = min(votes for _, _, votes in open_)
            among = sum(size for key, size in open_.items() if key[2] == fewest)
            wanted = {key: 1 / among if key[2] == fewest else 0.0 for key in open_}
            if policy == STRICT:
                return {key: chance for key, chance in wanted.items() if chance}
        else:
            gains = self.gains()
            weights = {key: gains[key[1]] / (key[2] + 1) for key in open_}
            whole = sum(weights[key] * size for key, size in open_.items())
            if not (whole > 0 and math.isfinite(whole)):
                return even
            wanted = {key: weight / whole for key, weight in weights.items()}
        return {key: MIX / total + (1 - MIX) * wanted[key] for key in open_}

    def gains(self) -> dict[int, float]:
        """By number of the pair of versions: nats of information about the strengths that one more vote is expected
        to give, to first order log(1 + I v), with I the vote's Fisher information about the difference of the two
        strengths and v that difference's variance so far (D-optimal design)."""
        if self._gains is None:
            self._gains = dict(enumerate(expected_gains(self.pairs, [self.results[n] for n in range(len(self.pairs))])))
            self._stale = 0
        return self._gains


def expected_gains(pairs: Sequence[tuple[str, str]], results: Sequence[Sequence[float]]) -> list[float]:
    """Expected information of one more vote on each pair of versions, in nats, given (wins, losses, ties) so far.

    Davidson's model (1970) without a side term: log-odds of (win, loss, tie) are (d/2, -d/2, tie) for a difference d of
    the strengths; a normal prior of precision RIDGE on each strength; Newton steps to the mode."""
    versions = sorted({version for pair in pairs for version in pair})
    if len(versions) < 2:
        return [1.0] * len(pairs)
    place = {version: n for n, version in enumerate(versions)}
    design = np.zeros((len(pairs), len(versions)))
    for row, (one, other) in enumerate(pairs):
        if one != other:
            design[row, place[one]], design[row, place[other]] = 1.0, -1.0
    counts = np.asarray(results, dtype=np.float64)
    totals = counts.sum(axis=1)
    tie = math.log((counts[:, 2].sum() + TIE_PRIOR / 2) / (counts[:, :2].sum() / 2 + TIE_PRIOR / 2))
    strengths = np.zeros(len(versions))
    hessian = RIDGE * np.eye(len(versions))
    for _ in range(30):
        chances = _davidson(design @ strengths, tie)
        lead = (chances[:, 0] - chances[:, 1]) / 2  # expected score of one vote
        gradient = design.T @ ((counts[:, 0] - counts[:, 1]) / 2 - totals * lead) - RIDGE * strengths
        information = _information(chances)
        hessian = RIDGE * np.eye(len(versions)) + (design.T * (totals * information)) @ design
        step = np.linalg.solve(hessian, gradient)
        strengths = np.clip(strengths + step / max(1.0, float(np.abs(step).max())), -15, 15)
        if np.abs(step).max() < 1e-6:
            break
    information = _information(_davidson(design @ strengths, tie))
    variance = np.einsum("pv,pv->p", design, np.linalg.solve(hessian, design.T).T)
    gains = np.log1p(information * variance)
    # Two clips of one version say nothing about strengths; they are heard as the mix has it.
    return [float(gain) for gain in gains]


def _davidson(difference: np.ndarray, tie: float) -> np.ndarray:
    logits = np.stack([difference / 2, -difference / 2, np.full_like(difference, tie)], axis=1)
    logits -= logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    return chances / chances.sum(axis=1, keepdims=True)


def _information(chances: np.ndarray) -> np.ndarray:
    """Fisher information of one vote about the difference of the strengths: the variance of its score."""
    return (chances[:, 0] + chances[:, 1] - (chances[:, 0] - chances[:, 1]) ** 2) / 4


def draw_kind(
    shares: Mapping[BattleKind, float], available: Collection[BattleKind], rng: random.Random
) -> tuple[BattleKind, float]:
    """(kind of the next pair, its chance): a check by its share where there is one to hear, else an ordinary pair."""
    chances = {kind: share for kind, share in shares.items() if share > 0 and kind in available}
    if not chances:
        return BattleKind.NORMAL, 1.0
    chances[BattleKind.NORMAL] = 1 - sum(chances.values())
    kind = _pick(chances, rng)
    return kind, chances[kind]


def _pick(weights: Mapping, rng: random.Random):
    if len(weights) == 1:
        return next(iter(weights))
    at = rng.random() * sum(weights.values())
    chosen = None
    for key, weight in weights.items():
        if weight > 0:
            chosen = key
            at -= weight
            if at < 0:
                break
    return chosen


def _nth(places: Sequence[int], without: Iterable[int], index: int) -> int:
    """The place at ``index`` among the sorted ``places``, those in the sorted ``without`` not counted."""
    for gone in without:
        if bisect_left(places, gone) <= index:
            index += 1
    return places[index]
