"""Opening a database: SQLite and PostgreSQL set up alike, every failure told in one sentence."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from alignment.db.durable import LogFlusher
from alignment.errors import DatabaseError, SchemaVersionError

BUSY_SECONDS = 30
IDLE_SECONDS = 2.0  # after so long a pause a connection is asked whether it still works

# Fragments of what SQLite and PostgreSQL say, and what a person should do about it.
_SENTENCES = (
    (
        ("file is not a database", "database disk image is malformed"),
        "is not a database or is damaged; give another path or restore a copy",
    ),
    (
        ("unable to open database file",),
        "cannot be opened; check that the path is a file and its folder can be written",
    ),
    (
        ("database or disk is full", "no space left on device", "could not extend file"),
        "has no room left; free some space, nothing was half-written",
    ),
    (
        ("readonly database", "read-only transaction", "read-only database"),
        "is read-only; make it writable or give another path",
    ),
    (("database is locked",), f"was busy for more than {BUSY_SECONDS} seconds; stop the other process and try again"),
    (("disk i/o error",), "could not be read or written; check the disk"),
    (("password authentication failed", "no password supplied"), "refused the user name or password"),
    (("does not exist",), "does not have what was asked for"),
    (
        ("connection refused", "could not translate host", "connection failed", "timeout expired", "connection is bad"),
        "cannot be reached; check the address and that the server runs",
    ),
    (("append-only",), "keeps this table append-only; write a new row instead of changing an old one"),
)


def shown(url: str | sa.URL) -> str:
    """The address without its password: a path for SQLite, a URL otherwise."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return parsed.database or "the in-memory database"
    return parsed.render_as_string(hide_password=True)


def explain(error: Exception, url: str | sa.URL) -> DatabaseError:
    """The DatabaseError that says in one sentence what ``error`` means for a person."""
    raw = str(getattr(error, "orig", None) or error).strip()
    first = " ".join(raw.split("\n\n")[0].split())
    for fragments, sentence in _SENTENCES:
        if any(fragment in raw.lower() for fragment in fragments):
            return DatabaseError(f"{shown(url)} {sentence} ({first}).")
    return DatabaseError(f"{shown(url)} refused the operation ({first}).")


def normalised(url: str | sa.URL) -> sa.URL:
    """The URL with the driver this code uses. Raises DatabaseError for anything but SQLite and PostgreSQL."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (SQLAlchemyError, ValueError):
        raise DatabaseError(
            f"{url!r} is not a database address; write sqlite:///data/attune.db or postgresql://user@host/name."
        ) from None
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise DatabaseError("An in-memory database would lose every vote; give a file: sqlite:///data/attune.db.")
        return parsed.set(drivername="sqlite")
    raise DatabaseError(f"{backend} is not supported; use SQLite (sqlite:///data/attune.db) or PostgreSQL.")


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of a plain SQLite URL; None for PostgreSQL and for ``file:`` URIs."""
    if url.get_backend_name() != "sqlite" or (url.database or "").startswith("file:"):
        return None
    return Path(url.database or "")


def create_engine(url: str | sa.URL, *, flushed_later: bool = False) -> sa.Engine:
    """An engine with Attune's settings; connects to nothing yet.

    SQLite: foreign keys, write-ahead log, full synchronous writes; ``flushed_later`` leaves the flush after a commit
    to ``Database.session``. The driver's own transaction handling is switched off, because it commits before DDL and
    begins too late for a read followed by a write.
    """
    url = normalised(url)
    if url.get_backend_name() != "sqlite":
        # Parameters stay out of error texts: they hold comments and keys, and the texts are logged.
        timeout = {} if "connect_timeout" in url.query else {"connect_timeout": 10}
        engine = sa.create_engine(url, pool_size=16, hide_parameters=True, connect_args=timeout)
        _ask_after_a_pause(engine)
        return engine
    waiting = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = sa.create_engine(url, pool_size=48, max_overflow=16, hide_parameters=True, connect_args=waiting)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection, _record) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        # Without this INSERT OR REPLACE deletes rows behind the back of the append-only triggers.
        connection.execute("PRAGMA recursive_triggers=ON")
        connection.execute(f"PRAGMA synchronous={'NORMAL' if flushed_later else 'FULL'}")
        if connection.execute("PRAGMA journal_mode").fetchone()[0].lower() != "wal":
            connection.execute("PRAGMA journal_mode=WAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # IMMEDIATE takes the write lock at once: a transaction that reads first could otherwise not be promoted.
        read_only = connection.get_execution_options().get("attune_read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _ask_after_a_pause(engine: sa.Engine) -> None:
    """A connection that lay idle is asked whether its server is still there before it is used, one in use is not: the
    question is a round trip, an eighth of a vote's processor time."""

    @sa.event.listens_for(engine, "checkin")
    def laid_down(_connection, record) -> None:
        record.info["idle_since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def taken_up(connection, record, _proxy) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) < IDLE_SECONDS:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except sa.exc.DBAPIError:
            alive = False
        except engine.dialect.loaded_dbapi.Error:
            alive = False
        if not alive:
            raise sa.exc.DisconnectionError("The server went away; the pool opens another connection.")


_write_locks: dict[str, threading.Lock] = {}
_flushers: dict[str, LogFlusher] = {}
_write_locks_guard = threading.Lock()


class Database:
    """An open database. Use ``session()`` for every transaction; ``close()`` when done."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.url = engine.url.render_as_string(hide_password=False)
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._readers = sessionmaker(
            engine.execution_options(attune_read_only=True), expire_on_commit=False, autoflush=False
        )
        self._here = threading.local()
        with _write_locks_guard:
            # One lock a file: waiting here is fair and quick, waiting inside SQLite is polling.
            self._write_lock = _write_locks.setdefault(self.url, threading.Lock())
            path = sqlite_path(engine.url)
            self._flusher = _flushers.setdefault(self.url, LogFlusher(path)) if path is not None else None

    @contextmanager
    def session(self, *, write: bool = True) -> Iterator[Session]:
        """A transaction: commits at the end of the block, rolls back on any error.

        On SQLite only one writing session exists at a time in a process; keep it short, and do not call
        VoteService inside one. ``write=False`` sees one moment's state, waits for nobody and is rolled back.
        Raises DatabaseError in one sentence for whatever the database refuses.
        """
        if not write:
            with self._told(), self._readers() as session:
                yield session
            return
        if not self.is_sqlite:
            with self._told(), self._sessions.begin() as session:
                yield session
            return
        if getattr(self._here, "writing", False):
            raise DatabaseError(
                "A writing session is already open in this thread; end it first, or read with session(write=False)."
            )
        with self._write_lock:
            self._here.writing = True
            try:
                with self._told(), self._sessions.begin() as session:
                    file = session.connection().connection.dbapi_connection
                    before = file.total_changes
                    yield session
                    session.flush()
                    changed = file.total_changes != before
                ticket = self._flusher and self._flusher.committed(changed=changed)
            finally:
                self._here.writing = False
        if self._flusher is not None:
            self._flusher.wait(ticket)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise explain(error, self.engine.url) from error
        except sa.exc.TimeoutError as error:
            raise DatabaseError(
                f"{shown(self.engine.url)} had no connection free for half a minute; try again, or look for what holds "
                "them."
            ) from error

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()


def open_database(url: str, *, check_schema: bool = True) -> Database:
    """The database at ``url``, reachable and writable.

    Raises SchemaVersionError when its schema is missing, older or newer than this code, and DatabaseError in one
    sentence when it is unreachable, no database, read-only or full. Creates the parent folder of an SQLite file
    when ``check_schema`` is False; never an empty file when it is True.
    """
    from alignment.db import migrate

    parsed = normalised(url)
    path = sqlite_path(parsed)
    if path is not None and not path.exists():
        if check_schema:
            raise SchemaVersionError(f"{path}: there is no database yet; run `attune db upgrade` to create it.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"{path.parent} cannot be created ({error.strerror}); give another path.") from error
    # A path that is a URI has no file of its own beside which its log would lie.
    engine = create_engine(parsed, flushed_later=path is not None)
    try:
        _check_writable(engine)
        if check_schema:
            migrate.check_schema(engine)
    except DBAPIError as error:
        engine.dispose()
        raise explain(error, parsed) from error
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def _check_writable(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
                raise DatabaseError(f"{shown(engine.url)} is read-only; connect to the primary server.")
        else:
            # On a read-only file BEGIN IMMEDIATE begins all the same; only a write, rolled back, tells.
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        connection.rollback()
