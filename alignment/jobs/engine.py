"""Durable execution on DBOS: a job is a workflow, each of its steps is recorded once. The only place that knows DBOS.

Its seven rules (facts that a test holds): one process for an executor id (a file lock, in worker.py); recovery and
resumption name the queue; an application version, of the kinds' steps; JSON in place of pickle; commands die with
the worker; effects of steps are idempotent by the job's id; a lost worker's jobs are moved by hand.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID
from dbos._serialization import Serializer

from alignment.db.engine import normalised
from alignment.jobs.course import Record, unfinished_from

QUEUE = "attune_jobs"
POLL_SECONDS = 0.25
_course: Callable[[str, str, Record], str] | None = None


class JsonSerializer(Serializer):
    """What is recorded stays readable, and reading it runs nothing."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_plain)

    def deserialize(cls, serialized_data: str) -> Any:  # noqa: N805 as DBOS declares it
        return json.loads(serialized_data, object_hook=_error)

    def name(self) -> str:
        return "attune_json"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"__error__": f"{type(value).__name__}: {value}"}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _error(value: dict[str, Any]) -> Any:
    return RuntimeError(value["__error__"]) if set(value) == {"__error__"} else value


@DBOS.workflow(name="attune_job", max_recovery_attempts=None)
def _job(job_id: str) -> str:
    assert _course is not None, "the engine was not started"
    return _course(job_id, str(DBOS.workflow_id), _recorded)


def _recorded(name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return DBOS.run_step({"name": name}, act)


def launch(url: str, *, executor: str, version: str, at_once: int, course: Callable[[str, str, Record], str]) -> None:
    """Starts the engine in this process: it takes ``at_once`` jobs and goes on with those that this ``executor`` had.

    ``course(job_id, workflow, record)`` runs one job. Checkpoints lie at ``url``."""
    global _course
    _course = course
    parsed = normalised(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql")
    config: DBOSConfig = {
        "name": "attune",
        "system_database_url": parsed.render_as_string(hide_password=False),
        "application_version": version,
        "executor_id": executor,
        "serializer": JsonSerializer(),
        "log_level": "WARNING",
        "use_listen_notify": False,
    }
    logging.getLogger("dbos").setLevel(logging.WARNING)
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=at_once, polling_interval_sec=POLL_SECONDS,
                        on_conflict="always_update")  # fmt: skip


def shut_down() -> None:
    DBOS.destroy()


def state_of(workflow: str) -> str | None:
    """DBOS's word for the state of a workflow; None when it knows none of that name."""
    found = DBOS.get_workflow_status(workflow)
    return None if found is None else found.status


def enqueue(job_id: str, workflow: str, previous: str | None, version: str) -> str:
    """Lets any worker with the same steps take the job: from its beginning, or behind what ``previous`` recorded.

    Asked twice, also by two workers, it enqueues once. Returns the version whose workers may take it: another one
    when they were asked before."""
    known = DBOS.get_workflow_status(workflow)
    if known is not None:
        return known.app_version or version
    with SetWorkflowID(workflow):
        if previous is None or state_of(previous) is None:
            DBOS.enqueue_workflow(QUEUE, _job, job_id)
            return version
        DBOS.cancel_workflow(previous)
        start = unfinished_from(_records(previous))
        DBOS.fork_workflow(previous, start, application_version=version, queue_name=QUEUE)
    return version


def _records(workflow: str) -> list[tuple[int, Mapping[str, Any] | None]]:
    steps = sorted(DBOS.list_workflow_steps(workflow), key=lambda step: step["function_id"])
    return [(step["function_id"], step["output"] if step["error"] is None else None) for step in steps]
