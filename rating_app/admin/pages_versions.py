"""Versions: where each comes from, what was measured of it, and making one champion, going back, retiring."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from alignment import versions as registry
from alignment.db import gates, metric_results, version_changes
from alignment.db.versions import list_versions
from alignment.domain import Version, VersionStatus
from alignment.errors import AttuneError, NotFoundError
from alignment.evaluation.intervals import Interval
from alignment.versions.lineage import Node, listening_text
from rating_app.admin.view import duration, figure_of, page, span_figure
from rating_app.admin.visitors import Admin, Checked, Form, Signed, Visitor

router = APIRouter()
DEEPEST = 6  # indentations; what lies deeper stands at the last
LONGEST_REASON = 2000


@router.get("/versions")
def versions_page(request: Request, visitor: Signed) -> Response:
    """All versions, each under the one it was trained from."""
    with request.app.state.database.session(write=False) as s:
        found = list_versions(s)
        outcomes = {decision.candidate: decision for decision in gates.list_decisions(s)}
    rows = list(family(found))
    return page(request, "versions.html", visitor=visitor, section="versions", rows=rows, outcomes=outcomes)


@router.get("/versions/{version_id}")
def version_page(request: Request, visitor: Signed, version_id: str) -> Response:
    return _version(request, visitor, version_of(request, version_id))


@router.post("/versions/{version_id}/{action}")
def change(request: Request, visitor: Admin, version_id: str, action: str, form: Checked) -> Response:
    """Makes the version champion, goes back to the champion before it, or retires it; each with a reason in the log."""
    version, database = version_of(request, version_id), request.app.state.database
    if action not in ("promote", "rollback", "retire"):
        raise HTTPException(404, "There is nothing at this address.")
    try:
        reason = _sure(form)
        if action == "promote":
            registry.promote(database, version.name, actor=visitor.name, force="force" in form, reason=reason)
        elif action == "rollback":
            if version.status is not VersionStatus.CHAMPION:
                raise HTTPException(409, f"{version.name} is {version.status.value} now; reload the page.")
            registry.rollback(database, actor=visitor.name, reason=reason)
        else:
            registry.retire(database, version.name, actor=visitor.name, reason=reason)
    except AttuneError as error:
        return _version(request, visitor, version, problem=str(error), action=action, typed=form.get("reason"))
    return RedirectResponse(f"/admin/versions/{version.id}", 303)


def version_of(request: Request, version_id: str) -> Version:
    """The version of an address. Raises HTTPException 404 for no id and NotFoundError for an unknown one."""
    try:
        key = uuid.UUID(version_id)
    except ValueError:
        raise HTTPException(404, "There is nothing at this address.") from None
    with request.app.state.database.session(write=False) as s:
        for version in list_versions(s):
            if version.id == key:
                return version
    raise NotFoundError("No version has this address; look at the list of versions.")


def family(versions: Sequence[Version]) -> Iterator[tuple[Version, int]]:
    """Each version with its depth, children after their parents, brothers in the order of their registration."""
    by_parent: dict[str | None, list[Version]] = {}
    names = {version.name for version in versions}
    for version in versions:
        by_parent.setdefault(version.parent if version.parent in names else None, []).append(version)
    waiting = [(version, 0) for version in reversed(by_parent.get(None, []))]
    while waiting:
        version, depth = waiting.pop()
        yield version, min(depth, DEEPEST)
        waiting += [(child, depth + 1) for child in reversed(by_parent.get(version.name, []))]


def _sure(form: Form) -> str | None:
    """The reason that was typed. Raises HTTPException 422 when the box is not ticked or the reason is too long."""
    if form.get("sure") != "yes":
        raise HTTPException(422, "Tick the box to say that you are sure.")
    reason = form.get("reason")
    if len(reason) > LONGEST_REASON:
        raise HTTPException(422, f"The reason has {len(reason)} characters; {LONGEST_REASON} are enough.")
    return reason or None


def _facts(version: Version) -> list[tuple[str, str]]:
    """What is known of the version beside its lineage, in words."""
    facts = [
        ("base", f"{version.base}, {version.base_sha256[:12]}"),
        ("adapter", version.adapter_sha256[:12] if version.adapter_sha256 else "none: the base itself"),
        ("heard with", listening_text(version.listening) or "the settings of each study"),
        ("licence", version.licence or "not recorded"),
        ("commit", version.commit[:12] if version.commit else "not recorded"),
    ]
    return facts


def told(node: Node) -> str:
    """What to say of a thing in the lineage beside its name."""
    f = node.facts
    if f.get("seen"):
        return "as above"
    parts: list[str] = []
    if node.kind == "version":
        parts = [f"{f['status']}", *(["trained on simulated votes"] if f["simulated"] else [])]
        parts += [] if f["adapter_sha256"] else [f"the base {f['base']}"]
    elif node.kind == "training":
        parts = [duration(f["seconds"])] if f.get("seconds") is not None else []
        parts += [f"commit {f['commit'][:12]}"] if f.get("commit") else []
        parts += [f"job {f['job']}"] if f.get("job") else []
    elif node.kind == "reward model":
        parts = [str(f["encoder"]), *(["learnt from simulated votes"] if f["simulated"] else [])]
    elif node.kind == "snapshot":
        splits = ", ".join(f"{count:,} {name}" for name, count in f["splits"].items())
        parts = [f"{f['votes']:,} votes" + (f" ({splits})" if splits else ""), f["content_sha256"][:12]]
        parts += [str(f["licence"])] if f["licence"] else []
    elif node.kind == "votes":
        who = "simulated listeners" if f["rater_kind"] == "simulated" else "raters"
        parts = [f"{f['votes']:,} votes of {f['raters']:,} {who} on {f['prompts']:,} prompts"]
        parts += [f"{f['first_at'][:10]} to {f['last_at'][:10]}"]
        parts += [f"{f['withdrawn']:,} withdrawn since"] if f["withdrawn"] else []
    return " · ".join(parts)


def shown_value(value: Any) -> str:
    """A value of a difference, as text."""
    if isinstance(value, dict) and "value" in value:
        found = Interval(value["value"], value["low"], value["high"], value["n"])
        return f"{figure_of(found)} ({span_figure(found)}), n {found.n}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}", value):
        return value[:12]
    return "–" if value is None else str(value)


def _version(
    request: Request, visitor: Visitor, version: Version, *, problem: str | None = None, action: str = "",
    typed: str = "",
) -> Response:  # fmt: skip
    database = request.app.state.database
    config = registry.lineage(database, version.name)[0].config
    with database.session(write=False) as s:
        figures = metric_results.latest(s, version.name)
        decisions = list(reversed(gates.list_decisions(s, candidate=version.name)))
        history = version_changes.list_changes(s, version=version.name)
        others = [one for one in list_versions(s) if one.id != version.id]
    ids = {one.name: one.id for one in others}
    champion = next((one for one in others if one.status is VersionStatus.CHAMPION), None)
    asked = request.query_params.get("against")
    against = asked if asked in ids else champion.name if champion else version.parent
    return page(
        request, "version.html", status=422 if problem else 200, visitor=visitor, section="versions", problem=problem,
        action=action, typed=typed, version=version, tree=registry.tree(database, version.name), told=told, ids=ids,
        facts=_facts(version), figures=figures, decisions=decisions, history=reversed(history), champion=champion,
        against=against, asked=asked is not None, shown_value=shown_value, has_history=bool(history),
        differences=registry.differences(database, against, version.name) if against else (),
        config=yaml.safe_dump(dict(config), sort_keys=False) if config else None,
    )  # fmt: skip
