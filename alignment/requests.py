"""Typed prompts on their way to a blind pair: what raters may ask for, and the queue that workers sing from."""

from __future__ import annotations

import hashlib
import random
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from alignment.config import parse_recipe
from alignment.db import listening, requests
from alignment.db.base import utcnow
from alignment.db.clips import NewClip, add_clips
from alignment.db.engine import Database
from alignment.db.requests import SingingRequest
from alignment.db.studies import NewBattle, add_battles
from alignment.db.typed_prompts import TYPED
from alignment.domain import Assignment, Side, Split
from alignment.errors import DataError, NotFoundError, PromptRefused
from alignment.moderation import check_prompt, words
from alignment.studies import StudyRecipe

PROMPT_SOURCE = TYPED
SAMPLER_VERSION = "arena-1"
MOST_ATTEMPTS = 3
PAIR_SECONDS = 24 * 3600.0  # how long the finished pair may be voted on
# Percent of typed prompts by split; leaderboard takes the rest.
SPLITS = ((Split.TRAIN, 70), (Split.VALID, 10), (Split.TEST, 10))
NOT_SUNG = "This prompt could not be sung. Please try it again, or try other words."


@dataclass(frozen=True)
class ArenaTicket:
    """Where a typed prompt stands, for the rater who typed it. It names no version.

    ``state`` is waiting, running, done or failed; ``queue_position`` is 1 for the next in turn, 0 when not waiting;
    ``assignment`` is there once it is done; ``error`` is a sentence for the rater when it failed."""

    id: uuid.UUID
    state: str
    progress: float
    queue_position: int
    assignment: Assignment | None = None
    error: str | None = None


def split_of(text: str) -> Split:
    """The split of a typed prompt, by a hash of its words: prompts that differ in case or commas share theirs."""
    place = int(hashlib.sha256(("arena split 1:" + " ".join(words(text))).encode()).hexdigest()[:8], 16) % 100
    for split, percent in SPLITS:
        if place < percent:
            return split
        place -= percent
    return Split.LEADERBOARD


class ArenaService:
    """What the page asks for raters who type prompts. It sings nothing and loads no model."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = utcnow) -> None:
        self.database = database
        self._clock = clock

    def ask(self, session_id: uuid.UUID, text: str, *, rng: random.Random) -> ArenaTicket:
        """The ticket of a prompt that now waits for a worker. Asked again while it waits, it is the same ticket.

        Raises NotFoundError for an unknown session, PromptRefused with a sentence for the rater when the study takes
        no prompts, moderation or the hourly limit says no, or another prompt of this session still waits."""
        with self.database.session() as s:
            now = self._clock()
            context = listening.session_context(s, session_id, lock=True)
            asking = requests.arena_session(s, session_id)
            if context is None or asking is None:
                raise NotFoundError("This listening session is unknown; start a new one.")
            if context.rater_status != "active":
                raise PromptRefused(f"This rater is {context.rater_status}; nothing more is recorded.")
            if asking.study_mode != "arena":
                raise PromptRefused("This study has its own prompts; none can be typed here.")
            if asking.study_state != "open" or asking.is_finished:
                raise PromptRefused("This study takes no prompts at the moment.")
            recipe = parse_recipe(dict(asking.rules), StudyRecipe, origin="the study's rules")
            clean = check_prompt(text, recipe.arena)
            unfinished = requests.unfinished_of_session(s, session_id)
            if unfinished is not None:
                ticket = self._ticket(s, unfinished)
                if requests.request_state(s, unfinished).text == clean:  # the same button pressed twice
                    return ticket
                raise PromptRefused("Your last prompt is still being sung; please listen to that one first.")
            asked = requests.asked_since(
                s, rater_id=asking.rater_id, study_id=asking.study_id, since=now - timedelta(hours=1)
            )
            most = recipe.arena.requests_per_hour
            if asked >= most:
                raise PromptRefused(
                    f"You have typed {asked} prompts within the hour and {most} is the limit; please come back later."
                )
            new = requests.add_request(
                s,
                prompt_id=requests.typed_prompt(s, clean, split=split_of(clean), source=PROMPT_SOURCE),
                versions=recipe.versions,
                generation=recipe.arena.generation.to_domain(),
                seed=rng.getrandbits(47),
                now=now,
            )
            requests.link_to_session(s, new, study_id=asking.study_id, session_id=session_id)
            return self._ticket(s, new)

    def status(self, session_id: uuid.UUID, request_id: uuid.UUID) -> ArenaTicket:
        """The ticket as it stands. Raises NotFoundError for a request that is not this session's."""
        with self.database.session(write=False) as s:
            found = requests.request_state(s, request_id)
            if found is None or found.session_id != session_id:
                raise NotFoundError("This prompt was not typed in this session.")
            return self._ticket(s, request_id)

    def _ticket(self, s: Session, request_id: uuid.UUID) -> ArenaTicket:
        found = requests.request_state(s, request_id)
        assert found is not None
        assignment = None
        if found.battle_id is not None:
            served = requests.assignment_of(s, battle_id=found.battle_id, session_id=found.session_id)
            assignment = listening.get_assignment(s, served) if served is not None else None
        return ArenaTicket(
            id=found.id,
            state=found.state,
            progress=1.0 if found.state == "done" else min(max(found.progress, 0.0), 1.0),
            queue_position=found.ahead + 1 if found.state == "waiting" else 0,
            assignment=assignment,
            error=NOT_SUNG if found.state == "failed" else None,
        )


class RequestQueue:
    """The queue as one worker sees it. Every step is one transaction and says whether the request is still held:
    a worker that was silent too long may find that another one took over, and then its work counts for nothing."""

    def __init__(
        self,
        database: Database,
        *,
        worker: str,
        takeover_seconds: float = 30.0,
        clock: Callable[[], datetime] = utcnow,
        rng: random.Random | None = None,
    ) -> None:
        """``worker`` must differ from every other worker's name, dead ones included."""
        self.database, self.worker = database, worker
        self.takeover = timedelta(seconds=takeover_seconds)
        self._clock = clock
        self._rng = rng or random.SystemRandom()

    def claim(self) -> SingingRequest | None:
        """The request whose turn it is, now this worker's; None when nothing waits.

        A request that was tried MOST_ATTEMPTS times already, each time by a worker that fell silent, fails here."""
        while True:
            with self.database.session() as s:
                now = self._clock()
                found = requests.next_request(s, silent_since=now - self.takeover)
                if found is None:
                    return None
                request, before = found
                if request.attempts >= MOST_ATTEMPTS:
                    reason = f"{request.attempts} workers began it and fell silent, the last was {before}"
                    requests.set_request(s, request.id, state="failed", finished_at=now, error=reason)
                    continue
                held = replace(request, attempts=request.attempts + 1)
                requests.set_request(
                    s, request.id, state="running", worker=self.worker, attempts=held.attempts, started_at=now,
                    heartbeat_at=now, progress=0.0,
                )  # fmt: skip
                return held

    def beat(self, request: SingingRequest, progress: float) -> bool:
        """Says that this worker lives and how far it is (0 to 1). False: another one has the request now."""
        with self.database.session() as s:
            if not self._holds(s, request):
                return False
            requests.set_request(s, request.id, heartbeat_at=self._clock(), progress=min(max(progress, 0.0), 1.0))
            return True

    def finish(self, request: SingingRequest, clips: Sequence[NewClip]) -> bool:
        """Records the clips, in order of the versions, with the battle and assignment they become, all or nothing.

        False: another worker has the request now, and nothing is recorded."""
        with self.database.session() as s:
            if not self._holds(s, request):
                return False
            sung = add_clips(s, clips)
            now = self._clock()
            asking = requests.session_asking(s, request.id)
            if asking is not None:
                study_id, session_id, battle_id = asking
                context = listening.session_context(s, session_id)
                if context is None or context.rater_status != "active":
                    requests.set_request(
                        s, request.id, state="failed", finished_at=now, error="the rater has left the study"
                    )
                    return True
                if battle_id is None:
                    battle_id = self._new_battle(s, study_id, request, [clip.id for clip in sung])
                    self._assign(s, battle_id, session_id, now)
            requests.set_request(s, request.id, state="done", finished_at=now, progress=1.0, error=None)
            return True

    def hand_back(self, request: SingingRequest) -> bool:
        """Lets the request wait again as if this attempt had never been, for a worker that is told to stop."""
        with self.database.session() as s:
            if not self._holds(s, request):
                return False
            requests.set_request(
                s, request.id, state="waiting", worker=None, attempts=request.attempts - 1, progress=0.0,
                started_at=None, heartbeat_at=None,
            )  # fmt: skip
            return True

    def give_up(self, request: SingingRequest, reason: str, *, for_good: bool = False) -> str | None:
        """Ends this attempt: the request waits for the next one, or fails if it was the last or ``for_good``.

        The state it has now; None when another worker has it."""
        with self.database.session() as s:
            if not self._holds(s, request):
                return None
            if for_good or request.attempts >= MOST_ATTEMPTS:
                requests.set_request(
                    s, request.id, state="failed", finished_at=self._clock(), error=reason[:2000], progress=0.0
                )
                return "failed"
            requests.set_request(s, request.id, state="waiting", worker=None, error=reason[:2000], progress=0.0)
            return "waiting"

    def _holds(self, s: Session, request: SingingRequest) -> bool:
        return requests.held_request(s, request.id, worker=self.worker, attempts=request.attempts)

    def _new_battle(
        self, s: Session, study_id: uuid.UUID, request: SingingRequest, clips: Sequence[uuid.UUID]
    ) -> uuid.UUID:
        if len(clips) != 2:
            raise DataError(f"A typed prompt needs two clips to compare; {len(clips)} were sung.")
        # The prompt was the rater's own: no other pair could have come of it, so its propensity is 1.
        new = NewBattle(request.prompt_id, *clips, propensity=1.0, sampler_version=SAMPLER_VERSION)
        battle = add_battles(s, study_id, [new])[0]
        requests.set_battle(s, request.id, battle.id)
        return battle.id

    def _assign(self, s: Session, battle_id: uuid.UUID, session_id: uuid.UUID, now: datetime) -> None:
        requests.assign(
            s,
            battle_id=battle_id,
            session_id=session_id,
            left_is_clip_1=self._rng.random() < 0.5,
            first_side=Side.LEFT if self._rng.random() < 0.5 else Side.RIGHT,
            nonce=secrets.token_urlsafe(24),
            policy=SAMPLER_VERSION,
            now=now,
            expires_at=now + timedelta(seconds=PAIR_SECONDS),
        )
