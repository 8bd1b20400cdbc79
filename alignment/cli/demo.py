"""`attune demo`: the whole circle on the embedded model, from an empty folder to a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import bar


def demo(
    home: Annotated[Path, typer.Option(help="A run gets a new folder of its own below this one.")] = Path("data/demo"),
    config: Annotated[Path | None, typer.Option(help="Recipe; default configs/tiny.yaml.", show_default=False)] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="About three minutes, smaller numbers: configs/quick.yaml.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes everything that is drawn.", show_default=False)] = None,
    shuffle_votes: Annotated[
        bool, typer.Option("--shuffle-votes", help="Control: permute winners in the snapshot, so votes say nothing.")
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Whether votes without a signal stop the run before training.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")] = False,
) -> None:
    """Turn the whole circle on a laptop: simulated listeners vote, DPO learns, a blind comparison decides."""
    from alignment.config import REPOSITORY, DemoSettings, Settings, load_recipe
    from alignment.errors import ConfigError

    if quick and config is not None:
        raise ConfigError("--quick is the recipe configs/quick.yaml; give --quick or --config, not both.")
    shipped = REPOSITORY / "configs" / ("quick.yaml" if quick else "tiny.yaml")
    settings = load_recipe(config or shipped, DemoSettings)
    if not gate:
        settings = settings.model_copy(update={"align": settings.align.model_copy(update={"gate": False})})
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})

    from alignment.circle.demo import run_demo
    from alignment.circle.workspace import Workspace
    from alignment.db import migrate
    from alignment.evaluation.report import terminal_table

    folder = _new_folder(home)
    where = Settings.from_environment(database=f"sqlite:///{folder / 'attune.db'}", store=str(folder / "store"))
    migrate.upgrade(where.database_url)
    ws = Workspace.open(where)
    try:
        result = run_demo(ws, settings, folder, shuffle_seed=settings.seed if shuffle_votes else None, bar=bar)
    finally:
        ws.database.close()
    print(terminal_table(result.report))
    print(f"\nReport: {result.summary['report']}")
    print(f"Rate clips yourself, on this very database: {_program()} serve --home {folder}", flush=True)
    if as_json:
        print(json.dumps(result.summary), flush=True)


def _program() -> str:
    """How the person who runs this can call it again: ``attune`` when it is on the PATH, else where it lies."""
    import os
    import shutil
    import sys

    called = Path(sys.argv[0])
    if shutil.which("attune") or not called.is_absolute():
        return "attune" if shutil.which("attune") else str(called)
    return os.path.relpath(called)


def _new_folder(home: Path) -> Path:
    """The next free numbered folder, so that a second run never touches the votes of the first."""
    from alignment.errors import StoreError

    try:
        home.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name) for p in home.iterdir() if p.name.isdigit()), default=0)
        while (folder := home / f"{number:03d}").exists():
            number += 1
        folder.mkdir()
    except OSError as error:
        raise StoreError(f"{home} cannot hold the demo ({error.strerror}); give another --home.") from error
    return folder
