"""Jobs: what runs and how far it is, what ran and how it ended, what begins by itself; a log a click away."""

from __future__ import annotations

from typing import Any

import yaml
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

from alignment.db.comparisons import find_comparison
from alignment.db.people import add_audit
from alignment.errors import AttuneError
from alignment.jobs import status
from alignment.jobs.kinds import KINDS
from alignment.jobs.status import JobView
from rating_app.admin import jobs_told
from rating_app.admin.jobs_told import MOST_JOBS, address_of, log_of, settings_of, state_json
from rating_app.admin.view import NO_STORE, page
from rating_app.admin.visitors import Admin, Checked, Form, Signed, Visitor

router = APIRouter()


@router.get("/jobs")
def jobs_page(request: Request, visitor: Signed) -> Response:
    """Open jobs first, then history and what is planned. It renews itself; without scripts, by loading it again."""
    return page(request, "jobs.html", visitor=visitor, section="jobs", **_listed(request))


@router.get("/jobs/figures")
def jobs_fragment(request: Request, visitor: Signed) -> Response:
    """The list alone, for the page to put in place of the old one."""
    return page(request, "_jobs.html", visitor=visitor, **_listed(request))


@router.get("/jobs/state")
def jobs_state(request: Request, visitor: Signed) -> Response:
    """How far each open job is, and a mark that changes when the list itself did."""
    found = _listed(request)
    return state_json(found["mark"], found["open_jobs"])


@router.get("/jobs/new")
def new_job_page(request: Request, visitor: Admin) -> Response:
    """The form for a job of the kind in the address, filled with the recipe that this kind starts from."""
    return _form(request, visitor, request.query_params.get("kind") or "")


@router.post("/jobs/new")
def start_job(request: Request, visitor: Admin, form: Checked) -> Response:
    """Starts a job, or plans one when a cron time is given; the form again with the fault when that cannot be."""
    settings, kind, cron = settings_of(request), form.get("kind"), form.get("cron")
    try:
        recipe = jobs_told.recipe_of(form.raw("recipe"))
        if cron:
            name = form.get("name") or None
            made, new = status.add_schedule(settings, kind, cron, recipe, name=name, asked_by=visitor.name).name, True
        else:
            made, new = jobs_told.submit_once(settings, kind, recipe, form.get("mark"), asked_by=visitor.name)
    except AttuneError as error:
        return _form(request, visitor, kind, sent=form, problem=str(error))
    if new:
        _note(request, visitor, "job.plan" if cron else "job.start", made)
    return RedirectResponse("/admin/jobs#planned" if cron else address_of(made), 303)


@router.post("/jobs/unplan")
def unplan(request: Request, visitor: Admin, form: Checked) -> Response:
    """Removes a schedule; the jobs that it began go on."""
    status.remove_schedule(settings_of(request), form.get("name"))
    _note(request, visitor, "job.unplan", form.get("name"))
    return RedirectResponse("/admin/jobs#planned", 303)


@router.get("/jobs/job/{job_id}")
def job_page(request: Request, visitor: Signed, job_id: str) -> Response:
    """One job: its steps with their reasons, its recipe, and the end of its log."""
    job = _job(request, job_id)
    log = log_of(settings_of(request), job_id)
    text = yaml.safe_dump(dict(job.recipe), sort_keys=False, allow_unicode=True, width=100)
    return page(
        request, "job.html", visitor=visitor, section="jobs", mark=jobs_told.mark_of([job]), recipe=text, log=log,
        **_about(request, job),
    )  # fmt: skip


@router.get("/jobs/job/{job_id}/figures")
def job_fragment(request: Request, visitor: Signed, job_id: str) -> Response:
    return page(request, "_job.html", visitor=visitor, **_about(request, _job(request, job_id)))


@router.get("/jobs/job/{job_id}/state")
def job_state(request: Request, visitor: Signed, job_id: str, after: int = 0) -> Response:
    """How far the job is, and what its log says since ``after``."""
    job = _job(request, job_id)
    log = log_of(settings_of(request), job_id, after=max(0, after))
    return state_json(jobs_told.mark_of([job]), [job], log={"lines": list(log.lines), "next": log.next})


@router.get("/jobs/job/{job_id}/log")
def whole_log(request: Request, visitor: Signed, job_id: str) -> Response:
    """The log as a text file."""
    _job(request, job_id)
    log = log_of(settings_of(request), job_id, newest=None)
    return PlainTextResponse("".join(f"{line}\n" for line in log.lines), headers=NO_STORE)


@router.get("/jobs/job/{job_id}/page/{name}")
def written_page(request: Request, visitor: Signed, job_id: str, name: str) -> Response:
    """A page that the job wrote, to be kept and opened as a file: it carries its own style and scripts, which the
    policy of these pages forbids."""
    _job(request, job_id)
    path = jobs_told.pages_of(settings_of(request), job_id).get(name)
    if path is None:
        raise HTTPException(404, "This job wrote no such page on this machine.")
    return FileResponse(path, media_type="text/html", filename=f"{job_id}-{name}", headers=NO_STORE)


@router.post("/jobs/job/{job_id}/cancel")
def cancel(request: Request, visitor: Admin, job_id: str, form: Checked) -> Response:
    status.cancel(settings_of(request), job_id, asked_by=visitor.name)
    _note(request, visitor, "job.cancel", job_id)
    return RedirectResponse(address_of(job_id), 303)


@router.post("/jobs/job/{job_id}/resume")
def resume(request: Request, visitor: Admin, job_id: str, form: Checked) -> Response:
    status.resume(settings_of(request), job_id, asked_by=visitor.name)
    _note(request, visitor, "job.resume", job_id)
    return RedirectResponse(address_of(job_id), 303)


def _job(request: Request, job_id: str) -> JobView:
    return status.get_job(settings_of(request), job_id)


def _about(request: Request, job: JobView) -> dict[str, Any]:
    """The job with what it left (a comparison, pages), and whether its worker is lost."""
    settings = settings_of(request)
    with request.app.state.database.session(write=False) as s:
        comparison = find_comparison(s, job_id=job.id)
    alive = {one.name for one in status.list_workers(settings) if one.alive}
    return {
        "job": job, "made": comparison, "pages": list(jobs_told.pages_of(settings, job.id)),
        "lost": job.state in ("running", "waiting") and job.executor not in alive, **_words(),
    }  # fmt: skip


def _note(request: Request, visitor: Visitor, action: str, subject: str) -> None:
    with request.app.state.database.session() as s:
        add_audit(s, actor=visitor.name, action=action, subject=subject)


def _words() -> dict[str, Any]:
    return {"line_of": jobs_told.line_of, "address_of": address_of, "took": jobs_told.took}


def _listed(request: Request) -> dict[str, Any]:
    settings = settings_of(request)
    jobs = status.list_jobs(settings, limit=MOST_JOBS)
    planned, workers = status.list_schedules(settings), status.list_workers(settings)
    alive = [one for one in workers if one.alive]
    return {
        "open_jobs": [job for job in jobs if job.is_open], "past": [job for job in jobs if not job.is_open],
        "planned": planned, "alive": alive, "lost": [one for one in workers if not one.alive],
        "mark": jobs_told.mark_of(jobs, len(alive), [one.name for one in planned]), **_words(),
    }  # fmt: skip


def _form(
    request: Request, visitor: Visitor, kind: str, *, sent: Form | None = None, problem: str | None = None
) -> Response:
    settings_of(request)
    kinds = {name: KINDS[name].about for name in KINDS}
    if kind not in kinds:
        if kind and problem is None:
            raise HTTPException(404, f"There is no kind of job called {kind}.")
        kind = next(iter(kinds))
    text = sent.raw("recipe") if sent is not None else jobs_told.first_recipe(kind)
    return page(
        request, "job_form.html", status=422 if problem else 200, visitor=visitor, section="jobs", kinds=kinds,
        kind=kind, text=text, cron=sent.get("cron") if sent else "", name=sent.get("name") if sent else "",
        problem=problem, once=jobs_told.new_mark(),
    )  # fmt: skip
