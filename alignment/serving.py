"""Serving pairs: the pools of a database's studies, kept in step with it, and what a session hears next."""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import lru_cache

from sqlalchemy.orm import Session

from alignment.db import vote_path
from alignment.db.engine import Database
from alignment.db.vote_path import SessionContext
from alignment.domain import Assignment, BattleKind, Outcome, SessionProgress, Side
from alignment.pairing import POLICIES, STRICT, Pool, draw_kind
from alignment.studies import StudyRecipe

REPEAT_DISTANCE = 5  # pairs between a pair and its repeat
REPEAT_SAMPLER = "repeat-1"
POOLS_KEPT = 32
RELOAD_SECONDS = 2.0  # another process's votes are looked at this often, at most


@lru_cache(maxsize=64)
def rules_from(text: str) -> StudyRecipe | None:
    """The recipe in a study's rules; None for a study that was made without one. The text is the cache's key: rules
    that are edited are another text."""
    rules = json.loads(text or "{}")
    return StudyRecipe.model_validate(rules) if rules else None


class Pools:
    """The pools of one database's studies, shared by every service on it in this process."""

    _known: weakref.WeakKeyDictionary[Database, Pools] = weakref.WeakKeyDictionary()
    _guard = threading.Lock()

    @classmethod
    def of(cls, database: Database) -> Pools:
        with cls._guard:
            return cls._known.setdefault(database, cls())

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._pools: OrderedDict[uuid.UUID, tuple[Pool, uuid.UUID | None]] = OrderedDict()
        self._newest = uuid.UUID(int=0)  # the newest vote that this process knows of
        self._checked = 0.0

    def get(self, s: Session, context: SessionContext, *, strengths: bool) -> Pool:
        """The study's pool as of this transaction; call it and use the pool under ``lock``."""
        newest = context.newest_vote or uuid.UUID(int=0)
        if newest > self._newest and time.monotonic() - self._checked > RELOAD_SECONDS:
            # Somebody else voted: their tallies are not ours.
            self._pools.clear()
            self._checked = time.monotonic()
            self._newest = newest
        known = self._pools.get(context.study_id)
        if known is None or (strengths and not known[0].knows_versions):
            pool = Pool()
            pool.knows_versions, pool.any_kind = strengths, rules_from(context.rules) is None
            self._load(s, pool, context.study_id)
            if strengths:
                for battle_id, outcome, left_is_clip_1 in vote_path.answers(s, context.study_id):
                    pool.note_answer(battle_id, outcome, left_is_clip_1)
            self._pools[context.study_id] = (pool, context.newest_vote)
            while len(self._pools) > POOLS_KEPT:
                self._pools.popitem(last=False)
            return pool
        self._pools.move_to_end(context.study_id)
        pool = known[0]
        if context.newest_unvoted is not None and (pool.newest is None or context.newest_unvoted > pool.newest):
            self._load(s, pool, context.study_id)
        return pool

    @staticmethod
    def _load(s: Session, pool: Pool, study_id: uuid.UUID) -> None:
        for battle_id, kind, votes, *versions in vote_path.pool_battles(
            s, study_id, after=pool.newest, versions=pool.knows_versions
        ):
            pool.add(battle_id, BattleKind.NORMAL if pool.any_kind else kind, votes, tuple(versions) or ("", ""))

    def announce(self, vote_id: uuid.UUID) -> None:
        """A vote that this process is about to commit: no reason to read the tallies anew."""
        with self.lock:
            self._newest = max(self._newest, vote_id)

    def note(
        self,
        study_id: uuid.UUID,
        battle_id: uuid.UUID,
        vote_id: uuid.UUID,
        *,
        outcome: Outcome,
        before: Outcome | None,
        left_is_clip_1: bool,
    ) -> None:
        """A vote that was committed; ``before`` is what the revision it corrects said."""
        with self.lock:
            known = self._pools.get(study_id)
            if known is None or (known[1] is not None and vote_id <= known[1]):
                return
            pool = known[0]
            if before is None:
                pool.note_vote(battle_id)
            elif pool.knows_versions:
                pool.note_answer(battle_id, before, left_is_clip_1, -1.0)
            if pool.knows_versions:
                pool.note_answer(battle_id, outcome, left_is_clip_1)


def ordinary(rules: StudyRecipe | None) -> tuple[BattleKind, ...]:
    """The kinds that are a study's ordinary pairs: without a recipe, whatever was added."""
    return vote_path.EVERY_KIND if rules is None else vote_path.ORDINARY


def next_assignment(
    s: Session,
    pools: Pools,
    context: SessionContext,
    *,
    rng: random.Random,
    in_hand: Collection[uuid.UUID],
    now: datetime,
    lasts: timedelta,
) -> Assignment | None:
    """The pair that the session hears next; see VoteService.next_assignment."""
    rules = rules_from(context.rules)
    voted, here = vote_path.voted_battles(s, context)
    waiting = vote_path.waiting_assignments(s, context.session_id)
    held = {one.battle_id for one in waiting if one.id in in_hand}
    for one in waiting:
        # Not one that was voted on through another session: that vote would be refused, the rater stuck on this pair.
        if one.expires_at > now and one.battle_id not in held and one.battle_id not in voted:
            return one
    if context.study_mode == "arena":
        return None  # a session hears what was sung for it
    limit = None if rules is None else rules.pacing.pairs_per_session
    if limit is not None and here + len(held) >= limit:
        return None
    times = {"nonce": secrets.token_urlsafe(24), "now": now, "expires_at": now + lasts}
    with pools.lock:
        pool = pools.get(s, context, strengths=rules is not None and rules.choice == "active")
        if rules is None:
            chosen = _ordinary(pool, STRICT, rng, voted | held)
            kind, share, policy = BattleKind.NORMAL, 1.0, STRICT
        else:
            policy = POLICIES[rules.choice]
            if not any(pool.count(k) for k in (BattleKind.NORMAL,)):
                return None
            kind, share, again = _kind(s, pool, context, rules, rng, voted | held)
            if kind is BattleKind.REPEAT and again:
                one = rng.choice(again)
                chance = share / len(again)
                battle = vote_path.add_repeat(s, of=one, propensity=chance, sampler_version=REPEAT_SAMPLER, now=now)
                return vote_path.serve_battle(
                    s,
                    session_id=context.session_id,
                    battle_id=battle,
                    left_is_clip_1=not one.left_is_clip_1,
                    first_side=_side(rng),
                    policy=REPEAT_SAMPLER,
                    propensity=chance,
                    **times,
                )
            chosen = pool.draw(
                "random" if kind is not BattleKind.NORMAL else policy, rng, without=voted | held, kind=kind
            )
            if kind is not BattleKind.NORMAL:
                policy = f"{kind.value}-1"
    if chosen is None:
        return None
    left_is_clip_1 = rng.random() < 0.5
    first_side = _side(rng)
    about = {"policy": policy, "propensity": chosen.chance * share, **times}
    for one in waiting:
        if one.battle_id == chosen.battle_id:  # expired, and drawn once more
            vote_path.serve_again(s, one.id, **about)
            return Assignment(
                one.id, one.session_id, one.battle_id, one.prompt_text, one.left_clip_id, one.right_clip_id,
                one.first_side, times["nonce"], now, times["expires_at"],
            )  # fmt: skip
    return vote_path.serve_battle(
        s,
        session_id=context.session_id,
        battle_id=chosen.battle_id,
        left_is_clip_1=left_is_clip_1,
        first_side=first_side,
        **about,
    )


def _side(rng: random.Random) -> Side:
    return Side.LEFT if rng.random() < 0.5 else Side.RIGHT


def _ordinary(pool: Pool, policy: str, rng: random.Random, without: Collection[uuid.UUID]):
    return pool.draw(policy, rng, without=without)


def _kind(s, pool, context, rules, rng, without):
    """(kind of the next pair, its chance, the pairs that may come again)."""
    shares = {
        # Whoever was told which version was which does not hear the pair blind a second time.
        BattleKind.REPEAT: 0.0 if context.reveal else rules.shares.repeats,
        BattleKind.GOLD: rules.shares.gold,
        BattleKind.ANCHOR: rules.shares.anchors,
    }
    gone = sum(battle in pool and pool.kind(battle) is BattleKind.NORMAL for battle in without)
    if gone >= pool.count(BattleKind.NORMAL):
        return BattleKind.NORMAL, 1.0, []  # the ordinary pairs are through: checks alone make no session
    available, again = set(), []
    for kind in (BattleKind.GOLD, BattleKind.ANCHOR):
        heard = sum(battle in pool and pool.kind(battle) is kind for battle in without)
        if heard < pool.count(kind):
            available.add(kind)
    if shares[BattleKind.REPEAT] > 0:
        again = repeatable(vote_path.answered(s, context), pool.count(BattleKind.NORMAL))
        if again:
            available.add(BattleKind.REPEAT)
    kind, share = draw_kind(shares, available, rng)
    return kind, share, again


def repeatable(answered: list[vote_path.Answered], pairs: int) -> list[vote_path.Answered]:
    """The ordinary pairs that may be asked again: judged, never asked again yet, and REPEAT_DISTANCE pairs ago, or as
    long ago as a study of so few ``pairs`` allows."""
    distance = min(REPEAT_DISTANCE, max(1, pairs - 2))
    return [
        one
        for one in answered[: max(0, len(answered) - distance)]
        if one.kind is BattleKind.NORMAL and one.outcome.trains and not one.repeated
    ]


def progress_of(
    s: Session,
    pools: Pools,
    context: SessionContext,
    standing: vote_path.Standing,
) -> SessionProgress:
    """How far the rater is: pairs answered in the study, and ordinary pairs still to come in this session."""
    rules = rules_from(context.rules)
    if context.study_mode == "arena":
        return SessionProgress(standing.pairs, len(vote_path.waiting_assignments(s, context.session_id)))
    with pools.lock:
        pool = pools.get(s, context, strengths=rules is not None and rules.choice == "active")
        total = pool.count(BattleKind.NORMAL)
    left = max(0, total - standing.normal)
    limit = None if rules is None else rules.pacing.pairs_per_session
    if limit is not None:
        left = min(left, max(0, limit - standing.pairs_here))
    return SessionProgress(standing.pairs, left)
