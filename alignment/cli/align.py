"""`attune align`: from votes to a better version, by DPO, expert iteration, PPO, or a recipe of stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.align_dpo import Config, dpo
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
    table,
)
from alignment.cli.together import meet_the_others

if TYPE_CHECKING:
    from alignment.circle.align_run import Run
    from alignment.circle.learn import NamedSnapshot
    from alignment.circle.workspace import Workspace

align = typer.Typer(no_args_is_help=True, help="Fine-tune a version on votes.")
Name = Annotated[str, typer.Argument(help="Name of the new version.")]
Snapshot = Annotated[str, typer.Option(help="Snapshot whose votes teach the reward models.")]
Parent = Annotated[str, typer.Option(help="Version to start from.")]
Reward = Annotated[
    str | None,
    typer.Option("--reward", help="Reward model that trains; default: half of the snapshot.", show_default=False),
]
WatchedBy = Annotated[
    str | None,
    typer.Option("--watch", help="Reward model that watches: other raters and prompts.", show_default=False),
]
Weights = Annotated[
    list[str] | None,
    typer.Option("--weight", help="HEAD=WEIGHT of the reward, such as text_adherence=1; repeat.", show_default=False),
]
Seconds = Annotated[float, typer.Option(min=0.5, max=30.0, help="Length of the clips that are heard and judged.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run of this name was.")]


@align.callback()
def _align() -> None:
    """Fine-tune a version on votes."""


align.command("dpo")(dpo)


@align.command("expert")
def expert(
    name: Name,
    snapshot: Snapshot,
    reward_model: Reward = None,
    watch: WatchedBy = None,
    weight: Weights = None,
    clips: Annotated[int, typer.Option(min=2, max=64, help="N clips a prompt, of which the best are kept.")] = 4,
    seconds: Seconds = 5.0,
    parent: Parent = "tiny-base",
    config: Config = None,
    resume: Resume = False,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Expert iteration: imitate the clips that a reward model likes best; best-of-N stands beside it."""
    from alignment.config import REPOSITORY, ExpertSettings, load_recipe

    meet_the_others()
    settings = load_recipe(config or REPOSITORY / "configs" / "expert.yaml", ExpertSettings)
    stage = {"name": "expert", "method": "expert", "expert": settings.model_dump(), "clips_per_prompt": clips}
    _one_stage(name, stage, weight, settings.seed, snapshot, parent, reward_model, watch, resume, seed, home, database,
               as_json, beside=False, generation={"clip_seconds": seconds})  # fmt: skip


@align.command("ppo")
def ppo(
    name: Name,
    snapshot: Snapshot,
    reward_model: Reward = None,
    watch: WatchedBy = None,
    weight: Weights = None,
    reference: Annotated[str, typer.Option(help="Where KL is measured from: base, or start (the parent).")] = "base",
    captions: Annotated[int, typer.Option(min=0, help="attune-tiny captions added to the prompts sung.")] = 0,
    report_to: Annotated[str, typer.Option(help="Also tell tensorboard, wandb, mlflow ...")] = "none",
    seconds: Seconds = 5.0,
    parent: Parent = "tiny-base",
    config: Config = None,
    resume: Resume = False,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Proximal policy optimisation of the reward; best-of-N and expert iteration stand beside it."""
    from alignment.config import REPOSITORY, PpoSettings, load_recipe

    meet_the_others()
    settings = load_recipe(config or REPOSITORY / "configs" / "ppo.yaml", PpoSettings)
    stage = {"name": "ppo", "method": "ppo", "ppo": settings.model_dump(), "reference": reference}
    _one_stage(name, stage, weight, settings.seed, snapshot, parent, reward_model, watch, resume, seed, home, database,
               as_json, generation={"clip_seconds": seconds}, more_captions=captions, report_to=report_to)  # fmt: skip


@align.command("run")
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of stages (YAML), such as configs/sequential.yaml.")],
    name: Name,
    snapshot: Snapshot,
    reward_model: Reward = None,
    watch: WatchedBy = None,
    parent: Parent = "tiny-base",
    resume: Resume = False,
    job: Annotated[str | None, typer.Option(help="Id of the job that asks for it.", show_default=False)] = None,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's stages one after the other, watched by a reward model from other raters and prompts."""
    from alignment.config import AlignRecipe, load_recipe

    meet_the_others()
    chosen = load_recipe(recipe, AlignRecipe)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
    done = _run(chosen, name, snapshot, parent, reward_model, watch, resume, home, database, job)
    _say(done, as_json)


@align.command("best-of-n")
def best_of_n(
    snapshot: Snapshot,
    version: Annotated[str, typer.Option(help="Version that sings.")] = "tiny-base",
    most: Annotated[int, typer.Option(min=2, max=64, help="Largest N; its halves are measured too.")] = 16,
    seconds: Seconds = 5.0,
    weight: Weights = None,
    prompts: Annotated[int, typer.Option(min=4, help="Held-out prompts, at most.")] = 24,
    reward_model: Reward = None,
    watch: WatchedBy = None,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """What choosing the best of N clips gives, without training: proxy and held-out reward from one pool."""
    from alignment.config import AlignRecipe, parse_recipe

    meet_the_others()
    sizes = sorted({most} | {n for n in (2, 4, 8, 16, 32) if n < most})
    recipe = parse_recipe(
        {"stages": [{"name": "pool", "method": "expert", "reward": _weights(weight)}], "seed": seed or 0,
         "watch": {"prompts": prompts, "best_of": sizes}, "beside": None,
         "generation": {"clip_seconds": seconds}},
        AlignRecipe, origin="align best-of-n",
    )  # fmt: skip

    from alignment.circle import align_run, stages
    from alignment.evaluation.overoptimisation import best_of_rows, look_row
    from alignment.evaluation.terminal import number
    from alignment.training.processes import from_first_process

    ws, folder, taken = _open(f"best-of-n-{version}", snapshot, home, database)
    ground = stages.prepare(
        ws, f"best-of-n-{version}", recipe, snapshot=taken, parent=version, folder=folder,
        reward_names=_both(reward_model, watch), resume=True, bar=bar,
    )  # fmt: skip
    with bar("pool"):
        scorers = stages.scorers_of(ground, recipe.stages[0])
        pool = from_first_process(lambda: align_run.pool_of(ws, ground, scorers))
    rows = []
    for row in (look_row(version, pool), *best_of_rows(pool, recipe.watch.best_of)):
        shown = {"of": row.name, "kl": number(row.nats) if row.kl_bound is None else f"<= {number(row.kl_bound)}"}
        for key, label in (("proxy_reward", "proxy"), ("held_out_reward", "held-out")):
            found = row.figures[key]
            shown[label] = f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"
        rows.append(shown | {"clips": row.figures["proxy_reward"].n})
    figures = [
        {"of": row["of"], "clips": row["clips"]} | {"proxy": row["proxy"], "held_out": row["held-out"], "kl": row["kl"]}
        for row in rows
    ]
    emit(figures, table(rows, ["of", "proxy", "held-out", "kl", "clips"]), as_json)


def _one_stage(
    name: str, stage: dict[str, Any], weight: list[str] | None, recipe_seed: int, snapshot: str, parent: str,
    reward_model: str | None, watch: str | None, resume: bool, seed: int | None, home: Path | None,
    database: str | None, as_json: bool, *, beside: bool = True, **more: Any,
) -> None:  # fmt: skip
    """A run of one stage, checked as a recipe is, with expert iteration beside it unless it is that itself."""
    from alignment.config import AlignRecipe, parse_recipe

    values = {"stages": [stage | {"reward": _weights(weight)}], "seed": recipe_seed if seed is None else seed} | more
    recipe = parse_recipe(values if beside else values | {"beside": None}, AlignRecipe, origin="align")
    _say(_run(recipe, name, snapshot, parent, reward_model, watch, resume, home, database), as_json)


def _run(
    recipe: Any, name: str, snapshot: str, parent: str, reward_model: str | None, watch: str | None, resume: bool,
    home: Path | None, database: str | None, job: str | None = None,
) -> Run:  # fmt: skip
    names = _both(reward_model, watch)

    from alignment.circle.align_run import run_recipe

    ws, folder, taken = _open(name, snapshot, home, database)
    return run_recipe(
        ws, name, recipe, snapshot=taken, folder=folder, bar=bar, parent=parent, reward_names=names, resume=resume,
        job_id=job,
    )  # fmt: skip


def _open(name: str, snapshot: str, home: Path | None, database: str | None) -> tuple[Workspace, Path, NamedSnapshot]:
    """The workspace, the run's folder beside the store, the snapshot."""
    from alignment.circle.learn import check_name, load_snapshot

    check_name(name)
    ws = open_workspace(home, database)
    return ws, Path(settings_of(home, database).store).parent / "runs" / name, load_snapshot(ws, snapshot)


def _both(reward_model: str | None, watch: str | None) -> tuple[str, str] | None:
    from alignment.errors import ConfigError

    if (reward_model is None) != (watch is None):
        raise ConfigError(
            "--reward and --watch belong together: the second must have learnt from other raters and prompts. Give "
            "both, or neither, and the snapshot is split in two."
        )
    return None if reward_model is None or watch is None else (reward_model, watch)


def _weights(given: list[str] | None) -> dict[str, float]:
    """{head: weight} of --weight HEAD=WEIGHT. Raises ConfigError for anything else."""
    from alignment.errors import ConfigError

    weights = {}
    for text in given or ["preference=1"]:
        head, equals, value = text.partition("=")
        try:
            weights[head.strip()] = float(value) if equals else 1.0
        except ValueError:
            raise ConfigError(f"--weight {text} is not HEAD=WEIGHT; write text_adherence=1, say.") from None
    return weights


def _say(done: Run, as_json: bool) -> None:
    from alignment.evaluation.terminal import number

    summary, columns = done.summary(), ["of", "proxy", "held-out", "gold", "KL"]
    rows = []
    for row in done.page.rows:
        shown: dict[str, Any] = {"of": row.name, "KL": f"{'<= ' if row.kl_bound is not None else ''}{number(row.nats)}"}
        for key, label in (("proxy_reward", "proxy"), ("held_out_reward", "held-out"), ("gold_reward", "gold")):
            if (found := row.figures.get(key)) is not None:
                shown[label] = f"{number(found.value)} [{number(found.low)}, {number(found.high)}]"
        rows.append(shown)
    lines = [
        f"{stage.name}: {found.sentence}" for stage in done.page.stages for found in done.page.findings[stage.name]
    ]
    simulated = ["Simulated listeners: these rewards say nothing of how people hear."] if done.page.simulated else []
    text = "\n".join([*simulated, table(rows, columns), *lines, f"Page: {done.report}"])
    emit(summary, text, as_json)
