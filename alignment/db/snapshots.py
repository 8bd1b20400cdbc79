"""Queries about snapshots: which votes a training saw."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.batches import batches
from alignment.db.external import licences_of_votes
from alignment.db.tables import (
    AssignmentRow,
    ListeningSessionRow,
    RaterRow,
    SnapshotMemberRow,
    SnapshotRow,
    VoteTable,
)
from alignment.domain import RaterKind, Split
from alignment.errors import DataError, NotFoundError
from alignment.licences import allows_commercial_use, listed


@dataclass(frozen=True)
class Snapshot:
    """An immutable set of votes. ``high_water_mark`` is the last vote that was considered."""

    id: uuid.UUID
    name: str
    policy: Mapping[str, Any]
    high_water_mark: str | None
    content_sha256: str
    uri: str
    licence: str | None
    simulated: bool
    members: int
    created_at: datetime


def add_snapshot(
    s: Session,
    *,
    name: str,
    policy: Mapping[str, Any],
    high_water_mark: object,
    content_sha256: str,
    uri: str,
    simulated: bool,
    members: Sequence[tuple[uuid.UUID | str, Split]],
    licence: str | None = None,
) -> uuid.UUID:
    """The id of the snapshot of this name, recorded if it is new. Votes may be given as UUID or text.

    Raises DataError when the name stands for other content, or when a member's rater is human and ``simulated`` is
    True or the other way round (they never share a snapshot), or when a member's rater has withdrawn, or when the
    policy says ``commercial`` and a member came under a licence that does not allow it."""
    one_at_a_time(s, "snapshot", name)
    known = s.scalar(sa.select(SnapshotRow).where(SnapshotRow.name == name))
    if known is not None:
        if known.content_sha256 != content_sha256:
            raise DataError(f"Snapshot {name} exists with other content; choose another name.")
        return known.id
    rows = [{"vote_id": uuid.UUID(str(vote)), "split": Split(split)} for vote, split in members]
    allowed = RaterKind.SIMULATED if simulated else RaterKind.HUMAN
    for part in batches(rows):
        mixed = s.scalar(
            sa.select(sa.func.count())
            .select_from(VoteTable)
            .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
            .join(ListeningSessionRow, AssignmentRow.session_id == ListeningSessionRow.id)
            .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
            .where(VoteTable.id.in_([row["vote_id"] for row in part]), RaterRow.kind != allowed)
        )
        if mixed:
            raise DataError(
                f"Snapshot {name} is for {allowed.value} votes and {mixed} are not; "
                "simulated and human votes never share a snapshot."
            )
        gone = s.scalar(
            sa.select(sa.func.count())
            .select_from(VoteTable)
            .join(ListeningSessionRow, VoteTable.session_id == ListeningSessionRow.id)
            .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
            .where(VoteTable.id.in_([row["vote_id"] for row in part]), RaterRow.status == "withdrawn")
        )
        if gone:
            raise DataError(
                f"Snapshot {name} holds {gone} votes of raters who have withdrawn since they were counted; "
                "freeze the votes again."
            )
    if policy.get("commercial"):
        found = licences_of_votes(s, [row["vote_id"] for row in rows]).values()
        barred = [licences for licences in found if not all(allows_commercial_use(one) for one in licences)]
        if barred:
            raise DataError(
                f"Snapshot {name} is for commercial use and {len(barred)} of its votes came under "
                f"{listed(one for licences in barred for one in licences)}; leave them out."
            )
    new = uuid7()
    s.execute(
        sa.insert(SnapshotRow).values(
            id=new,
            name=name,
            policy=dict(policy),
            high_water_mark=None if high_water_mark is None else str(high_water_mark),
            content_sha256=content_sha256,
            uri=uri,
            licence=licence,
            simulated=simulated,
            created_at=utcnow(),
        )
    )
    if rows:
        s.execute(sa.insert(SnapshotMemberRow), [{"snapshot_id": new, **row} for row in rows])
    return new


def get_snapshot(s: Session, name: str) -> Snapshot:
    """The snapshot of this name. Raises NotFoundError that lists the known ones."""
    row = s.scalar(sa.select(SnapshotRow).where(SnapshotRow.name == name))
    if row is None:
        names = list(s.scalars(sa.select(SnapshotRow.name).order_by(SnapshotRow.id)))
        raise NotFoundError(f"No snapshot is called {name}; known: {', '.join(names) or 'none yet'}.")
    return _snapshot(s, row)


def list_snapshots(s: Session) -> list[Snapshot]:
    """All snapshots, in the order in which they were recorded."""
    return [_snapshot(s, row) for row in s.scalars(sa.select(SnapshotRow).order_by(SnapshotRow.id))]


def snapshot_members(s: Session, snapshot_id: uuid.UUID) -> list[tuple[uuid.UUID, Split]]:
    """The votes of a snapshot with their splits, by vote id."""
    query = (
        sa.select(SnapshotMemberRow.vote_id, SnapshotMemberRow.split)
        .where(SnapshotMemberRow.snapshot_id == snapshot_id)
        .order_by(SnapshotMemberRow.vote_id)
    )
    return [(vote, split) for vote, split in s.execute(query)]


def _snapshot(s: Session, row: SnapshotRow) -> Snapshot:
    count = sa.select(sa.func.count()).where(SnapshotMemberRow.snapshot_id == row.id)
    return Snapshot(
        id=row.id,
        name=row.name,
        policy=row.policy,
        high_water_mark=row.high_water_mark,
        content_sha256=row.content_sha256,
        uri=row.uri,
        licence=row.licence,
        simulated=row.simulated,
        members=s.scalar(count) or 0,
        created_at=row.created_at,
    )
