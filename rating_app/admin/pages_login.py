"""Logging in and out, and changing one's own password."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from alignment.accounts import SESSION_SECONDS
from alignment.db.accounts import Account
from alignment.errors import AttuneError, LoginRefused
from rating_app.admin.view import page
from rating_app.admin.visitors import (
    COOKIE,
    FORM_COOKIE,
    Checked,
    Form,
    Signed,
    accounts_of,
    find_visitor,
    posted,
    signer_of,
)

router = APIRouter()


@router.get("/login")
def login_page(request: Request) -> Response:
    """The log-in form, or the studies for who is in already."""
    if find_visitor(request) is not None:
        return RedirectResponse("/admin/studies", 303)
    return _login(request)


@router.post("/login")
def login(request: Request, form: Annotated[Form, Depends(posted)]) -> Response:
    nonce = request.cookies.get(FORM_COOKIE, "")
    name = form.get("name")
    if not nonce or not signer_of(request).form_token_is_right(nonce, form.get("token")):
        return _login(request, name=name, problem="The page was open for too long; try again.", status=403)
    address = request.client.host if request.client else "unknown"
    try:
        account = accounts_of(request).log_in(name, form.raw("password"), address=address)
    except LoginRefused as error:
        return _login(request, name=name, problem=str(error), status=403)
    answer = RedirectResponse("/admin/studies", 303)
    answer.delete_cookie(FORM_COOKIE, path="/admin")
    return _let_in(request, answer, account)


@router.post("/logout")
def logout(request: Request, visitor: Signed, form: Checked) -> Response:
    if visitor.session is not None:
        signer_of(request).end(visitor.session)
    answer = RedirectResponse("/admin/login", 303)
    answer.delete_cookie(COOKIE, path="/admin")
    return answer


@router.get("/password")
def password_page(request: Request, visitor: Signed) -> Response:
    return page(request, "password.html", visitor=visitor, section="password", problem=None)


@router.post("/password")
def change_password(request: Request, visitor: Signed, form: Checked) -> Response:
    """A new password, for who knows the old one; every other session of the account is void after it."""
    accounts = accounts_of(request)
    problem = None
    if form.raw("new") != form.raw("again"):
        problem = "The new password is not the same in both fields."
    else:
        try:
            address = request.client.host if request.client else "unknown"
            accounts.log_in(visitor.name, form.raw("old"), address=address)
            account = accounts.set_password(visitor.name, form.raw("new"), actor=visitor.name)
        except LoginRefused:
            problem = "The old password is not right."
        except AttuneError as error:
            problem = str(error)
    if problem:
        return page(request, "password.html", status=422, visitor=visitor, section="password", problem=problem)
    return _let_in(request, RedirectResponse("/admin/studies", 303), account)


def _login(request: Request, *, name: str = "", problem: str | None = None, status: int = 200) -> Response:
    """The form with a token bound to a cookie of its own: nobody can be logged in as someone else from outside."""
    nonce = secrets.token_hex(16)
    token = signer_of(request).form_token(nonce)
    answer = page(request, "login.html", status=status, name=name, problem=problem, token=token)
    answer.set_cookie(
        FORM_COOKIE, nonce, max_age=3600, path="/admin", httponly=True, samesite="strict", secure=_is_https(request)
    )
    return answer


def _let_in(request: Request, answer: Response, account: Account) -> Response:
    answer.set_cookie(
        COOKIE, signer_of(request).open(account), max_age=SESSION_SECONDS, path="/admin", httponly=True,
        samesite="strict", secure=_is_https(request),
    )  # fmt: skip
    return answer


def _is_https(request: Request) -> bool:
    return request.url.scheme == "https"
