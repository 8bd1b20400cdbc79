"""`attune jobs run` and `attune jobs work`: the two that run jobs; the rest of `attune jobs` asks and shows."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, settings_of, table

if TYPE_CHECKING:
    from alignment.config import Settings
    from alignment.jobs.status import JobView

RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="Recipe of the kind (YAML); default its own.", show_default=False)
]
WorkerName = Annotated[
    str | None, typer.Option("--name", help="Name of this worker, where a machine has several.", show_default=False)
]
FOLLOW_SECONDS = 0.5


def run(
    kind: Annotated[str, typer.Argument(help="Kind of job: nightly, compare or align.")],
    recipe: RecipeFile = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it to a worker and print its id.")] = False,
    name: WorkerName = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Ask for a job and follow it to its end; where no worker runs, this command is the worker meanwhile.

    Ends with 1 when the job failed or was cancelled. Ctrl-C leaves it open: a worker goes on with it."""
    from alignment.cli.stopping import block_signals

    if not detach:
        block_signals()
    settings = settings_of(home, database)

    from alignment.jobs import status

    check_schema(settings)
    job_id = status.submit(settings, kind, recipe_of(kind, recipe), asked_by=actor())
    if detach:
        emit({"job": job_id}, job_id, as_json)
        return
    print(f"job {job_id}", file=sys.stderr, flush=True)
    if any(worker.alive for worker in status.list_workers(settings)):
        ended = _follow(settings, job_id)
    else:
        ended = _work_off(settings, name, job_id)
    emit(job_json(ended), job_shown(ended), as_json)
    if ended.state != "done":
        raise typer.Exit(1)


def work(
    name: WorkerName = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Jobs at once; one trains, see ATTUNE_GPU_SLOTS.")] = 16,
    once: Annotated[bool, typer.Option("--once", help="End as soon as no job is left that it can take.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
) -> None:
    """Run the jobs and schedules of a home until SIGTERM; what is under way goes on in the next worker.

    Logs one line of JSON for each thing it does, on stderr."""
    from alignment.cli.stopping import block_signals, stop_on_signals
    from alignment.cli.worker import log

    block_signals()
    settings = settings_of(home, database)

    from alignment.jobs.worker import Worker

    check_schema(settings)
    worker = Worker(settings, log=log, name=name, at_once=jobs)
    worker.start()
    stop_on_signals(worker)
    log("ready", worker=worker.name, code=worker.code, kinds=sorted(worker.kinds))
    while not worker.ended.wait(FOLLOW_SECONDS):
        if once and worker.idle():
            worker.close()
            return
    log("ended", worker=worker.name)
    os._exit(0)  # threads that hold jobs stand still by design


def recipe_of(kind: str, path: Path | None) -> Any:
    """The recipe in the file; without one what the kind takes by default."""
    from alignment.config import load_recipe
    from alignment.jobs.kinds import KINDS

    return None if path is None else load_recipe(path, KINDS[kind].load_recipe())


def check_schema(settings: Settings) -> None:
    """Raises SchemaVersionError or DatabaseError before anything is asked for that could not run."""
    from alignment.db.engine import open_database

    open_database(settings.database_url).close()


def _follow(settings: Settings, job_id: str) -> JobView:
    from alignment.jobs import status

    after, told = 0, ""
    while True:
        job = status.get_job(settings, job_id)
        for line in status.log_lines(settings, job_id, after):
            print(f"{line.step or 'job'}: {line.text}", file=sys.stderr, flush=True)
            after = line.seq
        now = next((f"{one.name}: {one.text}" for one in job.steps if one.state == "running" and one.text), "")
        if now and now != told:
            print(now, file=sys.stderr, flush=True)
            told = now
        if not job.is_open:
            return job
        time.sleep(FOLLOW_SECONDS)


def _work_off(settings: Settings, name: str | None, job_id: str) -> JobView:
    """The ended job, run in this process."""
    from alignment.cli.stopping import stop_on_signals
    from alignment.jobs.worker import Worker

    worker = Worker(settings, log=lambda event, **fields: None, name=name)
    worker.start()
    stop_on_signals(worker)
    ended = _follow_or_stop(settings, worker, job_id)
    worker.close()
    return ended


def _follow_or_stop(settings: Settings, worker: Any, job_id: str) -> JobView:
    from alignment.cli import INTERRUPTED

    def leave() -> None:
        worker.ended.wait()
        if not closing.is_set():
            print(f"attune: Stopped. {job_id} goes on with `attune jobs work`.", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)

    closing = threading.Event()
    threading.Thread(target=leave, daemon=True).start()
    ended = _follow(settings, job_id)
    closing.set()
    return ended


def left_of(job: JobView) -> str:
    if job.eta_seconds is None or not job.is_open:
        return ""
    seconds = int(job.eta_seconds)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def job_json(job: JobView) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def job_shown(job: JobView) -> str:
    rows: list[dict[str, Any]] = [
        {"step": one.name, "state": one.state, "seconds": None if one.seconds is None else f"{one.seconds:.1f}",
         "attempts": one.attempts or None, "why": one.reason or one.text}
        for one in job.steps
    ]  # fmt: skip
    about = f"{job.id} is {job.state}{': ' + job.reason if job.reason else ''}"
    left = f"\nAbout {left_of(job)} of work left." if left_of(job) else ""
    return f"{table(rows, ['step', 'state', 'seconds', 'attempts', 'why'])}\n\n{about}{left}"
