"""The ledger of jobs: what was asked, how far it is, what it said. A store of its own beside the main database.

SQLite: a file beside the database, shared with the checkpoints of the job engine. PostgreSQL: the schema
``attune_jobs`` of the same database. It can be thrown away: no vote, version or result lives here.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alignment.db.base import NAMING, Created, Name, UtcDateTime, one_of, utcnow
from alignment.db.engine import Database, create_engine, explain, normalised, sqlite_path
from alignment.errors import DatabaseError, SchemaVersionError

SCHEMA = "attune_jobs"
LEDGER_VERSION = 1
JOB_STATES = ("queued", "running", "waiting", "done", "failed", "cancelled")
STEP_STATES = ("pending", "running", "waiting", "done", "skipped", "failed", "cancelled")
OPEN_STATES = ("queued", "running", "waiting")


class LedgerBase(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map = {str: sa.Text(), datetime: UtcDateTime(), dict[str, Any]: sa.JSON(), float: sa.Double()}


class LedgerVersionRow(LedgerBase):
    """Which shape these tables have."""

    __tablename__ = "ledger_version"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class JobRow(LedgerBase):
    """A job. ``workflow`` is the run of the engine that may act for it: every other one ends at its next step.

    ``code`` names the steps of all kinds as the worker that took it knows them, ``shape`` those of this kind."""

    __tablename__ = "job"
    id: Mapped[Name] = mapped_column(primary_key=True)
    kind: Mapped[Name]
    recipe: Mapped[dict[str, Any]]
    state: Mapped[Name] = mapped_column(index=True)
    step: Mapped[Name | None]
    reason: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=1)
    workflow: Mapped[Name]
    previous: Mapped[Name | None]
    executor: Mapped[Name | None]
    code: Mapped[Name | None]
    shape: Mapped[Name | None]
    schedule: Mapped[Name | None] = mapped_column(index=True)
    asked_by: Mapped[str | None]
    cancel_asked: Mapped[datetime | None]
    created: Mapped[Created]
    updated: Mapped[Created]
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    __table_args__ = (one_of("state", JOB_STATES),)


class JobStepRow(LedgerBase):
    """One step of a job. ``share`` 0 to 1; ``seconds`` of work, waiting for votes or for a GPU left out."""

    __tablename__ = "job_step"
    job_id: Mapped[Name] = mapped_column(sa.ForeignKey("job.id"), primary_key=True)
    name: Mapped[Name] = mapped_column(primary_key=True)
    place: Mapped[int]
    state: Mapped[Name] = mapped_column(default="pending")
    reason: Mapped[str | None]
    share: Mapped[float | None]
    text: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    started: Mapped[datetime | None]
    ended: Mapped[datetime | None]
    seconds: Mapped[float | None]
    __table_args__ = (one_of("state", STEP_STATES),)


class JobLogRow(LedgerBase):
    """A line of a job's log."""

    __tablename__ = "job_log"
    seq: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)
    job_id: Mapped[Name] = mapped_column(sa.ForeignKey("job.id"), index=True)
    time: Mapped[Created]
    step: Mapped[Name | None]
    text: Mapped[str]


class JobScheduleRow(LedgerBase):
    """When jobs of a kind are asked for by themselves. ``cron`` is read in UTC."""

    __tablename__ = "job_schedule"
    name: Mapped[Name] = mapped_column(primary_key=True)
    kind: Mapped[Name]
    cron: Mapped[Name]
    recipe: Mapped[dict[str, Any]]
    next_at: Mapped[datetime]
    last_at: Mapped[datetime | None]
    last_job: Mapped[Name | None]
    last_note: Mapped[str | None]
    asked_by: Mapped[str | None]
    created: Mapped[Created]


class JobWorkerRow(LedgerBase):
    """A worker and its last sign of life."""

    __tablename__ = "job_worker"
    name: Mapped[Name] = mapped_column(primary_key=True)
    host: Mapped[Name]
    pid: Mapped[int]
    code: Mapped[Name]
    started: Mapped[Created]
    seen: Mapped[Created]
    ended: Mapped[datetime | None]


def jobs_url(database_url: str) -> str:
    """Where the jobs of a database are kept: ``NAME-jobs.db`` beside an SQLite file, else the same database."""
    url = normalised(database_url)
    path = sqlite_path(url)
    if path is None:
        return url.render_as_string(hide_password=False)
    return f"sqlite:///{path.with_name(f'{path.stem}-jobs{path.suffix}')}"


@lru_cache(maxsize=8)
def open_ledger(url: str) -> Database:
    """The ledger at ``url`` (of ``jobs_url``), made when there is none; opened once in a process.

    Raises DatabaseError when it cannot be reached or written, SchemaVersionError when newer code made it."""
    parsed = normalised(url)
    path = sqlite_path(parsed)
    if path is not None and not path.parent.is_dir():
        raise DatabaseError(f"{path.parent} does not exist; run `attune db upgrade` first, or give another --home.")
    engine = create_engine(parsed, flushed_later=path is not None)
    if path is None:
        engine = engine.execution_options(schema_translate_map={None: SCHEMA})
    try:
        with engine.begin() as connection:
            if path is None:  # several workers may come at once
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7465726)")
                connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            LedgerBase.metadata.create_all(connection)
            found = connection.scalar(sa.select(LedgerVersionRow.version))
            if found is None:
                connection.execute(sa.insert(LedgerVersionRow).values(version=LEDGER_VERSION))
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise explain(error, parsed) from error
    if found not in (None, LEDGER_VERSION):
        raise SchemaVersionError(
            f"The jobs' ledger has version {found}, this code knows {LEDGER_VERSION}; use the newer Attune."
        )
    return Database(engine)


__all__ = [
    "JOB_STATES", "OPEN_STATES", "STEP_STATES", "JobLogRow", "JobRow", "JobScheduleRow", "JobStepRow", "JobWorkerRow",
    "jobs_url", "open_ledger", "utcnow",
]  # fmt: skip
