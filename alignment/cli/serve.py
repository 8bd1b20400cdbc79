"""`attune serve`: the rating app on a database, with everything it needs on a laptop."""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.common import DatabaseUrl, Home, settings_of


def serve(
    study: Annotated[
        str | None,
        typer.Option(
            help="Study of an address that names none; default: the newest open one, or a demo over the clips.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Start a worker as a child; on SQLite only.")
    ] = True,
    arena: Annotated[
        bool, typer.Option("--arena/--no-arena", help="Also offer a study of typed prompts; on SQLite only.")
    ] = True,
    home: Home = None,
    database: DatabaseUrl = None,
) -> None:
    """Open the blind listening page for human raters.

    On SQLite everything is made that is missing: the database, first clips by attune-tiny, a study. On PostgreSQL
    nothing is: create the schema with `attune db upgrade`, a study with `attune study create`, and start
    `attune worker` apart."""
    settings = settings_of(home, database).for_serving()

    from alignment.circle.workspace import current_commit
    from rating_app.perimeter import Perimeter
    from rating_app.serve import Wishes
    from rating_app.serve import serve as run

    run(
        Wishes(
            database_url=settings.database_url, store_root=settings.store, secret=settings.secret, host=host,
            port=port, study_name=study, app_commit=current_commit(), perimeter=Perimeter.from_settings(settings),
            worker=worker, arena=arena, production=settings.is_production,
        )
    )  # fmt: skip
