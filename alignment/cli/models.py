"""`attune reward`, `attune versions`: what is learnt from votes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.common import AsJson, DatabaseUrl, Home, SeedOrRecipe, bar, emit, open_workspace, settings_of, table

reward = typer.Typer(no_args_is_help=True, help="Reward models.")
versions = typer.Typer(no_args_is_help=True, help="Registered versions and their lineage.")
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


@versions.command("list")
def list_all(home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """All versions, oldest first."""
    from alignment.db.engine import open_database
    from alignment.db.versions import list_versions

    db = open_database(settings_of(home, database).database_url)
    with db.session(write=False) as s:
        rows = [
            {
                "name": v.name,
                "status": v.status.value,
                "parent": v.parent,
                "adapter": v.adapter_sha256 and v.adapter_sha256[:12],
                "votes": "simulated" if v.simulated else ("human" if v.adapter_sha256 else None),
                "created": v.created_at and f"{v.created_at:%Y-%m-%d %H:%M}",
            }
            for v in list_versions(s)
        ]  # fmt: skip
    text = (
        table(rows, ["name", "status", "parent", "adapter", "votes", "created"])
        if rows
        else "No versions yet; `attune generate` registers the base."
    )
    emit(rows, text, as_json)


@versions.command("show")
def show(name: str, home: Home = None, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """One version with its lineage down to the votes."""
    from alignment.db.engine import open_database
    from alignment.versions import lineage

    db = open_database(settings_of(home, database).database_url)
    lines, rows = [], []
    for depth, step in enumerate(lineage(db, name)):
        version, pad = step.version, "  " * depth
        simulated = ", trained on simulated votes" if version.simulated else ""
        lines.append(f"{pad}{version.name}  ({version.status.value}{simulated})")
        lines.append(
            f"{pad}  base {version.base} {version.base_sha256[:12]}, commit {(version.commit or 'not recorded')[:12]}"
        )
        if step.run_kind:
            lines.append(
                f"{pad}  {step.run_kind} on snapshot {step.snapshot}: {step.votes} votes, "
                f"sha256 {(step.snapshot_sha256 or '')[:12]}"
            )
            lines.append(f"{pad}  adapter {(version.adapter_sha256 or '')[:12]}")
        if version.parent:
            lines.append(f"{pad}  from:")
        rows.append(
            {"name": version.name, "status": version.status.value, "base": version.base,
             "base_sha256": version.base_sha256,
             "adapter_sha256": version.adapter_sha256, "commit": version.commit, "simulated": version.simulated,
             "run": step.run_kind, "snapshot": step.snapshot, "snapshot_sha256": step.snapshot_sha256,
             "votes": step.votes, "config": dict(step.config) if step.config else None}
        )  # fmt: skip
    emit({"version": name, "lineage": rows}, "\n".join(lines), as_json)
