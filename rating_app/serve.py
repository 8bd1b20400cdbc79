"""Runs the rating app with uvicorn: one process, because Gradio keeps its sessions in memory."""

from __future__ import annotations

import sys

from alignment.clips import ClipStore
from alignment.db.engine import open_database
from rating_app.app import create_app
from rating_app.perimeter import Perimeter


def serve(
    *,
    database_url: str,
    store_root: str,
    secret: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    study_name: str | None = None,
    app_commit: str | None = None,
    perimeter: Perimeter | None = None,
) -> None:
    """Serves until interrupted. Without ``study_name`` a human study over the existing clips is used.

    Raises SchemaVersionError, DatabaseError, NotFoundError or DataError before the port is opened.
    """
    from rating_app.logs import configure_logging
    from rating_app.server import make_server

    database = open_database(database_url)
    try:
        app = create_app(
            database, ClipStore(store_root), secret=secret, study_name=study_name, app_commit=app_commit,
            perimeter=perimeter,
        )  # fmt: skip
        print(f"Listening page: http://{host}:{port}  (study: {app.state.service.study.name})", file=sys.stderr)
        configure_logging()
        make_server(app, host=host, port=port).run()
    finally:
        database.close()
