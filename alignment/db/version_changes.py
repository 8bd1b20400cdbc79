"""Queries about what became of versions: promotions, rollbacks and retirements."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import utcnow, uuid7
from alignment.db.tables import StudyRow, VersionChangeRow, VersionRow
from alignment.domain import RaterKind, Version


@dataclass(frozen=True)
class VersionChange:
    """``version`` became champion (``action`` promote or rollback) after ``replaced``, or was retired."""

    version: str
    action: str
    replaced: str | None
    decision_id: uuid.UUID | None
    forced: bool
    actor: str
    reason: str | None
    created_at: datetime


def add_change(
    s: Session, *, version: Version, action: str, actor: str, replaced: Version | None = None,
    decision_id: uuid.UUID | None = None, forced: bool = False, reason: str | None = None,
) -> None:  # fmt: skip
    """Records one change; the table only grows."""
    s.execute(
        sa.insert(VersionChangeRow).values(
            id=uuid7(),
            version_id=version.id,
            action=action,
            replaced_id=replaced.id if replaced else None,
            decision_id=decision_id,
            forced=forced,
            actor=actor,
            reason=reason,
            created_at=utcnow(),
        )
    )


def list_changes(s: Session, *, version: str | None = None) -> list[VersionChange]:
    """All changes, or those of one version, oldest first."""
    one, two = aliased(VersionRow), aliased(VersionRow)
    query = (
        sa.select(VersionChangeRow, one.name, two.name)
        .join(one, VersionChangeRow.version_id == one.id)
        .outerjoin(two, VersionChangeRow.replaced_id == two.id)
        .order_by(VersionChangeRow.id)
    )
    if version is not None:
        query = query.where(one.name == version)
    return [
        VersionChange(name, row.action, replaced, row.decision_id, row.forced, row.actor, row.reason, row.created_at)
        for row, name, replaced in s.execute(query)
    ]


def studies_heard_by_people(s: Session) -> list[str]:
    """The studies of human raters that are, or were, open: in such a database people hear what is promoted."""
    query = sa.select(StudyRow.name).where(StudyRow.rater_kind == RaterKind.HUMAN, StudyRow.state != "draft")
    return list(s.scalars(query.order_by(StudyRow.id)))
