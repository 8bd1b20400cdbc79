"""One study: its dashboard, setup, invites, raters and exports."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from alignment import withdrawal
from alignment.db.base import utcnow
from alignment.db.figures import study_raters
from alignment.db.studies import Study
from alignment.errors import AttuneError
from alignment.exports import DEFAULT_LICENCE, make_export, zipped
from alignment.flags import flag_study
from alignment.invites import create_invite, list_invites, revoke_invite
from alignment.studies import rules_of, set_study_state
from rating_app.admin.pages_studies import recipe_yaml, study_of
from rating_app.admin.view import page
from rating_app.admin.visitors import Checked, Signed, Visitor

router = APIRouter(prefix="/study/{study_id}")
MOST_INVITES = 500
# What an organiser may do next, by state.
NEXT_STATES = {
    "draft": (("open", "Open to raters"),),
    "open": (("paused", "Pause"), ("closed", "Close")),
    "paused": (("open", "Open again"), ("closed", "Close")),
    "closed": (("open", "Open again"),),
}


@router.get("")
def dashboard(request: Request, visitor: Signed, study_id: str) -> Response:
    """What the votes say so far. The figures refresh themselves; without scripts, by loading the page again."""
    study = study_of(request, study_id)
    return _page(request, visitor, study, "study.html", "dashboard", figures=request.app.state.figures.of(study))


@router.get("/figures")
def figures(request: Request, visitor: Signed, study_id: str) -> Response:
    """The dashboard's figures alone, for the page to put in place of the old ones."""
    study = study_of(request, study_id)
    found = request.app.state.figures.of(study)
    return page(request, "_figures.html", visitor=visitor, study=study, figures=found)


@router.get("/setup")
def setup(request: Request, visitor: Signed, study_id: str) -> Response:
    study = study_of(request, study_id)
    return _page(request, visitor, study, "setup.html", "setup", yaml=recipe_yaml(rules_of(study)))


@router.post("/state")
def change_state(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    study = study_of(request, study_id)
    state = form.get("state")
    if state not in dict(NEXT_STATES[study.state]):
        raise HTTPException(409, f"The study is {study.state} now; reload the page.")
    set_study_state(request.app.state.database, study.name, state, actor=visitor.name)
    return RedirectResponse(f"/admin/study/{study.id}", 303)


@router.post("/flag")
def flag(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    """Runs every detector; flags annotate votes and delete none."""
    study = study_of(request, study_id)
    flag_study(request.app.state.database, study.name, actor=visitor.name)
    return RedirectResponse(f"/admin/study/{study.id}#flags", 303)


@router.get("/invites")
def invites_page(request: Request, visitor: Signed, study_id: str) -> Response:
    return _invites(request, visitor, study_of(request, study_id))


@router.post("/invites")
def invite(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    """Makes invites and shows their links this once: only hashes are kept."""
    study = study_of(request, study_id)
    count, days = form.whole("count"), form.whole("days")
    count = 1 if count is None else count
    if not 1 <= count <= MOST_INVITES or (days is not None and not 1 <= days <= 3650):
        problem = f"Give 1 to {MOST_INVITES} links and 1 to 3650 days."
        return _invites(request, visitor, study, problem=problem, status=422)
    label = form.get("label") or None
    ends = utcnow() + timedelta(days=days) if days else None
    try:
        tokens = [
            create_invite(
                request.app.state.database, study.name, most_uses=form.whole("most_uses"), expires_at=ends,
                label=label if count == 1 or not label else f"{label} {number}", actor=visitor.name,
            )
            for number in range(1, count + 1)
        ]  # fmt: skip
    except AttuneError as error:
        return _invites(request, visitor, study, problem=str(error), status=422)
    origin = f"{request.url.scheme}://{request.headers.get('host', '')}"
    return _invites(request, visitor, study, links=[f"{origin}/?invite={token}" for token in tokens])


@router.post("/invites/revoke")
def revoke(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    study = study_of(request, study_id)
    revoke_invite(request.app.state.database, study.name, _id(form.get("invite")), actor=visitor.name)
    return RedirectResponse(f"/admin/study/{study.id}/invites", 303)


@router.get("/raters")
def raters_page(request: Request, visitor: Signed, study_id: str) -> Response:
    """Raters by the end of their internal id, for withdrawals; no name is known here."""
    return _raters(request, visitor, study_of(request, study_id))


@router.post("/raters/withdraw")
def withdraw(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    """Takes a rater's part back: comments deleted, pseudonym emptied, votes out of every new snapshot."""
    study, told = study_of(request, study_id), form.get("rater")
    with request.app.state.database.session(write=False) as s:
        found = [row.id for row in study_raters(s, study.id) if row.is_called(told)]
    if len(found) != 1:
        raise HTTPException(404, "This study has no such rater; check the code against the one you were sent.")
    if form.get("sure") != "yes":
        raise HTTPException(422, "Tick the box to withdraw this rater; it cannot be undone.")
    rater = found[0]
    done = withdrawal.withdraw(request.app.state.database, rater, actor=visitor.name)
    reached = ", ".join(done.versions_reached) or "no version"
    notice = (
        f"Rater {str(rater)[-8:]} is withdrawn: {done.comments_deleted} comments deleted, {done.votes} votes and "
        f"{done.ratings} ratings stay out of everything new. They had reached {reached}. {done.about_prompts}"
    ).rstrip()
    return _raters(request, visitor, study, notice=notice)


@router.get("/export")
def export_page(request: Request, visitor: Signed, study_id: str) -> Response:
    study = study_of(request, study_id)
    return _page(request, visitor, study, "export.html", "export", licence=DEFAULT_LICENCE)


@router.post("/export")
def export(request: Request, visitor: Signed, study_id: str, form: Checked) -> Response:
    """The export as a ZIP file; its names are keyed for this download alone."""
    study = study_of(request, study_id)
    made = make_export(request.app.state.database, study.name, actor=visitor.name, licence=form.get("licence"))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", study.name).strip("-.") or "study"
    headers = {
        "content-disposition": f'attachment; filename="{name}-{utcnow():%Y%m%d}.zip"',
        "cache-control": "private, no-store",
    }
    return Response(zipped(made), media_type="application/zip", headers=headers)


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise HTTPException(422, "The form names nothing that is known.") from None


def _page(
    request: Request, visitor: Visitor, study: Study, template: str, tab: str, *, status: int = 200, **context: object
) -> Response:
    return page(
        request, template, status=status, visitor=visitor, section="studies", study=study, tab=tab,
        recipe=rules_of(study), next_states=NEXT_STATES.get(study.state, ()), **context,
    )  # fmt: skip


def _raters(request: Request, visitor: Visitor, study: Study, *, notice: str | None = None) -> Response:
    with request.app.state.database.session(write=False) as s:
        raters = study_raters(s, study.id)
    return _page(request, visitor, study, "raters.html", "raters", raters=raters, notice=notice)


def _invites(
    request: Request, visitor: Visitor, study: Study, *, links: list[str] | None = None, problem: str | None = None,
    status: int = 200,
) -> Response:  # fmt: skip
    rows = list_invites(request.app.state.database, study.name)
    return _page(
        request, visitor, study, "invites.html", "invites", status=status, rows=rows, now=utcnow(), links=links or [],
        problem=problem,
    )  # fmt: skip
