"""Builds the admin application and hangs it under /admin of the rating app."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from argon2 import PasswordHasher
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignment.accounts import Accounts, SessionSigner, SingleSignOn
from alignment.clips import ClipStore
from alignment.config import Settings
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.errors import AttuneError, DatabaseError, LoginRefused, NotFoundError, StoreError
from rating_app.admin import (
    pages_accounts,
    pages_compare,
    pages_jobs,
    pages_leaderboard,
    pages_login,
    pages_studies,
    pages_study,
    pages_versions,
)
from rating_app.admin.figures_cache import FiguresCache
from rating_app.admin.leaderboard_cache import LeaderboardCache
from rating_app.admin.view import PLAYER, message_page, static_digest
from rating_app.admin.visitors import LoginNeeded

log = logging.getLogger(__name__)
STATIC = Path(__file__).resolve().parent / "static"
PAGES = (
    pages_login, pages_studies, pages_study, pages_compare, pages_versions, pages_leaderboard, pages_jobs,
    pages_accounts,
)  # fmt: skip

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Forms posted under `no-referrer` would carry the origin "null", which the guard takes for a foreign one.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "x-robots-tag": "noindex, nofollow",
}


class _Headers:
    """Puts our headers on every answer, errors and files included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                # Static files are asked for by their digest, so browsers may keep them.
                kept = "public, max-age=86400" if "/static/" in scope["path"] else "private, no-store"
                headers.setdefault("cache-control", kept)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def mount_admin(
    app: FastAPI,
    database: Database,
    store: ClipStore,
    *,
    secret: str,
    sso: SingleSignOn | None = None,
    settings: Settings | None = None,
    clock: Callable[[], datetime] = utcnow,
    now: Callable[[], float] = time.time,
    hasher: PasswordHasher | None = None,
) -> FastAPI:
    """The admin application, hung under /admin of ``app``. Call it before Gradio is mounted at the root, which
    would take its addresses.

    ``secret`` keys its sessions (with another key than the raters'); ``sso`` trusts a proxy's header
    (``SingleSignOn.from_environment()``); ``settings`` say where jobs are kept; without them there are none."""
    admin = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    admin.state.database, admin.state.store = database, store
    admin.state.accounts = Accounts(database, clock=clock, hasher=hasher)
    admin.state.signer = SessionSigner(secret, now=now)
    admin.state.sso = sso
    admin.state.figures = FiguresCache(database)
    admin.state.leaderboards = LeaderboardCache(database)
    admin.state.settings = settings
    for pages in PAGES:
        admin.include_router(pages.router)
    # Modules find each other beside themselves: under a digest of all of them, none is ever mixed with an older one.
    for name in (f"/static/{static_digest()}/player", f"/static/{static_digest()}"):
        admin.mount(name, StaticFiles(directory=PLAYER[0].parent if name.endswith("player") else STATIC))
    admin.mount("/static", StaticFiles(directory=STATIC), name="static")
    admin.add_exception_handler(LoginNeeded, _to_login)
    admin.add_exception_handler(AttuneError, _known_error)
    admin.add_exception_handler(HTTPException, _http_error)
    admin.add_exception_handler(RequestValidationError, _malformed)
    admin.add_middleware(_Headers)

    @app.get("/admin", include_in_schema=False)
    def to_admin() -> Response:
        return RedirectResponse("/admin/studies", 303, headers={"cache-control": "no-store"})

    app.mount("/admin", admin)
    return admin


async def _to_login(request: Request, error: Exception) -> Response:
    if request.headers.get("x-attune-fragment"):  # a page that refreshes itself must not get the log-in page inside
        return Response(status_code=401)
    return RedirectResponse("/admin/login", 303)


async def _known_error(request: Request, error: Exception) -> Response:
    status = 422
    if isinstance(error, NotFoundError):
        status = 404
    elif isinstance(error, LoginRefused):
        status = 403
    elif isinstance(error, DatabaseError | StoreError):
        status = 503
        log.error("%s %s: %s", request.method, request.url.path, error)
    return message_page(request, "That did not work", str(error), status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    from rating_app.admin.visitors import find_visitor

    if error.status_code in (404, 405) and find_visitor(request) is None:
        return await _to_login(request, error)  # strangers do not learn which addresses exist
    return message_page(request, "That did not work", str(error.detail), error.status_code)


async def _malformed(request: Request, error: Exception) -> Response:
    return message_page(request, "That did not work", "There is nothing at this address.", 404)
