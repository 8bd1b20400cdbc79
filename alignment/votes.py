"""The one service that serves assignments and records votes, for the web page and for simulation alike."""

from __future__ import annotations

import math
import random
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from alignment import serving
from alignment.absolute import AbsoluteRatings
from alignment.db import listening, people, vote_path, votes
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
    rater_pseudonym,
)
from alignment.errors import (
    AssignmentExpired,
    ConfigError,
    DataError,
    ListeningTooShort,
    NotFoundError,
    VoteRejected,
)
from alignment.listening_credit import TICK_SECONDS, Event, Ledger, capped, coverage, needed_seconds, room
from alignment.serving import Pools
from alignment.studies import StudyRecipe, rules_of

BROKEN_SECONDS = 0.5  # of a clip that is clearly broken, to be heard before saying so
_FETCHES_KEPT = 4096
_MOST_EVENTS = 1_000_000
_LONGEST_SECONDS = 3600.0
_NOT_SERVED = "This pair was not served to this session; load the next one."
_UNKNOWN_SESSION = "This listening session is unknown; start a new one."


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
        self._pools = Pools.of(database)
        self._ledger = Ledger()
        self._fetched: OrderedDict[tuple[uuid.UUID, uuid.UUID, Side], None] = OrderedDict()
        self._guard = threading.Lock()
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
        pseudonym = rater_pseudonym(self._secret, kind, external_id)
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
        side = Side(side)
        with self._guard:
            if (session_id, assignment_id, side) in self._fetched:
                return
        with self.database.session() as s:
            if not vote_path.note_fetched(s, session_id, assignment_id, side, self._clock()):
                raise VoteRejected(_NOT_SERVED)
        with self._guard:
            self._fetched[session_id, assignment_id, side] = None
            while len(self._fetched) > _FETCHES_KEPT:
                self._fetched.popitem(last=False)

    def reveal(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> dict[str, str]:
        """{"left": version, "right": version} of a pair that the rater has voted on, in a study that reveals.

        Raises VoteRejected when the study does not reveal, or before the vote is stored."""
        with self.database.session(write=False) as s:
            assignment = listening.get_assignment(s, assignment_id)
            context = vote_path.session_context(s, session_id)
            if assignment is None or context is None or assignment.session_id != session_id:
                raise VoteRejected(_NOT_SERVED)
            if not context.reveal:
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
        """The pair to hear next; None when this rater has voted on all of the study's, or on as many as a session has.

        An open assignment of the session is returned again, unless it is among ``in_hand``, those that a client
        which fetches ahead holds already. Otherwise a battle is drawn by ``rng`` under the study's rules (a check of
        the rater by its share, else an ordinary pair by the study's choice), the sides and which sounds first as well;
        the chance that the draw had, given the session, is kept with the assignment. In an arena a session is served
        only what was sung for it. Raises NotFoundError for an unknown session, VoteRejected when the study is not
        open or the rater has withdrawn."""
        with self.database.session() as s:
            context = self._context(s, session_id)
            _check_open(context.study_state)
            return serving.next_assignment(
                s, self._pools, context, rng=rng, in_hand=in_hand, now=self._clock(), lasts=self._assignment_time
            )

    def record_events(self, session_id: uuid.UUID, assignment_id: uuid.UUID, events: Sequence[ListenEvent]) -> int:
        """How many events were new: one that was told before, by its ``seq``, is left alone.

        Raises VoteRejected when the assignment is not this session's or an event makes no sense."""
        _check_events(events)
        with self.database.session() as s:
            owner = vote_path.owner_of(s, assignment_id)
            if owner is None or owner[0] != session_id:
                raise VoteRejected(_NOT_SERVED)
            _check_active(owner[1])
            return vote_path.add_events(s, _event_rows(assignment_id, events, self._clock()))

    def record_vote(
        self, session_id: uuid.UUID, draft: VoteDraft, *, events: Sequence[ListenEvent] = ()
    ) -> VoteReceipt:
        """The receipt of a vote that is safely stored, given only after the commit, with the progress it made.

        The same idempotency key again gives the same receipt with ``repeated``. A new key for a battle that has a
        vote is a correction: a new revision, unless the study reveals the versions after a vote. ``events`` that come
        with the vote are stored in the same transaction, also when the vote was saved before. Seconds that cannot
        have been heard are not stored. Raises VoteRejected, AssignmentExpired or ListeningTooShort with a sentence for
        the rater; then nothing is stored."""
        _check_draft(draft)
        _check_events(events)
        with self.database.session() as s:
            now = self._clock()
            pair = vote_path.vote_context(s, draft.assignment_id)
            if pair is None or pair.session_id != session_id:
                if vote_path.session_context(s, session_id) is None:
                    raise NotFoundError(_UNKNOWN_SESSION)
                # One sentence for both: a guesser must not learn which assignments exist.
                raise VoteRejected(_NOT_SERVED)
            _check_active(pair.rater_status)
            rules = serving.rules_from(pair.rules)
            rows = _event_rows(draft.assignment_id, events, now)
            fresh = vote_path.add_events(s, rows)
            saved, before = votes.find_votes(s, draft.idempotency_key, pair.assignment_id)
            kinds = serving.ordinary(rules)
            standing = vote_path.standing(
                s,
                rater_id=pair.rater_id,
                study_id=pair.study_id,
                session_id=session_id,
                kinds=kinds,
                battle_id=pair.battle_id,
                assignment_id=pair.assignment_id,
            )
            if saved is not None:
                again = _repeated(saved, draft)
                return replace(again, progress=serving.progress_of(s, self._pools, pair.session, standing))
            if now >= pair.expires_at:
                raise AssignmentExpired("This pair was served too long ago; load the next one.")
            if before is not None and pair.reveal:
                raise VoteRejected("This pair has your vote and its versions were shown; it cannot change now.")
            if standing.elsewhere:
                raise VoteRejected("You have voted on this pair in another session; load the next one.")
            _check_answer(draft, pair, rules)
            claims: dict[uuid.UUID, tuple[float, datetime]] | None = None
            if pair.rater_kind is RaterKind.HUMAN and not math.isinf(self._slack):
                claims = self._claims(s, pair, standing)
                told = list(events) if fresh == len(rows) and rows and rows[0]["seq"] == 0 else None
                draft = self._credited(s, pair, draft, claims, told, rows, now)
            if pair.rater_kind is RaterKind.HUMAN:
                _check_listening(pair, draft)
            revision = 1 if before is None else before.revision + 1
            new = votes.insert_vote(
                s, draft, session_id=session_id, battle_id=pair.battle_id, revision=revision, now=now
            )
            self._pools.announce(new.id)
            if revision == 1:
                standing = replace(
                    standing,
                    pairs=standing.pairs + 1,
                    pairs_here=standing.pairs_here + 1,
                    normal=standing.normal + (pair.battle_kind in kinds),
                )
            progress = serving.progress_of(s, self._pools, pair.session, standing)
        self._pools.note(
            pair.study_id, pair.battle_id, new.id, outcome=Outcome(draft.outcome),
            before=None if before is None else before.outcome, left_is_clip_1=pair.left_is_clip_1,
        )  # fmt: skip
        if claims is not None:
            heard = draft.heard_left_seconds + draft.heard_right_seconds
            since = pair.fetched_at or pair.served_at
            claims[pair.assignment_id] = (max(heard, claims.get(pair.assignment_id, (0.0, since))[0]), since)
            with self._guard:
                self._ledger.put(pair.rater_id, standing.votes + 1, claims)
        return replace(_receipt(new, repeated=False), progress=progress)

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        """How far this session's rater is in its study."""
        with self.database.session(write=False) as s:
            context = vote_path.session_context(s, session_id)
            if context is None:
                raise NotFoundError(_UNKNOWN_SESSION)
            if context.study_mode != "rating":
                standing = vote_path.standing(
                    s,
                    rater_id=context.rater_id,
                    study_id=context.study_id,
                    session_id=session_id,
                    kinds=serving.ordinary(serving.rules_from(context.rules)),
                )
                return serving.progress_of(s, self._pools, context, standing)
        return self._ratings.progress(session_id)

    def _context(self, s: Session, session_id: uuid.UUID) -> vote_path.SessionContext:
        context = vote_path.session_context(s, session_id, lock=True)
        if context is None:
            raise NotFoundError(_UNKNOWN_SESSION)
        _check_active(context.rater_status)
        return context

    def _claims(
        self, s: Session, pair: vote_path.VoteContext, standing: vote_path.Standing
    ) -> dict[uuid.UUID, tuple[float, datetime]]:
        """What the rater claimed to have heard of each pair so far."""
        with self._guard:
            known = self._ledger.get(pair.rater_id, standing.votes)
            if known is not None:
                return dict(known)
        claims: dict[uuid.UUID, tuple[float, datetime]] = {}
        for assignment_id, seconds, since in vote_path.claims(s, pair.rater_id):
            claims[assignment_id] = (max(seconds, claims.get(assignment_id, (0.0, since))[0]), since)
        return claims

    def _credited(
        self,
        s: Session,
        pair: vote_path.VoteContext,
        draft: VoteDraft,
        claims: Mapping[uuid.UUID, tuple[float, datetime]],
        told: Sequence[ListenEvent] | None,
        rows: Sequence[Mapping[str, object]],
        now: datetime,
    ) -> VoteDraft:
        """The draft with the seconds that can have been heard: of each clip no more than it has and than the player's
        events allow where they are complete, of all clips no more than the time there was."""
        left, right = (
            min(claimed, length)
            for claimed, length in zip((draft.heard_left_seconds, draft.heard_right_seconds), pair.seconds, strict=True)
        )
        if rows:
            # Only the player's last word tells how many events there were; it comes with the vote.
            last = max(row["seq"] for row in rows)
            listed = vote_path.read_events(s, pair.assignment_id) if told is None else [_event(one) for one in told]
            covered = coverage(listed, max(pair.seconds), last_seq=last)
            if covered is not None:
                left, right = min(left, covered[Side.LEFT]), min(right, covered[Side.RIGHT])
        since = pair.fetched_at or (None if self._require_fetch else pair.served_at)
        allowed = 0.0
        if since is not None:
            others = [claim for other, claim in claims.items() if other != pair.assignment_id]
            allowed = room(others, since=since, now=now, slack_seconds=self._slack)
        left, right = capped(left, right, allowed)
        return replace(draft, heard_left_seconds=left, heard_right_seconds=right)


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


def _check_active(status: str) -> None:
    if status != "active":
        raise VoteRejected(f"This rater is {status}; nothing more is recorded.")


def _check_events(events: Sequence[ListenEvent]) -> None:
    for event in events:
        if event.type not in EVENT_TYPES:
            raise VoteRejected(f"{event.type!r} is not a player event; known: {', '.join(EVENT_TYPES)}.")
        at = event.media_seconds
        if not 0 <= event.seq < _MOST_EVENTS or (at is not None and not 0 <= at <= _LONGEST_SECONDS):
            raise VoteRejected("A player event has an impossible number in it.")


def _event_rows(assignment_id: uuid.UUID, events: Sequence[ListenEvent], now: datetime) -> list[dict[str, Any]]:
    """Rows by seq; of two with one seq the first that was told."""
    rows = {
        event.seq: {
            "assignment_id": assignment_id,
            "seq": event.seq,
            "side": None if event.side is None else Side(event.side),
            "type": event.type,
            "media_seconds": event.media_seconds,
            "client_ms": event.client_ms,
            "received_at": now,
        }
        for event in reversed(events)
    }
    return [rows[seq] for seq in sorted(rows)]


def _event(one: ListenEvent) -> Event:
    return (one.seq, one.type, one.side, one.media_seconds, one.client_ms)


def _check_answer(draft: VoteDraft, pair: vote_path.VoteContext, rules: StudyRecipe | None) -> None:
    """What the study asks of an answer: its confidence, and that words tied to a stretch lie inside the clip."""
    if (
        rules is not None
        and rules.ask_confidence
        and draft.confidence is None
        and draft.broken is None
        and Outcome(draft.outcome).trains
        and pair.rater_kind is RaterKind.HUMAN
    ):
        raise VoteRejected("This study asks how sure you are; answer it and send the vote again.")
    if draft.comment_side is not None:
        length = pair.seconds[Side(draft.comment_side) is Side.RIGHT]
        for at in (draft.comment_start_seconds, draft.comment_end_seconds):
            if at is not None and at > length + TICK_SECONDS:
                raise VoteRejected(f"The comment is tied to {at:.1f} s; the clip has {length:.1f} s.")


def _check_listening(pair: vote_path.VoteContext, draft: VoteDraft) -> None:
    if Outcome(draft.outcome) in (Outcome.SKIP, Outcome.FAULT) or pair.minimum_listening_seconds <= 0:
        return
    heard = (draft.heard_left_seconds, draft.heard_right_seconds)
    if draft.broken is not None:
        side = Side(draft.broken)
        index = side is Side.RIGHT
        needed = min(BROKEN_SECONDS, pair.minimum_listening_seconds, pair.seconds[index])
        if heard[index] + TICK_SECONDS < needed:
            raise ListeningTooShort(f"Please hear at least {needed:g} s of the {side.value} clip that is broken.")
        return
    for side, seconds, length in zip(Side, heard, pair.seconds, strict=True):
        needed = needed_seconds(pair.minimum_listening_seconds, length)
        if seconds + TICK_SECONDS < needed:
            raise ListeningTooShort(
                f"You heard {seconds:.1f} s of the {side.value} clip; please hear at least {needed:g} s of both."
            )


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
    start, end = draft.comment_start_seconds, draft.comment_end_seconds
    if (start is None and end is not None) or (start is not None and draft.comment_side is None):
        raise VoteRejected("A stretch of a comment needs the clip that it is about, and where it begins.")
    for at in (start, end):
        if at is not None and not (math.isfinite(at) and at >= 0):
            raise VoteRejected("A stretch of a comment begins and ends at 0 s or later.")
    if start is not None and end is not None and end < start:
        raise VoteRejected(f"The comment's stretch ends at {end:g} s, before it begins at {start:g} s.")
    if draft.broken is not None:
        other = Outcome.B if Side(draft.broken) is Side.LEFT else Outcome.A
        if draft.outcome != other:
            raise VoteRejected(f"With the {Side(draft.broken).value} clip broken the vote is {other.value}.")


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
