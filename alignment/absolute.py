"""Absolute ratings: serving one clip at a time and saving what was said of it."""

from __future__ import annotations

import math
import random
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from alignment.db import listening, ratings, vote_path
from alignment.db.engine import Database
from alignment.domain import (
    BattleKind,
    RatingAssignment,
    RatingDraft,
    RatingOutcome,
    RatingReceipt,
    SessionProgress,
)
from alignment.errors import AssignmentExpired, ListeningTooShort, NotFoundError, VoteRejected
from alignment.listening_credit import TICK_SECONDS, needed_seconds, room
from alignment.pairing import Pool
from alignment.serving import POOLS_KEPT, rules_from
from alignment.studies import StudyRecipe

RELOAD_SECONDS = 10.0
_WITHOUT_RECIPE = StudyRecipe(name="ratings", versions=("any",), mode="rating")


class AbsoluteRatings:
    """Serves the clips of rating studies blind and saves ratings, each in one transaction. Options as VoteService's."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime],
        assignment_seconds: float,
        slack_seconds: float,
        require_fetch: bool,
    ) -> None:
        self.database = database
        self._clock = clock
        self._assignment_time = timedelta(seconds=assignment_seconds)
        self._slack = slack_seconds
        self._require_fetch = require_fetch
        self._pools: OrderedDict[uuid.UUID, tuple[float, Pool, dict[uuid.UUID, uuid.UUID]]] = OrderedDict()
        self._guard = threading.RLock()

    def next(
        self, session_id: uuid.UUID, *, rng: random.Random, in_hand: Collection[uuid.UUID] = ()
    ) -> RatingAssignment | None:
        """The clip to rate next; None when this rater has rated all, or as many as a session has.

        An open assignment of the session is returned again unless it is among ``in_hand``. Otherwise it is mostly one
        of the least rated clips, drawn by ``rng``; references and anchors come among the rest. Raises NotFoundError
        for an unknown session, VoteRejected when the study is not open or the rater has withdrawn."""
        with self.database.session() as s:
            now = self._clock()
            context, rules = self._context(s, session_id)
            if context.study_state != "open":
                raise VoteRejected(listening.not_open(context.study_state))
            rated = ratings.rated_by(s, context.rater_id, context.study_id)
            served = ratings.open_item(s, session_id, rated, now, in_hand)
            if served is not None:
                return served
            here = ratings.served_in(s, session_id)
            held = {one.assignment.clip_id for one in here if one.assignment.id in set(in_hand)}
            limit = rules.pacing.pairs_per_session
            if limit is not None and sum(one.assignment.clip_id in rated | held for one in here) >= limit:
                return None
            with self._guard:
                pool, clips = self._pool(s, context.study_id)
                chosen = pool.draw("balanced", rng, without=[i for i, c in clips.items() if c in rated or c in held])
            if chosen is None:
                return None
            return ratings.serve_item(
                s,
                session_id=session_id,
                item_id=chosen.battle_id,
                now=now,
                expires_at=now + self._assignment_time,
            )

    def note_fetched(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> None:
        """Notes, before they are sent, that the clip's bytes go to the rater; only the first time counts."""
        with self.database.session() as s:
            served = ratings.get_served(s, assignment_id)
            if served is None or served.assignment.session_id != session_id:
                raise VoteRejected("This clip was not served to this session; load the next one.")
            ratings.note_item_fetched(s, session_id, assignment_id, self._clock())

    def record(self, session_id: uuid.UUID, draft: RatingDraft) -> RatingReceipt:
        """The receipt of a rating that is safely stored, given only after the commit.

        A clip that is passed over or reported as broken counts as answered and needs no listening. The same
        idempotency key again gives the same receipt with ``repeated``; a clip that has the session's rating takes no
        other. Raises VoteRejected, AssignmentExpired or ListeningTooShort with a sentence for the rater."""
        _check_draft(draft)
        with self.database.session() as s:
            now = self._clock()
            context, rules = self._context(s, session_id)
            served = ratings.get_served(s, draft.assignment_id)
            if served is None or served.assignment.session_id != session_id:
                raise VoteRejected("This clip was not served to this session; load the next one.")
            saved = ratings.rating_by_key(s, draft.idempotency_key)
            if saved is not None:
                said = (RatingOutcome(draft.outcome), draft.quality, draft.relevance, draft.mos)
                if (saved.session_id, saved.clip_id, saved.answer) != (session_id, served.assignment.clip_id, said):
                    raise VoteRejected("Another answer was saved under this key already; that one stands.")
                progress = self._progress(s, context, rules, session_id)
                return RatingReceipt(saved.id, draft.assignment_id, saved.created_at, True, progress)
            if now >= served.assignment.expires_at:
                raise AssignmentExpired("This clip was served too long ago; load the next one.")
            if served.assignment.clip_id in ratings.rated_by(s, context.rater_id, context.study_id):
                raise VoteRejected("You have rated this clip already; load the next one.")
            _check_scales(draft, rules)
            heard = self._heard(s, context, served, draft, now)
            needed = needed_seconds(context.minimum_listening_seconds, served.clip_seconds)
            if draft.outcome != RatingOutcome.RATED:
                needed = 0.0
            if heard + TICK_SECONDS < needed:
                raise ListeningTooShort(f"You heard {heard:.1f} s of the clip; please hear at least {needed:g} s.")
            with self._guard:
                tallies = self._pools.get(context.study_id)
            new = ratings.insert_rating(
                s, draft, session_id=session_id, clip_id=served.assignment.clip_id, heard_seconds=heard, now=now
            )
            progress = self._progress(s, context, rules, session_id)
        with self._guard:
            # Tallies that were read since hold this rating already.
            if tallies is not None and self._pools.get(context.study_id) is tallies:
                tallies[1].note_vote(served.assignment.item_id)
        return RatingReceipt(new, draft.assignment_id, now, False, progress)

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        """How far this session's rater is in its rating study."""
        with self.database.session(write=False) as s:
            context, rules = self._context(s, session_id, lock=False)
            return self._progress(s, context, rules, session_id)

    def _heard(
        self,
        s: Session,
        context: vote_path.SessionContext,
        served: ratings.ServedItem,
        draft: RatingDraft,
        now: datetime,
    ) -> float:
        """The seconds that can have been heard: no more than the clip has, nor than there was time for."""
        since = served.fetched_at or (None if self._require_fetch else served.assignment.served_at)
        if since is None:
            return 0.0
        others = [(seconds, sent) for _, seconds, sent in ratings.claims(s, context.rater_id)]
        allowed = room(others, since=since, now=now, slack_seconds=self._slack)
        return max(0.0, min(draft.heard_seconds, served.clip_seconds, allowed))

    def _pool(self, s: Session, study_id: uuid.UUID) -> tuple[Pool, dict[uuid.UUID, uuid.UUID]]:
        """The study's items as a pool, and the clip of each; read anew now and then, for others may rate as well."""
        known = self._pools.get(study_id)
        if known is not None and time.monotonic() - known[0] < RELOAD_SECONDS:
            return known[1], known[2]
        pool, often, clips = Pool(), ratings.rated_often(s, study_id), {}
        for item in ratings.list_items(s, study_id):
            pool.add(item.id, BattleKind.NORMAL, often[item.id])
            clips[item.id] = item.clip_id
        self._pools[study_id] = (time.monotonic(), pool, clips)
        self._pools.move_to_end(study_id)
        while len(self._pools) > POOLS_KEPT:
            self._pools.popitem(last=False)
        return pool, clips

    def _progress(
        self, s: Session, context: vote_path.SessionContext, rules: StudyRecipe, session_id: uuid.UUID
    ) -> SessionProgress:
        rated = ratings.rated_by(s, context.rater_id, context.study_id)
        with self._guard:
            clips = self._pool(s, context.study_id)[1]
        waiting = len(clips) - len(rated)
        limit = rules.pacing.pairs_per_session
        if limit is not None:
            here = sum(one.assignment.clip_id in rated for one in ratings.served_in(s, session_id))
            waiting = min(waiting, max(0, limit - here))
        return SessionProgress(len(rated), waiting)

    def _context(
        self, s: Session, session_id: uuid.UUID, *, lock: bool = True
    ) -> tuple[vote_path.SessionContext, StudyRecipe]:
        context = vote_path.session_context(s, session_id, lock=lock)
        if context is None:
            raise NotFoundError("This listening session is unknown; start a new one.")
        if context.rater_status != "active":
            raise VoteRejected(f"This rater is {context.rater_status}; nothing more is recorded.")
        if context.study_mode != "rating":
            raise VoteRejected("This study compares pairs; it asks no ratings of single clips.")
        return context, rules_from(context.rules) or _WITHOUT_RECIPE


def _check_draft(draft: RatingDraft) -> None:
    if not 8 <= len(draft.idempotency_key) <= 200:
        raise VoteRejected("The rating's idempotency key must have 8 to 200 characters.")
    for name, value in (("quality", draft.quality), ("relevance", draft.relevance)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100):
            raise VoteRejected(f"{name} is {value!r}; it is a whole number from 1 to 100.")
    if draft.mos is not None and (isinstance(draft.mos, bool) or draft.mos not in (1, 2, 3, 4, 5)):
        raise VoteRejected(f"mos is {draft.mos!r}; it is 1, 2, 3, 4 or 5.")
    if not (math.isfinite(draft.heard_seconds) and draft.heard_seconds >= 0):
        raise VoteRejected("The seconds heard must be 0 or more.")
    if draft.decision_ms is not None and draft.decision_ms < 0:
        raise VoteRejected("The decision time must be 0 or more.")


def _check_scales(draft: RatingDraft, rules: StudyRecipe) -> None:
    for name in ("quality", "relevance", "mos"):
        given = getattr(draft, name) is not None
        if draft.outcome != RatingOutcome.RATED:
            if given:
                raise VoteRejected(f"A clip without a rating has no answer about {name}; send one or the other.")
            continue
        if given and name not in rules.scales:
            raise VoteRejected(f"This study does not ask about {name}.")
        if not given and name in rules.scales:
            raise VoteRejected(f"The answer about {name} is missing; give it and send the rating again.")
