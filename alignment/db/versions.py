"""Queries about versions."""

from __future__ import annotations

import uuid
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.generations import add_generation_config, generation_of
from alignment.db.runs import trained_on_simulated_votes
from alignment.db.tables import GenerationConfigRow, TrainRunRow, VersionRow
from alignment.domain import ANCHOR_BASE, GenerationConfig, Version, VersionStatus
from alignment.errors import DataError, NotFoundError

_Parent = aliased(VersionRow)
_QUERY = (
    sa.select(VersionRow, _Parent.name, GenerationConfigRow)
    .outerjoin(_Parent, VersionRow.parent_id == _Parent.id)
    .outerjoin(GenerationConfigRow, VersionRow.listening_config_id == GenerationConfigRow.id)
)


def _version(row: VersionRow, parent: str | None, listening: GenerationConfigRow | None) -> Version:
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
        listening=generation_of(listening) if listening else None,
        licence=row.licence,
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
    listening: GenerationConfig | None = None,
    licence: str | None = None,
) -> Version:
    """The version of this name, registered if it is new.

    The same name with the same base, adapter, parent and ``simulated`` is the same version; a listening config and a
    licence that it did not have yet are filled in. Raises DataError when the name stands for other content, or when a
    version made from a simulated one, or trained on simulated votes, claims not to be simulated."""
    one_at_a_time(s, "version", name)
    old = find_version(s, name)
    if old is not None:
        fields = {
            "base": (old.base_sha256, base_sha256),
            "adapter": (old.adapter_sha256, adapter_sha256),
            "parent": (old.parent, parent),
            "simulated": (old.simulated, simulated),
        }
        other = [f"{field} {was} instead of {now}" for field, (was, now) in fields.items() if was != now]
        if other:
            raise DataError(f"Version {name} exists with other content ({', '.join(other)}); choose another name.")
        return _fill_in(s, old, listening, licence)
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
        listening=listening,
        licence=licence,
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
            listening_config_id=add_generation_config(s, listening) if listening else None,
            licence=licence,
            status=version.status,
            created_at=version.created_at,
        )
    )
    return version


def get_version(s: Session, name: str) -> Version:
    """The version of this name. Raises NotFoundError that lists the known ones."""
    found = find_version(s, name)
    if found is None:
        names = list(s.scalars(sa.select(VersionRow.name).order_by(VersionRow.id)))
        raise NotFoundError(f"No version is called {name}; known: {', '.join(names) or 'none yet'}.")
    return found


def find_version(s: Session, name: str) -> Version | None:
    """The version of this name, if there is one."""
    return _one(s, VersionRow.name == name)


def version_of_job(s: Session, job_id: str) -> Version | None:
    """The version that this job registered, if it has."""
    run = sa.select(TrainRunRow.id).where(TrainRunRow.job_id == job_id).scalar_subquery()
    return _one(s, VersionRow.train_run_id == run)


def get_champion(s: Session, *, lock: bool = False) -> Version | None:
    """The version that was promoted last and not rolled back. ``lock``: nobody else changes a status until the
    transaction ends."""
    if lock and s.get_bind().dialect.name == "postgresql":
        # A row lock would not stop a first champion; on SQLite a writer is alone anyway.
        s.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('attune.champion'))"))
    return _one(s, VersionRow.status == VersionStatus.CHAMPION)


def set_status(s: Session, version: Version, status: VersionStatus) -> Version:
    """The version with its new status."""
    s.execute(sa.update(VersionRow).where(VersionRow.id == version.id).values(status=status))
    return replace(version, status=status)


def _one(s: Session, condition: sa.ColumnElement[bool]) -> Version | None:
    found = s.execute(_QUERY.where(condition)).one_or_none()
    return None if found is None else _version(*found)


def _fill_in(s: Session, old: Version, listening: GenerationConfig | None, licence: str | None) -> Version:
    new = replace(old, listening=old.listening or listening, licence=old.licence or licence)
    if new != old:
        config = add_generation_config(s, new.listening) if new.listening else None
        s.execute(
            sa.update(VersionRow).where(VersionRow.id == old.id).values(listening_config_id=config, licence=new.licence)
        )
    return new


def list_versions(s: Session) -> list[Version]:
    """All versions, in the order in which they were registered. Anchors are processed audio and not among them."""
    query = _QUERY.where(VersionRow.base != ANCHOR_BASE).order_by(VersionRow.id)
    return [_version(*row) for row in s.execute(query)]
