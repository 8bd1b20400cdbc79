"""How jobs are told on the pages: how far in words, logs as plain text, recipes to start from, marks that change."""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from alignment.config import REPOSITORY, Recipe, Settings, parse_recipe
from alignment.db.base import utcnow
from alignment.errors import AttuneError, DataError, NotFoundError
from alignment.jobs import status
from alignment.jobs.kinds import KINDS
from alignment.jobs.status import JobView
from rating_app.admin.recipe_form import defaults_of, values_from_yaml
from rating_app.admin.view import NO_STORE, duration

MOST_JOBS = 60
LOG_LINES = 400  # of the newest, on the page; the whole log is a file
_AT_ONCE = 2000
# Colours and cursor movements of terminals, then what else is no text.
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
# Recipes that ship with Attune, by kind of job.
_SHIPPED = {"nightly": "schedule.yaml", "compare": "compare.yaml", "align": "align.yaml"}


def settings_of(request: Request) -> Settings:
    """Where the jobs are kept. Raises HTTPException 404 where the app was made without them."""
    settings = request.app.state.settings
    if settings is None:
        raise HTTPException(404, "This app was started without jobs; run `attune serve`.")
    return settings


def address_of(job_id: str) -> str:
    """The page of a job."""
    return f"/admin/jobs/job/{quote(job_id, safe='')}"


@dataclass(frozen=True)
class Log:
    """Lines of a log as plain text; ``next`` is the number of the last one, ``older`` those that were left out."""

    lines: tuple[str, ...]
    next: int
    older: int = 0


def log_of(settings: Settings, job_id: str, *, after: int = 0, newest: int | None = LOG_LINES) -> Log:
    """The lines after ``after``, at most the ``newest``. Raises NotFoundError for an unknown job."""
    kept: deque[str] = deque(maxlen=newest)
    count, last = 0, after
    while found := status.log_lines(settings, job_id, last, limit=_AT_ONCE):
        for line in found:
            kept.append(f"{line.time:%m-%d %H:%M:%S}  {plain(f'{line.step}: ' if line.step else '')}{plain(line.text)}")
        count, last = count + len(found), found[-1].seq
    return Log(tuple(kept), last, count - len(kept))


def pages_of(settings: Settings, job_id: str) -> dict[str, Path]:
    """The HTML pages that the job wrote into its folder on this machine, by name."""
    folder = status.home_of(settings) / "jobs" / job_id
    try:
        return {path.name: path for path in sorted(folder.glob("*.html")) if path.is_file() and not path.is_symlink()}
    except OSError:
        return {}


def plain(text: str) -> str:
    """Text of a log without what only a terminal understands."""
    return _UNPRINTABLE.sub("", text.rstrip("\r\n"))


def line_of(job: JobView) -> str:
    """Where an open job stands, in words."""
    if job.cancelling:
        return "stops within seconds"
    if job.state == "queued":
        return job.reason or "waits for a worker"
    step = next((one for one in job.steps if one.name == job.step), None)
    parts = [job.step or "begins"]
    if job.state == "waiting" or job.reason:
        parts.append(job.reason or (step.reason if step and step.reason else "waits"))
        return ": ".join(parts)
    if step is not None and step.text:
        parts.append(step.text)
    parts.append(f"{100 * min(1.0, max(0.0, job.share)):.0f}% of all")
    if job.eta_seconds is not None:
        parts.append(f"about {duration(job.eta_seconds)} left")
    return " · ".join(parts)


def took(job: JobView) -> float | None:
    """Seconds from its first step to its end; None before either."""
    if job.started is None or job.ended is None:
        return None
    return (job.ended - job.started).total_seconds()


def mark_of(jobs: Iterable[JobView], *more: object) -> str:
    """Changes when a job began, ended, or turned a step: then the page is rendered again."""
    told = [
        [j.id, j.state, j.step, j.cancelling, j.reason, [[s.name, s.state, s.reason] for s in j.steps]] for j in jobs
    ]
    return sha256(repr([told, *more]).encode()).hexdigest()[:16]


def state_json(mark: str, jobs: Iterable[JobView], **more: Any) -> JSONResponse:
    """How far jobs are, for a page that asks every two seconds."""
    told = [
        {"id": job.id, "state": job.state, "share": job.share, "eta_seconds": job.eta_seconds, "line": line_of(job)}
        for job in jobs
    ]
    return JSONResponse({"mark": mark, "jobs": told, **more}, headers=NO_STORE)


def recipe_of(text: str) -> Mapping[str, Any]:
    """The recipe in YAML; empty text is an empty recipe. Raises DataError."""
    if not text.strip():
        return {}
    values, faults = values_from_yaml(text, example="the files in configs/")
    if faults.count:
        raise DataError(faults.at_large[0])
    return values


def new_mark() -> str:
    """What a form that starts a job carries, so that a button pressed twice starts one."""
    return f"{utcnow():%Y%m%d-%H%M}-{secrets.token_hex(3)}"


def submit_once(
    settings: Settings, kind: str, recipe: Mapping[str, Any] | Recipe, mark: str, *, asked_by: str
) -> tuple[str, bool]:
    """(id of the job, whether it is new). The same form sent again, with the same recipe, gives the job that it gave.

    Raises NotFoundError for an unknown kind, ConfigError naming every fault of the recipe."""
    if not isinstance(recipe, Recipe):
        recipe = parse_recipe(dict(recipe), KINDS[kind].load_recipe(), origin=f"{kind} recipe")
    job_id = f"{kind}-{mark}" if re.fullmatch(r"\d{8}-\d{4}-[0-9a-f]{6}", mark) else None
    if job_id is not None:
        with suppress(NotFoundError):
            if status.get_job(settings, job_id).recipe == recipe.model_dump(mode="json"):
                return job_id, False
            job_id = None  # another recipe, sent from a page that the browser had kept
    return status.submit(settings, kind, recipe, asked_by=asked_by, job_id=job_id), True


def first_recipe(kind: str) -> str:
    """The YAML that a job of this kind starts from: the recipe that ships with Attune, else its defaults."""
    shipped = REPOSITORY / "configs" / _SHIPPED.get(kind, "")
    try:
        if shipped.is_file():
            return shipped.read_text(encoding="utf-8")
        recipe = KINDS[kind].load_recipe()
    except (OSError, AttuneError) as error:
        return f"# {error}\n"
    missing = [name for name, info in recipe.model_fields.items() if info.is_required()]
    told = "".join(f"{name}:  # needed\n" for name in missing)
    return told + yaml.safe_dump(defaults_of(recipe), sort_keys=False, allow_unicode=True, width=100)
