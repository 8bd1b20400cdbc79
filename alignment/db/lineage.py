"""Queries that lead from a snapshot to the votes in it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    ListeningSessionRow,
    RaterRow,
    SnapshotMemberRow,
    SnapshotRow,
    StudyRow,
    VoteTable,
)
from alignment.domain import RaterKind, Split


@dataclass(frozen=True)
class VotesOfStudy:
    """What a snapshot holds of one study. ``withdrawn`` counts votes of raters who have withdrawn since."""

    study: str
    kind: RaterKind
    votes: int
    raters: int
    prompts: int
    withdrawn: int
    first_at: datetime
    last_at: datetime


def snapshot_name(s: Session, snapshot_id: uuid.UUID) -> str:
    """The name of the snapshot with this id."""
    return s.scalars(sa.select(SnapshotRow.name).where(SnapshotRow.id == snapshot_id)).one()


def votes_by_study(s: Session, snapshot_id: uuid.UUID) -> list[VotesOfStudy]:
    """The snapshot's votes by study and kind of rater, in the order in which the studies were made."""
    gone = sa.case((RaterRow.status == "withdrawn", 1), else_=0)
    query = (
        sa.select(
            StudyRow.name,
            RaterRow.kind,
            sa.func.count(),
            sa.func.count(sa.distinct(RaterRow.id)),
            sa.func.count(sa.distinct(BattleRow.prompt_id)),
            sa.func.sum(gone),
            sa.func.min(VoteTable.created_at),
            sa.func.max(VoteTable.created_at),
        )
        .select_from(SnapshotMemberRow)
        .join(VoteTable, SnapshotMemberRow.vote_id == VoteTable.id)
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .join(StudyRow, BattleRow.study_id == StudyRow.id)
        .join(ListeningSessionRow, VoteTable.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(SnapshotMemberRow.snapshot_id == snapshot_id)
        .group_by(StudyRow.id, StudyRow.name, RaterRow.kind)
        .order_by(StudyRow.id)
    )
    return [VotesOfStudy(*row) for row in s.execute(query)]


def votes_by_split(s: Session, snapshot_id: uuid.UUID) -> dict[str, int]:
    """How many of the snapshot's votes each split has."""
    query = (
        sa.select(SnapshotMemberRow.split, sa.func.count())
        .where(SnapshotMemberRow.snapshot_id == snapshot_id)
        .group_by(SnapshotMemberRow.split)
    )
    counts = {Split(split): count for split, count in s.execute(query)}
    return {split.value: counts[split] for split in Split if split in counts}
