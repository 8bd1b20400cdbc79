"""Runs the rating app with uvicorn: one process, because Gradio keeps its sessions in memory."""

from __future__ import annotations

import sys

from alignment.clips import ClipStore
from alignment.db.engine import open_database
from rating_app.app import create_app


def serve(
    *,
    database_url: str,
    store_root: str,
    secret: str,
    host: str = "127.0.0.1",
    port: int = 7860,
    study_name: str | None = None,
    app_commit: str | None = None,
) -> None:
    """Serves until interrupted. Without ``study_name`` a human study over the existing clips is used.

    Raises SchemaVersionError, DatabaseError, NotFoundError or DataError before the port is opened.
    """
    import uvicorn

    database = open_database(database_url)
    try:
        app = create_app(
            database, ClipStore(store_root), secret=secret, study_name=study_name, app_commit=app_commit
        )
        print(f"Listening page: http://{host}:{port}  (study: {app.state.service.study.name})", file=sys.stderr)
        uvicorn.run(
            app,
            host=host,
            port=port,
            workers=1,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
        )
    finally:
        database.close()
