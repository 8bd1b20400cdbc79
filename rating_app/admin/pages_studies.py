"""The list of studies, and making one: from a form, from pasted YAML, or from another study."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
import yaml
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError

from alignment.db.figures import study_counts
from alignment.db.studies import Study, get_study_by_id, list_studies
from alignment.db.tables import PromptSetRow
from alignment.db.versions import list_versions
from alignment.domain import VersionStatus
from alignment.errors import AttuneError
from alignment.studies import StudyRecipe, create_study_from_recipe, rules_of
from alignment.study_edit import FIXED, edit_draft
from rating_app.admin import recipe_form
from rating_app.admin.recipe_form import Faults
from rating_app.admin.view import page
from rating_app.admin.visitors import Checked, Form, Signed, Visitor

router = APIRouter()


@router.get("/")
def to_studies() -> Response:
    return RedirectResponse("/admin/studies", 303)


@router.get("/studies")
def studies_page(request: Request, visitor: Signed) -> Response:
    """All studies, the newest first."""
    with request.app.state.database.session(write=False) as s:
        studies, counts = list_studies(s), study_counts(s)
    rows = [(study, rules_of(study), counts.get(study.id)) for study in reversed(studies)]
    return page(request, "studies.html", visitor=visitor, section="studies", rows=rows)


@router.get("/studies/new")
def new_page(request: Request, visitor: Signed) -> Response:
    """An empty form, one with the address's ``version`` and ``prompt_set``, or one filled from the study ``copy``."""
    values, asked = recipe_form.defaults_of(StudyRecipe), request.query_params
    values |= {"versions": asked.getlist("version"), "prompt_set": asked.get("prompt_set")}
    if copied := asked.get("copy"):
        values = rules_of(study_of(request, copied)).model_dump(mode="json") | {"name": ""}
    return _form(request, visitor, values, Faults())


@router.post("/studies/yaml")
def from_yaml(request: Request, visitor: Signed, form: Checked) -> Response:
    """The form filled from pasted YAML, every fault beside its field; nothing is made yet."""
    text = form.raw("yaml")
    values, faults = recipe_form.values_from_yaml(text)
    if not faults.count:
        faults = _faults(values)
    notice = None if faults.count else "The YAML has no faults. Read it through and create the study below."
    merged = _merged(recipe_form.defaults_of(StudyRecipe), values)
    return _form(request, visitor, merged, faults, pasted=text, notice=notice, status=422 if faults.count else 200)


@router.post("/studies/new")
def create(request: Request, visitor: Signed, form: Checked) -> Response:
    """Makes the study with all its pairs, as a draft; the form again, with every fault, when it cannot be made."""
    values = recipe_form.values_from(StudyRecipe, form)
    try:
        recipe = StudyRecipe.model_validate(values)
        study = create_study_from_recipe(
            request.app.state.database, request.app.state.store, recipe, actor=visitor.name, seed=_seed(form)
        )
    except ValidationError as error:
        return _form(request, visitor, values, recipe_form.faults_of(error, StudyRecipe), status=422)
    except AttuneError as error:
        return _form(request, visitor, values, Faults(at_large=(str(error),)), status=422)
    return RedirectResponse(f"/admin/study/{study.id}", 303)


@router.get("/study/{study_id}/edit")
def edit_page(request: Request, visitor: Signed, study_id: str) -> Response:
    study = study_of(request, study_id)
    return _form(request, visitor, rules_of(study).model_dump(mode="json"), Faults(), study=study)


@router.post("/study/{study_id}/edit")
def edit(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    """Changes a draft; what its pairs were drawn by stays."""
    study = study_of(request, study_id)
    old = rules_of(study).model_dump(mode="json")
    values = recipe_form.values_from(StudyRecipe, form) | {name: old[name] for name in FIXED}
    try:
        edit_draft(request.app.state.database, study.name, StudyRecipe.model_validate(values), actor=visitor.name)
    except ValidationError as error:
        faults = recipe_form.faults_of(error, StudyRecipe)
        return _form(request, visitor, values, faults, study=study, status=422)
    except AttuneError as error:
        return _form(request, visitor, values, Faults(at_large=(str(error),)), study=study, status=422)
    return RedirectResponse(f"/admin/study/{study.id}/setup", 303)


def study_of(request: Request, study_id: str) -> Study:
    """The study of an address. Raises HTTPException 404 for no id and NotFoundError for an unknown one."""
    try:
        key = uuid.UUID(study_id)
    except ValueError:
        raise HTTPException(404, "There is nothing at this address.") from None
    with request.app.state.database.session(write=False) as s:
        return get_study_by_id(s, key)


def recipe_yaml(recipe: StudyRecipe) -> str:
    """The recipe as YAML that ``attune study create`` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _form(
    request: Request, visitor: Visitor, values: Mapping[str, Any], faults: Faults, *, study: Study | None = None,
    pasted: str = "", notice: str | None = None, status: int = 200,
) -> Response:  # fmt: skip
    with request.app.state.database.session(write=False) as s:
        versions = [v.name for v in list_versions(s) if v.status != VersionStatus.RETIRED]
        prompt_sets = list(s.scalars(sa.select(PromptSetRow.name).order_by(PromptSetRow.name)))
    groups = recipe_form.groups_of(StudyRecipe, values, faults, {"versions": versions, "prompt_set": prompt_sets})
    fixed = FIXED if study is not None else ()
    return page(
        request, "study_form.html", status=status, visitor=visitor, section="studies", groups=groups, faults=faults,
        study=study, fixed=fixed, pasted=pasted, notice=notice,
    )  # fmt: skip


def _faults(values: Mapping[str, Any]) -> Faults:
    try:
        StudyRecipe.model_validate(values)
    except ValidationError as error:
        return recipe_form.faults_of(error, StudyRecipe)
    return Faults()


def _merged(defaults: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values over the defaults, group by group."""
    merged = dict(defaults)
    for name, value in values.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def _seed(form: Form) -> int:
    seed = form.whole("seed")
    return 0 if seed is None else max(0, min(seed, 2**30))
