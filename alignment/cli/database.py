"""`attune db`: create, upgrade and look at the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, emit, settings_of

app = typer.Typer(no_args_is_help=True, help="Create, upgrade, back up or restore the database.")


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


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="New folder for the backup.", show_default=False)],
    store: Annotated[bool, typer.Option(help="Copy clips and models too, or only check them.")] = True,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy the database as it is at this moment, and every file it names; the app may go on running."""
    from alignment.backup import back_up
    from alignment.clips import ClipStore

    settings = settings_of(home, database)
    made = back_up(settings.database_url, ClipStore(settings.store), target, with_store=store)
    for fault in made.faults:
        typer.echo(f"attune: {fault} The backup keeps it as it is, and restore will refuse it.", err=True)
    text = f"{target}: {made.rows['vote']} votes, {made.rows['clip']} clips, {made.files} files"
    emit({"backup": str(target), "rows": made.rows, "files": made.files, "faults": list(made.faults)}, text, as_json)


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(help="Folder made by `attune db backup`.", show_default=False)],
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back into an empty database; checks every hash and every chain of votes, overwrites nothing."""
    from alignment.backup import restore as bring_back
    from alignment.clips import ClipStore
    from alignment.db.engine import shown

    settings = settings_of(home, database)
    made = bring_back(source, settings.database_url, ClipStore(settings.store))
    place = shown(settings.database_url)
    text = f"{place}: {made.rows['vote']} votes, {made.rows['clip']} clips, {made.files} files; every chain is whole"
    emit({"database": place, "rows": made.rows, "files": made.files}, text, as_json)
