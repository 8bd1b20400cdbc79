"""Accounts and the audit log: pages for admins."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from alignment.db.accounts import ROLES, list_audit
from alignment.errors import AttuneError
from rating_app.admin.view import page
from rating_app.admin.visitors import Admin, Checked, accounts_of

router = APIRouter()


@router.get("/accounts")
def accounts_page(request: Request, visitor: Admin) -> Response:
    return _accounts(request, visitor)


@router.post("/accounts")
def add_account(request: Request, visitor: Admin, form: Checked) -> Response:
    try:
        password = form.raw("password") or None
        accounts_of(request).add(form.get("name"), form.get("role"), password, actor=visitor.name)
    except AttuneError as error:
        return _accounts(request, visitor, problem=str(error), status=422)
    return RedirectResponse("/admin/accounts", 303)


@router.post("/accounts/change")
def change_account(request: Request, visitor: Admin, form: Checked) -> Response:
    """Disables or enables an account, or gives it a new password."""
    accounts, name, action = accounts_of(request), form.get("name"), form.get("action")
    if name == visitor.name:
        return _accounts(request, visitor, problem="Your own account is changed by another admin.", status=422)
    try:
        if action == "disable":
            accounts.disable(name, actor=visitor.name)
        elif action == "enable":
            accounts.enable(name, actor=visitor.name)
        elif action == "password":
            accounts.set_password(name, form.raw("password"), actor=visitor.name)
        else:
            raise HTTPException(422, "The form names no known action.")
    except AttuneError as error:
        return _accounts(request, visitor, problem=str(error), status=422)
    return RedirectResponse("/admin/accounts", 303)


@router.get("/log")
def log_page(request: Request, visitor: Admin) -> Response:
    with request.app.state.database.session(write=False) as s:
        entries = list_audit(s)
    return page(request, "log.html", visitor=visitor, section="log", entries=entries)


def _accounts(request: Request, visitor: Admin, *, problem: str | None = None, status: int = 200) -> Response:
    rows = accounts_of(request).list()
    return page(
        request, "accounts.html", status=status, visitor=visitor, section="accounts", rows=rows, roles=ROLES,
        problem=problem,
    )  # fmt: skip
