"""Routes for those who run the server: is it alive, is it ready, how does it fare."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from alignment.clips import ClipStore
from alignment.db.engine import Database, sqlite_path
from alignment.db.versions import list_versions
from alignment.errors import DatabaseError, StoreError
from rating_app.logs import NAMES
from rating_app.metrics import Metrics
from rating_app.perimeter import Perimeter, note_of

log = logging.getLogger(__name__)
router = APIRouter()
NO_STORE = {"Cache-Control": "private, no-store"}


@router.get("/healthz")
async def alive() -> Response:
    """The process answers. Asks nothing of the database, so that a database that is away restarts nobody."""
    return JSONResponse({"status": "ok"}, headers=NO_STORE)


@router.get("/healthz/ready")
def ready(request: Request) -> Response:
    """Database and store answer: 200, else 503 with which of them does not."""
    database, store = request.app.state.database, request.app.state.store
    found = {"database": "ok", "store": "ok"}
    try:
        with database.session(write=False) as s:
            s.execute(sa.text("SELECT 1 FROM alembic_version"))
            NAMES.add(version.name for version in list_versions(s))
    except DatabaseError as error:
        found["database"] = "failing"
        note_of(request.scope).error = error
        log.error("The database does not answer: %s", error)
    try:
        store.fs.invalidate_cache()
        if not store.fs.isdir(store.root):
            raise StoreError(f"{store.root} is not there; check the disk it lies on, or restore the store.")
    except (OSError, StoreError) as error:
        found["store"] = "failing"
        log.error("The store does not answer: %s", error)
    if "failing" in found.values():
        return JSONResponse({"status": "not ready", **found}, status_code=503, headers=NO_STORE)
    return JSONResponse({"status": "ready", **found}, headers=NO_STORE)


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Prometheus's page for who holds the token; for all others there is nothing here."""
    perimeter: Perimeter = request.app.state.perimeter
    if not Metrics.may_read(request.headers.get("authorization"), perimeter.metrics_token):
        raise HTTPException(404, "There is nothing at this address.")
    page = request.app.state.metrics.page()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8", headers=NO_STORE)


def watch_room(app: FastAPI, database: Database, store: ClipStore) -> None:
    """Lets the metrics tell how much room is left for votes and clips, where that is this machine's matter."""
    path = sqlite_path(database.engine.url)
    if path is not None:
        app.state.metrics.watch_room("database", path.resolve().parent)
    if store.is_local and Path(store.root).is_dir():
        app.state.metrics.watch_room("store", Path(store.root))
