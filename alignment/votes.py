"""The one service that serves assignments and records votes, for the web page and for simulation alike."""

from __future__ import annotations

import math
import random
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from alignment import answers, serving
from alignment.absolute import AbsoluteRatings
from alignment.admission import admit, check_open
from alignment.answers import ListenEvent
from alignment.crediting import Claims, Crediting
from alignment.db import listening, vote_path, votes
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.domain import (
    Assignment,
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
from alignment.errors import AssignmentExpired, ConfigError, NotFoundError, VoteRejected
from alignment.serving import Pools

__all__ = ["ListenEvent", "SessionProgress", "VoteService"]

_FETCHES_KEPT = 4096  # of the pairs on screens and fetched ahead; the database has the rest
_NOT_SERVED = "This pair was not served to this session; load the next one."
_UNKNOWN_SESSION = "This listening session is unknown; start a new one."


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
        self._credit = Crediting(slack_seconds=listening_slack_seconds, require_fetch=require_fetch)
        self._pools = Pools.of(database)
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
            return admit(
                s,
                rater_id,
                study_name,
                now=now,
                consent=consent,
                invite_id=invite_id,
                background=background,
                headphone_check=headphone_check,
                user_agent_family=user_agent_family,
                audio_route=audio_route,
                app_commit=app_commit,
            )

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
        return self._serve(session_id, rng, in_hand, with_progress=False)[0]

    def next_pair(
        self, session_id: uuid.UUID, *, rng: random.Random, in_hand: Collection[uuid.UUID] = ()
    ) -> tuple[Assignment | None, SessionProgress]:
        """What ``next_assignment`` and ``progress`` give, in one transaction."""
        pair, progress = self._serve(session_id, rng, in_hand, with_progress=True)
        return pair, progress or SessionProgress(0, 0)

    def _serve(
        self, session_id: uuid.UUID, rng: random.Random, in_hand: Collection[uuid.UUID], *, with_progress: bool
    ) -> tuple[Assignment | None, SessionProgress | None]:
        with self.database.session() as s:
            context = self._context(s, session_id)
            check_open(context.study_state)
            pair = serving.next_assignment(
                s, self._pools, context, rng=rng, in_hand=in_hand, now=self._clock(), lasts=self._assignment_time
            )
            return pair, self._progress(s, context) if with_progress else None

    def _progress(self, s: Session, context: vote_path.SessionContext) -> SessionProgress:
        standing = vote_path.standing(
            s,
            rater_id=context.rater_id,
            study_id=context.study_id,
            session_id=context.session_id,
            kinds=serving.ordinary(serving.rules_from(context.rules)),
        )
        return serving.progress_of(s, self._pools, context, standing)

    def record_events(self, session_id: uuid.UUID, assignment_id: uuid.UUID, events: Sequence[ListenEvent]) -> int:
        """How many events were new: one that was told before, by its ``seq``, is left alone.

        Raises VoteRejected when the assignment is not this session's or an event makes no sense."""
        answers.check_events(events)
        with self.database.session() as s:
            owner = vote_path.owner_of(s, assignment_id)
            if owner is None or owner[0] != session_id:
                raise VoteRejected(_NOT_SERVED)
            answers.check_active(owner[1])
            return vote_path.add_events(s, answers.event_rows(assignment_id, events, self._clock()))

    def record_vote(
        self, session_id: uuid.UUID, draft: VoteDraft, *, events: Sequence[ListenEvent] = ()
    ) -> VoteReceipt:
        """The receipt of a vote that is safely stored, given only after the commit, with the progress it made.

        The same idempotency key again gives the same receipt with ``repeated``. A new key for a battle that has a
        vote is a correction: a new revision, unless the study reveals the versions after a vote. ``events`` that come
        with the vote are stored in the same transaction, also when the vote was saved before. Seconds that cannot
        have been heard are not stored. Raises VoteRejected, AssignmentExpired or ListeningTooShort with a sentence for
        the rater; then nothing is stored."""
        answers.check_draft(draft)
        answers.check_events(events)
        with self.database.session() as s:
            now = self._clock()
            pair = vote_path.vote_context(s, draft.assignment_id)
            if pair is None or pair.session_id != session_id:
                if vote_path.session_context(s, session_id) is None:
                    raise NotFoundError(_UNKNOWN_SESSION)
                # One sentence for both: a guesser must not learn which assignments exist.
                raise VoteRejected(_NOT_SERVED)
            answers.check_active(pair.rater_status)
            rules = serving.rules_from(pair.rules)
            rows = answers.event_rows(draft.assignment_id, events, now)
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
                again = answers.repeated(saved, draft)
                return replace(again, progress=serving.progress_of(s, self._pools, pair.session, standing))
            if now >= pair.expires_at:
                raise AssignmentExpired("This pair was served too long ago; load the next one.")
            if before is not None and pair.reveal:
                raise VoteRejected("This pair has your vote and its versions were shown; it cannot change now.")
            if standing.elsewhere:
                raise VoteRejected("You have voted on this pair in another session; load the next one.")
            answers.check_answer(draft, pair)
            claims: Claims | None = None
            if pair.rater_kind is RaterKind.HUMAN and not math.isinf(self._slack):
                claims = self._credit.claims(s, pair, standing)
                told = list(events) if fresh == len(rows) and rows and rows[0]["seq"] == 0 else None
                draft = self._credit.credited(s, pair, draft, claims, told, rows, now)
            if pair.rater_kind is RaterKind.HUMAN:
                answers.check_listening(pair, draft)
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
            # A pool that is read only now holds this vote already.
            progress = serving.progress_of(s, self._pools, replace(pair.session, newest_vote=new.id), standing)
        self._pools.note(
            pair.study_id, pair.battle_id, new.id, outcome=Outcome(draft.outcome),
            before=None if before is None else before.outcome, left_is_clip_1=pair.left_is_clip_1,
        )  # fmt: skip
        if claims is not None:
            self._credit.note(pair, draft, claims, standing.votes + 1)
        return replace(answers.receipt_of(new, repeated=False), progress=progress)

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        """How far this session's rater is in its study."""
        with self.database.session(write=False) as s:
            context = vote_path.session_context(s, session_id)
            if context is None:
                raise NotFoundError(_UNKNOWN_SESSION)
            if context.study_mode != "rating":
                return self._progress(s, context)
        return self._ratings.progress(session_id)

    def _context(self, s: Session, session_id: uuid.UUID) -> vote_path.SessionContext:
        context = vote_path.session_context(s, session_id, lock=True)
        if context is None:
            raise NotFoundError(_UNKNOWN_SESSION)
        answers.check_active(context.rater_status)
        return context
