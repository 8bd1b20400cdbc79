"""`attune jobs`: durable and scheduled jobs: run, look, read the log, cancel, resume; and the worker that runs them."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, settings_of, table
from alignment.cli.jobs_run import (
    FOLLOW_SECONDS,
    RecipeFile,
    check_schema,
    job_json,
    job_shown,
    left_of,
    recipe_of,
    run,
    work,
)

app = typer.Typer(no_args_is_help=True, help="Jobs: the nightly circle and other long work that survives crashes.")
app.command("run")(run)
app.command("work")(work)
JobId = Annotated[str, typer.Argument(help="The job's id, as `attune jobs list` shows it.")]


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
        {"job": job.id, "state": job.state, "step": job.step, "done": f"{job.share:.0%}", "left": left_of(job),
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
    emit([job_json(job) for job in found], "\n\n".join(parts), as_json)


@app.command("show")
def show(job_id: JobId, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """One job with its steps: states, reasons, seconds."""
    from alignment.jobs import status

    job = status.get_job(settings_of(home, database), job_id)
    emit(job_json(job), job_shown(job), as_json)


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
    emit(job_json(job), f"{job_id} is {job.state}{'; its worker was told' if job.is_open else ''}", as_json)


@app.command("resume")
def resume(job_id: JobId, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again, behind its last finished step."""
    from alignment.jobs import status

    job = status.resume(settings_of(home, database), job_id, asked_by=actor())
    emit(job_json(job), f"{job_id} is {job.state}; a worker goes on with it (attune jobs work)", as_json)


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
        check_schema(settings)
        status.add_schedule(settings, kind, cron, recipe_of(kind, recipe), name=name, asked_by=actor())
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
