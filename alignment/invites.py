"""Invitations to a study: a token shown once, of which only the hash is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from alignment.db import invites as queries
from alignment.db.base import utcnow, uuid7
from alignment.db.engine import Database
from alignment.db.invites import InviteState
from alignment.db.people import add_audit
from alignment.db.studies import get_study
from alignment.db.tables import InviteRow
from alignment.errors import DataError, NotFoundError


@dataclass(frozen=True)
class Invite:
    """An invitation that is still open."""

    id: uuid.UUID
    study_name: str
    study_id: uuid.UUID
    label: str | None


def create_invite(
    database: Database,
    study_name: str,
    *,
    label: str | None = None,
    most_uses: int | None = None,
    expires_at: datetime | None = None,
    actor: str,
) -> str:
    """The new invite's token (22 characters, 128 random bits), which nobody can read again.

    ``most_uses`` bounds the sessions it opens; None is any number. Raises NotFoundError for an unknown study and
    DataError for a bound below 1, an end in the past or a label above 200 characters."""
    label = (label or "").strip() or None
    if most_uses is not None and most_uses < 1:
        raise DataError(f"The invite's most uses are {most_uses}; give 1 or more, or none for any number.")
    if expires_at is not None and expires_at <= utcnow():
        raise DataError(f"The invite would have ended on {expires_at:%Y-%m-%d %H:%M}; give a time to come.")
    if label is not None and len(label) > 200:
        raise DataError(f"The invite's label has {len(label)} characters; at most 200 fit.")
    token = secrets.token_urlsafe(16)
    with database.session() as s:
        study = get_study(s, study_name)
        new = uuid7()
        s.execute(
            sa.insert(InviteRow).values(
                id=new, study_id=study.id, token_sha256=_digest(token), label=label, most_uses=most_uses,
                expires_at=expires_at, created_at=utcnow(),
            )
        )  # fmt: skip
        add_audit(s, actor=actor, action="invite.create", subject=f"{study_name}: {label or new}")
    return token


def find_invite(database: Database, token: str) -> Invite | None:
    """The open invite of this token; None when it is unknown, expired, revoked or used up."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{22}", token):
        return None
    with database.session(write=False) as s:
        found = queries.invite_by_hash(s, _digest(token))
    if found is None or found[0].standing(utcnow()) != "open":
        return None
    state, study_id, study_name = found
    return Invite(state.id, study_name, study_id, state.label)


def list_invites(database: Database, study_name: str) -> list[InviteState]:
    """The study's invites, newest first. Raises NotFoundError."""
    with database.session(write=False) as s:
        return queries.list_invites(s, get_study(s, study_name).id)


def revoke_invite(database: Database, study_name: str, invite_id: uuid.UUID, *, actor: str) -> InviteState:
    """The invite, closed for new sessions; those it opened go on. Raises NotFoundError."""
    with database.session() as s:
        state = queries.revoke(s, get_study(s, study_name).id, invite_id, utcnow())
        if state is None:
            raise NotFoundError(f"Study {study_name} has no invite {invite_id}; see attune study show {study_name}.")
        add_audit(s, actor=actor, action="invite.revoke", subject=f"{study_name}: {state.label or invite_id}")
    return state


def _digest(token: str) -> str:
    # 128 random bits need no slow hash: nobody can try them all.
    return hashlib.sha256(token.encode()).hexdigest()
