"""`attune reproduce`: published results, made again on the embedded model with simulated listeners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, SeedOrRecipe, bar

app = typer.Typer(help="Published results, made again with simulated listeners.", no_args_is_help=True)


@app.callback()
def reproduce() -> None:
    """Published results, made again with simulated listeners."""


@app.command("musicrl")
def musicrl(
    home: Annotated[
        Path, typer.Option(help="A seed gets a folder of its own below this one, and goes on there.")
    ] = Path("data/musicrl"),
    config: Annotated[
        Path | None, typer.Option(help="Recipe; default configs/musicrl.yaml.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="R alone, smaller numbers: configs/musicrl-quick.yaml.")
    ] = False,
    seed: SeedOrRecipe = None,
    listeners: Annotated[
        str | None,
        typer.Option(
            help="Population of users, from configs/listeners.yaml; default the recipe's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """R (text and quality), U (users' preference) and RU: MusicRL's table beside one of simulated listeners.

    A stopped run goes on when the same command is given again; what is finished is not made twice."""
    from alignment.config import REPOSITORY, MusicRlSettings, Settings, load_recipe
    from alignment.errors import ConfigError

    if quick and config is not None:
        raise ConfigError("--quick is the recipe configs/musicrl-quick.yaml; give --quick or --config, not both.")
    shipped = REPOSITORY / "configs" / ("musicrl-quick.yaml" if quick else "musicrl.yaml")
    settings = load_recipe(config or shipped, MusicRlSettings)
    changed = {"seed": seed, "users": listeners}
    settings = settings.model_copy(update={name: value for name, value in changed.items() if value is not None})

    from alignment.circle.musicrl import run_musicrl
    from alignment.circle.workspace import Workspace
    from alignment.db import migrate
    from alignment.evaluation.musicrl_claims import terminal_table
    from alignment.simulation.listeners import load_listeners

    for population in (settings.users, settings.raters):
        load_listeners().population(population)  # an unknown one is refused before anything is sung
    name = f"seed-{settings.seed}" + ("-quick" if settings.quick else "")
    folder = home / (name if settings.users == "musicrl" else f"{name}-{settings.users}")
    folder.mkdir(parents=True, exist_ok=True)
    where = Settings.from_environment(database=f"sqlite:///{folder / 'attune.db'}", store=str(folder / "store"))
    migrate.upgrade(where.database_url)
    ws = Workspace.open(where)
    try:
        result = run_musicrl(ws, settings, folder, bar)
    finally:
        ws.database.close()
    print(terminal_table(result.report))
    print(f"\nReport: {result.summary['report']}", flush=True)
    if as_json:
        print(json.dumps(result.summary), flush=True)
