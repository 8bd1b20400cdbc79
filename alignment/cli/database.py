"""`attune db`: create, upgrade and look at the schema."""

from __future__ import annotations

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, emit, settings_of

app = typer.Typer(no_args_is_help=True, help="Create or upgrade the database.")


@app.command("upgrade")
def upgrade(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Create the database, or bring it to this code's schema; votes already there are kept."""
    from alignment.db import migrate
    from alignment.db.engine import shown

    url = settings_of(home, database).database_url
    before = migrate.current_revision(url)
    migrate.upgrade(url)
    after = migrate.current_revision(url)
    text = f"{shown(url)}: schema {after}" + (" (already current)" if before == after else "")
    emit({"database": shown(url), "before": before, "revision": after}, text, as_json)


@app.command("current")
def current(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Show the schema revision of the database and of this code."""
    from alignment.db import migrate
    from alignment.db.engine import shown

    url = settings_of(home, database).database_url
    found, head = migrate.current_revision(url), migrate.head_revision()
    text = f"{shown(url)}: schema {found or 'none'}, code {head}"
    emit({"database": shown(url), "revision": found, "head": head}, text, as_json)
