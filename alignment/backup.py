"""Backups: a database as it was at one moment, with every file of the store that it names, each checked by its hash.

TARGET/manifest.json      what is in it; written last, so that a folder without it is no backup
TARGET/attune.db          SQLite's own online copy, or
TARGET/attune.dump        pg_dump's custom format
TARGET/store/...          the files that the database names
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.clips import SCHEME, ClipStore
from alignment.db import migrate
from alignment.db.base import utcnow
from alignment.db.engine import create_engine, normalised, open_database, shown, sqlite_path
from alignment.db.tables import (
    Base,
    ClipRow,
    ListeningSessionRow,
    RewardModelRow,
    SnapshotRow,
    TrainRunRow,
    VersionRow,
)
from alignment.db.votes import chain_faults
from alignment.errors import ConfigError, DatabaseError, DataError, StoreError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Backup:
    """What a backup holds, or what was restored from one. ``faults``: sentences about chains that are not whole."""

    path: Path
    rows: dict[str, int]
    files: int
    faults: tuple[str, ...]


def back_up(database_url: str, store: ClipStore, target: Path, *, with_store: bool = True) -> Backup:
    """A backup in the new folder ``target``, taken while the app runs; votes go on meanwhile.

    ``with_store`` False lists the store's files without copying them, for a store that is copied by other means.
    Raises DataError when the target exists, StoreError when a file the database names is missing or altered,
    DatabaseError when the database cannot be read. Nothing is left behind then."""
    if target.exists():
        raise DataError(f"{target} exists; a backup never overwrites, give the name of a new folder.")
    open_database(database_url).close()
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        kept = _keep(normalised(database_url), partial)
        with kept.session as s:
            rows, faults, uris = _rows(s), _faults(s), _uris(s)
            clips = list(s.execute(sa.select(ClipRow.audio_sha256, ClipRow.codes_sha256)))
        files = _files_of(store, clips, uris)
        if with_store:
            copy = ClipStore(partial / "store")
            for key, sha256 in files.items():
                store.copy_file(key, sha256, copy)
        else:
            for key, sha256 in files.items():
                store.check_file(key, sha256)
        manifest = {
            "format": FORMAT,
            "made_at": utcnow().isoformat(timespec="seconds"),
            "schema": migrate.head_revision(),
            "database": {"file": kept.path.name, "sha256": _sha256(kept.path)},
            "rows": rows,
            "store_included": with_store,
            "files": files,
            "elsewhere": sorted(uri for uri in uris if not uri.startswith(SCHEME)),
            "chain_faults": faults,
        }
        _write_through(partial / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        partial.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}); free some space, check its rights.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Backup(target, rows, len(files), tuple(faults))


def restore(source: Path, database_url: str, store: ClipStore) -> Backup:
    """What was restored into a database and a store that hold nothing in its way.

    Everything is checked before anything is written, and the chains of votes and the rows again in what was restored.
    Raises DataError when ``source`` is no whole backup or the database is not empty, StoreError when a file differs."""
    manifest = _read_manifest(source)
    url = normalised(database_url)
    _refuse_to_overwrite(url)
    kept = source / manifest["database"]["file"]
    if _sha256(kept) != manifest["database"]["sha256"]:
        raise DataError(f"{kept} is not as it was when the backup was made; use another backup.")
    backup = ClipStore(source / "store") if manifest["store_included"] else store
    for key, sha256 in manifest["files"].items():
        backup.check_file(key, sha256)
    if manifest["store_included"]:
        for key, sha256 in manifest["files"].items():
            backup.copy_file(key, sha256, store)
    path = sqlite_path(url)
    if kept.suffix == ".db":
        if path is None:
            raise DataError(f"{source} holds an SQLite database; restore it into an SQLite file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            shutil.copyfile(kept, partial)
            rows = _check_restored(f"sqlite:///{partial}", manifest)
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            os.link(partial, path)  # fails where a file has appeared meanwhile, unlike a rename
        except FileExistsError:
            raise DataError(f"{path} has appeared meanwhile; nothing was overwritten.") from None
        finally:
            for leftover in (partial, Path(f"{partial}-wal"), Path(f"{partial}-shm")):
                leftover.unlink(missing_ok=True)
    else:
        if path is not None:
            raise DataError(f"{source} holds a PostgreSQL database; give --database postgresql+psycopg://...")
        _call_postgres("pg_restore", url, "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges",
                       str(kept))  # fmt: skip
        rows = _check_restored(database_url, manifest)
    return Backup(source, rows, len(manifest["files"]), ())


@dataclass
class _Kept:
    path: Path
    session: Any  # a context manager that gives a session with the state that was kept


def _keep(url: sa.URL, folder: Path) -> _Kept:
    path = sqlite_path(url)
    if path is None and url.get_backend_name() == "sqlite":
        raise ConfigError(f"{shown(url)} is not a plain file; give the path of the SQLite file.")
    if path is not None:
        copy = folder / "attune.db"
        _copy_sqlite(path, copy)
        return _Kept(copy, _sqlite_session(copy))
    dump = folder / "attune.dump"
    return _Kept(dump, _postgres_session(url, dump))


def _copy_sqlite(path: Path, copy: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)  # all pages in one step: one moment's state, and no writer waits
            target.execute("PRAGMA journal_mode=DELETE")
            found = target.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise DatabaseError(f"{path} cannot be copied ({error}); check the disk and its room.") from error
    if found != "ok":
        raise DatabaseError(f"{path} is damaged ({found}); restore an older backup.")


@contextmanager
def _sqlite_session(copy: Path) -> Iterator[Session]:
    engine = sa.create_engine(f"sqlite:///file:{copy.absolute()}?mode=ro&immutable=1&uri=true")
    with Session(engine) as session:
        yield session
    engine.dispose()


@contextmanager
def _postgres_session(url: sa.URL, dump: Path) -> Iterator[Session]:
    """A session that sees exactly what pg_dump has written, by PostgreSQL's own exported snapshot."""
    engine = create_engine(url).execution_options(isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection:
            snapshot = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
            _call_postgres("pg_dump", url, "--format=custom", f"--snapshot={snapshot}", f"--file={dump}")
            with Session(connection) as session:
                yield session
    finally:
        engine.dispose()


def _call_postgres(tool: str, url: sa.URL, *arguments: str) -> None:
    program = shutil.which(tool)
    if program is None:
        raise ConfigError(f"{tool} is not installed, and PostgreSQL is copied with it; install postgresql-client.")
    password = {"PGPASSWORD": url.password} if url.password else {}
    address = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    done = subprocess.run(
        [program, f"--dbname={address}", *arguments], env={**os.environ, **password}, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise DatabaseError(f"{tool} failed for {shown(url)} ({said}); nothing was kept of it.")


def _rows(s: Session) -> dict[str, int]:
    tables = Base.metadata.sorted_tables
    return {table.name: s.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables}


def _faults(s: Session) -> list[str]:
    return [fault for session in s.scalars(sa.select(ListeningSessionRow.id)) for fault in chain_faults(s, session)]


def _uris(s: Session) -> set[str]:
    columns = (VersionRow.adapter_uri, TrainRunRow.artefact_uri, RewardModelRow.artefact_uri, SnapshotRow.uri)
    return {uri for column in columns for uri in s.scalars(sa.select(column)) if uri}


def _files_of(store: ClipStore, clips: list[Any], uris: set[str]) -> dict[str, str]:
    """Key in the store -> sha256 of every file the database names."""
    files: dict[str, str] = {}
    for audio, codes in clips:
        files |= store.files_of_clip(audio, codes)
    for uri in sorted(uris):
        if uri.startswith(SCHEME):
            files |= store.files_of(uri)
    return files


def _read_manifest(source: Path) -> dict[str, Any]:
    path = source / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{source} has no {MANIFEST}, so it is no finished backup; give the folder of one.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); use another backup.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is of a format this code does not know; use the version of Attune that made it.")
    if manifest["chain_faults"]:
        raise DataError(
            f"{source}: chains of votes were broken when the backup was made ({manifest['chain_faults'][0]}); "
            "restore one from before."
        )
    return manifest


def _refuse_to_overwrite(url: sa.URL) -> None:
    path = sqlite_path(url)
    if path is not None:
        if path.exists() or Path(f"{path}-wal").exists():
            raise DataError(f"{path} exists; restore never overwrites, give another --home or move the file away.")
        return
    database = open_database(url.render_as_string(hide_password=False), check_schema=False)
    try:
        names = sa.inspect(database.engine).get_table_names()
    finally:
        database.close()
    if names:
        raise DataError(f"{shown(url)} has {len(names)} tables; restore never overwrites, create an empty database.")


def _check_restored(url: str, manifest: dict[str, Any]) -> dict[str, int]:
    """The rows restored. Raises DataError when they or the chains are not those of the backup."""
    migrate.upgrade(url)
    database = open_database(url)
    try:
        with database.session(write=False) as s:
            rows, faults = _rows(s), _faults(s)
    finally:
        database.close()
    other = [table for table, count in manifest["rows"].items() if rows.get(table) != count]
    if faults or other:
        had = manifest["rows"]
        what = faults[0] if faults else f"{other[0]} has {rows.get(other[0])} rows and had {had[other[0]]}."
        raise DataError(f"The restored database is not what was backed up: {what} Use another backup.")
    return rows


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); use another backup.") from error


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
