"""Builds the rating app: our own routes, the guard in front of them, and the Gradio page behind."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import datetime

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from alignment.accounts import SingleSignOn
from alignment.clips import ClipStore
from alignment.config import Settings
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.versions import list_versions
from alignment.errors import AttuneError, DatabaseError, NotFoundError, StoreError, VoteRejected
from rating_app import health, routes, routes_arena, routes_journey, routes_rating
from rating_app.admin import mount_admin
from rating_app.demo import ensure_demo_study
from rating_app.page import mount_page
from rating_app.perimeter import Perimeter, note_of, protect
from rating_app.sending import NO_STORE
from rating_app.service import RatingService
from rating_app.tokens import Tokens

log = logging.getLogger(__name__)


def create_app(
    database: Database,
    store: ClipStore,
    *,
    secret: str,
    study_name: str | None = None,
    clock: Callable[[], datetime] = utcnow,
    rng: random.Random | None = None,
    app_commit: str | None = None,
    with_page: bool = True,
    perimeter: Perimeter | None = None,
) -> FastAPI:
    """The app for one human study; without a name, for the demo study over the clips there are.

    ``with_page`` False leaves Gradio out, for tests of the routes alone. Raises NotFoundError for an unknown study
    and DataError for one of simulated listeners or a database without clips.
    """
    app = FastAPI(title="Attune", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.tokens = Tokens(secret)
    app.state.service = RatingService(
        database,
        store,
        secret=secret,
        study_name=study_name or ensure_demo_study(database),
        clock=clock,
        rng=rng,
        app_commit=app_commit,
    )
    app.state.database, app.state.store = database, store
    for part in (health, routes, routes_journey, routes_rating, routes_arena):
        app.include_router(part.router)
    app.add_exception_handler(AttuneError, _known_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _malformed)
    settings = Settings(database_url=database.url, store=store.root, secret=secret)
    mount_admin(app, database, store, secret=secret, sso=SingleSignOn.from_environment(), settings=settings)
    if with_page:
        mount_page(app)
    with database.session(write=False) as s:
        names = [version.name for version in list_versions(s)]
    protect(app, secret=secret, perimeter=perimeter or Perimeter(), secret_names=names)
    health.watch_room(app, database, store)
    return app


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status_code=status, headers=NO_STORE)


async def _known_error(request: Request, error: Exception) -> JSONResponse:
    """Refusals go to the rater as they are; faults on our side are logged, for they may name paths or versions."""
    note_of(request.scope).error = error
    if isinstance(error, VoteRejected):
        return _error(409, str(error))
    if isinstance(error, NotFoundError):
        return _error(404, "This pair is not known to the server.")
    log.error("%s", error)
    if isinstance(error, DatabaseError | StoreError):
        return _error(503, "The server cannot reach its data at the moment.")
    return _error(422, "The server cannot use this request.")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = sorted({".".join(str(part) for part in fault["loc"][1:]) for fault in error.errors()})
    return _error(422, f"The request has faults in: {', '.join(fields) or 'its body'}.")
