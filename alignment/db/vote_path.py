"""The statements that every pair and every vote needs, each built once and as few as possible.

They run on the connection of the session that is given, past the ORM: under load its share of the time would be larger
than the database's own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from alignment.db.base import uuid7
from alignment.db.tables import (
    AssignmentRow,
    BattleRepeatRow,
    BattleRow,
    BattleTallyRow,
    ClipRow,
    ListenEventRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    StudyRow,
    VersionRow,
    VoteTable,
)
from alignment.domain import Assignment, BattleKind, Outcome, RaterKind, Side

_A, _B, _L = AssignmentRow.__table__.c, BattleRow.__table__.c, ListeningSessionRow.__table__.c
_R, _S, _V = RaterRow.__table__.c, StudyRow.__table__.c, VoteTable.__table__.c
_P, _T, _X = PromptRow.__table__.c, BattleTallyRow.__table__.c, BattleRepeatRow.__table__.c
_CLIP_1, _CLIP_2 = ClipRow.__table__.alias("clip_1"), ClipRow.__table__.alias("clip_2")


@dataclass(frozen=True)
class SessionContext:
    """A listening session with what its rater and study allow. ``rules`` is the study's recipe as JSON text."""

    session_id: uuid.UUID
    rater_id: uuid.UUID
    rater_kind: RaterKind
    rater_status: str
    study_id: uuid.UUID
    minimum_listening_seconds: float
    reveal: bool
    study_state: str
    study_mode: str
    rules: str
    newest_vote: uuid.UUID | None  # of the whole database
    newest_unvoted: uuid.UUID | None  # the newest battle of the study without a vote


@dataclass(frozen=True)
class VoteContext:
    """A served pair with its session, rater and study: all that decides whether a vote on it is taken."""

    assignment_id: uuid.UUID
    session_id: uuid.UUID
    battle_id: uuid.UUID
    battle_kind: BattleKind
    left_is_clip_1: bool
    served_at: datetime
    expires_at: datetime
    left_fetched_at: datetime | None
    right_fetched_at: datetime | None
    clip_1_seconds: float
    clip_2_seconds: float
    rater_id: uuid.UUID
    rater_kind: RaterKind
    rater_status: str
    study_id: uuid.UUID
    study_mode: str
    study_state: str
    minimum_listening_seconds: float
    reveal: bool
    rules: str

    @property
    def session(self) -> SessionContext:
        """The session around the pair, as far as a vote needs it."""
        return SessionContext(
            self.session_id, self.rater_id, self.rater_kind, self.rater_status, self.study_id,
            self.minimum_listening_seconds, self.reveal, self.study_state, self.study_mode, self.rules, None, None,
        )  # fmt: skip

    @property
    def seconds(self) -> tuple[float, float]:
        """Length of the left and of the right clip."""
        both = (self.clip_1_seconds, self.clip_2_seconds)
        return both if self.left_is_clip_1 else both[::-1]

    @property
    def fetched_at(self) -> datetime | None:
        """When both clips' bytes had been sent; None before."""
        if self.left_fetched_at is None or self.right_fetched_at is None:
            return None
        return max(self.left_fetched_at, self.right_fetched_at)


@dataclass(frozen=True)
class Standing:
    """What a rater has answered: in all studies (every revision), in this one, in this session of it, ordinary pairs
    of it, and whether this battle was among them through another assignment."""

    votes: int
    pairs: int
    pairs_here: int
    normal: int
    elsewhere: bool


@dataclass(frozen=True)
class Answered:
    """A pair that a rater voted on: what asking it again needs to know."""

    assignment_id: uuid.UUID
    battle_id: uuid.UUID
    left_is_clip_1: bool
    kind: BattleKind
    outcome: Outcome
    repeated: bool


_CONTEXT = (
    sa.select(
        _L.id, _R.id, _R.kind, _R.status, _S.id, _S.minimum_listening_seconds, _S.reveal, _S.state, _S.mode,
        sa.cast(_S.rules, sa.Text),
        sa.select(_V.id).order_by(_V.id.desc()).limit(1).scalar_subquery(),
        sa.select(_T.battle_id)
        .where(_T.study_id == _S.id, _T.votes == 0)
        .order_by(_T.battle_id.desc())
        .limit(1)
        .correlate(StudyRow.__table__)
        .scalar_subquery(),
    )
    .join_from(ListeningSessionRow.__table__, RaterRow.__table__, _L.rater_id == _R.id)
    .join(StudyRow.__table__, _L.study_id == _S.id)
    .where(_L.id == sa.bindparam("session"))
)  # fmt: skip
_CONTEXT_LOCKED = _CONTEXT.with_for_update(of=RaterRow.__table__)


def session_context(s: Session, session_id: uuid.UUID, *, lock: bool = False) -> SessionContext | None:
    """The session with its rater and study; None when unknown.

    ``lock`` holds the rater's row until the transaction ends, so that one rater's requests go one after the other
    on PostgreSQL. On SQLite the transaction has the whole file already."""
    statement = _CONTEXT_LOCKED if lock else _CONTEXT
    row = s.connection().execute(statement, {"session": session_id}).one_or_none()
    return None if row is None else SessionContext(*row)


_VOTE_CONTEXT = (
    sa.select(
        _A.id, _A.session_id, _A.battle_id, _B.kind, _A.left_is_clip_1, _A.served_at, _A.expires_at, _A.left_fetched_at,
        _A.right_fetched_at, _CLIP_1.c.seconds, _CLIP_2.c.seconds, _R.id, _R.kind, _R.status, _S.id, _S.mode, _S.state,
        _S.minimum_listening_seconds, _S.reveal, sa.cast(_S.rules, sa.Text),
    )
    .join_from(AssignmentRow.__table__, BattleRow.__table__, _A.battle_id == _B.id)
    .join(_CLIP_1, _B.clip_1_id == _CLIP_1.c.id)
    .join(_CLIP_2, _B.clip_2_id == _CLIP_2.c.id)
    .join(ListeningSessionRow.__table__, _A.session_id == _L.id)
    .join(RaterRow.__table__, _L.rater_id == _R.id)
    .join(StudyRow.__table__, _L.study_id == _S.id)
    .where(_A.id == sa.bindparam("assignment"))
    .with_for_update(of=RaterRow.__table__)
)  # fmt: skip


def vote_context(s: Session, assignment_id: uuid.UUID) -> VoteContext | None:
    """The served pair with all around it; None when unknown. Holds the rater's row, as ``session_context`` can."""
    row = s.connection().execute(_VOTE_CONTEXT, {"assignment": assignment_id}).one_or_none()
    return None if row is None else VoteContext(*row)


_OWNER = (
    sa.select(_A.session_id, _R.status)
    .join_from(AssignmentRow.__table__, ListeningSessionRow.__table__, _A.session_id == _L.id)
    .join(RaterRow.__table__, _L.rater_id == _R.id)
    .where(_A.id == sa.bindparam("assignment"))
)


def owner_of(s: Session, assignment_id: uuid.UUID) -> tuple[uuid.UUID, str] | None:
    """(the session that the pair was served to, its rater's status); None when unknown."""
    row = s.connection().execute(_OWNER, {"assignment": assignment_id}).one_or_none()
    return None if row is None else (row[0], row[1])


def _count_of(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((sa.and_(*conditions), 1), else_=0)), 0)


def _id(name: str) -> sa.BindParameter[uuid.UUID]:
    return sa.bindparam(name, type_=sa.Uuid())


_HERE = (_V.revision == 1, _L.study_id == _id("study"))
_STANDING = (
    sa.select(
        sa.func.count(),
        _count_of(*_HERE),
        _count_of(*_HERE, _V.session_id == _id("session")),
        _count_of(*_HERE, _B.kind.in_(sa.bindparam("kinds", expanding=True))),
        _count_of(_A.battle_id == _id("battle"), _A.id != _id("assignment")),
    )
    .join_from(ListeningSessionRow.__table__, VoteTable.__table__, _V.session_id == _L.id)
    .join(AssignmentRow.__table__, _V.assignment_id == _A.id)
    .join(BattleRow.__table__, _A.battle_id == _B.id)
    .where(_L.rater_id == sa.bindparam("rater"))
)
ORDINARY = (BattleKind.NORMAL,)
EVERY_KIND = (BattleKind.NORMAL, BattleKind.GOLD, BattleKind.ANCHOR)


def standing(
    s: Session,
    *,
    rater_id: uuid.UUID,
    study_id: uuid.UUID,
    session_id: uuid.UUID,
    kinds: Sequence[BattleKind] = ORDINARY,
    battle_id: uuid.UUID | None = None,
    assignment_id: uuid.UUID | None = None,
) -> Standing:
    """What the rater has answered so far; ``kinds`` are those that count as ordinary pairs."""
    row = (
        s.connection()
        .execute(
            _STANDING,
            {
                "rater": rater_id,
                "study": study_id,
                "session": session_id,
                "kinds": list(kinds),
                "battle": battle_id or uuid.UUID(int=0),
                "assignment": assignment_id or uuid.UUID(int=0),
            },
        )
        .one()
    )
    return Standing(row[0], row[1], row[2], row[3], bool(row[4]))


_CLAIMS = (
    sa.select(
        _V.assignment_id, _V.heard_left_seconds, _V.heard_right_seconds, _A.left_fetched_at, _A.right_fetched_at,
        _A.served_at,
    )
    .join_from(ListeningSessionRow.__table__, VoteTable.__table__, _V.session_id == _L.id)
    .join(AssignmentRow.__table__, _V.assignment_id == _A.id)
    .where(_L.rater_id == sa.bindparam("rater"))
    .order_by(_V.id)
)  # fmt: skip


def claims(s: Session, rater_id: uuid.UUID) -> list[tuple[uuid.UUID, float, datetime]]:
    """(pair, seconds heard of both clips, since when they could be heard) of every vote of the rater, oldest first."""
    found = []
    for pair, left, right, left_at, right_at, served_at in s.connection().execute(_CLAIMS, {"rater": rater_id}):
        since = served_at if left_at is None or right_at is None else max(left_at, right_at)
        found.append((pair, left + right, since))
    return found


_VOTED = (
    sa.select(_A.battle_id, _V.session_id == sa.bindparam("session", type_=sa.Uuid()))
    .join_from(ListeningSessionRow.__table__, VoteTable.__table__, _V.session_id == _L.id)
    .join(AssignmentRow.__table__, _V.assignment_id == _A.id)
    .where(_L.rater_id == sa.bindparam("rater"), _L.study_id == sa.bindparam("study"), _V.revision == 1)
)


def voted_battles(s: Session, context: SessionContext) -> tuple[set[uuid.UUID], int]:
    """(the study's battles that the rater voted on, in how many of them through this session)."""
    values = {"rater": context.rater_id, "study": context.study_id, "session": context.session_id}
    rows = s.connection().execute(_VOTED, values).all()
    return {battle for battle, _ in rows}, sum(bool(here) for _, here in rows)


_ANSWERED = (
    sa.select(
        _A.id, _A.battle_id, _A.left_is_clip_1, _B.kind, _V.outcome,
        sa.exists().where(_X.assignment_id == _A.id).correlate(AssignmentRow.__table__),
    )
    .join_from(ListeningSessionRow.__table__, VoteTable.__table__, _V.session_id == _L.id)
    .join(AssignmentRow.__table__, _V.assignment_id == _A.id)
    .join(BattleRow.__table__, _A.battle_id == _B.id)
    .where(_L.rater_id == sa.bindparam("rater"), _L.study_id == sa.bindparam("study"), _V.revision == 1)
    .order_by(_V.id)
)  # fmt: skip


def answered(s: Session, context: SessionContext) -> list[Answered]:
    """The study's pairs that the rater voted on, in the order of the votes."""
    values = {"rater": context.rater_id, "study": context.study_id}
    return [Answered(*row[:5], bool(row[5])) for row in s.connection().execute(_ANSWERED, values)]


_WAITING = (
    sa.select(
        _A.id, _A.session_id, _A.battle_id, _P.text, _B.clip_1_id, _B.clip_2_id, _A.left_is_clip_1, _A.first_side,
        _A.nonce, _A.served_at, _A.expires_at,
    )
    .join_from(AssignmentRow.__table__, BattleRow.__table__, _A.battle_id == _B.id)
    .join(PromptRow.__table__, _B.prompt_id == _P.id)
    .where(
        _A.session_id == sa.bindparam("session"),
        ~sa.exists().where(_V.assignment_id == _A.id).correlate(AssignmentRow.__table__),
    )
    .order_by(_A.served_at, _A.id)
)  # fmt: skip


def as_assignment(row: Any) -> Assignment:
    left, right = (row.clip_1_id, row.clip_2_id) if row.left_is_clip_1 else (row.clip_2_id, row.clip_1_id)
    return Assignment(
        row.id, row.session_id, row.battle_id, row.text, left, right, row.first_side, row.nonce, row.served_at,
        row.expires_at,
    )  # fmt: skip


def waiting_assignments(s: Session, session_id: uuid.UUID) -> list[Assignment]:
    """The session's pairs without a vote, expired ones included, in the order in which they were served."""
    return [as_assignment(row) for row in s.connection().execute(_WAITING, {"session": session_id})]


_BATTLE = (
    sa.select(_B.clip_1_id, _B.clip_2_id, _B.prompt_id, _P.text)
    .join_from(BattleRow.__table__, PromptRow.__table__, _B.prompt_id == _P.id)
    .where(_B.id == sa.bindparam("battle"))
)
_INSERT_ASSIGNMENT = sa.insert(AssignmentRow.__table__)
_SERVE_AGAIN = (
    sa.update(AssignmentRow.__table__)
    .where(_A.id == sa.bindparam("known"))
    .values({name: sa.bindparam(name) for name in ("served_at", "expires_at", "nonce", "policy", "propensity")})
)


def serve_battle(
    s: Session,
    *,
    session_id: uuid.UUID,
    battle_id: uuid.UUID,
    left_is_clip_1: bool,
    first_side: Side,
    nonce: str,
    now: datetime,
    expires_at: datetime,
    policy: str,
    propensity: float,
) -> Assignment:
    """A new assignment of the battle, which this session never had."""
    clip_1, clip_2, _, text = s.connection().execute(_BATTLE, {"battle": battle_id}).one()
    new = uuid7()
    s.connection().execute(
        _INSERT_ASSIGNMENT,
        {
            "id": new,
            "battle_id": battle_id,
            "session_id": session_id,
            "left_is_clip_1": left_is_clip_1,
            "first_side": first_side,
            "nonce": nonce,
            "served_at": now,
            "expires_at": expires_at,
            "policy": policy,
            "propensity": propensity,
        },
    )
    left, right = (clip_1, clip_2) if left_is_clip_1 else (clip_2, clip_1)
    return Assignment(new, session_id, battle_id, text, left, right, first_side, nonce, now, expires_at)


def serve_again(
    s: Session,
    assignment_id: uuid.UUID,
    *,
    nonce: str,
    now: datetime,
    expires_at: datetime,
    policy: str,
    propensity: float,
) -> None:
    """The expired assignment is open anew, with the sides it was first heard with."""
    values = {"served_at": now, "expires_at": expires_at, "nonce": nonce, "policy": policy, "propensity": propensity}
    s.connection().execute(_SERVE_AGAIN, {"known": assignment_id, **values})


def add_repeat(s: Session, *, of: Answered, propensity: float, sampler_version: str, now: datetime) -> uuid.UUID:
    """The id of a new battle of kind repeat: the two clips of a pair that was voted on, to be asked once more.

    It has no tally: nobody else is asked it."""
    old = s.connection().execute(sa.select(BattleRow.__table__).where(_B.id == of.battle_id)).one()
    new = uuid7()
    s.connection().execute(
        sa.insert(BattleRow.__table__),
        {
            "id": new,
            "study_id": old.study_id,
            "prompt_id": old.prompt_id,
            "clip_1_id": old.clip_1_id,
            "clip_2_id": old.clip_2_id,
            "kind": BattleKind.REPEAT,
            "expected_winner": None,
            "sampler_version": sampler_version,
            "propensity": propensity,
            "created_at": now,
        },
    )
    s.connection().execute(sa.insert(BattleRepeatRow.__table__), {"battle_id": new, "assignment_id": of.assignment_id})
    return new


_EVENTS = ListenEventRow.__table__
_ADD_EVENTS = {
    "sqlite": sqlite.insert(_EVENTS).on_conflict_do_nothing(index_elements=["assignment_id", "seq"]),
    "postgresql": postgresql.insert(_EVENTS).on_conflict_do_nothing(index_elements=["assignment_id", "seq"]),
}
_READ_EVENTS = (
    sa.select(_EVENTS.c.seq, _EVENTS.c.type, _EVENTS.c.side, _EVENTS.c.media_seconds, _EVENTS.c.client_ms)
    .where(_EVENTS.c.assignment_id == sa.bindparam("assignment"))
    .order_by(_EVENTS.c.seq)
)


def add_events(s: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """How many of the events were new; one whose (assignment, seq) is known is left as it was first told."""
    if not rows:
        return 0
    connection = s.connection()
    return max(0, connection.execute(_ADD_EVENTS[connection.dialect.name], rows).rowcount)


def read_events(s: Session, assignment_id: uuid.UUID) -> list[tuple[int, str, Side | None, float | None, int | None]]:
    """(seq, type, side, media seconds, client milliseconds) of a pair's events, by seq."""
    return [tuple(row) for row in s.connection().execute(_READ_EVENTS, {"assignment": assignment_id})]


_NOTE_FETCHED = {
    side: sa.update(AssignmentRow.__table__)
    .where(_A.id == sa.bindparam("assignment"), _A.session_id == sa.bindparam("session"))
    .values({column: sa.func.coalesce(_A[column], sa.bindparam("now", type_=_A[column].type))})
    for side, column in ((Side.LEFT, "left_fetched_at"), (Side.RIGHT, "right_fetched_at"))
}


def note_fetched(s: Session, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side, now: datetime) -> bool:
    """Whether the session has this assignment; the first time that a side's bytes were sent is kept."""
    values = {"assignment": assignment_id, "session": session_id, "now": now}
    return s.connection().execute(_NOTE_FETCHED[side], values).rowcount > 0


_VERSION_1, _VERSION_2 = VersionRow.__table__.alias("version_1"), VersionRow.__table__.alias("version_2")
_POOL = (
    sa.select(_T.battle_id, _B.kind, _T.votes)
    .join_from(BattleTallyRow.__table__, BattleRow.__table__, _T.battle_id == _B.id)
    .where(_T.study_id == sa.bindparam("study"), _T.battle_id > sa.bindparam("after"), _B.kind != BattleKind.REPEAT)
    .order_by(_T.battle_id)
)
_POOL_VERSIONS = (
    _POOL.add_columns(_VERSION_1.c.name, _VERSION_2.c.name)
    .join(_CLIP_1, _B.clip_1_id == _CLIP_1.c.id)
    .join(_CLIP_2, _B.clip_2_id == _CLIP_2.c.id)
    .join(_VERSION_1, _CLIP_1.c.version_id == _VERSION_1.c.id)
    .join(_VERSION_2, _CLIP_2.c.version_id == _VERSION_2.c.id)
)


def pool_battles(s: Session, study_id: uuid.UUID, *, after: uuid.UUID | None, versions: bool) -> list[Any]:
    """(battle, kind, votes, and with ``versions`` the names of both clips' versions) of the study's battles, by id."""
    values = {"study": study_id, "after": after or uuid.UUID(int=0)}
    return list(s.connection().execute(_POOL_VERSIONS if versions else _POOL, values))


_ANSWERS = (
    sa.select(_A.battle_id, _V.outcome, _A.left_is_clip_1)
    .join_from(BattleRow.__table__, AssignmentRow.__table__, _A.battle_id == _B.id)
    .join(VoteTable.__table__, _V.assignment_id == _A.id)
    .where(_B.study_id == sa.bindparam("study"), _V.revision == 1)
)


def answers(s: Session, study_id: uuid.UUID) -> list[Any]:
    """(battle, outcome, whether clip 1 was left) of every first vote of the study."""
    return list(s.connection().execute(_ANSWERS, {"study": study_id}))
