"""`attune clips`: the store of audio, codes, adapters and models, looked after."""

from __future__ import annotations

from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, bar, emit, settings_of

app = typer.Typer(no_args_is_help=True, help="Look after the store: find altered files, take unused ones away.")
SHOWN = 20


@app.command("check")
def check(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Compare every file that the database refers to with its hash; exit 1 when one is missing or altered."""
    from alignment.clips import ClipStore
    from alignment.db.engine import open_database
    from alignment.store_check import check_store

    settings = settings_of(home, database)
    with bar("check") as progress:
        found = check_store(open_database(settings.database_url), ClipStore(settings.store), progress)
    lines = [f"{found.files} files, {len(found.faults)} faults", *found.faults]
    emit({"files": found.files, "faults": list(found.faults)}, "\n".join(lines), as_json)
    if found.faults:
        raise typer.Exit(1)


@app.command("gc")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and take nothing away.")] = False,
    also: Annotated[
        list[str] | None, typer.Option(help="Another database that shares the store; may be given several times.")
    ] = None,
    days: Annotated[float, typer.Option(min=1, help="Leave alone what was touched within so many days.")] = 1.0,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take away files that no vote, snapshot, version, clip, model or other row refers to, and leftovers of writes."""
    from alignment.clips import ClipStore
    from alignment.db.engine import open_database
    from alignment.store_check import DAY_SECONDS, collect_garbage

    settings = settings_of(home, database)
    databases = [open_database(settings.database_url)]
    databases += [open_database(settings_of(None, one).database_url) for one in also or ()]
    store = ClipStore(settings.store)
    done = collect_garbage(databases, store, dry_run=dry_run, older_than_seconds=days * DAY_SECONDS)
    word = "would be taken away" if dry_run else "taken away"
    lines = [
        f"{len(done.units)} of {len(done.units) + done.kept} files and folders {word}, {done.size_bytes / 1e6:.1f} MB; "
        f"{done.young} are younger than {days:g} days",
        *done.units[:SHOWN],
        *([f"... and {len(done.units) - SHOWN} more"] if len(done.units) > SHOWN else []),
    ]
    emit(
        {"dry_run": dry_run, "removed": list(done.units), "bytes": done.size_bytes, "kept": done.kept,
         "young": done.young}, "\n".join(lines), as_json,
    )  # fmt: skip
