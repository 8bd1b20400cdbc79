"""The one service that serves assignments and records votes, for the web page and for simulation alike."""

from __future__ import annotations

import hashlib
import hmac
import math
import random
import secrets
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from alignment.absolute import AbsoluteRatings
from alignment.db import listening, people, votes
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.db.studies import get_study
from alignment.db.tables import EVENT_TYPES
from alignment.domain import (
    Assignment,
    Axis,
    Consent,
    Outcome,
    RaterKind,
    RatingAssignment,
    RatingDraft,
    RatingReceipt,
    SessionProgress,
    Side,
    VoteDraft,
    VoteReceipt,
)
from alignment.errors import (
    AssignmentExpired,
    ConfigError,
    DataError,
    ListeningTooShort,
    NotFoundError,
    VoteRejected,
)
from alignment.studies import rules_of

# Media time is counted in player ticks; a clip heard to its end may come out this much short.
TICK_SECONDS = 0.05


@dataclass(frozen=True)
class ListenEvent:
    """One thing a player did. ``seq`` counts up from 0 in an assignment; ``type`` is one of EVENT_TYPES."""

    seq: int
    type: str
    side: Side | None = None
    media_seconds: float | None = None
    client_ms: int | None = None


class VoteService:
    """Serves battles blind and saves votes, each in one transaction.

    ``secret`` keys the raters' pseudonyms: with another secret the same person is another rater.
    ``assignment_seconds`` is how long a served battle may be voted on. ``listening_slack_seconds``: a human cannot
    have heard more than the time since the battle was served plus this; ``math.inf`` believes every claim.
    ``require_fetch``: a clip counts as heard only from when ``note_fetched`` said that its bytes were sent.
    """

    def __init__(
        self,
        database: Database,
        *,
        secret: str,
        clock: Callable[[], datetime] = utcnow,
        assignment_seconds: float = 3600.0,
        listening_slack_seconds: float = 0.5,
        require_fetch: bool = False,
    ) -> None:
        if not secret:
            raise ConfigError("The secret is empty; set ATTUNE_SECRET to a long random text.")
        self.database = database
        self._secret = secret.encode()
        self._clock = clock
        self._assignment_time = timedelta(seconds=assignment_seconds)
        self._slack = listening_slack_seconds
        self._require_fetch = require_fetch
        self._ratings = AbsoluteRatings(
            database,
            clock=clock,
            assignment_seconds=assignment_seconds,
            slack_seconds=listening_slack_seconds,
            require_fetch=require_fetch,
        )

    def enrol_rater(
        self, external_id: str, *, kind: RaterKind, cohort: str | None = None, consent_version: str = "1"
    ) -> uuid.UUID:
        """The rater's id. Only a keyed hash of ``external_id`` is kept; the same person gets the same id again."""
        kind = RaterKind(kind)
        pseudonym = hmac.new(self._secret, f"{kind.value}:{external_id}".encode(), hashlib.sha256).hexdigest()
        with self.database.session() as s:
            return listening.add_rater(
                s, pseudonym=pseudonym, kind=kind, cohort=cohort, consent_version=consent_version, now=self._clock()
            )

    def open_session(
        self,
        rater_id: uuid.UUID,
        study_name: str,
        *,
        consent: Consent | None = None,
        invite_id: uuid.UUID | None = None,
        background: Mapping[str, str] | None = None,
        headphone_check: bool | None = None,
        user_agent_family: str | None = None,
        audio_route: str | None = None,
        app_commit: str | None = None,
    ) -> uuid.UUID:
        """The id of a new listening session of an open study.

        ``consent`` is recorded, and must be to the study's own text; ``background`` (answers to the questions of the
        study's onboarding) is kept with the rater and makes the cohort. Raises NotFoundError for an unknown study or
        rater, DataError when the study is for the other kind of rater (simulated and human votes never mix) or the
        rater has withdrawn, VoteRejected with a sentence for the rater when the study is not open, asks for an
        invitation that was not given or does not hold, or the consent is to another text."""
        now = self._clock()
        with self.database.session() as s:
            study = get_study(s, study_name)
            rater = listening.get_rater(s, rater_id)
            if rater is None:
                raise NotFoundError(f"No rater has the id {rater_id}; enrol the rater first.")
            kind, status = rater
            if status != "active":
                raise DataError(f"This rater is {status} and takes part in no further study.")
            if kind != study.rater_kind:
                raise DataError(f"Study {study_name} is for {study.rater_kind.value} raters; this one is {kind.value}.")
            _check_open(study.state)
            rules = rules_of(study)
            if invite_id is not None:
                fault = people.invite_fault(s, invite_id, study.id, now)
                if fault is not None:
                    raise VoteRejected(fault)
            elif rules.access == "invited":
                raise VoteRejected("This study is by invitation; open the link that you were sent.")
            if consent is not None:
                wanted = rules.onboarding.consent_version
                if study.rules and consent.text_version != wanted:
                    raise VoteRejected("The consent text has changed since you read it; reload the page to read it.")
                people.add_consent(s, rater_id=rater_id, study_id=study.id, consent=consent, now=now)
            if background:
                told = _background(background, rules.onboarding.background)
                cohort = ", ".join(f"{name}: {told[name]}" for name in rules.onboarding.background if name in told)
                people.tell_background(s, rater_id, told, cohort or None)
            session_id = listening.add_session(
                s,
                rater_id=rater_id,
                study_id=study.id,
                now=now,
                headphone_check=headphone_check,
                user_agent_family=user_agent_family,
                audio_route=audio_route,
                app_commit=app_commit,
            )
            if invite_id is not None:
                people.add_invite_use(s, session_id=session_id, invite_id=invite_id, now=now)
            return session_id

    def finish_session(self, session_id: uuid.UUID) -> None:
        """Notes that the rater has ended the session; what is still on its way is taken all the same.

        Raises NotFoundError for an unknown session."""
        with self.database.session() as s:
            if not listening.finish_session(s, session_id, self._clock()):
                raise NotFoundError("This listening session is unknown; start a new one.")

    def note_fetched(self, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side) -> None:
        """Notes, before they are sent, that the bytes of one clip go to the rater; only the first time counts.

        Raises VoteRejected when the assignment is not this session's."""
        with self.database.session() as s:
            if not listening.note_fetched(s, session_id, assignment_id, Side(side), self._clock()):
                raise VoteRejected("This pair was not served to this session; load the next one.")

    def reveal(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> dict[str, str]:
        """{"left": version, "right": version} of a pair that the rater has voted on, in a study that reveals.

        Raises VoteRejected when the study does not reveal, or before the vote is stored."""
        with self.database.session(write=False) as s:
            assignment = self._own(s, session_id, assignment_id)
            context = listening.session_context(s, session_id)
            if context is None or not context.reveal:
                raise VoteRejected("This study does not say which version was which.")
            if votes.latest_vote(s, assignment.id) is None:
                raise VoteRejected("The versions are shown after your vote; vote on this pair first.")
            clips = get_clips(s, [assignment.left_clip_id, assignment.right_clip_id])
            return {
                "left": clips[assignment.left_clip_id].version,
                "right": clips[assignment.right_clip_id].version,
            }

    def next_rating(
        self, session_id: uuid.UUID, *, rng: random.Random, in_hand: Collection[uuid.UUID] = ()
    ) -> RatingAssignment | None:
        """The clip to rate next in a rating study; None when this rater has rated all. See AbsoluteRatings."""
        return self._ratings.next(session_id, rng=rng, in_hand=in_hand)

    def note_rating_fetched(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> None:
        """Notes, before they are sent, that the bytes of a clip to rate go to the rater."""
        self._ratings.note_fetched(session_id, assignment_id)

    def record_rating(self, session_id: uuid.UUID, draft: RatingDraft) -> RatingReceipt:
        """The receipt of a rating that is safely stored, given only after the commit. See AbsoluteRatings."""
        return self._ratings.record(session_id, draft)

    def next_assignment(
        self, session_id: uuid.UUID, *, rng: random.Random, in_hand: Collection[uuid.UUID] = ()
    ) -> Assignment | None:
        """The battle to hear next; None when this rater has voted on all of the study's.

        An open assignment of the session is returned again, unless it is among ``in_hand``, those that a client
        which fetches ahead holds already. Otherwise it is one of the battles with the fewest
        votes, drawn by ``rng``, which also draws the sides and which sounds first. Raises NotFoundError for an
        unknown session and VoteRejected when the rater has withdrawn."""
        with self.database.session() as s:
            now = self._clock()
            context = self._context(s, session_id)
            _check_open(context.study_state)
            served = listening.open_assignment(s, context, now, in_hand)
            if served is not None:
                return served
            fewest = listening.least_voted_battles(s, context, in_hand)
            if fewest is None:
                return None
            count, among = fewest
            battle = listening.nth_open_battle(s, context, votes=count, index=rng.randrange(among), in_hand=in_hand)
            return listening.serve(
                s,
                session_id=session_id,
                battle_id=battle,
                left_is_clip_1=rng.random() < 0.5,
                first_side=Side.LEFT if rng.random() < 0.5 else Side.RIGHT,
                nonce=secrets.token_urlsafe(24),
                now=now,
                expires_at=now + self._assignment_time,
            )

    def record_events(self, session_id: uuid.UUID, assignment_id: uuid.UUID, events: Sequence[ListenEvent]) -> int:
        """How many events were new: one that was told before, by its ``seq``, is left alone.

        Raises VoteRejected when the assignment is not this session's or an event makes no sense."""
        for event in events:
            if event.type not in EVENT_TYPES:
                raise VoteRejected(f"{event.type!r} is not a player event; known: {', '.join(EVENT_TYPES)}.")
            if event.seq < 0 or (event.media_seconds is not None and not math.isfinite(event.media_seconds)):
                raise VoteRejected("A player event has an impossible number in it.")
        with self.database.session() as s:
            self._context(s, session_id)
            self._own(s, session_id, assignment_id)
            now = self._clock()
            return listening.add_events(
                s,
                assignment_id,
                [
                    {
                        "seq": event.seq,
                        "side": None if event.side is None else Side(event.side),
                        "type": event.type,
                        "media_seconds": event.media_seconds,
                        "client_ms": event.client_ms,
                        "received_at": now,
                    }
                    for event in events
                ],
            )

    def record_vote(
        self, session_id: uuid.UUID, draft: VoteDraft, *, events: Sequence[ListenEvent] = ()
    ) -> VoteReceipt:
        """The receipt of a vote that is safely stored, given only after the commit, with the progress it made.

        ``events`` that come with the vote are stored first, in the same transaction, also when the vote was saved
        before.

        The same idempotency key again gives the same receipt with ``repeated``. A new key for a battle that has a
        vote is a correction: a new revision, unless the study reveals the versions after a vote. Raises VoteRejected,
        AssignmentExpired or ListeningTooShort with a sentence for the rater; then nothing is stored."""
        _check_draft(draft)
        if events:
            self.record_events(session_id, draft.assignment_id, events)
        with self.database.session() as s:
            now = self._clock()
            context = self._context(s, session_id)
            assignment = self._own(s, session_id, draft.assignment_id)
            saved = votes.vote_by_key(s, draft.idempotency_key)
            if saved is not None:
                return _repeated(saved, draft)
            if now >= assignment.expires_at:
                raise AssignmentExpired("This pair was served too long ago; load the next one.")
            before = votes.latest_vote(s, assignment.id)
            if before is not None and context.reveal:
                raise VoteRejected("This pair has your vote and its versions were shown; it cannot change now.")
            if votes.voted_elsewhere(
                s, rater_id=context.rater_id, battle_id=assignment.battle_id, assignment_id=assignment.id
            ):
                raise VoteRejected("You have voted on this pair in another session; load the next one.")
            if context.rater_kind == RaterKind.HUMAN and draft.outcome not in (Outcome.SKIP, Outcome.FAULT):
                self._check_listening(s, context, assignment, draft, now)
            revision = 1 if before is None else before.revision + 1
            new = votes.insert_vote(
                s, draft, session_id=session_id, battle_id=assignment.battle_id, revision=revision, now=now
            )
        return replace(_receipt(new, repeated=False), progress=self.progress(session_id))

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        """How far this session's rater is in its study."""
        with self.database.session(write=False) as s:
            context = listening.session_context(s, session_id)
            if context is None:
                raise NotFoundError("This listening session is unknown; start a new one.")
            return SessionProgress(*listening.count_battles(s, context))

    def _context(self, s: Session, session_id: uuid.UUID) -> listening.SessionContext:
        context = listening.session_context(s, session_id, lock=True)
        if context is None:
            raise NotFoundError("This listening session is unknown; start a new one.")
        if context.rater_status != "active":
            raise VoteRejected(f"This rater is {context.rater_status}; nothing more is recorded.")
        return context

    def _own(self, s: Session, session_id: uuid.UUID, assignment_id: uuid.UUID) -> Assignment:
        assignment = listening.get_assignment(s, assignment_id)
        # One sentence for both: a guesser must not learn which assignments exist.
        if assignment is None or assignment.session_id != session_id:
            raise VoteRejected("This pair was not served to this session; load the next one.")
        return assignment

    def _check_listening(
        self,
        s: Session,
        context: listening.SessionContext,
        assignment: Assignment,
        draft: VoteDraft,
        now: datetime,
    ) -> None:
        minimum = context.minimum_listening_seconds
        if minimum <= 0:
            return
        since = assignment.served_at
        last = votes.last_in_session(s, assignment.session_id)[2]
        revises = votes.latest_vote(s, assignment.id) is not None
        if last is not None and not revises:
            since = max(since, last)
        claimed = draft.heard_left_seconds + draft.heard_right_seconds
        allowed = (now - since).total_seconds() + self._slack
        # Only one clip is audible at a time, so a claim longer than the time that passed counts in part.
        share = 1.0 if claimed <= allowed else max(allowed, 0.0) / claimed
        heard = (draft.heard_left_seconds * share, draft.heard_right_seconds * share)
        for side, seconds, length in zip(("left", "right"), heard, listening.clip_seconds(s, assignment), strict=True):
            needed = min(minimum, length)
            if seconds + TICK_SECONDS < needed:
                raise ListeningTooShort(
                    f"You heard {seconds:.1f} s of the {side} clip; please hear at least {needed:g} s of both."
                )


def _check_open(state: str) -> None:
    if state != "open":
        raise VoteRejected(listening.not_open(state))


def _background(told: Mapping[str, str], asked: Sequence[str]) -> dict[str, str]:
    for name, answer in told.items():
        if name not in asked:
            raise VoteRejected(f"This study does not ask about {name!r}.")
        if not isinstance(answer, str) or not 0 < len(answer.strip()) <= 80:
            raise VoteRejected("An answer about yourself must have 1 to 80 characters.")
    return {name: answer.strip() for name, answer in told.items()}


def _check_draft(draft: VoteDraft) -> None:
    if not 8 <= len(draft.idempotency_key) <= 200:
        raise VoteRejected("The vote's idempotency key must have 8 to 200 characters.")
    for axis, value in draft.axes.items():
        if axis not in set(Axis) or isinstance(value, bool) or not isinstance(value, int) or not -2 <= value <= 2:
            raise VoteRejected(f"{axis} is {value!r}; an axis is a whole number from -2 to 2.")
    if draft.confidence is not None and draft.confidence not in (1, 2, 3):
        raise VoteRejected(f"The confidence is {draft.confidence!r}; it must be 1, 2 or 3.")
    for seconds in (draft.heard_left_seconds, draft.heard_right_seconds):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise VoteRejected("The seconds heard must be 0 or more.")
    if draft.switches < 0 or (draft.decision_ms is not None and draft.decision_ms < 0):
        raise VoteRejected("The number of switches and the decision time must be 0 or more.")
    if draft.comment is not None and len(draft.comment) > 5000:
        raise VoteRejected(f"The comment has {len(draft.comment)} characters; at most 5000 fit.")


def _repeated(saved: votes.SavedVote, draft: VoteDraft) -> VoteReceipt:
    answer = (draft.assignment_id, Outcome(draft.outcome), {Axis(axis): value for axis, value in draft.axes.items()})
    if (saved.assignment_id, saved.outcome, dict(saved.axes)) != answer:
        raise VoteRejected("Another answer was saved under this key already; that one stands.")
    return _receipt(saved, repeated=True)


def _receipt(saved: votes.SavedVote, *, repeated: bool) -> VoteReceipt:
    return VoteReceipt(
        vote_id=saved.id,
        assignment_id=saved.assignment_id,
        revision=saved.revision,
        row_hash=saved.row_hash,
        saved_at=saved.created_at,
        repeated=repeated,
    )
