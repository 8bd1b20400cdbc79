"""Queries about jobs: asked for, taken, under way, ended. Every change of state says which states it may come from,
so that two workers, a web page and a command cannot undo each other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow
from alignment.db.tables_jobs import OPEN_STATES, JobLogRow, JobRow, JobStepRow
from alignment.errors import NotFoundError

LONGEST_LINE = 2000  # characters of a log line that are kept


@dataclass(frozen=True)
class StepRecord:
    name: str
    state: str
    reason: str | None
    share: float | None
    text: str | None
    attempts: int
    started: datetime | None
    ended: datetime | None
    seconds: float | None


@dataclass(frozen=True)
class JobRecord:
    id: str
    kind: str
    recipe: Mapping[str, Any]
    state: str
    step: str | None
    reason: str | None
    attempt: int
    workflow: str
    previous: str | None
    executor: str | None
    code: str | None
    shape: str | None
    schedule: str | None
    asked_by: str | None
    cancel_asked: datetime | None
    created: datetime
    updated: datetime
    started: datetime | None
    ended: datetime | None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


@dataclass(frozen=True)
class LogLine:
    seq: int
    time: datetime
    step: str | None
    text: str


def _job(row: JobRow) -> JobRecord:
    return JobRecord(**{name: getattr(row, name) for name in JobRecord.__dataclass_fields__})


def add_job(
    s: Session, *, job_id: str, kind: str, recipe: Mapping[str, Any], asked_by: str | None, schedule: str | None = None,
) -> JobRecord:  # fmt: skip
    """The new job, queued. The same ``job_id`` again gives the job that it asked for."""
    one_at_a_time(s, "job", job_id)
    known = s.get(JobRow, job_id)
    if known is None:
        known = JobRow(
            id=job_id, kind=kind, recipe=dict(recipe), state="queued", workflow=job_id, asked_by=asked_by,
            schedule=schedule,
        )  # fmt: skip
        s.add(known)
        s.flush()
        add_line(s, job_id, f"asked for by {asked_by or 'nobody named'}")
    return _job(known)


def get_job(s: Session, job_id: str) -> JobRecord:
    """Raises NotFoundError with the newest ids."""
    row = s.get(JobRow, job_id)
    if row is None:
        newest = s.scalars(sa.select(JobRow.id).order_by(JobRow.created.desc()).limit(3)).all()
        known = f"the newest are {', '.join(newest)}" if newest else "there is none yet; see `attune jobs run`"
        raise NotFoundError(f"There is no job {job_id}; {known}.")
    return _job(row)


def list_jobs(
    s: Session, *, limit: int | None = 50, kind: str | None = None, states: Iterable[str] | None = None,
    schedule: str | None = None, before: datetime | None = None,
) -> list[JobRecord]:  # fmt: skip
    """Newest first."""
    query = sa.select(JobRow).order_by(JobRow.created.desc(), JobRow.id.desc())
    if kind is not None:
        query = query.where(JobRow.kind == kind)
    if states is not None:
        query = query.where(JobRow.state.in_(list(states)))
    if schedule is not None:
        query = query.where(JobRow.schedule == schedule)
    if before is not None:
        query = query.where(JobRow.created < before)
    return [_job(row) for row in s.scalars(query.limit(limit))]


def steps_of(s: Session, job_ids: Iterable[str]) -> dict[str, list[StepRecord]]:
    """The steps of each job in order."""
    query = sa.select(JobStepRow).where(JobStepRow.job_id.in_(list(job_ids))).order_by(JobStepRow.place)
    found: dict[str, list[StepRecord]] = {}
    for row in s.scalars(query):
        record = StepRecord(**{name: getattr(row, name) for name in StepRecord.__dataclass_fields__})
        found.setdefault(row.job_id, []).append(record)
    return found


def usual_seconds(s: Session, kind: str, *, jobs: int = 20) -> dict[str, float]:
    """The median seconds of each step in the newest jobs of a kind in which it was done."""
    query = (
        sa.select(JobStepRow.name, JobStepRow.seconds)
        .join(JobRow, JobRow.id == JobStepRow.job_id)
        .where(JobRow.kind == kind, JobStepRow.state == "done", JobStepRow.seconds.is_not(None))
        .order_by(JobStepRow.ended.desc())
        .limit(jobs * 20)
    )
    taken: dict[str, list[float]] = {}
    for name, seconds in s.execute(query):
        if len(taken.setdefault(name, [])) < jobs:
            taken[name].append(seconds)
    return {name: sorted(values)[len(values) // 2] for name, values in taken.items()}


def move_job(
    s: Session, job_id: str, *, to: str, only_from: Iterable[str] = OPEN_STATES, workflow: str | None = None,
    **values: Any,
) -> bool:  # fmt: skip
    """Whether the job was in one of the states ``only_from`` (and this ``workflow`` may act for it) and now is in
    ``to``."""
    query = sa.update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(list(only_from)))
    if workflow is not None:
        query = query.where(JobRow.workflow == workflow)
    return s.execute(query.values(state=to, updated=utcnow(), **values)).rowcount == 1


def end_job(s: Session, job_id: str, state: str, reason: str | None, *, workflow: str | None = None) -> bool:
    """Whether the open job ended now, in ``state``; its step in hand ends alike, and those to come stay pending."""
    now = utcnow()
    why = {} if state == "cancelled" and reason is None else {"reason": reason}  # who cancelled stands there already
    if not move_job(s, job_id, to=state, workflow=workflow, ended=now, cancel_asked=None, step=None, **why):
        return False
    if state != "done":
        under_way = (JobStepRow.job_id == job_id, JobStepRow.state.in_(("running", "waiting")))
        s.execute(sa.update(JobStepRow).where(*under_way).values(state=state, ended=now))
    add_line(s, job_id, f"{state}{': ' + reason if reason else ''}")
    return True


def touch_job(s: Session, job_id: str, **values: Any) -> None:
    s.execute(sa.update(JobRow).where(JobRow.id == job_id).values(updated=utcnow(), **values))


def requeue(s: Session, job: JobRecord, *, why: str) -> bool:
    """Whether the job waits again for a worker, which goes on behind its last finished step; the run of the engine
    that had it may do nothing any more."""
    again = job.attempt + 1
    ours = (JobRow.id == job.id, JobRow.state == job.state, JobRow.workflow == job.workflow)
    changed = s.execute(
        sa.update(JobRow).where(*ours).values(
            state="queued", workflow=f"{job.id}.{again}", previous=job.workflow, attempt=again, executor=None,
            reason=None, cancel_asked=None, ended=None, updated=utcnow(),
        )
    )  # fmt: skip
    moved = changed.rowcount == 1
    if moved:
        s.execute(
            sa.update(JobStepRow)
            .where(JobStepRow.job_id == job.id, JobStepRow.state.in_(("running", "waiting", "failed", "cancelled")))
            .values(state="pending", reason=None, share=None, text=None, ended=None)
        )
        add_line(s, job.id, why)
    return moved


def set_step(s: Session, job_id: str, name: str, **values: Any) -> None:
    """Changes what is known of a step."""
    s.execute(sa.update(JobStepRow).where(JobStepRow.job_id == job_id, JobStepRow.name == name).values(**values))


def begin_step(s: Session, job_id: str, name: str) -> None:
    """One more attempt at the step begins now; a step that waits goes on waiting while it is asked again."""
    ours = (JobStepRow.job_id == job_id, JobStepRow.name == name)
    if s.scalar(sa.select(JobStepRow.state).where(*ours)) != "waiting":
        set_step(s, job_id, name, state="running", reason=None, text=None, ended=None, started=utcnow(),
                 attempts=JobStepRow.attempts + 1)  # fmt: skip
        move_job(s, job_id, to="running", step=name, reason=None)


def end_step(s: Session, job_id: str, name: str, state: str, *, reason: str | None, seconds: float | None) -> None:
    """The step ended; what is known of one that ended before stays."""
    values: dict[str, Any] = {"state": state, "reason": reason, "ended": utcnow(), "text": None}
    if state == "done":
        values["share"] = 1.0
    if seconds is not None:
        values["seconds"] = seconds
    ours = (JobStepRow.job_id == job_id, JobStepRow.name == name, JobStepRow.ended.is_(None))
    s.execute(sa.update(JobStepRow).where(*ours).values(**values))


def wait_step(s: Session, job_id: str, name: str, answer: Mapping[str, Any]) -> None:
    """The step waits until ``answer["until"]`` (seconds since 1970), if that is not long over."""
    if answer["until"] > time.time() - 1.0:
        ours = (JobStepRow.job_id == job_id, JobStepRow.name == name, JobStepRow.ended.is_(None))
        said = {"state": "waiting", "reason": answer["reason"], "text": None}
        if s.execute(sa.update(JobStepRow).where(*ours).values(**said)).rowcount:
            move_job(s, job_id, to="waiting", step=name, reason=answer["reason"])


def step_names(s: Session, job_id: str, names: Sequence[str]) -> None:
    """Makes the steps of the job those of its kind, in order; what is known of them stays."""
    one_at_a_time(s, "job", job_id)
    have = {row.name: row for row in s.scalars(sa.select(JobStepRow).where(JobStepRow.job_id == job_id))}
    for place, name in enumerate(names):
        if name in have:
            have[name].place = place
        else:
            s.add(JobStepRow(job_id=job_id, name=name, place=place))
    s.flush()


def add_line(s: Session, job_id: str, text: str, *, step: str | None = None) -> None:
    add_lines(s, job_id, [text], step=step)


def add_lines(s: Session, job_id: str, texts: Iterable[str], *, step: str | None = None) -> None:
    rows = [{"job_id": job_id, "step": step, "text": text[:LONGEST_LINE], "time": utcnow()} for text in texts]
    if rows:
        s.execute(sa.insert(JobLogRow), rows)


def log_lines(
    s: Session, job_id: str, *, after: int = 0, limit: int = 500, step: str | None = None
) -> list[LogLine]:  # fmt: skip
    """Lines with a number above ``after``, in order."""
    query = sa.select(JobLogRow).where(JobLogRow.job_id == job_id, JobLogRow.seq > after)
    if step is not None:
        query = query.where(JobLogRow.step == step)
    rows = s.scalars(query.order_by(JobLogRow.seq).limit(limit))
    return [LogLine(row.seq, row.time, row.step, row.text) for row in rows]
