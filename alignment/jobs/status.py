"""What a web page or a command may ask of jobs: submit, look, read the log, cancel, resume, schedule.

Light: no torch, no job engine. A worker (`attune jobs work`) does what is asked for here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from alignment.config import Recipe, Settings, parse_recipe
from alignment.db import job_workers, jobs
from alignment.db.base import utcnow
from alignment.db.engine import Database, normalised, sqlite_path
from alignment.db.job_workers import ScheduleView, WorkerView
from alignment.db.jobs import LogLine, StepRecord
from alignment.db.tables_jobs import OPEN_STATES, jobs_url, open_ledger
from alignment.errors import DataError, NotFoundError
from alignment.jobs import cron as times
from alignment.jobs.kinds import KINDS

__all__ = [
    "JobView", "LogLine", "ScheduleView", "StepView", "WorkerView", "add_schedule", "cancel", "get_job", "home_of",
    "list_jobs", "list_schedules", "list_workers", "log_lines", "reassign", "remove_schedule", "resume", "submit",
]  # fmt: skip


@dataclass(frozen=True)
class StepView:
    """A step as a page shows it. ``seconds`` it has worked so far, waiting left out."""

    name: str
    state: str  # pending, running, waiting, done, skipped, failed, cancelled
    reason: str | None
    seconds: float | None
    share: float | None
    text: str | None
    attempts: int


@dataclass(frozen=True)
class JobView:
    """A job as a page shows it. ``share`` of the whole, 0 to 1; ``eta_seconds`` of work, None when nobody can tell.

    ``reason``: why it failed, ended early or waits, in one sentence."""

    id: str
    kind: str
    state: str  # queued, running, waiting, done, failed, cancelled
    step: str | None
    share: float
    eta_seconds: float | None
    reason: str | None
    created: datetime
    updated: datetime
    started: datetime | None
    ended: datetime | None
    attempt: int
    executor: str | None
    schedule: str | None
    asked_by: str | None
    cancelling: bool
    recipe: Mapping[str, Any]
    steps: list[StepView]

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


def home_of(settings: Settings) -> Path:
    """The folder of database and clips, where jobs keep their run folders below ``jobs/``."""
    path = sqlite_path(normalised(settings.database_url))
    if path is not None:
        return path.parent
    return Path(settings.store).parent if "://" not in settings.store else Path("data")


def ledger_of(settings: Settings) -> Database:
    """The ledger of the jobs that belong to these settings' database."""
    return open_ledger(jobs_url(settings.database_url))


def submit(
    settings: Settings, kind: str, recipe: Mapping[str, Any] | Recipe | None = None, *, asked_by: str | None = None,
    job_id: str | None = None, schedule: str | None = None,
) -> str:  # fmt: skip
    """The id of the job, which waits for a worker. The same ``job_id`` again asks for nothing new.

    Raises NotFoundError for an unknown kind, ConfigError naming every fault of the recipe."""
    resolved = _checked(kind, recipe)
    new = job_id or f"{kind}-{utcnow():%Y%m%d-%H%M}-{secrets.token_hex(3)}"
    with ledger_of(settings).session() as s:
        jobs.add_job(s, job_id=new, kind=kind, recipe=resolved, asked_by=asked_by, schedule=schedule)
    return new


def list_jobs(
    settings: Settings, *, limit: int = 50, kind: str | None = None, states: Iterable[str] | None = None,
    before: datetime | None = None,
) -> list[JobView]:  # fmt: skip
    """Newest first; ``before``: those asked for earlier than that."""
    with ledger_of(settings).session(write=False) as s:
        found = jobs.list_jobs(s, limit=limit, kind=kind, states=states, before=before)
        steps = jobs.steps_of(s, [job.id for job in found])
        usual = {kind: jobs.usual_seconds(s, kind) for kind in {job.kind for job in found}}
        alive = _alive(s)
    return [_view(job, steps.get(job.id, []), usual[job.kind], alive) for job in found]


def get_job(settings: Settings, job_id: str) -> JobView:
    """Raises NotFoundError with the newest ids."""
    with ledger_of(settings).session(write=False) as s:
        job = jobs.get_job(s, job_id)
        return _view(job, jobs.steps_of(s, [job_id]).get(job_id, []), jobs.usual_seconds(s, job.kind), _alive(s))


def log_lines(
    settings: Settings, job_id: str, after: int = 0, *, limit: int = 500, step: str | None = None
) -> list[LogLine]:
    """Lines numbered above ``after``, in order. Raises NotFoundError for an unknown job."""
    with ledger_of(settings).session(write=False) as s:
        jobs.get_job(s, job_id)
        return jobs.log_lines(s, job_id, after=after, limit=limit, step=step)


def cancel(settings: Settings, job_id: str, *, asked_by: str | None = None) -> JobView:
    """The job, which its worker stops within five seconds; at once when no living worker has it.

    Raises NotFoundError for an unknown job, DataError for one that has ended."""
    with ledger_of(settings).session() as s:
        job = jobs.get_job(s, job_id)
        if not job.is_open:
            raise DataError(f"{job_id} is {job.state} already; there is nothing to cancel.")
        jobs.add_line(s, job_id, f"cancel asked for by {asked_by or 'nobody named'}")
        alive = _alive(s)
        who = f"Cancelled by {asked_by or 'nobody named'}."
        if job.state == "queued" or job.executor not in alive:
            jobs.end_job(s, job_id, "cancelled", who)
        else:
            jobs.touch_job(s, job_id, cancel_asked=utcnow(), reason=who)
    return get_job(settings, job_id)


def resume(settings: Settings, job_id: str, *, asked_by: str | None = None) -> JobView:
    """The job, queued again behind its last finished step.

    Raises NotFoundError for an unknown job, DataError for one that is done or goes on anyway."""
    with ledger_of(settings).session() as s:
        job = jobs.get_job(s, job_id)
        workers = {worker.name: worker for worker in job_workers.list_workers(s)}
        if job.state in ("running", "waiting") and job.executor in workers and workers[job.executor].alive:
            raise DataError(f"{job_id} is {job.state} on {job.executor}; there is nothing to resume.")
        if job.state in ("done", "queued"):
            raise DataError(f"{job_id} is {job.state}; only what failed, was cancelled or lost its worker is resumed.")
        jobs.requeue(s, job, why=f"resume asked for by {asked_by or 'nobody named'}")
    return get_job(settings, job_id)


def reassign(settings: Settings, host: str, *, asked_by: str | None = None, force: bool = False) -> list[str]:
    """The ids of the open jobs that a lost worker or machine had, and that any other worker may now go on with.

    Raises NotFoundError for an unknown ``host``, DataError while it gives signs of life, except with ``force``."""
    with ledger_of(settings).session() as s:
        workers = [one for one in job_workers.list_workers(s) if host in (one.host, one.name)]
        if not workers:
            known = ", ".join(one.name for one in job_workers.list_workers(s)) or "none"
            raise NotFoundError(f"No worker {host} ever ran here; known workers: {known}.")
        alive = [one.name for one in workers if one.alive]
        if alive and not force:
            raise DataError(
                f"{', '.join(alive)} gave a sign of life less than {job_workers.SILENT_SECONDS:.0f} s ago; stop it "
                "first, wait, or give --force."
            )
        names = {one.name for one in workers}
        held = [job for job in jobs.list_jobs(s, limit=None, states=("running", "waiting")) if job.executor in names]
        why = f"taken from {host} by {asked_by or 'nobody named'}"
        return [job.id for job in held if jobs.requeue(s, job, why=why)]


def list_workers(settings: Settings) -> list[WorkerView]:
    with ledger_of(settings).session(write=False) as s:
        return job_workers.list_workers(s)


def add_schedule(
    settings: Settings, kind: str, cron: str, recipe: Mapping[str, Any] | Recipe | None = None, *,
    name: str | None = None, asked_by: str | None = None,
) -> ScheduleView:  # fmt: skip
    """The schedule, kept in the ledger. Raises ConfigError for a faulty cron line or recipe, DataError for a name
    that is taken."""
    next_at = times.next_time(cron, utcnow())
    resolved = _checked(kind, recipe)
    with ledger_of(settings).session() as s:
        return job_workers.add_schedule(
            s, name=name or kind, kind=kind, cron=cron, recipe=resolved, next_at=next_at, asked_by=asked_by
        )


def list_schedules(settings: Settings) -> list[ScheduleView]:
    with ledger_of(settings).session(write=False) as s:
        return job_workers.list_schedules(s)


def remove_schedule(settings: Settings, name: str) -> None:
    """Raises NotFoundError for an unknown name."""
    with ledger_of(settings).session() as s:
        job_workers.remove_schedule(s, name)


def _checked(kind: str, recipe: Mapping[str, Any] | Recipe | None) -> dict[str, Any]:
    wanted = KINDS[kind].load_recipe()
    if not isinstance(recipe, Recipe):
        recipe = parse_recipe(None if recipe is None else dict(recipe), wanted, origin=f"{kind} recipe")
    return recipe.model_dump(mode="json")


def _alive(s: Any) -> set[str]:
    return {worker.name for worker in job_workers.list_workers(s) if worker.alive}


def _view(job: jobs.JobRecord, steps: list[StepRecord], usual: Mapping[str, float], alive: set[str]) -> JobView:
    share, eta = _how_far(job, steps, usual)
    shown = [
        StepView(one.name, one.state, one.reason, _seconds(one), one.share, one.text, one.attempts) for one in steps
    ]
    same = {name: getattr(job, name) for name in JobView.__dataclass_fields__ if hasattr(job, name)}
    return JobView(
        **(same | {"share": share, "eta_seconds": eta, "cancelling": job.cancel_asked is not None and job.is_open,
                   "steps": shown, "recipe": dict(job.recipe), "reason": _reason(job, alive)})
    )  # fmt: skip


def _reason(job: jobs.JobRecord, alive: set[str]) -> str | None:
    if not job.is_open or job.cancel_asked is not None:
        return job.reason
    if job.state == "queued" and not alive and job.reason is None:
        return "No worker runs; start one with `attune jobs work`."
    if job.state != "queued" and job.executor is not None and job.executor not in alive:
        return (
            f"Its worker {job.executor} gives no sign of life; start it again, or give its jobs away with "
            f"`attune jobs reassign {job.executor}`."
        )
    return job.reason


def _seconds(step: StepRecord) -> float | None:
    if step.seconds is not None or step.started is None or step.state != "running":
        return step.seconds
    return (utcnow() - step.started) / timedelta(seconds=1)


def _how_far(job: jobs.JobRecord, steps: list[StepRecord], usual: Mapping[str, float]) -> tuple[float, float | None]:
    """Share done and seconds of work left: by the seconds that steps usually take where earlier jobs tell, else each
    step counts the same and the present step's own share is extrapolated."""
    if job.state == "done":
        return 1.0, 0.0
    if not steps:
        return 0.0, None
    weights = {one.name: usual.get(one.name) for one in steps}
    known = [weight for weight in weights.values() if weight]
    fallback = sum(known) / len(known) if known else 1.0
    done = left = 0.0
    certain = job.is_open
    for one in steps:
        whole = weights[one.name] or fallback
        if one.state in ("done", "skipped"):
            done += whole
            continue
        worked = _seconds(one) or 0.0
        if one.share and worked > 1.0:
            whole_now = worked / one.share
            left, part = left + whole_now - worked, one.share
        else:
            certain = certain and weights[one.name] is not None
            left, part = left + max(0.0, whole - worked), one.share or 0.0
        done += whole * part
    total = sum(weights[one.name] or fallback for one in steps)
    return min(1.0, done / total), left if certain else None
