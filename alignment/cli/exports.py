"""`attune export`: votes, snapshots and their clips in formats that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, emit, settings_of

app = typer.Typer(no_args_is_help=True, help="Write votes and clips for others, with consent, licences and checksums.")
Study = Annotated[str, typer.Argument(help="The study's name.")]
Snapshot = Annotated[str, typer.Argument(help="The snapshot's name.")]
Folder = Annotated[Path, typer.Argument(help="New folder for the files.")]
Licence = Annotated[str, typer.Option(help="Of what is ours; what came from elsewhere keeps its own.")]
Audio = Annotated[bool, typer.Option(help="Write the clips too.")]


def _open(home: Path | None, database: str | None):
    """(database, store) of the home."""
    from alignment.clips import ClipStore
    from alignment.db.engine import open_database

    settings = settings_of(home, database)
    return open_database(settings.database_url), ClipStore(settings.store)


def _emit(card: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Where the folder is, what is in it and what stayed behind."""
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in card["counts"].items())
    withheld = ", ".join(f"{count} {reason}" for reason, count in card["withheld"].items()) or "nothing"
    marked = "SIMULATED listeners, " if card["simulated"] else ""
    licences = "; ".join(card["licences"]) or card["licence"]
    text = f"{folder}: {marked}{counts}\nlicences: {licences}\nwithheld: {withheld}"
    emit({"folder": str(folder), **{k: v for k, v in card.items() if k != "files"}}, text, as_json)


@app.command("music-arena")
def music_arena(
    study: Study, folder: Folder, licence: Licence = "CC BY 4.0", audio: Audio = True, home: Home = None,
    database: DatabaseUrl = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """A study's publishable votes in Music Arena's format."""
    from alignment.releases.study import export_music_arena

    db, store = _open(home, database)
    card = export_music_arena(db, store, study, folder, actor=actor(), licence=licence, audio=audio)
    _emit(card, folder, as_json)


@app.command("parquet")
def parquet(
    study: Study, folder: Folder, licence: Licence = "CC BY 4.0", audio: Audio = True, home: Home = None,
    database: DatabaseUrl = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """A study's publishable votes as Parquet with the clips in it, for `datasets`."""
    from alignment.releases.study import export_parquet

    db, store = _open(home, database)
    card = export_parquet(db, store, study, folder, actor=actor(), licence=licence, audio=audio)
    _emit(card, folder, as_json)


@app.command("trl")
def trl(
    snapshot: Snapshot, folder: Folder,
    unpaired: Annotated[bool, typer.Option("--unpaired", help="prompt, completion, label instead of pairs.")] = False,
    licence: Licence = "CC BY 4.0", audio: Audio = True, home: Home = None, database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """A snapshot's decisive votes as TRL's prompt, chosen, rejected, a file a split."""
    from alignment.releases.snapshot import export_trl

    db, store = _open(home, database)
    card = export_trl(db, store, snapshot, folder, actor=actor(), licence=licence, unpaired=unpaired, audio=audio)
    _emit(card, folder, as_json)


@app.command("snapshot")
def snapshot(
    snapshot: Snapshot, folder: Folder, licence: Licence = "CC BY 4.0", audio: Audio = True, home: Home = None,
    database: DatabaseUrl = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """A frozen snapshot with its clips, data card and checksums; answers that may not be published stay behind."""
    from alignment.releases.snapshot import export_snapshot

    db, store = _open(home, database)
    card = export_snapshot(db, store, snapshot, folder, actor=actor(), licence=licence, audio=audio)
    _emit(card, folder, as_json)
