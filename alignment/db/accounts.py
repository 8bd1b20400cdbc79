"""Queries about accounts and the audit log."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import uuid7
from alignment.db.tables import AccountRow, AuditLogRow
from alignment.errors import NotFoundError

ROLES = ("organiser", "admin")


@dataclass(frozen=True)
class Account:
    """Someone who may run studies (organiser) or also manage accounts (admin). The password's hash stays inside."""

    id: uuid.UUID
    name: str
    role: str
    created_at: datetime
    password_changed_at: datetime | None
    disabled_at: datetime | None
    has_password: bool

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"


@dataclass(frozen=True)
class AuditEntry:
    """One line of the audit log."""

    created_at: datetime
    actor: str
    action: str
    subject: str | None
    reason: str | None = None


def _account(row: AccountRow) -> Account:
    return Account(
        id=row.id, name=row.name, role=row.role, created_at=row.created_at,
        password_changed_at=row.password_changed_at, disabled_at=row.disabled_at,
        has_password=row.password_hash is not None,
    )  # fmt: skip


def add_account(s: Session, *, name: str, role: str, password_hash: str | None, now: datetime) -> Account:
    """The new account. The caller has checked that the name is free."""
    row = AccountRow(
        id=uuid7(), name=name, role=role, password_hash=password_hash, created_at=now,
        password_changed_at=now if password_hash else None,
    )  # fmt: skip
    s.add(row)
    s.flush()
    return _account(row)


def find_account(s: Session, name: str) -> tuple[Account, str | None] | None:
    """(account, password hash), or None when nobody has this name."""
    row = s.scalar(sa.select(AccountRow).where(AccountRow.name == name))
    return None if row is None else (_account(row), row.password_hash)


def get_account(s: Session, account_id: uuid.UUID) -> Account | None:
    """The account of this id; None when unknown."""
    row = s.get(AccountRow, account_id)
    return None if row is None else _account(row)


def list_accounts(s: Session) -> list[Account]:
    """All accounts by name."""
    return [_account(row) for row in s.scalars(sa.select(AccountRow).order_by(AccountRow.name))]


def update_account(s: Session, name: str, **changes: object) -> Account:
    """The account with these columns changed. Raises NotFoundError."""
    row = s.scalar(sa.select(AccountRow).where(AccountRow.name == name))
    if row is None:
        known = list(s.scalars(sa.select(AccountRow.name).order_by(AccountRow.name)))
        raise NotFoundError(f"No account is called {name}; known: {', '.join(known) or 'none yet'}.")
    for column, value in changes.items():
        setattr(row, column, value)
    s.flush()
    return _account(row)


def count_active_admins(s: Session, *, lock: bool = False) -> int:
    """How many admins can still log in; ``lock`` keeps them as they are until the transaction ends."""
    query = sa.select(AccountRow.id).where(AccountRow.role == "admin", AccountRow.disabled_at.is_(None))
    return len(list(s.scalars(query.with_for_update() if lock else query)))


def list_audit(s: Session, *, limit: int = 200) -> list[AuditEntry]:
    """The newest entries first."""
    query = sa.select(AuditLogRow).order_by(AuditLogRow.id.desc()).limit(limit)
    return [AuditEntry(row.created_at, row.actor, row.action, row.subject, row.reason) for row in s.scalars(query)]
