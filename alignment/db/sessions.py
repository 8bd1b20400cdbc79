"""Queries about listening sessions: whose they are, and what came of them."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import ListeningSessionRow, RaterRow, VoteTable
from alignment.db.tables_listening import ClipRatingRow


@dataclass(frozen=True)
class SessionRecord:
    """A listening session. ``active``: its rater still takes part."""

    id: uuid.UUID
    study_id: uuid.UUID
    started_at: datetime
    finished_at: datetime | None
    active: bool


@dataclass(frozen=True)
class SessionSummary:
    """What a session came to. ``pseudonym`` is None once the rater has withdrawn."""

    answered: int
    started_at: datetime
    last_at: datetime
    pseudonym: str | None


def get_sessions(s: Session, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, SessionRecord]:
    """Those of the sessions that there are."""
    rows = s.execute(
        sa.select(ListeningSessionRow, RaterRow.status)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(ListeningSessionRow.id.in_(ids))
    )
    return {
        row.id: SessionRecord(row.id, row.study_id, row.started_at, row.finished_at, status == "active")
        for row, status in rows
    }


def summarise_session(s: Session, session_id: uuid.UUID) -> SessionSummary | None:
    """Pairs or clips answered in the session, and from when to when; None when it is unknown."""
    about = s.execute(
        sa.select(ListeningSessionRow.started_at, RaterRow.pseudonym)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(ListeningSessionRow.id == session_id)
    ).one_or_none()
    if about is None:
        return None
    voted = sa.select(sa.func.count(sa.distinct(VoteTable.assignment_id)), sa.func.max(VoteTable.created_at))
    rated = sa.select(sa.func.count(), sa.func.max(ClipRatingRow.created_at))
    answers = [
        s.execute(voted.where(VoteTable.session_id == session_id)).one(),
        s.execute(rated.where(ClipRatingRow.session_id == session_id)).one(),
    ]
    return SessionSummary(
        answered=sum(count for count, _ in answers),
        started_at=about.started_at,
        last_at=max([about.started_at, *(last for _, last in answers if last is not None)]),
        pseudonym=about.pseudonym,
    )
