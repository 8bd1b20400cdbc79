"""Queries about job workers and schedules: who is alive, what is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow
from alignment.db.tables_jobs import JobScheduleRow, JobWorkerRow
from alignment.errors import DataError, NotFoundError

SILENT_SECONDS = 30.0  # after so long without a sign of life a worker counts as gone


@dataclass(frozen=True)
class WorkerView:
    """A worker of jobs. ``code`` names the steps it knows; ``alive``: it gave a sign of life half a minute ago."""

    name: str
    host: str
    pid: int
    code: str
    started: datetime
    seen: datetime
    alive: bool


@dataclass(frozen=True)
class ScheduleView:
    """When jobs of a kind are asked for by themselves; ``cron`` in UTC."""

    name: str
    kind: str
    cron: str
    recipe: Mapping[str, Any]
    next_at: datetime
    last_at: datetime | None
    last_job: str | None
    last_note: str | None
    asked_by: str | None


def beat(s: Session, *, name: str, host: str, pid: int, code: str) -> None:
    """A sign of life of the worker ``name``."""
    one_at_a_time(s, "job_worker", name)
    values = {"host": host, "pid": pid, "code": code, "seen": utcnow(), "ended": None}
    if s.execute(sa.update(JobWorkerRow).where(JobWorkerRow.name == name).values(**values)).rowcount == 0:
        s.add(JobWorkerRow(name=name, **values))
        s.flush()


def ended(s: Session, name: str) -> None:
    s.execute(sa.update(JobWorkerRow).where(JobWorkerRow.name == name).values(ended=utcnow()))


def list_workers(s: Session) -> list[WorkerView]:
    """Newest sign of life first."""
    since = utcnow() - timedelta(seconds=SILENT_SECONDS)
    return [
        WorkerView(row.name, row.host, row.pid, row.code, row.started, row.seen, row.ended is None and row.seen > since)
        for row in s.scalars(sa.select(JobWorkerRow).order_by(JobWorkerRow.seen.desc()))
    ]


def _schedule(row: JobScheduleRow) -> ScheduleView:
    return ScheduleView(**{name: getattr(row, name) for name in ScheduleView.__dataclass_fields__})


def add_schedule(
    s: Session, *, name: str, kind: str, cron: str, recipe: Mapping[str, Any], next_at: datetime, asked_by: str | None
) -> ScheduleView:
    """Raises DataError for a taken name."""
    one_at_a_time(s, "schedule", name)
    if s.get(JobScheduleRow, name) is not None:
        raise DataError(f"There is a schedule {name} already; remove it first, or give this one another --name.")
    row = JobScheduleRow(
        name=name, kind=kind, cron=cron, recipe=dict(recipe), next_at=next_at, asked_by=asked_by
    )  # fmt: skip
    s.add(row)
    s.flush()
    return _schedule(row)


def list_schedules(s: Session) -> list[ScheduleView]:
    return [_schedule(row) for row in s.scalars(sa.select(JobScheduleRow).order_by(JobScheduleRow.name))]


def remove_schedule(s: Session, name: str) -> None:
    """Raises NotFoundError naming the known schedules."""
    if s.execute(sa.delete(JobScheduleRow).where(JobScheduleRow.name == name)).rowcount == 0:
        known = ", ".join(one.name for one in list_schedules(s)) or "none"
        raise NotFoundError(f"There is no schedule {name}; known schedules: {known}.")


def take_turn(s: Session, schedule: ScheduleView, *, next_at: datetime, job: str | None, note: str | None) -> bool:
    """Whether this worker was the one that took the schedule's due time; it is then set to ``next_at``."""
    query = sa.update(JobScheduleRow).where(
        JobScheduleRow.name == schedule.name, JobScheduleRow.next_at == schedule.next_at
    )
    values: dict[str, Any] = {"next_at": next_at, "last_at": schedule.next_at, "last_note": note}
    if job is not None:
        values["last_job"] = job
    return s.execute(query.values(**values)).rowcount == 1
