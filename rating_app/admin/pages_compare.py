"""Comparisons: pick versions and prompts, listen side by side, read figures with their intervals, open a study."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from alignment.circle.compare_recipe import CompareRecipe
from alignment.db import comparisons
from alignment.db.clips import get_clips
from alignment.db.comparisons import ComparedPrompt
from alignment.db.people import add_audit
from alignment.db.side_by_side import sung_by_all
from alignment.db.studies import get_study
from alignment.db.tables import ComparisonRow, PromptSetRow
from alignment.db.versions import get_version, list_versions
from alignment.domain import VersionStatus
from alignment.errors import AttuneError
from alignment.jobs import status
from alignment.jobs.status import JobView
from rating_app.admin import compare_told, recipe_form
from rating_app.admin.jobs_told import address_of, line_of, mark_of, new_mark, settings_of, state_json, submit_once
from rating_app.admin.recipe_form import Faults
from rating_app.admin.view import page
from rating_app.admin.visitors import Admin, Checked, Signed, Visitor
from rating_app.sending import audio_answer

router = APIRouter()
MOST_COMPARISONS = 50
MOST_VERSIONS = 8  # side by side on one page


@router.get("/compare")
def compare_page(request: Request, visitor: Signed) -> Response:
    """The comparisons there are, those under way, and the form for a new one."""
    values = recipe_form.defaults_of(CompareRecipe) | {"captions": 20}
    asked = request.query_params.getlist("version")
    return _compare(request, visitor, values | {"versions": asked}, Faults(), open_form=bool(asked))


@router.post("/compare")
def start_comparison(request: Request, visitor: Admin, form: Checked) -> Response:
    """Submits a job that lets the versions sing and measures them; the form again with every fault."""
    settings = settings_of(request)
    values = recipe_form.values_from(CompareRecipe, form)
    try:
        recipe = CompareRecipe.model_validate(values)
        with request.app.state.database.session(write=False) as s:
            for name in recipe.versions:
                get_version(s, name)
        job_id, new = submit_once(settings, "compare", recipe, form.get("mark"), asked_by=visitor.name)
    except ValidationError as error:
        faults = recipe_form.faults_of(error, CompareRecipe)
        return _compare(request, visitor, values, faults, open_form=True, code=422)
    except AttuneError as error:
        return _compare(request, visitor, values, Faults(at_large=(str(error),)), open_form=True, code=422)
    if new:
        with request.app.state.database.session() as s:
            add_audit(s, actor=visitor.name, action="job.start", subject=job_id)
    return RedirectResponse(address_of(job_id), 303)


@router.get("/compare/figures")
def comparisons_fragment(request: Request, visitor: Signed) -> Response:
    """The comparisons under way and those made, for the page to put in place of the old ones."""
    return page(request, "_comparisons.html", visitor=visitor, **_comparisons(request))


@router.get("/compare/state")
def comparisons_state(request: Request, visitor: Signed) -> Response:
    """How far the comparisons under way are."""
    found = _under_way(request)
    return state_json(mark_of(found), found)


@router.get("/compare/listen")
def listen_page(request: Request, visitor: Signed) -> Response:
    """Side by side what the versions of the address have sung of the same prompts, with no comparison made of it."""
    names = list(dict.fromkeys(request.query_params.getlist("version")))
    if not 2 <= len(names) <= MOST_VERSIONS:
        raise HTTPException(422, f"Choose two to {MOST_VERSIONS} versions to listen to; there are {len(names)}.")
    with request.app.state.database.session(write=False) as s:
        versions = [get_version(s, name) for name in names]
        prompts = sung_by_all(s, names)
    return page(
        request, "compare_listen.html", visitor=visitor, section="compare", names=names,
        simulated=[one.name for one in versions if one.simulated], listening=_listening(names, prompts),
        study_address=_study_address(names, None),
    )  # fmt: skip


@router.get("/compare/show/{comparison_id}")
def comparison_page(request: Request, visitor: Signed, comparison_id: str) -> Response:
    """One comparison: its clips side by side, its figures, and what listeners said in its studies."""
    key = _id(comparison_id)
    with request.app.state.database.session(write=False) as s:
        name = s.scalar(sa.select(ComparisonRow.name).where(ComparisonRow.id == key))
        if name is None:
            raise HTTPException(404, "No comparison has this address; look at the list of comparisons.")
        found = comparisons.get_comparison(s, name)
        prompts = comparisons.compared_prompts(s, key)
        studies = [get_study(s, one) for one in found.studies]
        known = {one.name: one for one in list_versions(s)}
    battles = [(study, request.app.state.figures.of(study)) for study in studies]
    return page(
        request, "comparison.html", visitor=visitor, section="compare", comparison=found, known=known,
        table=compare_told.table_of(found), about=compare_told.about_of(found), battles=battles, address_of=address_of,
        listening=_listening(found.versions, prompts),
        study_address=_study_address(found.versions, found.settings.get("prompt_set")),
    )  # fmt: skip


@router.api_route("/compare/clip/{clip_id}", methods=["GET", "HEAD"])
def clip(request: Request, visitor: Signed, clip_id: str) -> Response:
    """A clip as raters hear it: FLAC, at the same loudness as every other, without tags."""
    key = _id(clip_id)
    with request.app.state.database.session(write=False) as s:
        found = get_clips(s, [key])[key]
    return audio_answer(request, request.app.state.store.rendition(found.audio_sha256))


def _under_way(request: Request) -> list[JobView]:
    settings = request.app.state.settings
    found = status.list_jobs(settings, limit=MOST_COMPARISONS, kind="compare") if settings is not None else []
    return [job for job in found if job.is_open]


def _comparisons(request: Request) -> dict[str, Any]:
    """What the list of comparisons shows."""
    under_way = _under_way(request)
    with request.app.state.database.session(write=False) as s:
        made = comparisons.list_comparisons(s, limit=MOST_COMPARISONS)
    return {
        "under_way": under_way, "made": made, "mark": mark_of(under_way), "line_of": line_of, "address_of": address_of,
    }  # fmt: skip


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise HTTPException(404, "There is nothing at this address.") from None


def _listening(names: Sequence[str], prompts: Sequence[ComparedPrompt]) -> dict[str, Any]:
    """What the player needs: every clip's address by prompt, version and take, in the order of the page."""
    rows = [
        {
            "text": one.prompt.text,
            "split": one.prompt.split.value,
            "clips": [(name, [f"/admin/compare/clip/{clip.id}" for clip in one.clips.get(name, ())]) for name in names],
        }
        for one in prompts
    ]
    return {"names": list(names), "rows": rows}


def _study_address(names: Sequence[str], prompt_set: str | None) -> str:
    """The form of a new study of these versions."""
    asked = [("version", name) for name in names] + ([("prompt_set", prompt_set)] if prompt_set else [])
    return f"/admin/studies/new?{urlencode(asked, quote_via=quote)}"


def _compare(
    request: Request, visitor: Visitor, values: Mapping[str, Any], faults: Faults, *, open_form: bool = False,
    code: int = 200,
) -> Response:  # fmt: skip
    with request.app.state.database.session(write=False) as s:
        versions = [one.name for one in list_versions(s) if one.status is not VersionStatus.RETIRED]
        prompt_sets = list(s.scalars(sa.select(PromptSetRow.name).order_by(PromptSetRow.name)))
    listed = _comparisons(request)
    groups = recipe_form.groups_of(CompareRecipe, values, faults, {"versions": versions, "prompt_set": prompt_sets})
    return page(
        request, "compare.html", status=code, visitor=visitor, section="compare", versions=versions,
        groups=groups, faults=faults, fixed=(), chosen=list(values.get("versions") or ()),
        open_form=open_form or not listed["made"], once=new_mark(), **listed,
        can_start=visitor.account.is_admin and request.app.state.settings is not None,
    )  # fmt: skip
