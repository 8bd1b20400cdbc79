"""Runs the rating app: one process, because Gradio keeps its sessions in memory, and beside it a worker if need be."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.engine import Database, normalised, open_database
from alignment.errors import ConfigError, DataError, StoreError
from rating_app.app import create_app
from rating_app.demo import default_study, ensure_arena_study, ensure_demo_study, newcomers_rules
from rating_app.doorway import Doorway
from rating_app.perimeter import Perimeter
from rating_app.singer import Singer, worker_command

FIRST_PROMPTS = 12


@dataclass(frozen=True)
class Wishes:
    """What `attune serve` was asked to do. ``embedded``: the database is a file that may be made and filled here,
    which on PostgreSQL and in production nobody does behind an organiser's back."""

    database_url: str
    store_root: str
    secret: str
    host: str = "127.0.0.1"
    port: int = 7860
    study_name: str | None = None
    app_commit: str | None = None
    perimeter: Perimeter | None = None
    worker: bool = True
    arena: bool = True
    production: bool = False

    @property
    def embedded(self) -> bool:
        return normalised(self.database_url).get_backend_name() == "sqlite" and not self.production

    @property
    def log_file(self) -> Path | None:
        """Where a line for every request goes: on a laptop a file in the home folder, lest they bury the address on the
        terminal. None, which means stderr, in production, without a terminal, and where the store is no folder."""
        if self.production or not sys.stderr.isatty() or "://" in self.store_root:
            return None
        return Path(self.store_root).parent / "log" / "requests.jsonl"

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def serve(wishes: Wishes) -> None:
    """Serves until interrupted.

    On an embedded database that holds nothing, the schema is made, a worker sings the first clips, and meanwhile the
    page says so. Raises ConfigError when the port is taken, SchemaVersionError or DatabaseError when the database
    cannot be used, NotFoundError or DataError when there is no study to serve, StoreError when clips cannot be kept:
    all of these before anything is served."""
    listener = listen(wishes.host, wishes.port)  # held from here on, so that nothing is made for a port that is taken
    try:
        database = _open(wishes)
        try:
            _serve(wishes, database, listener)
        finally:
            database.close()
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address. Raises ConfigError when that is impossible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); give another --host."
        ) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); give another --port."
        ) from None
    return bound


def _open(wishes: Wishes) -> Database:
    if wishes.embedded:
        migrate.upgrade(wishes.database_url)
        try:
            if "://" not in wishes.store_root:
                Path(wishes.store_root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{wishes.store_root} cannot be created ({error.strerror}); give another --home."
            ) from error
    return open_database(wishes.database_url)


def _serve(wishes: Wishes, database: Database, listener: socket.socket) -> None:
    from rating_app.server import settle

    log_file = _begin_log(wishes)  # before the worker speaks
    study = _study_that_is_there(wishes, database)
    singing = wishes.worker and wishes.embedded
    if study is None and not singing:
        raise DataError(
            "The database holds no clips to compare yet and --no-worker leaves nobody to sing some; "
            "run without it, or `attune generate` first."
        )
    singer = _singer(wishes, first_clips=study is None) if singing and (wishes.arena or study is None) else None

    def build(name: str) -> ASGIApp:
        app = create_app(
            database, ClipStore(wishes.store_root), secret=wishes.secret, study_name=name,
            app_commit=wishes.app_commit, perimeter=wishes.perimeter,
        )  # fmt: skip
        logged = f" (every request is logged in {log_file})" if log_file else ""
        print(f"Listening page: {wishes.address}{logged}", file=sys.stderr)
        if singer is not None and wishes.arena:
            typed = ensure_arena_study(database, ClipStore(wishes.store_root))
            print(f"Type prompts yourself: {wishes.address}/?study={typed}", file=sys.stderr)
        sys.stderr.flush()
        settle()
        return app

    if study is not None:
        app = build(study)
        if singer is not None:
            singer.start()
        _run(app, wishes, listener, singer)
    else:
        assert singer is not None
        print(f"Singing the first clips; {wishes.address} says how far they are.", file=sys.stderr, flush=True)
        singer.start()

        def prepare() -> ASGIApp:
            import gradio  # noqa: F401  (takes seconds, which the singer needs anyway)

            singer.wait_for_first_clips()
            return build(ensure_demo_study(database, rules=newcomers_rules))

        _run(Doorway(prepare, sung=lambda: singer.sung), wishes, listener, singer)


def _begin_log(wishes: Wishes) -> Path | None:
    """Sends the log where it belongs; the file it goes to, None for stderr."""
    from rating_app.logs import configure_logging

    if wishes.log_file is not None:
        try:
            configure_logging(quiet_to=wishes.log_file)
            return wishes.log_file
        except OSError:  # a home that is only read, say: the terminal will do
            pass
    configure_logging()
    return None


def _study_that_is_there(wishes: Wishes, database: Database) -> str | None:
    """The study to serve; None when there is nothing to rate yet and the first clips would change that."""
    if wishes.study_name is not None:
        return wishes.study_name
    chosen = default_study(database)
    if chosen is None and wishes.embedded:
        try:
            chosen = ensure_demo_study(database, rules=newcomers_rules)
        except DataError:
            return None
    if chosen is None:
        raise DataError(
            "There is no open study for people in this database; make one with `attune study create FILE` and open "
            "it, or name one with --study."
        )
    return chosen


def _singer(wishes: Wishes, *, first_clips: bool) -> Singer:
    options = ("--first-clips", str(FIRST_PROMPTS)) if first_clips else ()
    environment = {
        "ATTUNE_DATABASE": wishes.database_url, "ATTUNE_STORE": wishes.store_root, "ATTUNE_SECRET": wishes.secret,
    }  # fmt: skip
    return Singer(worker_command(*options), environment=environment, first_clips=first_clips)


def _run(app: ASGIApp, wishes: Wishes, listener: socket.socket, singer: Singer | None) -> None:
    from rating_app.server import make_server

    server = make_server(app, host=wishes.host, port=wishes.port)
    if isinstance(app, Doorway):
        app.on_failure = lambda: setattr(server, "should_exit", True)
    try:
        server.run(sockets=[listener])
    finally:
        if singer is not None:
            singer.stop()
    if isinstance(app, Doorway) and app.error is not None:
        raise app.error
