"""Queries about people's part in studies: consent, invitations, background, and who did what."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import utcnow, uuid7
from alignment.db.runs import runs_taught_by
from alignment.db.tables import (
    AuditLogRow,
    ClipRatingRow,
    ConsentRow,
    InviteRow,
    InviteUseRow,
    ListeningSessionRow,
    RaterRow,
    SnapshotMemberRow,
    SnapshotRow,
    VersionRow,
    VoteCommentRow,
    VoteTable,
    WithdrawalRow,
)
from alignment.domain import Consent, canonical_sha256


def add_audit(
    s: Session, *, actor: str, action: str, subject: str | None = None, before: object = None, after: object = None,
    reason: str | None = None,
) -> None:  # fmt: skip
    """Records who did what, and why where a reason was asked for; ``before`` and ``after`` (JSON values) are kept as
    hashes only."""
    s.execute(
        sa.insert(AuditLogRow).values(
            id=uuid7(),
            actor=actor,
            action=action,
            subject=subject,
            before_sha256=None if before is None else canonical_sha256(before),
            after_sha256=None if after is None else canonical_sha256(after),
            reason=reason,
            created_at=utcnow(),
        )
    )


def add_consent(s: Session, *, rater_id: uuid.UUID, study_id: uuid.UUID, consent: Consent, now: datetime) -> None:
    """Records what the rater agreed to; the newest row of a rater and study counts."""
    s.execute(
        sa.insert(ConsentRow).values(
            id=uuid7(),
            rater_id=rater_id,
            study_id=study_id,
            text_version=consent.text_version,
            training=consent.training,
            publication=consent.publication,
            created_at=now,
        )
    )


def get_consent(s: Session, rater_id: uuid.UUID, study_id: uuid.UUID) -> Consent | None:
    """What the rater agreed to last in this study; None when nothing was recorded."""
    row = s.execute(
        sa.select(ConsentRow.text_version, ConsentRow.training, ConsentRow.publication)
        .where(ConsentRow.rater_id == rater_id, ConsentRow.study_id == study_id)
        .order_by(ConsentRow.created_at.desc(), ConsentRow.id.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Consent(*row)


def tell_background(s: Session, rater_id: uuid.UUID, background: Mapping[str, Any], cohort: str | None) -> None:
    """Adds what a rater told about themselves, and the cohort it makes."""
    known = s.scalar(sa.select(RaterRow.background).where(RaterRow.id == rater_id)) or {}
    values: dict[str, Any] = {"background": {**known, **background}}
    if cohort is not None:
        values["cohort"] = cohort
    s.execute(sa.update(RaterRow).where(RaterRow.id == rater_id).values(values))


def invite_fault(s: Session, invite_id: uuid.UUID, study_id: uuid.UUID, now: datetime) -> str | None:
    """Why the invitation opens no session of the study, in a sentence for the rater; None when it does.

    Its row stays locked until the transaction ends, so that its uses are counted right."""
    invite = s.execute(
        sa.select(InviteRow.study_id, InviteRow.expires_at, InviteRow.revoked_at, InviteRow.most_uses)
        .where(InviteRow.id == invite_id)
        .with_for_update()
    ).one_or_none()
    if invite is None or invite.study_id != study_id:
        return "This invitation is not for this study; open the link that you were sent."
    if invite.revoked_at is not None:
        return "This invitation was taken back; ask the organiser for a new one."
    if invite.expires_at is not None and now >= invite.expires_at:
        return "This invitation has expired; ask the organiser for a new one."
    if invite.most_uses is not None:
        used = s.scalar(sa.select(sa.func.count()).where(InviteUseRow.invite_id == invite_id)) or 0
        if used >= invite.most_uses:
            return "This invitation was used as often as it may be; ask the organiser for a new one."
    return None


def add_invite_use(s: Session, *, session_id: uuid.UUID, invite_id: uuid.UUID, now: datetime) -> None:
    """Records that the invitation opened the session."""
    s.execute(sa.insert(InviteUseRow).values(session_id=session_id, invite_id=invite_id, created_at=now))


def was_invited(s: Session, rater_id: uuid.UUID, study_id: uuid.UUID) -> bool:
    """Whether an invitation let the rater into the study before and was not taken back since."""
    query = (
        sa.select(InviteRow.id)
        .join(InviteUseRow, InviteUseRow.invite_id == InviteRow.id)
        .join(ListeningSessionRow, InviteUseRow.session_id == ListeningSessionRow.id)
        .where(
            ListeningSessionRow.rater_id == rater_id,
            ListeningSessionRow.study_id == study_id,
            InviteRow.revoked_at.is_(None),
        )
        .limit(1)
    )
    return s.scalar(query) is not None


def rater_by_pseudonym(s: Session, pseudonym: str) -> uuid.UUID | None:
    """The rater with this pseudonym, if any."""
    return s.scalar(sa.select(RaterRow.id).where(RaterRow.pseudonym == pseudonym))


def lock_rater(s: Session, rater_id: uuid.UUID) -> str | None:
    """The rater's status, their row held until the transaction ends; None when unknown."""
    return s.scalar(sa.select(RaterRow.status).where(RaterRow.id == rater_id).with_for_update())


def _votes_of(rater_id: uuid.UUID) -> sa.Select[tuple[uuid.UUID]]:
    return (
        sa.select(VoteTable.id)
        .join(ListeningSessionRow, VoteTable.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.rater_id == rater_id)
    )


def count_answers(s: Session, rater_id: uuid.UUID) -> tuple[int, int]:
    """(rows of votes, ratings of clips) that the rater gave."""
    ratings = (
        sa.select(sa.func.count(ClipRatingRow.id))
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.rater_id == rater_id)
    )
    votes = s.scalar(sa.select(sa.func.count()).select_from(_votes_of(rater_id).subquery()))
    return votes or 0, s.scalar(ratings) or 0


def _snapshots_of(rater_id: uuid.UUID) -> sa.Select[tuple[uuid.UUID]]:
    return sa.select(SnapshotMemberRow.snapshot_id).where(SnapshotMemberRow.vote_id.in_(_votes_of(rater_id))).distinct()


def snapshots_with(s: Session, rater_id: uuid.UUID) -> tuple[str, ...]:
    """Names of the snapshots that hold a vote of the rater, in the order in which they were frozen."""
    query = sa.select(SnapshotRow.name).where(SnapshotRow.id.in_(_snapshots_of(rater_id))).order_by(SnapshotRow.id)
    return tuple(s.scalars(query))


def versions_reached(s: Session, rater_id: uuid.UUID) -> tuple[str, ...]:
    """Names of the versions that the rater's votes had a part in: trained on a snapshot that holds one, or with a
    reward model that was, or descended from such a version; in the order in which they were registered."""
    trained = runs_taught_by(_snapshots_of(rater_id))
    reached = set(s.scalars(sa.select(VersionRow.id).where(VersionRow.train_run_id.in_(trained))))
    named = []
    for row in s.execute(sa.select(VersionRow.id, VersionRow.parent_id, VersionRow.name).order_by(VersionRow.id)):
        if row.id in reached or row.parent_id in reached:  # a parent is registered before its children
            reached.add(row.id)
            named.append(row.name)
    return tuple(named)


def delete_comments(s: Session, rater_id: uuid.UUID) -> int:
    """How many comments of the rater were deleted."""
    done = s.execute(
        sa.delete(VoteCommentRow)
        .where(VoteCommentRow.vote_id.in_(_votes_of(rater_id)))
        .execution_options(synchronize_session=False)
    )
    return done.rowcount


def cut_link(s: Session, rater_id: uuid.UUID) -> None:
    """Forgets who the rater is outside and what they told about themselves; their status is withdrawn."""
    s.execute(
        sa.update(RaterRow)
        .where(RaterRow.id == rater_id)
        .values(pseudonym=None, cohort=None, background={}, status="withdrawn")
        .execution_options(synchronize_session=False)
    )


def get_withdrawal(s: Session, rater_id: uuid.UUID) -> tuple[datetime, tuple[str, ...]] | None:
    """(when the rater withdrew, the versions that their votes had reached); None when they did not."""
    row = s.execute(
        sa.select(WithdrawalRow.created_at, WithdrawalRow.versions_reached).where(WithdrawalRow.rater_id == rater_id)
    ).one_or_none()
    return None if row is None else (row.created_at, tuple(row.versions_reached))


def add_withdrawal(s: Session, rater_id: uuid.UUID, *, versions_reached: tuple[str, ...], now: datetime) -> None:
    """Records a withdrawal; the schema takes one a rater."""
    s.execute(
        sa.insert(WithdrawalRow).values(
            id=uuid7(), rater_id=rater_id, versions_reached=list(versions_reached), created_at=now
        )
    )
