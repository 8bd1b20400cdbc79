"""Queries about versions."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import utcnow, uuid7
from alignment.db.runs import trained_on_simulated_votes
from alignment.db.tables import VersionRow
from alignment.domain import ANCHOR_BASE, Version, VersionStatus
from alignment.errors import DataError, NotFoundError

_Parent = aliased(VersionRow)
_QUERY = sa.select(VersionRow, _Parent.name).outerjoin(_Parent, VersionRow.parent_id == _Parent.id)


def _version(row: VersionRow, parent: str | None) -> Version:
    return Version(
        id=row.id,
        name=row.name,
        base=row.base,
        base_sha256=row.base_sha256,
        status=row.status,
        adapter_sha256=row.adapter_sha256,
        adapter_uri=row.adapter_uri,
        parent=parent,
        train_run_id=row.train_run_id,
        commit=row.commit,
        simulated=row.simulated,
        created_at=row.created_at,
    )


def add_version(
    s: Session,
    *,
    name: str,
    base: str,
    base_sha256: str,
    parent: str | None = None,
    adapter_sha256: str | None = None,
    adapter_uri: str | None = None,
    train_run_id: uuid.UUID | None = None,
    commit: str | None = None,
    simulated: bool = False,
    status: VersionStatus = VersionStatus.CANDIDATE,
) -> Version:
    """The version of this name, registered if it is new.

    The same name with the same base, adapter, parent and ``simulated`` is the same version. Raises DataError when
    the name stands for other content, or when a version made from a simulated one, or trained on simulated votes,
    claims not to be simulated."""
    known = s.execute(_QUERY.where(VersionRow.name == name)).one_or_none()
    if known is not None:
        old = _version(*known)
        fields = {
            "base": (old.base_sha256, base_sha256),
            "adapter": (old.adapter_sha256, adapter_sha256),
            "parent": (old.parent, parent),
            "simulated": (old.simulated, simulated),
        }
        other = [f"{field} {was} instead of {now}" for field, (was, now) in fields.items() if was != now]
        if other:
            raise DataError(f"Version {name} exists with other content ({', '.join(other)}); choose another name.")
        return old
    before = get_version(s, parent) if parent is not None else None
    if before is not None and before.simulated and not simulated:
        raise DataError(f"Version {name} comes from {parent}, which simulated votes trained; mark it simulated.")
    if train_run_id is not None and not simulated and trained_on_simulated_votes(s, train_run_id):
        raise DataError(f"Version {name} comes from a training on simulated votes; mark it simulated.")
    version = Version(
        id=uuid7(),
        name=name,
        base=base,
        base_sha256=base_sha256,
        status=VersionStatus(status),
        adapter_sha256=adapter_sha256,
        adapter_uri=adapter_uri,
        parent=parent,
        train_run_id=train_run_id,
        commit=commit,
        simulated=simulated,
        created_at=utcnow(),
    )
    s.execute(
        sa.insert(VersionRow).values(
            id=version.id,
            name=name,
            base=base,
            base_sha256=base_sha256,
            parent_id=before.id if before else None,
            adapter_sha256=adapter_sha256,
            adapter_uri=adapter_uri,
            train_run_id=train_run_id,
            commit=commit,
            simulated=simulated,
            status=version.status,
            created_at=version.created_at,
        )
    )
    return version


def get_version(s: Session, name: str) -> Version:
    """The version of this name. Raises NotFoundError that lists the known ones."""
    found = s.execute(_QUERY.where(VersionRow.name == name)).one_or_none()
    if found is None:
        names = list(s.scalars(sa.select(VersionRow.name).order_by(VersionRow.id)))
        raise NotFoundError(f"No version is called {name}; known: {', '.join(names) or 'none yet'}.")
    return _version(*found)


def list_versions(s: Session) -> list[Version]:
    """All versions, in the order in which they were registered. Anchors are processed audio and not among them."""
    query = _QUERY.where(VersionRow.base != ANCHOR_BASE).order_by(VersionRow.id)
    return [_version(*row) for row in s.execute(query)]
