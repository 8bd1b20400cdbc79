"""Queries about invites."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import InviteRow, InviteUseRow, StudyRow


@dataclass(frozen=True)
class InviteState:
    """An invite as an organiser sees it; ``uses`` counts the sessions it opened."""

    id: uuid.UUID
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    most_uses: int | None
    revoked_at: datetime | None
    uses: int

    def standing(self, now: datetime) -> str:
        """One word: open, revoked, expired or used up."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "used up" if self.most_uses is not None and self.uses >= self.most_uses else "open"


_USES = sa.select(sa.func.count()).where(InviteUseRow.invite_id == InviteRow.id).scalar_subquery()


def _state(row: InviteRow, uses: int) -> InviteState:
    return InviteState(row.id, row.label, row.created_at, row.expires_at, row.most_uses, row.revoked_at, uses)


def invite_by_hash(s: Session, token_sha256: str) -> tuple[InviteState, uuid.UUID, str] | None:
    """(invite, study id, study name) of a token's hash; None when unknown."""
    row = s.execute(
        sa.select(InviteRow, _USES, StudyRow.name)
        .join(StudyRow, InviteRow.study_id == StudyRow.id)
        .where(InviteRow.token_sha256 == token_sha256)
    ).one_or_none()
    return None if row is None else (_state(row[0], row[1]), row[0].study_id, row[2])


def list_invites(s: Session, study_id: uuid.UUID) -> list[InviteState]:
    """The study's invites, newest first."""
    query = sa.select(InviteRow, _USES).where(InviteRow.study_id == study_id).order_by(InviteRow.id.desc())
    return [_state(row, uses) for row, uses in s.execute(query)]


def revoke(s: Session, study_id: uuid.UUID, invite_id: uuid.UUID, now: datetime) -> InviteState | None:
    """The invite, revoked now unless it was before; None when this study has no such invite."""
    row = s.scalar(sa.select(InviteRow).where(InviteRow.id == invite_id, InviteRow.study_id == study_id))
    if row is None:
        return None
    row.revoked_at = row.revoked_at or now
    s.flush()
    uses = s.scalar(sa.select(sa.func.count()).where(InviteUseRow.invite_id == invite_id)) or 0
    return _state(row, uses)
