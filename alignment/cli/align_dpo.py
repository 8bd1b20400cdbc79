"""`attune align dpo`: one training on the votes themselves, and on best against worst clips."""

from __future__ import annotations

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
from alignment.cli.together import meet_the_others

Config = Annotated[Path | None, typer.Option(help="Recipe (YAML).", show_default=False)]


def dpo(
    name: Annotated[str, typer.Argument(help="Name of the new version.")],
    snapshot: Annotated[str, typer.Option(help="Snapshot whose decisive train votes become pairs.")],
    reward_model: Annotated[
        str | None,
        typer.Option("--reward", help="Also pair best against worst clips by this reward model.", show_default=False),
    ] = None,
    best_of: Annotated[int, typer.Option(min=2, max=64, help="N of the best/worst-of-N pairs.")] = 8,
    parent: Annotated[str, typer.Option(help="Version to start from: a base.")] = "tiny-base",
    config: Config = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this run.")] = False,
    seed: SeedOrRecipe = None,
    device: Device = None,
    dtype: Dtype = None,
    home: Home = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Direct preference optimisation with a LoRA adapter; registers the result as a new version."""
    from alignment.config import REPOSITORY, DpoSettings, load_recipe

    meet_the_others()
    settings = load_recipe(config or REPOSITORY / "configs" / "dpo.yaml", DpoSettings)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})

    from alignment.circle import learn
    from alignment.circle.generate import generate_clips
    from alignment.db import prompts as queries
    from alignment.db import runs
    from alignment.domain import GenerationConfig, Split
    from alignment.training.processes import from_first_process

    ws = open_workspace(home, database)
    start = ws.version(parent)
    learn.check_new_version(ws, name, start)
    taken = learn.load_snapshot(ws, snapshot)
    pool, pool_simulated = None, False
    if reward_model is not None:
        scorer = learn.load_reward_model(ws, reward_model)
        with ws.database.session(write=False) as s:
            pool_simulated = runs.get_reward_model(s, reward_model).simulated
        wanted = {pair.prompt_id for pair in taken.frozen.split(Split.TRAIN)}
        with ws.database.session(write=False) as s:
            prompts = [p for p in queries.list_prompts(s, split=Split.TRAIN) if str(p.id) in {str(w) for w in wanted}]
        with bar(f"{best_of} clips a prompt") as progress:
            clips = generate_clips(
                ws, parent, prompts, GenerationConfig(), per_prompt=best_of, seed=settings.seed, progress=progress
            )
        pool = (prompts, clips, from_first_process(lambda: learn.score_clips(ws, scorer, prompts, clips)))
    run_dir = Path(settings_of(home, database).store).parent / "runs" / name
    with bar("DPO") as progress:
        version, result = learn.align_dpo(
            ws,
            name,
            parent=start,
            snapshot=taken,
            settings=settings,
            run_dir=run_dir,
            pool=pool,
            pool_simulated=pool_simulated,
            pool_reward=reward_model,
            resume=resume,
            progress=progress,
        )
    last = result.history[-1]
    emit(
        {"version": version.name, "adapter_sha256": version.adapter_sha256, "examples": result.examples,
         "steps": result.steps, "seconds": result.seconds, "last": last, "simulated": version.simulated},
        f"{version.name}: {result.examples} pairs, {result.steps} steps in {result.seconds:.0f} s, "
        f"training accuracy {last['rewards/accuracies']:.0%}, adapter {(version.adapter_sha256 or '')[:12]}"
        + (", trained on simulated votes" if version.simulated else ""),
        as_json,
    )  # fmt: skip
