"""A recipe of stages: each trains from where the one before ended, watched, and is registered as a version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import learn, rewarding
from alignment.circle.captions import add_captions
from alignment.circle.learn import NamedSnapshot
from alignment.circle.rewarding import RewardModels
from alignment.circle.sung import Sung, score_sung, sing
from alignment.circle.watch import RunWatch, Scorers, read_looks
from alignment.circle.workspace import Progress, Workspace, current_commit
from alignment.config import AlignRecipe, StageSettings
from alignment.db import prompts as prompt_queries
from alignment.db import runs
from alignment.db.versions import list_versions
from alignment.domain import Prompt, Split, Version
from alignment.errors import DataError, NotFoundError
from alignment.evaluation.overoptimisation import StageLooks
from alignment.training.processes import from_first_process
from alignment.versions import register_adapter

if TYPE_CHECKING:
    from alignment.rewards.scorers import SharedEncoder, WeightedScorer
    from alignment.training.trainer import TrainResult

Bar = Callable[[str], AbstractContextManager[Progress]]
SCALE_PROMPTS, SCALE_CLIPS = 48, 4  # the base's clips on which every reward has mean 0 and deviation 1


@dataclass(frozen=True)
class Ground:
    """What all stages of a run share: where it starts, who scores, which prompts it sings and which only the watch."""

    name: str
    recipe: AlignRecipe
    snapshot: NamedSnapshot
    models: RewardModels
    encoder: SharedEncoder
    start: Version
    prompts: list[Prompt]
    watched: list[Prompt]
    scale: Sung
    folder: Path
    job_id: str | None = None


def prepare(
    ws: Workspace, name: str, recipe: AlignRecipe, *, snapshot: NamedSnapshot, parent: str, folder: Path,
    reward_names: tuple[str, str] | None, resume: bool, bar: Bar, job_id: str | None = None,
) -> Ground:  # fmt: skip
    """Reward models, prompts and the base's clips, with every refusal that can be made before training.

    Raises DataError for a taken name, StoreError for missing clips, ModelError for an adapter of another base."""
    from alignment.rewards.scorers import SharedEncoder

    learn.check_name(name)
    taken = _names(ws) & {version_name(name, recipe, stage) for stage in _all_stages(recipe)}
    if taken and not resume:
        raise DataError(f"Version {min(taken)} exists already; give the run another name, or go on with --resume.")
    start = ws.version(parent)
    ws.policy(start)
    with bar("clips of the snapshot"):
        from_first_process(lambda: rewarding.check_clips(ws, snapshot))
    with bar("two reward models") as progress:
        models = from_first_process(
            lambda: rewarding.given_reward_models(ws, *reward_names)
            if reward_names
            else rewarding.two_reward_models(
                ws, name, snapshot, recipe.reward, share=recipe.watch.held_out_share, seed=recipe.seed,
                progress=progress,
            )
        )  # fmt: skip
    prompts, watched = from_first_process(lambda: _prompts(ws, recipe, models))
    base = _base_of(ws, start)
    with bar("the base sings") as progress:
        scale = sing(ws, base, prompts[:SCALE_PROMPTS], recipe, each=SCALE_CLIPS, seed=recipe.seed, progress=progress)
    return Ground(
        name, recipe, snapshot, models, SharedEncoder(ws.encoder), start, prompts, watched, scale, folder, job_id
    )  # fmt: skip


def scorers_of(ground: Ground, stage: StageSettings) -> Scorers:
    """The stage's reward, and the same from the held-out reward model, both on the base's scale."""

    others = rewarding.further_scorers(ground.recipe.scorers)

    def on_scale(model, weights: Mapping[str, float], **options: Any) -> WeightedScorer:
        scale = ground.scale
        return rewarding.weighted_scorer(
            model, ground.encoder, weights, scale.texts, scale.audio, scale.sample_rate_hz,
            commercial=ground.recipe.commercial, others=others, **options,
        )  # fmt: skip

    held_out = ground.models.held_out
    return Scorers(
        on_scale(ground.models.proxy, stage.reward, uncertainty_penalty=stage.uncertainty_penalty),
        on_scale(held_out, rewarding.held_out_weights(stage.reward, held_out)),
        ground.encoder,
    )


def watch_of(ground: Ground, scorers: Scorers, folder: Path) -> RunWatch:
    """The watch over one stage."""
    watch = ground.recipe.watch
    return RunWatch(
        ground.watched, scorers, ground.recipe.generation.to_domain(), folder,
        clips_per_prompt=watch.clips_per_prompt, seed=ground.recipe.seed,
    )  # fmt: skip


def run_stage(
    ws: Workspace, ground: Ground, stage: StageSettings, parent: Version, *, number: int, resume: bool, bar: Bar
) -> tuple[Version, StageLooks]:
    """Train one stage from ``parent``, register the version, and return it with what the watch heard.

    A stage that is registered already is read, not trained again (``resume``)."""
    new = version_name(ground.name, ground.recipe, stage)
    folder = ground.folder / stage.name
    if resume and new in _names(ws):
        return _finished(ws, stage, new, folder)
    scorers = scorers_of(ground, stage)
    watch = watch_of(ground, scorers, folder / "watch")
    with bar(f"{stage.name} ({stage.method})") as progress:
        result, counts = _train(ws, ground, stage, parent, scorers, watch, folder, number, resume, progress)
    metrics = counts | {
        "history": result.history, "watched": result.watched, "kept_step": result.best_step, "steps": result.steps,
        "stopped": result.stopped, "reward": scorers.proxy.about(), "held_out_reward": scorers.held_out.about(),
    }  # fmt: skip
    register = partial(
        register_adapter,
        ws.database, ws.store, name=new, parent=parent, adapter=result.adapter_dir, commit=current_commit(),
        simulated=ground.models.simulated or ground.snapshot.frozen.simulated or parent.simulated,
        job_id=ground.job_id and f"{ground.job_id}/{new}",  # a job may train several versions
        run={
            "kind": stage.method, "snapshot_id": ground.snapshot.id, "seconds": result.seconds, "metrics": metrics,
            "reward_models": ground.models.names,
            "config": stage.settings.model_dump(mode="json") | {
                "stage": stage.model_dump(mode="json", exclude={"dpo", "expert", "ppo"}),
                "recipe": ground.recipe.model_dump(mode="json", exclude={"stages", "beside"}),
                "reward_models": list(ground.models.names),
            },
        },
    )  # fmt: skip
    version = from_first_process(register)  # under torchrun one of them records
    return version, _looks(stage, new, folder, result.best_step, result.steps, result.seconds)


def _train(
    ws: Workspace, ground: Ground, stage: StageSettings, parent: Version, scorers: Scorers, watch: RunWatch,
    folder: Path, number: int, resume: bool, progress: Progress,
) -> tuple[TrainResult, dict[str, int]]:  # fmt: skip
    recipe = ground.recipe
    shared: dict[str, Any] = {
        "watch": watch, "resume": resume, "on_step": lambda step, steps, _: progress(step, steps)
    }  # fmt: skip
    prompts = prompts_of(ground, stage)
    settings = stage.settings.model_copy(update={"seed": recipe.seed})
    if stage.method != "ppo" and settings.report_to == "none":
        settings = settings.model_copy(update={"report_to": recipe.report_to})
    if stage.method == "ppo":
        from alignment.rewards.of_codes import CodesReward
        from alignment.training.ppo import train_ppo

        model = ws.policy(parent)
        reward = CodesReward(model, scorers.proxy)
        texts = [prompt.text for prompt in prompts]
        return train_ppo(
            model, texts, reward, settings, folder, reference=stage.reference, report_to=recipe.report_to, **shared
        ), {"prompts": len(texts)}  # fmt: skip
    from alignment.training.best_of_n import best_worst_pairs, kept_clips
    from alignment.training.dpo import train_dpo
    from alignment.training.expert_iteration import train_expert

    sung = sing(ws, parent, prompts, recipe, each=stage.clips_per_prompt, seed=1000 * (recipe.seed + 1) + number)
    scores = from_first_process(lambda: score_sung(scorers.proxy, sung))  # (P, N), the same to the last bit for all
    texts = [prompt.text for prompt in sung.prompts]
    model = ws.policy(parent)
    if stage.method == "expert":
        clips = kept_clips(texts, sung.codes, scores, keep=stage.expert.keep)
        return train_expert(model, clips, settings, folder, **shared), {"kept_clips": len(clips)}
    pairs = best_worst_pairs(texts, sung.codes, scores, per_prompt=stage.pairs_per_prompt)
    if not pairs:
        raise DataError(
            f"Stage {stage.name}: all {scores.size} clips have the same reward; a constant reward teaches nothing. "
            "Weigh other heads."
        )
    return train_dpo(model, pairs, settings, folder, reference=stage.reference, **shared), {"ranked_pairs": len(pairs)}


def prompts_of(ground: Ground, stage: StageSettings) -> list[Prompt]:
    """What the stage sings: as many of the run's prompts as its recipe says, always the same ones."""
    if not stage.prompts:
        return ground.prompts
    drawn = np.random.default_rng(ground.recipe.seed + 2).permutation(len(ground.prompts))[: stage.prompts]
    return [ground.prompts[i] for i in sorted(drawn)]


def version_name(run: str, recipe: AlignRecipe, stage: StageSettings) -> str:
    """The version that a stage becomes: the last one has the run's own name."""
    return run if stage is recipe.stages[-1] else f"{run}-{stage.name}"


def _all_stages(recipe: AlignRecipe) -> list[StageSettings]:
    return [*recipe.stages, *([recipe.beside] if recipe.beside else ())]


def _names(ws: Workspace) -> set[str]:
    with ws.database.session(write=False) as s:
        return {version.name for version in list_versions(s)}


def _base_of(ws: Workspace, version: Version) -> Version:
    while version.adapter_uri is not None:
        if version.parent is None:
            raise NotFoundError(f"Version {version.name} has no base on record; register its base first.")
        version = ws.version(version.parent)
    return version


def _prompts(ws: Workspace, recipe: AlignRecipe, models: RewardModels) -> tuple[list[Prompt], list[Prompt]]:
    """(what the stages sing: the train split without the watch's prompts, what the watch sings), by text.

    Captions that come beside them are on record when a run goes on: they are told from the others by their words."""
    more: list[Prompt] = []
    if recipe.more_captions:
        more = add_captions(ws, recipe.more_captions, 900_000 + recipe.seed, lambda _: Split.TRAIN)
    added = {prompt.text for prompt in more}
    with ws.database.session(write=False) as s:
        known = sorted(prompt_queries.list_prompts(s), key=lambda prompt: prompt.text)
    held = set(models.watch_prompts)
    watched = [prompt for prompt in known if prompt.text in held]
    chosen = np.random.default_rng(recipe.seed).permutation(len(watched))[: recipe.watch.prompts]
    prompts = [prompt for prompt in known if prompt.split == Split.TRAIN and prompt.text not in held | added]
    if recipe.train_prompts:
        keep = np.random.default_rng(recipe.seed + 1).permutation(len(prompts))[: recipe.train_prompts]
        prompts = [prompts[i] for i in sorted(keep)]
    prompts += [prompt for prompt in more if prompt.text not in held]
    if len(watched) < 2:
        raise DataError(
            f"{len(watched)} held-out prompts are on record, and a watch needs 2 for an interval; collect votes on "
            "more prompts."
        )
    if not prompts:
        raise DataError(
            "No prompt of the train split is left for the stages to sing; add some with attune generate --prompt, or "
            "set more_captions."
        )
    return prompts, [watched[i] for i in sorted(chosen)]


def _finished(ws: Workspace, stage: StageSettings, name: str, folder: Path) -> tuple[Version, StageLooks]:
    version = ws.version(name)
    with ws.database.session(write=False) as s:
        run = runs.get_train_run(s, version.train_run_id)
    if not read_looks(folder / "watch"):
        raise DataError(f"Version {name} is registered, and {folder} has no looks of it; give the run another name.")
    kept, steps = run.metrics["kept_step"], run.metrics["steps"]
    return version, _looks(stage, name, folder, kept, steps, run.seconds or 0.0)


def _looks(stage: StageSettings, version: str, folder: Path, kept: int, steps: int, seconds: float) -> StageLooks:
    looks = read_looks(folder / "watch", up_to=steps)
    return StageLooks(stage.name, stage.method, version, stage.reward, stage.reference, kept, looks, seconds)
