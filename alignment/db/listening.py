"""Queries about raters, listening sessions, assignments and what players reported."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import uuid7
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    BattleTallyRow,
    ClipRow,
    ListenEventRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    StudyRow,
    VoteTable,
)
from alignment.domain import Assignment, RaterKind, Side


@dataclass(frozen=True)
class SessionContext:
    """A listening session with what its rater and study allow."""

    session_id: uuid.UUID
    rater_id: uuid.UUID
    rater_kind: RaterKind
    rater_status: str
    study_id: uuid.UUID
    minimum_listening_seconds: float
    reveal: bool
    study_state: str = "open"


def not_open(state: str) -> str:
    """What a rater is told of a study in a state other than open."""
    told = {"paused": "is paused at the moment; come back later", "closed": "has ended; thank you for your interest"}
    return f"This study {told.get(state, 'has not begun yet; come back later')}."


def add_rater(
    s: Session,
    *,
    pseudonym: str,
    kind: RaterKind,
    cohort: str | None,
    consent_version: str,
    now: datetime,
) -> uuid.UUID:
    """The id of the rater with this pseudonym, enrolled if new."""
    query = sa.select(RaterRow.id).where(RaterRow.pseudonym == pseudonym)
    known = s.scalar(query)
    if known is not None:
        return known
    values = {
        "id": uuid7(),
        "pseudonym": pseudonym,
        "kind": kind,
        "cohort": cohort,
        "consent_version": consent_version,
        "status": "active",
        "created_at": now,
    }
    if s.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        # Two requests may enrol the same person at once; the second waits and then reads the first's row.
        s.execute(insert(RaterRow).values(values).on_conflict_do_nothing(index_elements=["pseudonym"]))
    else:
        s.execute(sa.insert(RaterRow).values(values))
    return s.scalars(query).one()


def get_rater(s: Session, rater_id: uuid.UUID) -> tuple[RaterKind, str] | None:
    """The rater's kind and status; None when unknown."""
    row = s.execute(sa.select(RaterRow.kind, RaterRow.status).where(RaterRow.id == rater_id)).one_or_none()
    return None if row is None else (row.kind, row.status)


def add_session(s: Session, *, rater_id: uuid.UUID, study_id: uuid.UUID, now: datetime, **about: Any) -> uuid.UUID:
    """The id of a new listening session."""
    new = uuid7()
    s.execute(
        sa.insert(ListeningSessionRow).values(id=new, rater_id=rater_id, study_id=study_id, started_at=now, **about)
    )
    return new


def session_context(s: Session, session_id: uuid.UUID, *, lock: bool = False) -> SessionContext | None:
    """The session with its rater and study; None when unknown.

    ``lock`` holds the rater's row until the transaction ends, so that one rater's requests go one after the other
    on PostgreSQL. On SQLite the transaction has the whole file already."""
    query = (
        sa.select(
            ListeningSessionRow.id,
            RaterRow.id,
            RaterRow.kind,
            RaterRow.status,
            StudyRow.id,
            StudyRow.minimum_listening_seconds,
            StudyRow.reveal,
            StudyRow.state,
        )
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .join(StudyRow, ListeningSessionRow.study_id == StudyRow.id)
        .where(ListeningSessionRow.id == session_id)
    )
    if lock:
        query = query.with_for_update(of=RaterRow)
    row = s.execute(query).one_or_none()
    return None if row is None else SessionContext(*row)


def finish_session(s: Session, session_id: uuid.UUID, now: datetime) -> bool:
    """Whether there is such a session; its end is noted once."""
    known = s.execute(
        sa.select(ListeningSessionRow.finished_at).where(ListeningSessionRow.id == session_id)
    ).one_or_none()
    if known is not None and known.finished_at is None:
        s.execute(sa.update(ListeningSessionRow).where(ListeningSessionRow.id == session_id).values(finished_at=now))
    return known is not None


def note_fetched(s: Session, session_id: uuid.UUID, assignment_id: uuid.UUID, side: Side, now: datetime) -> bool:
    """Whether the session has this assignment; the first time that a side's bytes were sent is kept."""
    column = AssignmentRow.left_fetched_at if side is Side.LEFT else AssignmentRow.right_fetched_at
    done = s.execute(
        sa.update(AssignmentRow)
        .where(AssignmentRow.id == assignment_id, AssignmentRow.session_id == session_id)
        .values({column: sa.func.coalesce(column, now)})
        .execution_options(synchronize_session=False)
    )
    return done.rowcount > 0


def _voted_battles(rater_id: uuid.UUID) -> sa.Select[tuple[uuid.UUID]]:
    # Under its own name: beside an outer query on assignments it must not be taken for the same rows.
    mine = aliased(AssignmentRow)
    return (
        sa.select(mine.battle_id)
        .join(ListeningSessionRow, mine.session_id == ListeningSessionRow.id)
        .join(VoteTable, VoteTable.assignment_id == mine.id)
        .where(ListeningSessionRow.rater_id == rater_id)
    )


def _open(context: SessionContext, in_hand: Collection[uuid.UUID] = ()) -> sa.Select[tuple[uuid.UUID]]:
    query = sa.select(BattleTallyRow.battle_id).where(
        BattleTallyRow.study_id == context.study_id,
        BattleTallyRow.battle_id.not_in(_voted_battles(context.rater_id)),
    )
    if in_hand:
        held = sa.select(AssignmentRow.battle_id).where(
            AssignmentRow.id.in_(in_hand), AssignmentRow.session_id == context.session_id
        )
        query = query.where(BattleTallyRow.battle_id.not_in(held))
    return query


def count_battles(s: Session, context: SessionContext) -> tuple[int, int]:
    """(battles of the study the rater has voted on, battles still waiting for this rater)."""
    total = s.scalar(sa.select(sa.func.count()).where(BattleTallyRow.study_id == context.study_id)) or 0
    waiting = s.scalar(sa.select(sa.func.count()).select_from(_open(context).subquery())) or 0
    return total - waiting, waiting


def least_voted_battles(
    s: Session, context: SessionContext, in_hand: Collection[uuid.UUID] = ()
) -> tuple[int, int] | None:
    """(fewest votes, how many battles have that few) among those this rater has not voted on; None when none is.

    Battles of the session's assignments ``in_hand`` are left out."""
    waiting = _open(context, in_hand).subquery()
    row = s.execute(
        sa.select(BattleTallyRow.votes, sa.func.count())
        .join(waiting, waiting.c.battle_id == BattleTallyRow.battle_id)
        .group_by(BattleTallyRow.votes)
        .order_by(BattleTallyRow.votes)
        .limit(1)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def nth_open_battle(
    s: Session, context: SessionContext, *, votes: int, index: int, in_hand: Collection[uuid.UUID] = ()
) -> uuid.UUID:
    """The battle at ``index``, in order of id, among those with this many votes that wait for this rater."""
    query = _open(context, in_hand).where(BattleTallyRow.votes == votes).order_by(BattleTallyRow.battle_id)
    return s.scalars(query.offset(index).limit(1)).one()


_ASSIGNMENT = (
    sa.select(
        AssignmentRow.id,
        AssignmentRow.session_id,
        AssignmentRow.battle_id,
        PromptRow.text,
        BattleRow.clip_1_id,
        BattleRow.clip_2_id,
        AssignmentRow.left_is_clip_1,
        AssignmentRow.first_side,
        AssignmentRow.nonce,
        AssignmentRow.served_at,
        AssignmentRow.expires_at,
    )
    .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
    .join(PromptRow, BattleRow.prompt_id == PromptRow.id)
)


def _assignment(row: Any) -> Assignment:
    left, right = (row.clip_1_id, row.clip_2_id) if row.left_is_clip_1 else (row.clip_2_id, row.clip_1_id)
    return Assignment(
        id=row.id,
        session_id=row.session_id,
        battle_id=row.battle_id,
        prompt_text=row.text,
        left_clip_id=left,
        right_clip_id=right,
        first_side=row.first_side,
        nonce=row.nonce,
        served_at=row.served_at,
        expires_at=row.expires_at,
    )


def get_assignment(s: Session, assignment_id: uuid.UUID) -> Assignment | None:
    """The assignment; None when unknown."""
    row = s.execute(_ASSIGNMENT.where(AssignmentRow.id == assignment_id)).one_or_none()
    return None if row is None else _assignment(row)


def open_assignment(
    s: Session, context: SessionContext, now: datetime, in_hand: Collection[uuid.UUID] = ()
) -> Assignment | None:
    """The session's served and unexpired assignment, not ``in_hand``, of a battle its rater has not voted on; the
    earliest if several."""
    query = _ASSIGNMENT.where(
        AssignmentRow.session_id == context.session_id,
        AssignmentRow.expires_at > now,
        # Also not through another session: that vote would be refused, and the rater stuck on this battle.
        AssignmentRow.battle_id.not_in(_voted_battles(context.rater_id)),
    )
    if in_hand:
        query = query.where(AssignmentRow.id.not_in(in_hand))
    row = s.execute(query.order_by(AssignmentRow.served_at, AssignmentRow.id).limit(1)).one_or_none()
    return None if row is None else _assignment(row)


def serve(
    s: Session,
    *,
    session_id: uuid.UUID,
    battle_id: uuid.UUID,
    left_is_clip_1: bool,
    first_side: Side,
    nonce: str,
    now: datetime,
    expires_at: datetime,
) -> Assignment:
    """A new assignment; or, when this session had the battle before and let it expire, that one served anew with
    the sides it was first heard with."""
    known = s.scalar(
        sa.select(AssignmentRow.id).where(AssignmentRow.battle_id == battle_id, AssignmentRow.session_id == session_id)
    )
    times = {"served_at": now, "expires_at": expires_at, "nonce": nonce}
    if known is not None:
        s.execute(sa.update(AssignmentRow).where(AssignmentRow.id == known).values(times))
    else:
        known = uuid7()
        s.execute(
            sa.insert(AssignmentRow).values(
                id=known,
                battle_id=battle_id,
                session_id=session_id,
                left_is_clip_1=left_is_clip_1,
                first_side=first_side,
                **times,
            )
        )
    return _assignment(s.execute(_ASSIGNMENT.where(AssignmentRow.id == known)).one())


def clip_seconds(s: Session, assignment: Assignment) -> tuple[float, float]:
    """Length of the left and of the right clip in seconds."""
    sides = (assignment.left_clip_id, assignment.right_clip_id)
    seconds = {
        row.id: row.seconds for row in s.execute(sa.select(ClipRow.id, ClipRow.seconds).where(ClipRow.id.in_(sides)))
    }
    return seconds[sides[0]], seconds[sides[1]]


def add_events(s: Session, assignment_id: uuid.UUID, rows: Sequence[dict[str, Any]]) -> int:
    """How many of the events were new; one whose ``seq`` is known is left as it was first told."""
    known = set(s.scalars(sa.select(ListenEventRow.seq).where(ListenEventRow.assignment_id == assignment_id)))
    fresh = {row["seq"]: row for row in reversed(rows) if row["seq"] not in known}
    if fresh:
        s.execute(
            sa.insert(ListenEventRow),
            [{"assignment_id": assignment_id, **fresh[seq]} for seq in sorted(fresh)],
        )
    return len(fresh)
