"""`attune versions`: the registry; lineage, differences, champion, export."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, actor, bar, emit, settings_of, table

if TYPE_CHECKING:
    from alignment.clips import ClipStore
    from alignment.db.engine import Database
    from alignment.domain import Version

app = typer.Typer(no_args_is_help=True, help="Registered versions: lineage, differences, champion, export.")
Name = Annotated[str, typer.Argument(help="The version.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the audit log.", show_default=False)]


@contextmanager
def _open(home: Path | None, database: str | None) -> Iterator[tuple[Database, ClipStore]]:
    from alignment.clips import ClipStore
    from alignment.db.engine import open_database

    settings = settings_of(home, database)
    db = open_database(settings.database_url)
    try:
        yield db, ClipStore(settings.store)
    finally:
        db.close()


@app.command("list")
def list_all(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """All versions, oldest first."""
    from alignment.db.versions import list_versions

    with _open(home, database) as (db, _), db.session(write=False) as s:
        rows = [_row(version) for version in list_versions(s)]
    columns = ["name", "status", "parent", "adapter", "votes", "licence", "created"]
    emit(rows, table(rows, columns) if rows else "No versions yet; `attune generate` registers the base.", as_json)


def _row(version: Version) -> dict[str, Any]:
    return {
        "name": version.name,
        "status": version.status.value,
        "parent": version.parent,
        "adapter": version.adapter_sha256 and version.adapter_sha256[:12],
        "votes": "simulated" if version.simulated else ("human" if version.adapter_sha256 else None),
        "licence": version.licence,
        "created": version.created_at and f"{version.created_at:%Y-%m-%d %H:%M}",
    }


@app.command("show")
def show(
    name: Name,
    votes: Annotated[bool, typer.Option("--votes", help="With --json: the id of every vote, too.")] = False,
    as_card: Annotated[bool, typer.Option("--card", help="Its model card, as exports carry it.")] = False,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """One version: its lineage down to the votes, what was measured, what the gate decided, what became of it."""
    from alignment.db import gates, metric_results, version_changes
    from alignment.evaluation.terminal import clean, number
    from alignment.versions import card, lineage, tree

    with _open(home, database) as (db, _):
        if as_card:
            written = card(db, name)
            emit({"version": name, "card": written}, written.rstrip(), as_json)
            return
        grown = tree(db, name, votes=votes).to_json()
        steps = lineage(db, name)
        with db.session(write=False) as s:
            figures = metric_results.latest(s, name)
            decisions = gates.list_decisions(s, candidate=name)
            changes = version_changes.list_changes(s, version=name)
    lines = list(_branches(grown))
    lines += [
        f"{clean(one.metric)} {number(one.value)} [{number(one.low)}, {number(one.high)}], n {one.n:,}"
        + (f", {clean(one.model)}" if one.model else "")
        for one in figures
    ]
    lines += [f"gate {one.created_at:%Y-%m-%d} over {one.champion}: {one.outcome}, {one.id}" for one in decisions]
    lines += [f"{one.created_at:%Y-%m-%d} {_told(one)}" for one in changes]
    emit(
        {"version": name, "tree": grown, "lineage": [_step(step) for step in steps],
         "metrics": [vars(one) for one in figures],
         "decisions": [{"id": str(one.id), "champion": one.champion, "outcome": one.outcome,
                        "created_at": one.created_at} for one in decisions],
         "changes": [vars(one) for one in changes]},
        "\n".join(lines), as_json,
    )  # fmt: skip


def _branches(node: Mapping[str, Any], before: str = "", joint: str = "", last: bool = True) -> Iterator[str]:
    """The tree, one line a node, with the lines that a terminal draws."""
    from alignment.evaluation.version_card import describe

    yield f"{before}{joint}{describe(node)}"
    below = node.get("from", [])
    inner = before + ("" if not joint else "   " if last else "│  ")
    for number, child in enumerate(below, start=1):
        end = number == len(below)
        yield from _branches(child, inner, "└─ " if end else "├─ ", end)


def _step(step: Any) -> dict[str, Any]:
    version = step.version
    return {
        "name": version.name, "status": version.status.value, "base": version.base,
        "base_sha256": version.base_sha256, "adapter_sha256": version.adapter_sha256, "commit": version.commit,
        "simulated": version.simulated, "run": step.run_kind, "snapshot": step.snapshot,
        "snapshot_sha256": step.snapshot_sha256, "votes": step.votes, "reward_models": list(step.reward_models),
        "config": dict(step.config) if step.config else None,
    }  # fmt: skip


def _told(change: Any) -> str:
    did = {"promote": "promoted", "rollback": "made champion again", "retire": "retired"}[change.action]
    forced = " by force" if change.forced else ""
    after = f" after {change.replaced}" if change.replaced else ""
    return f"{did}{forced}{after} by {change.actor}" + (f": {change.reason}" if change.reason else "")


@app.command("diff")
def diff(
    one: Annotated[str, typer.Argument(help="A version.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """What differs between two versions: config, snapshot, reward models, adapter, metrics."""
    from alignment.versions import differences

    with _open(home, database) as (db, _):
        found = differences(db, one, other)
    rows = [
        {"field": d.field, one: _cell(d.one), other: _cell(d.other),
         "intervals": {True: "apart", False: "overlap"}.get(d.apart)}
        for d in found
    ]  # fmt: skip
    columns = ["field", one, other, *(["intervals"] if any(d.apart is not None for d in found) else [])]
    text = table(rows, columns) if rows else f"{one} and {other} differ in nothing that is on record."
    emit({"one": one, "other": other, "differences": [vars(d) for d in found]}, text, as_json)


def _cell(value: Any) -> str | None:
    from alignment.evaluation.terminal import clean, number

    if isinstance(value, Mapping):
        return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}], n {value['n']:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None:
        return None
    text = clean(str(value))
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


@app.command("promote")
def promote(
    name: Name,
    decision: Annotated[
        uuid.UUID | None, typer.Option(help="The gate decision; default the newest.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Without the gate; takes --reason.")] = False,
    reason: Reason = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a version champion on the gate's newest decision, or by force with a reason."""
    from alignment import versions

    with _open(home, database) as (db, store):
        before = versions.champion(db)
        version = versions.promote(db, name, actor=actor(), decision=decision, force=force, reason=reason, store=store)
    was = before.name if before is not None else None
    text = (
        f"{name} is the champion already" if was == name else f"{name} is champion" + (f" after {was}" if was else "")
    )
    _said(version, text, as_json, before=was)


@app.command("rollback")
def rollback(reason: Reason = None, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Make the champion before the present one champion again."""
    from alignment import versions

    with _open(home, database) as (db, _):
        before = versions.champion(db)
        version = versions.rollback(db, actor=actor(), reason=reason or "")
    was = before.name if before else None
    _said(version, f"{version.name} is champion again after {was}", as_json, before=was)


@app.command("retire")
def retire(
    name: Name, reason: Reason = None, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Take a version out of what may be promoted or studied anew; nothing of it is deleted."""
    from alignment import versions

    with _open(home, database) as (db, _):
        version = versions.retire(db, name, actor=actor(), reason=reason or "")
    _said(version, f"{name} is retired", as_json)


def _said(version: Version, text: str, as_json: bool, **more: Any) -> None:
    marked = " (trained on SIMULATED votes)" if version.simulated else ""
    emit(
        {"version": version.name, "status": version.status.value, "simulated": version.simulated, **more},
        text + marked, as_json,
    )  # fmt: skip


@app.command("export")
def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    merged: Annotated[bool, typer.Option("--merged", help="One whole model for transformers.")] = False,
    audio: Annotated[bool, typer.Option("--audio", help="The clips that it sang, tagged as AI-generated.")] = False,
    audio_format: Annotated[str, typer.Option("--format", help="Of --audio: flac or wav.")] = "flac",
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a version's adapter (PEFT), the merged model (transformers) or its clips, with a card; no Attune needed."""
    from alignment import versions
    from alignment.errors import ConfigError

    if merged and audio:
        raise ConfigError("--merged and --audio are two exports; run the command once for each.")
    with _open(home, database) as (db, store), bar("export"):
        if audio:
            written = versions.export_audio(store, db, name, folder, audio_format=audio_format)
        else:
            written = (versions.export_merged if merged else versions.export_adapter)(store, db, name, folder)
    form = "audio" if audio else "merged" if merged else "adapter"
    files = sorted(path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file())
    size = sum((written / file).stat().st_size for file in files)
    emit(
        {"version": name, "form": form, "folder": str(written), "files": files, "bytes": size},
        f"{written}: {len(files)} files, {size / 1e6:.1f} MB", as_json,
    )  # fmt: skip
