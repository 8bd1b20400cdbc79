"""Queries about raters, listening sessions, assignments and what players reported."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import uuid7
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    VoteTable,
)
from alignment.db.vote_path import SessionContext, as_assignment, session_context
from alignment.domain import Assignment, RaterKind, Side

__all__ = [
    "SessionContext", "add_rater", "add_session", "finish_session", "get_assignment", "get_rater", "not_open", "serve",
    "session_context", "sessions_of",
]  # fmt: skip


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


def sessions_of(s: Session, study_id: uuid.UUID) -> dict[uuid.UUID, tuple[uuid.UUID, list[uuid.UUID]]]:
    """By rater: the newest session in the study, and the battles that were voted on in it, in no order."""
    found: dict[uuid.UUID, tuple[uuid.UUID, list[uuid.UUID]]] = {}
    sessions = sa.select(ListeningSessionRow.rater_id, ListeningSessionRow.id).where(
        ListeningSessionRow.study_id == study_id
    )
    for rater, session in s.execute(sessions.order_by(ListeningSessionRow.id)):
        found[rater] = (session, [])
    voted = {session: battles for session, battles in found.values()}
    query = (
        sa.select(AssignmentRow.session_id, AssignmentRow.battle_id)
        .join(ListeningSessionRow, AssignmentRow.session_id == ListeningSessionRow.id)
        .where(
            ListeningSessionRow.study_id == study_id,
            sa.exists().where(VoteTable.assignment_id == AssignmentRow.id),
        )
    )
    for session, battle in s.execute(query):
        if session in voted:
            voted[session].append(battle)
    return found


def finish_session(s: Session, session_id: uuid.UUID, now: datetime) -> bool:
    """Whether there is such a session; its end is noted once."""
    known = s.execute(
        sa.select(ListeningSessionRow.finished_at).where(ListeningSessionRow.id == session_id)
    ).one_or_none()
    if known is not None and known.finished_at is None:
        s.execute(sa.update(ListeningSessionRow).where(ListeningSessionRow.id == session_id).values(finished_at=now))
    return known is not None


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


def get_assignment(s: Session, assignment_id: uuid.UUID) -> Assignment | None:
    """The assignment; None when unknown."""
    row = s.execute(_ASSIGNMENT.where(AssignmentRow.id == assignment_id)).one_or_none()
    return None if row is None else as_assignment(row)


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
    policy: str = "balanced-1",
    propensity: float = 1.0,
) -> Assignment:
    """A new assignment; or, when this session had the battle before and let it expire, that one served anew with
    the sides it was first heard with."""
    known = s.scalar(
        sa.select(AssignmentRow.id).where(AssignmentRow.battle_id == battle_id, AssignmentRow.session_id == session_id)
    )
    times = {
        "served_at": now, "expires_at": expires_at, "nonce": nonce, "policy": policy, "propensity": propensity,
    }  # fmt: skip
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
    return as_assignment(s.execute(_ASSIGNMENT.where(AssignmentRow.id == known)).one())
