"""What the commands share: options, an open workspace, a progress bar on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.config import Settings

if TYPE_CHECKING:
    from alignment.circle.workspace import Progress, Workspace

Home = Annotated[
    Path | None,
    typer.Option(help="Folder of database and clips; default ATTUNE_HOME or ./data.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database", help="Database URL or SQLite file; default attune.db in --home.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
LARGEST_SEED = 2**32 - 1  # numpy's
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED // 4, help="Fixes everything that is drawn.")]
SeedOrRecipe = Annotated[
    int | None,
    typer.Option(min=0, max=LARGEST_SEED // 4, help="Fixes what is drawn; default the recipe's.", show_default=False),
]


def _remember(variable: str) -> Any:
    """An option that stands in the environment from then on: for everything that loads a model in this process, and
    for the processes that it starts."""

    def keep(value: str | None) -> str | None:
        if value is not None:
            os.environ[variable] = value
        return value

    return keep


Device = Annotated[
    str | None,
    typer.Option(
        callback=_remember("ATTUNE_DEVICE"), show_default=False,
        help="auto, cpu, mps, cuda or cuda:N; default ATTUNE_DEVICE, else what is there.",
    ),
]  # fmt: skip
Dtype = Annotated[
    str | None,
    typer.Option(
        callback=_remember("ATTUNE_DTYPE"), show_default=False,
        help="auto, fp32, bf16 or fp16; default ATTUNE_DTYPE, else fp32 on a CPU and bf16 on a GPU.",
    ),
]  # fmt: skip


def settings_of(home: Path | None, database: str | None) -> Settings:
    """Options before environment before defaults."""
    if home is not None:
        database = database or f"sqlite:///{home / 'attune.db'}"
        return Settings.from_environment(database=database, store=str(home / "store"))
    return Settings.from_environment(database=database)


def open_workspace(home: Path | None, database: str | None) -> Workspace:
    from alignment.circle.workspace import Workspace

    return Workspace.open(settings_of(home, database))


@contextmanager
def bar(name: str) -> Iterator[Progress]:
    """A progress bar with the seconds taken, on stderr; one plain line when stderr is no terminal, and lines of JSON
    on the way where ATTUNE_PROGRESS=json asks for them (a job does)."""
    import time

    began = time.monotonic()
    if os.environ.get("RANK", "0") != "0":  # torchrun's: one process shows for all
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _json_progress(name) if os.environ.get("ATTUNE_PROGRESS") == "json" else lambda done, total: None
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
        end = shown.tasks[0].total or 1
        shown.update(task, completed=end, total=end)


def _json_progress(name: str) -> Progress:
    import time

    last = 0.0

    def told(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5 or done == total:
            last = time.monotonic()
            print(json.dumps({"progress": name, "done": done, "total": total}), file=sys.stderr, flush=True)

    return told


def emit(value: dict[str, Any] | list[Any], text: str, as_json: bool) -> None:
    """The result on stdout: text for people, JSON on the last line for scripts; once, whoever runs it together."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's
        return
    print(json.dumps(value, default=str) if as_json else text, flush=True)


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Left-aligned columns under their names."""
    cells = [columns, *[["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def actor() -> str:
    """Who the audit log names for a command: the user of this machine."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"
