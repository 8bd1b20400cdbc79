"""Schedules: jobs that are asked for by the clock, once for each due time however many workers look."""

from __future__ import annotations

import hashlib
from typing import Any

from alignment.config import Settings
from alignment.db import job_workers
from alignment.db import jobs as queries
from alignment.db.base import utcnow
from alignment.db.tables_jobs import OPEN_STATES
from alignment.jobs.cron import next_time
from alignment.jobs.status import ledger_of


def ask_for_due(settings: Settings, log: Any) -> list[str]:
    """The ids of the jobs that were asked for now.

    What fell due while no worker ran is asked for once. A schedule whose last job is still open passes this turn over,
    and says so: two nightly circles would train on the same votes."""
    asked: list[str] = []
    ledger, now = ledger_of(settings), utcnow()
    with ledger.session(write=False) as s:
        due = [one for one in job_workers.list_schedules(s) if one.next_at <= now]
    for schedule in due:
        with ledger.session() as s:
            still = queries.list_jobs(s, limit=1, states=OPEN_STATES, schedule=schedule.name)
            note = (
                f"passed over at {schedule.next_at:%Y-%m-%d %H:%M} UTC: {still[0].id} is {still[0].state}"
                if still
                else None
            )
            job_id = None if still else _job_id(schedule)
            if not job_workers.take_turn(s, schedule, next_at=next_time(schedule.cron, now), job=job_id, note=note):
                continue  # another worker was quicker
            if job_id is not None:
                queries.add_job(
                    s, job_id=job_id, kind=schedule.kind, recipe=schedule.recipe, schedule=schedule.name,
                    asked_by=f"schedule {schedule.name}",
                )  # fmt: skip
                asked.append(job_id)
        log("scheduled", schedule=schedule.name, job=job_id, note=note)
    return asked


def _job_id(schedule: job_workers.ScheduleView) -> str:
    """The same for the same due time: asked for twice it is one job."""
    digest = hashlib.sha256(f"{schedule.name} {schedule.next_at.isoformat()}".encode()).hexdigest()[:6]
    return f"{schedule.kind}-{schedule.next_at:%Y%m%d-%H%M}-{digest}"
