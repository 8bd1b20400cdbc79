"""What the routes ask for: admission to studies, sessions, pairs, clip bytes, events and votes."""

from __future__ import annotations

import random
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from alignment.clips import ClipStore
from alignment.db.base import utcnow
from alignment.db.clips import get_clips
from alignment.db.engine import Database
from alignment.db.listening import get_assignment
from alignment.db.sessions import SessionSummary, summarise_session
from alignment.db.studies import Study, get_study
from alignment.db.versions import list_versions
from alignment.domain import Assignment, Consent, RaterKind, SessionProgress, Side, VoteDraft, VoteReceipt
from alignment.errors import DataError, NotFoundError, VoteRejected
from alignment.votes import ListenEvent, VoteService
from rating_app.admission import Admission, admit
from rating_app.flac import twins

# The page sends votes late when it has no connection: a pair stays open for a day.
ASSIGNMENT_SECONDS = 24 * 3600
REMEMBERED_BYTES = 256 * 2**20
REMEMBERED_PAIRS = 2_000  # of some hundred raters at a time; the database has the rest


@dataclass(frozen=True)
class ServedPair:
    """An assignment and where its rater then is."""

    assignment: Assignment | None
    progress: SessionProgress


@dataclass(frozen=True)
class _Heard:
    """What an assignment plays: the audio on each side, by content."""

    session_id: uuid.UUID
    audio: tuple[str, str]


class RatingService:
    """The rating page's view of all human studies. Safe to use from several threads.

    ``study_name`` is the study of an address that names none."""

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
        self.votes = VoteService(
            database, secret=secret, clock=clock, assignment_seconds=ASSIGNMENT_SECONDS, require_fetch=True
        )
        self.clock = clock
        self.app_commit = app_commit
        self.rng = rng or random.SystemRandom()
        self._lock = Lock()
        self._heard: OrderedDict[uuid.UUID, _Heard] = OrderedDict()
        self._twins: OrderedDict[tuple[str, str], dict[str, bytes]] = OrderedDict()
        self._twins_bytes = 0
        self._demo: dict[tuple[str, ...], bool] = {}
        with database.session(write=False) as s:
            self.study: Study = get_study(s, study_name)
        if self.study.rater_kind is not RaterKind.HUMAN:
            raise DataError(
                f"Study {study_name} belongs to simulated listeners; people's votes need a study of their own. "
                "Name a human study, or none to have one made from the clips there are."
            )

    def alive(self) -> None:
        """Raises DatabaseError when the database does not answer."""
        with self.database.session(write=False) as s:
            get_study(s, self.study.name)

    # ---- studies and sessions

    def admit(self, *, study_name: str | None, invite: str | None, sessions: Sequence[uuid.UUID]) -> Admission:
        """Where a browser with these sessions stands at an address."""
        return admit(self.database, study_name=study_name, invite=invite, sessions=sessions, default=self.study.name)

    def is_demo(self, study: Study) -> bool:
        """Whether simulated votes trained a version of the study: demonstration material, and the page says so."""
        if study.versions not in self._demo:
            with self.database.session(write=False) as s:
                simulated = {version.name for version in list_versions(s) if version.simulated}
            self._demo[study.versions] = bool(simulated & set(study.versions))
        return self._demo[study.versions]

    def open_session(
        self,
        admission: Admission,
        browser_id: str,
        consent: Consent,
        *,
        background: Mapping[str, str],
        headphone_check: bool | None = None,
        audio_route: str | None = None,
        user_agent_family: str | None = None,
    ) -> uuid.UUID:
        """The session to go on with, or a new one of this browser's rater, who has consented.

        Raises VoteRejected with the sentence for the rater when the study takes nobody in."""
        if admission.problem or admission.study is None:
            raise VoteRejected(admission.problem or "There is no study at this address.")
        if admission.session_id is not None:  # two tabs, or a second click: one session
            return admission.session_id
        rater_id = self.votes.enrol_rater(browser_id, kind=RaterKind.HUMAN, consent_version=consent.text_version)
        return self.votes.open_session(
            rater_id,
            admission.study.name,
            consent=consent,
            invite_id=admission.invite_id,
            background=background,
            headphone_check=headphone_check,
            audio_route=audio_route,
            user_agent_family=user_agent_family,
            app_commit=self.app_commit,
        )

    def progress(self, session_id: uuid.UUID) -> SessionProgress:
        return self.votes.progress(session_id)

    def finish(self, session_id: uuid.UUID) -> tuple[SessionSummary, SessionProgress]:
        """Ends the session. Raises NotFoundError when it is unknown."""
        self.votes.finish_session(session_id)
        with self.database.session(write=False) as s:
            summary = summarise_session(s, session_id)
        if summary is None:
            raise NotFoundError("This listening session is unknown.")
        return summary, self.progress(session_id)

    # ---- pairs and their clips

    def next_pair(self, session_id: uuid.UUID, *, in_hand: Collection[uuid.UUID] = ()) -> ServedPair:
        """The pair to rate next, other than those the browser holds already; none when the study has no more.

        Both clips are prepared here, so that fetching one never takes longer than fetching the other."""
        assignment = self.votes.next_assignment(session_id, rng=self.rng, in_hand=in_hand)
        if assignment is not None:
            self._clips(self._listen_to(assignment).audio)
        return ServedPair(assignment, self.progress(session_id))

    def clip(self, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side, *, sent: bool = True) -> bytes:
        """The FLAC of one side; with ``sent`` it is noted that the rater gets it.

        Raises NotFoundError when the assignment is not this session's."""
        with self._lock:
            heard = self._heard.get(assignment_id)
        if heard is None:
            with self.database.session(write=False) as s:
                assignment = get_assignment(s, assignment_id)
            if assignment is None:
                raise NotFoundError("This pair was not served to this session.")
            heard = self._listen_to(assignment)
        if heard.session_id != session_id:
            raise NotFoundError("This pair was not served to this session.")
        data = self._clips(heard.audio)[heard.audio[0 if side is Side.LEFT else 1]]
        if sent:
            self.votes.note_fetched(session_id, assignment_id, side)
        return data

    def _listen_to(self, assignment: Assignment) -> _Heard:
        with self._lock:
            known = self._heard.get(assignment.id)
        if known is not None:
            return known
        with self.database.session(write=False) as s:
            clips = get_clips(s, [assignment.left_clip_id, assignment.right_clip_id])
        heard = _Heard(
            assignment.session_id,
            (clips[assignment.left_clip_id].audio_sha256, clips[assignment.right_clip_id].audio_sha256),
        )
        with self._lock:
            self._heard[assignment.id] = heard
            while len(self._heard) > REMEMBERED_PAIRS:
                self._heard.popitem(last=False)
        return heard

    def _clips(self, audio: tuple[str, str]) -> dict[str, bytes]:
        """Both clips' bytes by content, equally long: the same whichever side each is on, for every rater."""
        key = (min(audio), max(audio))
        with self._lock:
            if key in self._twins:
                self._twins.move_to_end(key)
                return self._twins[key]
        made = dict(zip(key, twins(*(self.store.rendition(sha256) for sha256 in key)), strict=True))
        with self._lock:
            if key not in self._twins:
                self._twins[key] = made
                self._twins_bytes += sum(map(len, made.values()))
            while self._twins_bytes > REMEMBERED_BYTES and len(self._twins) > 1:
                _, gone = self._twins.popitem(last=False)
                self._twins_bytes -= sum(map(len, gone.values()))
        return made

    # ---- what raters do

    def record_events(self, session_id: uuid.UUID, assignment_id: uuid.UUID, events: Sequence[ListenEvent]) -> None:
        if events:
            self.votes.record_events(session_id, assignment_id, events)

    def record_vote(
        self, session_id: uuid.UUID, draft: VoteDraft, *, events: Sequence[ListenEvent] = ()
    ) -> VoteReceipt:
        """Returned only after the commit. Raises VoteRejected with a sentence for the rater."""
        return self.votes.record_vote(session_id, draft, events=events)

    def reveal(self, session_id: uuid.UUID, assignment_id: uuid.UUID) -> dict[str, str]:
        """Raises VoteRejected before the vote is stored, or when the study does not reveal."""
        return self.votes.reveal(session_id, assignment_id)
