"""Queries about votes that have come in since a snapshot was taken."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.studies import Study, list_studies
from alignment.db.tables import AssignmentRow, BattleRow, ListeningSessionRow, PromptRow, RaterRow, VoteTable
from alignment.db.votes import may_train
from alignment.domain import BattleKind, Outcome, RaterKind, Split


def studies_of(s: Session, kind: RaterKind) -> list[Study]:
    """The studies that this kind of listener votes in, in the order in which they were created."""
    return [study for study in list_studies(s) if study.rater_kind == kind]


def count_new_votes(s: Session, study_ids: Sequence[uuid.UUID], *, after: uuid.UUID | None = None) -> int:
    """Votes of these studies that may train, saved after the vote ``after``; a correction of a vote counts as new.

    What never trains does not count: votes on held-out prompts, skips, faults, checks of the rater, and votes of raters
    who withdrew or refused training."""
    later = aliased(VoteTable)
    query = (
        sa.select(sa.func.count())
        .select_from(VoteTable)
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .join(PromptRow, BattleRow.prompt_id == PromptRow.id)
        .join(ListeningSessionRow, AssignmentRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(
            BattleRow.study_id.in_(list(study_ids)),
            BattleRow.kind == BattleKind.NORMAL,
            PromptRow.split.in_([Split.TRAIN, Split.VALID]),
            RaterRow.status != "withdrawn",
            VoteTable.outcome.not_in([Outcome.SKIP, Outcome.FAULT]),
            sa.func.coalesce(may_train(RaterRow.id, BattleRow.study_id), sa.true()),
            ~sa.exists().where(later.assignment_id == VoteTable.assignment_id, later.revision > VoteTable.revision),
        )
    )
    if after is not None:
        query = query.where(VoteTable.id > after)  # ids are UUIDv7: in the order of saving
    return s.scalar(query) or 0
