"""`attune serve`: the rating app on a database."""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.common import DatabaseUrl, Home, settings_of


def serve(
    study: Annotated[
        str | None,
        typer.Option(help="Study to serve; default: a human study over the clips that are there.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    home: Home = None,
    database: DatabaseUrl = None,
) -> None:
    """Open the blind listening page for human raters."""
    from alignment.db.engine import open_database

    settings = settings_of(home, database).for_serving()
    open_database(settings.database_url).close()  # faults are told before anything heavy is loaded
    _check_free(host, port)

    from alignment.circle.workspace import current_commit
    from rating_app.perimeter import Perimeter
    from rating_app.serve import serve as run

    run(
        database_url=settings.database_url, store_root=settings.store, secret=settings.secret, host=host, port=port,
        study_name=study, app_commit=current_commit(), perimeter=Perimeter.from_settings(settings),
    )  # fmt: skip


def _check_free(host: str, port: int) -> None:
    """Raises ConfigError when nothing can listen at this address, before a study is made for it."""
    import socket

    from alignment.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{host}:{port} cannot be listened on ({reason}); give another --port.") from None
