"""What the routes ask for: sessions, pairs, clip bytes, events and votes of one study."""

from __future__ import annotations

import math
import random
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock

from alignment.clips import ClipStore
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.db.listening import get_assignment
from alignment.db.studies import Study, get_study
from alignment.db.versions import list_versions
from alignment.domain import Assignment, RaterKind, Side, VoteDraft, VoteReceipt
from alignment.errors import DataError, NotFoundError
from alignment.votes import ListenEvent, SessionProgress, VoteService
from rating_app.flac import twins

CONSENT_VERSION = "1"
CREDIT_SLACK_SECONDS = 0.5
_REMEMBERED_PAIRS = 64


@dataclass(frozen=True)
class ServedPair:
    """An assignment with the bytes of both sides, equally long."""

    assignment: Assignment
    clips: dict[Side, bytes]


class RatingService:
    """The rating page's view of one human study. Safe to use from several threads."""

    def __init__(
        self,
        database: Database,
        store: ClipStore,
        *,
        secret: str,
        study_name: str,
        clock: Callable[[], datetime] = utcnow,
        rng: random.Random | None = None,
        app_commit: str | None = None,
    ) -> None:
        """Raises NotFoundError for an unknown study, DataError for one that belongs to simulated listeners."""
        self.database = database
        self.store = store
        # The page sends votes late when it has no connection, and then several at once: a pair stays open for a day,
        # and what can have been heard is bounded below by the time since it was served, not since the last vote.
        self.votes = VoteService(
            database, secret=secret, clock=clock, assignment_seconds=24 * 3600, listening_slack_seconds=math.inf
        )
        self.clock = clock
        self.app_commit = app_commit
        self._rng = rng or random.SystemRandom()
        self._audio: OrderedDict[uuid.UUID, dict[Side, bytes]] = OrderedDict()
        self._lock = Lock()
        with database.session(write=False) as s:
            self.study: Study = get_study(s, study_name)
            simulated = {version.name for version in list_versions(s) if version.simulated}
        if self.study.rater_kind is not RaterKind.HUMAN:
            raise DataError(
                f"Study {study_name} belongs to simulated listeners; people's votes need a study of their own. "
                "Name a human study, or none to have one made from the clips there are."
            )
        # Clips of a version that simulated votes trained are demonstration material, and the page says so.
        self.is_demo = bool(simulated & set(self.study.versions))

    def alive(self) -> None:
        """Raises DatabaseError when the database does not answer."""
        with self.database.session(write=False) as s:
            get_study(s, self.study.name)

    def open_session(self, browser_id: str, *, user_agent_family: str | None = None) -> uuid.UUID:
        """A new listening session of this browser's rater, who has consented."""
        rater_id = self.votes.enrol_rater(browser_id, kind=RaterKind.HUMAN, consent_version=CONSENT_VERSION)
        return self.votes.open_session(
            rater_id, self.study.name, user_agent_family=user_agent_family, app_commit=self.app_commit
        )

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        return self.votes.progress(session_id)

    def next_pair(self, session_id: uuid.UUID, *, in_hand: Collection[uuid.UUID] = ()) -> ServedPair | None:
        """The pair to rate next, other than those the browser holds already; None when the study has no more.

        Both clips are prepared here, so that fetching one never takes longer than fetching the other.
        """
        assignment = self.votes.next_assignment(session_id, rng=self._rng, in_hand=in_hand)
        return ServedPair(assignment, self._clips_of(assignment)) if assignment is not None else None

    def clip(self, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side) -> bytes:
        """The FLAC of one side. Raises NotFoundError when the assignment is not this session's."""
        return self._clips_of(self._assignment(session_id, assignment_id))[side]

    def record_events(self, session_id: uuid.UUID, assignment_id: uuid.UUID, events: Sequence[ListenEvent]) -> None:
        if events:
            self.votes.record_events(session_id, assignment_id, events)

    def record_vote(self, session_id: uuid.UUID, draft: VoteDraft) -> VoteReceipt:
        """Returned only after the commit. Raises VoteRejected with a sentence for the rater."""
        assignment = self._assignment(session_id, draft.assignment_id)
        # Nobody can have heard more than the time since the pair was served. It is a bound that no honest listener
        # meets, also after hours without a connection.
        elapsed = (self.clock() - assignment.served_at).total_seconds() + CREDIT_SLACK_SECONDS
        claimed = draft.heard_left_seconds + draft.heard_right_seconds
        if claimed > elapsed:
            share = max(0.0, elapsed) / claimed
            draft = replace(
                draft,
                heard_left_seconds=draft.heard_left_seconds * share,
                heard_right_seconds=draft.heard_right_seconds * share,
            )
        return self.votes.record_vote(session_id, draft)

    def _assignment(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> Assignment:
        with self.database.session(write=False) as s:
            assignment = get_assignment(s, assignment_id)
        if assignment is None or assignment.session_id != session_id:
            raise NotFoundError("This pair was not served to this session.")
        return assignment

    def _clips_of(self, assignment: Assignment) -> dict[Side, bytes]:
        with self._lock:
            if assignment.id in self._audio:
                self._audio.move_to_end(assignment.id)
                return self._audio[assignment.id]
        with self.database.session(write=False) as s:
            clips = get_clips(s, [assignment.left_clip_id, assignment.right_clip_id])
        left, right = twins(
            self.store.rendition(clips[assignment.left_clip_id].audio_sha256),
            self.store.rendition(clips[assignment.right_clip_id].audio_sha256),
        )
        made = {Side.LEFT: left, Side.RIGHT: right}
        with self._lock:
            self._audio[assignment.id] = made
            while len(self._audio) > _REMEMBERED_PAIRS:
                self._audio.popitem(last=False)
        return made
