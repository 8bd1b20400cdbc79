"""Schema versions: upgrade, downgrade, and whether a database fits this code. Alembic is set up here, in code."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from alignment.db.engine import create_engine, explain, normalised, shown, sqlite_path
from alignment.errors import DatabaseError, SchemaVersionError

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def alembic_config() -> Config:
    """Alembic's configuration, without a file, so that it works from any folder."""
    if not (MIGRATIONS / "env.py").is_file():
        raise DatabaseError(f"{MIGRATIONS} is missing; install Attune from its checkout with `pip install -e .`.")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def head_revision() -> str:
    """The schema revision that this code needs."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise DatabaseError(f"{MIGRATIONS} holds no revision; restore the checkout.")
    return head


def current_revision(url: str) -> str | None:
    """The schema revision of the database; None when it is empty or does not exist yet."""
    parsed = normalised(url)
    path = sqlite_path(parsed)
    if path is not None and not path.exists():
        return None
    engine = create_engine(parsed)
    try:
        return _revision(engine)
    except DBAPIError as error:
        raise explain(error, parsed) from error
    finally:
        engine.dispose()


def check_schema(engine: sa.Engine) -> None:
    """Raises SchemaVersionError unless the schema is exactly the one this code needs."""
    found, needed = _revision(engine), head_revision()
    if found == needed:
        return
    where = shown(engine.url)
    if found is None:
        raise SchemaVersionError(f"{where} holds no Attune schema; run `attune db upgrade`.")
    if found in _known_revisions():
        raise SchemaVersionError(
            f"{where} has schema {found}, older than {needed} which this code needs; run `attune db upgrade`."
        )
    raise SchemaVersionError(f"{where} has schema {found}, newer than {needed} which this code knows; update Attune.")


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the schema up to ``revision`` in one transaction; creates an SQLite file and its folder.

    Raises SchemaVersionError when the database is newer than this code, DatabaseError when it cannot be used."""
    _run(url, command.upgrade, revision)


def downgrade(url: str, revision: str) -> None:
    """Takes the schema back to ``revision`` ("base" removes every table, and with them every vote)."""
    _run(url, command.downgrade, revision)


def _run(url: str, action, revision: str) -> None:
    parsed = normalised(url)
    path = sqlite_path(parsed)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"{path.parent} cannot be created ({error.strerror}); give another path.") from error
    engine = create_engine(parsed)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                # Two servers that start together must not migrate together.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4120227)")
            found = MigrationContext.configure(connection).get_current_revision()
            if found is not None and found not in _known_revisions():
                raise SchemaVersionError(
                    f"{shown(parsed)} has schema {found}, newer than {head_revision()} which this code knows; "
                    "update Attune."
                )
            config = alembic_config()
            config.attributes["connection"] = connection
            action(config, revision)
    except DBAPIError as error:
        raise explain(error, parsed) from error
    except CommandError as error:
        raise DatabaseError(f"{shown(parsed)} cannot be moved to schema {revision!r}: {error}.") from error
    finally:
        engine.dispose()


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect().execution_options(attune_read_only=True) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
