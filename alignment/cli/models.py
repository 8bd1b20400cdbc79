"""`attune reward`: what is learnt from votes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import (
    AsJson,
    DatabaseUrl,
    Device,
    Dtype,
    Home,
    SeedOrRecipe,
    bar,
    emit,
    open_workspace,
    settings_of,
)

reward = typer.Typer(no_args_is_help=True, help="Reward models.")
Config = Annotated[Path | None, typer.Option(help="Recipe (YAML).", show_default=False)]


@reward.callback()
def _reward() -> None:
    """Reward models."""


@reward.command("train")
def train(
    name: Annotated[str, typer.Argument(help="Name of the new reward model.")],
    snapshot: Annotated[str, typer.Option(help="Snapshot to learn from.")],
    config: Config = None,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Learn text adherence, quality and preference from a snapshot; accuracy is on prompts never seen."""
    from alignment.config import REPOSITORY, RewardSettings, load_recipe

    settings = load_recipe(config or REPOSITORY / "configs" / "reward.yaml", RewardSettings)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})

    from alignment.circle.learn import accuracy_of, load_snapshot, train_reward_model
    from alignment.domain import Split

    ws = open_workspace(home, database)
    taken = load_snapshot(ws, snapshot)
    run_dir = Path(settings_of(home, database).store).parent / "runs" / f"reward-{name}"
    with bar("reward model") as progress:
        model = train_reward_model(ws, name, taken, settings, progress, run_dir=run_dir)
    test = taken.frozen.split(Split.TEST)
    accuracies = accuracy_of(ws, model, test) if any(pair.preference != 0.5 for pair in test) else {}
    lines = [f"{name}: {model.metrics['train_pairs']} training pairs, simulated votes: {taken.frozen.simulated}"]
    lines += [
        f"  {head}: {a.value:.1%} of held-out decisive votes [{a.low:.1%}, {a.high:.1%}], n {a.n}"
        for head, a in accuracies.items()
    ] or ["  accuracy not measured: the snapshot has no decisive vote in its test split"]
    emit(
        {"reward_model": name, "simulated": taken.frozen.simulated, "metrics": model.metrics,
         "accuracy": {head: asdict(a) for head, a in accuracies.items()}},
        "\n".join(lines), as_json,
    )  # fmt: skip


@reward.command("score")
def score(
    name: Annotated[str, typer.Argument(help="Name of the reward model.")],
    study: Annotated[str, typer.Option(help="Study whose clips are scored.")],
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Score a study's clips, so that its dashboard shows where this model and the raters disagree."""
    from alignment.circle.score_study import score_study

    ws = open_workspace(home, database)
    with bar("scores") as progress:
        scored = score_study(ws, name, study, progress)
    emit({"reward_model": name, "study": study, "clips": scored}, f"{name}: {scored} clips of {study} scored", as_json)
