"""`attune jobs`: durable and scheduled jobs: run, look, read the log, cancel, resume; and the worker that runs them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, settings_of, table

if TYPE_CHECKING:
    from alignment.config import Settings
    from alignment.jobs.status import JobView

app = typer.Typer(no_args_is_help=True, help="Jobs: the nightly circle and other long work that survives crashes.")
JobId = Annotated[str, typer.Argument(help="The job's id, as `attune jobs list` shows it.")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="Recipe of the kind (YAML); default its own.", show_default=False)
]
WorkerName = Annotated[
    str | None, typer.Option("--name", help="Name of this worker, where a machine has several.", show_default=False)
]
FOLLOW_SECONDS = 0.5


@app.command("run")
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

    _checked_schema(settings)
    job_id = status.submit(settings, kind, _recipe(kind, recipe), asked_by=actor())
    if detach:
        emit({"job": job_id}, job_id, as_json)
        return
    print(f"job {job_id}", file=sys.stderr, flush=True)
    if any(worker.alive for worker in status.list_workers(settings)):
        ended = _follow(settings, job_id)
    else:
        ended = _work_off(settings, name, job_id)
    emit(_json(ended), _shown(ended), as_json)
    if ended.state != "done":
        raise typer.Exit(1)


@app.command("work")
def work(
    name: WorkerName = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Jobs at once; one alone trains, see ATTUNE_GPU_SLOTS.")] = 16,
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

    _checked_schema(settings)
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


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Option(help="Jobs of this kind alone.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 20,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """The newest jobs, the schedules and the workers."""
    from alignment.jobs import status

    settings = settings_of(home, database)
    found = status.list_jobs(settings, kind=kind, limit=limit)
    rows = [
        {"job": job.id, "state": job.state, "step": job.step, "done": f"{job.share:.0%}", "left": _left(job),
         "why": job.reason}
        for job in found
    ]  # fmt: skip
    parts = [table(rows, ["job", "state", "step", "done", "left", "why"])]
    schedules = status.list_schedules(settings)
    if schedules:
        parts.append(_schedules(schedules))
    workers = [
        {"worker": one.name, "code": one.code, "seen": f"{one.seen:%Y-%m-%d %H:%M:%S}", "": "" if one.alive else "gone"}
        for one in status.list_workers(settings)
    ]
    parts.append(table(workers, ["worker", "code", "seen", ""]) if workers else "No worker ever ran: attune jobs work")
    emit([_json(job) for job in found], "\n\n".join(parts), as_json)


@app.command("show")
def show(job_id: JobId, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """One job with its steps: states, reasons, seconds."""
    from alignment.jobs import status

    job = status.get_job(settings_of(home, database), job_id)
    emit(_json(job), _shown(job), as_json)


@app.command("logs")
def logs(
    job_id: JobId,
    step: Annotated[str | None, typer.Option(help="Lines of this step alone.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
) -> None:
    """What a job said, line by line."""
    from alignment.jobs import status

    settings, after = settings_of(home, database), 0
    while True:
        is_open = status.get_job(settings, job_id).is_open
        while lines := status.log_lines(settings, job_id, after, step=step):
            for line in lines:
                print(f"{line.time:%Y-%m-%d %H:%M:%S} {line.step or '-'}: {line.text}", flush=True)
            after = lines[-1].seq
        if not (follow and is_open):
            return
        time.sleep(FOLLOW_SECONDS)


@app.command("cancel")
def cancel(job_id: JobId, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Stop a job within five seconds; what its steps made so far stays, and it can be resumed."""
    from alignment.jobs import status

    settings = settings_of(home, database)
    job = status.cancel(settings, job_id, asked_by=actor())
    until = time.monotonic() + 10
    while job.is_open and time.monotonic() < until:
        time.sleep(0.2)
        job = status.get_job(settings, job_id)
    emit(_json(job), f"{job_id} is {job.state}{'; its worker was told' if job.is_open else ''}", as_json)


@app.command("resume")
def resume(job_id: JobId, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again, behind its last finished step."""
    from alignment.jobs import status

    job = status.resume(settings_of(home, database), job_id, asked_by=actor())
    emit(_json(job), f"{job_id} is {job.state}; a worker goes on with it (attune jobs work)", as_json)


@app.command("reassign")
def reassign(
    host: Annotated[str, typer.Argument(help="Machine or worker that is lost, as `attune jobs list` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even though it gives signs of life.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give the open jobs of a lost machine to the other workers."""
    from alignment.jobs import status

    moved = status.reassign(settings_of(home, database), host, asked_by=actor(), force=force)
    emit({"jobs": moved}, "\n".join(moved) or f"{host} holds no open job", as_json)


@app.command("schedule")
def schedule(
    kind: Annotated[str | None, typer.Argument(help="Kind of job; without it the schedules are listed.")] = None,
    cron: Annotated[
        str | None, typer.Option(help='When, in UTC: "0 3 * * *" is three o\'clock each night.', show_default=False)
    ] = None,
    recipe: RecipeFile = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the schedule; default the kind.", show_default=False)
    ] = None,
    remove: Annotated[str | None, typer.Option(help="Name of a schedule to remove.", show_default=False)] = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Ask for jobs by the clock; a worker must run. Without a kind: list them, or --remove one."""
    from alignment.errors import ConfigError
    from alignment.jobs import status

    settings = settings_of(home, database)
    if remove is not None:
        status.remove_schedule(settings, remove)
    elif kind is not None:
        if cron is None:
            raise ConfigError(f'--cron is missing; write attune jobs schedule {kind} --cron "0 3 * * *", say.')
        _checked_schema(settings)
        status.add_schedule(settings, kind, cron, _recipe(kind, recipe), name=name, asked_by=actor())
    found = status.list_schedules(settings)
    rows = [{"name": one.name, "kind": one.kind, "cron": one.cron, "next": one.next_at.isoformat(),
             "last_job": one.last_job, "last_note": one.last_note} for one in found]  # fmt: skip
    emit(rows, _schedules(found) if found else "No schedules.", as_json)


def _schedules(found: list[Any]) -> str:
    rows = [
        {"schedule": one.name, "kind": one.kind, "cron (UTC)": one.cron, "next": f"{one.next_at:%Y-%m-%d %H:%M}",
         "last job": one.last_job, "note": one.last_note}
        for one in found
    ]  # fmt: skip
    return table(rows, ["schedule", "kind", "cron (UTC)", "next", "last job", "note"])


def _recipe(kind: str, path: Path | None) -> Any:
    """The recipe in the file; without one what the kind takes by default."""
    from alignment.config import load_recipe
    from alignment.jobs.kinds import KINDS

    return None if path is None else load_recipe(path, KINDS[kind].load_recipe())


def _checked_schema(settings: Settings) -> None:
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
    import threading

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


def _left(job: JobView) -> str:
    if job.eta_seconds is None or not job.is_open:
        return ""
    seconds = int(job.eta_seconds)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def _json(job: JobView) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def _shown(job: JobView) -> str:
    rows: list[Mapping[str, Any]] = [
        {"step": one.name, "state": one.state, "seconds": None if one.seconds is None else f"{one.seconds:.1f}",
         "attempts": one.attempts or None, "why": one.reason or one.text}
        for one in job.steps
    ]  # fmt: skip
    about = f"{job.id} is {job.state}{': ' + job.reason if job.reason else ''}"
    left = f"\nAbout {_left(job)} of work left." if _left(job) else ""
    return f"{table(list(map(dict, rows)), ['step', 'state', 'seconds', 'attempts', 'why'])}\n\n{about}{left}"
