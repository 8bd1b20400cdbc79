"""Queries about whose answers a snapshot holds, so that only those that may be published leave with it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.batches import batches
from alignment.db.tables import ClipRatingRow, ListeningSessionRow, RaterRow, VoteTable


@dataclass(frozen=True)
class Whose:
    """Who gave an answer, and in which study."""

    study_id: uuid.UUID
    rater_id: uuid.UUID
    withdrawn: bool


def whose(s: Session, answers: Iterable[uuid.UUID | str]) -> dict[uuid.UUID, Whose]:
    """Vote or rating id -> who gave it."""
    found = {}
    for part in batches(uuid.UUID(str(one)) for one in answers):
        for table in (VoteTable, ClipRatingRow):
            query = (
                sa.select(table.id, ListeningSessionRow.study_id, RaterRow.id, RaterRow.status)
                .join(ListeningSessionRow, table.session_id == ListeningSessionRow.id)
                .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
                .where(table.id.in_(part))
            )
            for answer, study, rater, status in s.execute(query):
                found[answer] = Whose(study, rater, status == "withdrawn")
    return found
