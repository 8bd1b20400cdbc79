"""Who asks for an admin page, and what their forms may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, HTTPException, Request

from alignment.accounts import Accounts, AdminSession, SessionSigner
from alignment.db.accounts import Account
from alignment.errors import LoginRefused

COOKIE, FORM_COOKIE = "attune_admin", "attune_admin_form"
MOST_BODY_BYTES = 512 * 1024


class LoginNeeded(Exception):
    """This address needs an admin session."""


@dataclass(frozen=True)
class Visitor:
    """A person with an account. ``token`` must come back with every form; ``session`` is None under single sign-on."""

    account: Account
    session: AdminSession | None
    token: str

    @property
    def name(self) -> str:
        return self.account.name


class Form:
    """What a browser posted: text by field name."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values

    def get(self, name: str, default: str = "") -> str:
        """The field's first value, stripped."""
        return (self._values.get(name) or [default])[0].strip()

    def raw(self, name: str) -> str:
        """The field's first value as it was typed."""
        return (self._values.get(name) or [""])[0]

    def all(self, name: str) -> list[str]:
        return list(self._values.get(name, ()))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def whole(self, name: str) -> int | None:
        """The field as a whole number; None when empty. Raises HTTPException 422 for anything else."""
        text = self.get(name)
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            raise HTTPException(422, f"{text!r} is not a whole number; correct the field {name}.") from None


def accounts_of(request: Request) -> Accounts:
    return request.app.state.accounts


def signer_of(request: Request) -> SessionSigner:
    return request.app.state.signer


def peer_of(request: Request) -> str | None:
    """Address of whoever is connected, which a guard in front may have replaced by the address behind a proxy."""
    return request.scope.get("attune.peer") or (request.client.host if request.client else None)


def find_visitor(request: Request) -> Visitor | None:
    """Who asks; None without a valid session. Raises LoginRefused for a signed-on name without an account."""
    accounts, signer = accounts_of(request), signer_of(request)
    sso = request.app.state.sso
    name = sso.name_from(request.scope["headers"], peer_of(request)) if sso else None
    if name is not None:
        account = accounts.by_single_sign_on(name)
        if account is None:
            raise LoginRefused(f"You are signed on as {name}, who has no account here; ask an admin for one.")
        return Visitor(account, None, signer.form_token(f"single sign-on {account.id}"))
    found = signer.read(request.cookies.get(COOKIE), accounts.get)
    if found is None:
        return None
    account, session = found
    return Visitor(account, session, signer.form_token(session.nonce))


def visitor_of(request: Request) -> Visitor:
    visitor = find_visitor(request)
    if visitor is None:
        raise LoginNeeded
    return visitor


def admin_of(visitor: Annotated[Visitor, Depends(visitor_of)]) -> Visitor:
    """A visitor who may manage accounts; for others the address does not exist."""
    if not visitor.account.is_admin:
        raise HTTPException(404, "There is nothing at this address.")
    return visitor


def check_same_site(request: Request) -> None:
    """Raises HTTPException 403 when another site made the browser post this."""
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "This request came from another site.")


async def posted(request: Request) -> Form:
    """The form in the request. Raises HTTPException when it is too large, of another kind or from another site."""
    check_same_site(request)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send the page's own form.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413, f"The form is larger than {MOST_BODY_BYTES // 1024} KiB.")
    try:
        return Form(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=2000))
    except ValueError:
        raise HTTPException(422, "The form cannot be read.") from None


async def checked_form(request: Request, visitor: Annotated[Visitor, Depends(visitor_of)]) -> Form:
    """The form, sent from a page of this very session. Raises HTTPException 403 without its token."""
    form = await posted(request)
    signer = signer_of(request)
    nonce = visitor.session.nonce if visitor.session else f"single sign-on {visitor.account.id}"
    if not signer.form_token_is_right(nonce, form.get("token")):
        raise HTTPException(403, "This form is from another session; go back, reload the page and send it again.")
    return form


Signed = Annotated[Visitor, Depends(visitor_of)]
Admin = Annotated[Visitor, Depends(admin_of)]
Checked = Annotated[Form, Depends(checked_form)]
