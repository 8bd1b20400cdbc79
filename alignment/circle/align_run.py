"""A whole run: its stages, best-of-N and expert iteration beside them, the gold judge once at the end, its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from alignment.circle import stages as parts
from alignment.circle.learn import NamedSnapshot
from alignment.circle.stages import Bar, Ground
from alignment.circle.sung import rescored
from alignment.circle.watch import Scorers, read_looks, write_look
from alignment.circle.workspace import Workspace, current_commit
from alignment.config import AlignRecipe
from alignment.domain import Prompt, Version, canonical_sha256
from alignment.evaluation.overoptimisation import GOLD, Look, RunPage, StageLooks
from alignment.evaluation.overoptimisation_page import write_page
from alignment.training.processes import from_first_process

GOLD_LISTENERS = 24


@dataclass(frozen=True)
class Run:
    """The versions of a run's stages in order, its page, and where the page and its figures were written."""

    versions: list[Version]
    page: RunPage
    report: Path
    figures: Path

    def summary(self) -> dict[str, Any]:
        """What ``attune align run --json`` prints."""
        out = self.page.as_json()
        return {
            "versions": [version.name for version in self.versions], "report": str(self.report),
            "figures": str(self.figures), "finding": self.page.headline.kind,
            "simulated": self.page.simulated, "comparison": out["comparison"],
            "stages": [{key: value for key, value in stage.items() if key != "looks"} for stage in out["stages"]],
        }  # fmt: skip


def run_recipe(
    ws: Workspace, name: str, recipe: AlignRecipe, *, snapshot: NamedSnapshot, folder: Path, bar: Bar,
    parent: str = "tiny-base", reward_names: tuple[str, str] | None = None, resume: bool = False,
    job_id: str | None = None,
) -> Run:  # fmt: skip
    """Train the recipe's stages from ``parent`` as versions ``name``-STAGE, the last one as ``name``.

    ``reward_names``: two recorded reward models, the one that trains and the one that watches; without them the
    snapshot is split. ``folder`` takes everything that is written; ``resume`` goes on where a stopped run was.
    ``job_id`` is recorded with every training run."""
    ground = parts.prepare(
        ws, name, recipe, snapshot=snapshot, parent=parent, folder=folder, reward_names=reward_names, resume=resume,
        bar=bar, job_id=job_id,
    )  # fmt: skip
    versions, stages, before = [], [], ground.start
    for number, stage in enumerate(recipe.stages):
        before, looks = parts.run_stage(ws, ground, stage, before, number=number, resume=resume, bar=bar)
        versions.append(before)
        stages.append(looks)
    last = recipe.stages[-1]
    scorers = parts.scorers_of(ground, last)
    compared: dict[str, Look] = {"start": stages[0].looks[0]}
    if recipe.beside is not None:
        beside = recipe.beside.model_copy(update={"reward": last.reward})
        _, found = parts.run_stage(ws, ground, beside, ground.start, number=0, resume=resume, bar=bar)
        compared[f"{beside.name} (beside)"] = found.kept
    for stage in stages:
        compared[stage.version] = stage.kept
        if stage.looks[-1].step != stage.kept_step:
            compared[f"{stage.version}, last step"] = stage.looks[-1]
    # Under torchrun one process hears the pool and writes the page; the others get what it found.
    return from_first_process(lambda: _described(ws, name, ground, scorers, versions, stages, compared, bar))


def _described(
    ws: Workspace, name: str, ground: Ground, scorers: Scorers, versions: list[Version], stages: list[StageLooks],
    compared: dict[str, Look], bar: Bar,
) -> Run:  # fmt: skip
    """What the run came to, beside best-of-N, and its page."""
    recipe, folder = ground.recipe, ground.folder
    with bar("best of N") as progress:
        pool = pool_of(ws, ground, scorers)
        progress(1, 1)
    texts = [prompt.text for prompt in ground.watched]
    model = ws.base_model(ground.start.base)  # it only decodes: the codec is the base's
    compared = {key: rescored(model, look, scorers, texts) for key, look in compared.items()}
    gold = ground.models.simulated and all(prompt.tags for prompt in ground.watched)
    if gold:
        with bar("gold judge, once") as progress:
            judge = _Gold(ws, ground, pool, progress)
            stages = [replace(stage, looks=[judge(look) for look in stage.looks]) for stage in stages]
            compared = {key: judge(look) for key, look in compared.items()}
            pool = judge(pool)
    page = RunPage(
        title=f"{name}: the course of its rewards", created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=ground.models.simulated, stages=stages, pool=pool, sizes=recipe.watch.best_of, compared=compared,
        about=_about(ground, stages), next_command=f"attune compare {name} {ground.start.name}",
    )  # fmt: skip
    report = write_page(page, folder / "report.html")
    figures = folder / "run.json"
    figures.write_text(json.dumps(page.as_json(), indent=1) + "\n", encoding="utf-8")
    return Run(versions, page, report, figures)


def pool_of(ws: Workspace, ground: Ground, scorers: Scorers) -> Look:
    """The start's clips of the watched prompts, as many as the largest best-of-N asks for; sung once."""
    most, texts = max(ground.recipe.watch.best_of), [prompt.text for prompt in ground.watched]
    sung = [texts, most, ground.recipe.seed, ground.recipe.generation.to_domain().sha256]
    start = [ground.start.base_sha256, ground.start.adapter_sha256]
    folder = ground.folder / f"pool-{canonical_sha256([sung, start])[:12]}"
    known = read_looks(folder)
    if known:
        return rescored(ws.base_model(ground.start.base), known[0], scorers, texts)
    pool = parts.watch_of(ground, scorers, folder).look(0, ws.policy(ground.start), clips_per_prompt=most)
    write_look(pool, folder)
    return pool


class _Gold:
    """The gold judge as 24 simulated listeners hear it, on the scale of the start's pool: its mean is 0, 1 the
    deviation within prompts. Clips that stand in several places are heard once."""

    def __init__(self, ws: Workspace, ground: Ground, pool: Look, progress: Any) -> None:
        from alignment.simulation.judge import Judge
        from alignment.simulation.listeners import draw_population, load_listeners

        self.model, self.judge, self.progress = ws.base_model(ground.start.base), Judge(), progress
        drawn = draw_population(load_listeners(), "default", GOLD_LISTENERS, 2 * ground.recipe.seed + 1)
        self.listeners, self.prompts = [listener for _, listener in drawn], ground.watched
        self.heard: dict[bytes, tuple[float, float]] = {}
        raw = self._utilities(pool)[0]
        self.mean = float(raw.mean())
        within = raw - raw.mean(1, keepdims=True)
        self.deviation = float(np.sqrt((within**2).sum() / max(1, raw.size - len(raw)))) or 1.0

    def __call__(self, look: Look) -> Look:
        utility, adherence = self._utilities(look)
        gold = {GOLD: (utility - self.mean) / self.deviation, "gold_adherence": adherence}
        return replace(look, values={**look.values, **gold})

    def _utilities(self, look: Look) -> tuple[np.ndarray, np.ndarray]:
        from alignment.music.codec import decode

        prompts, each = look.codes.shape[:2]
        flat = look.codes.reshape(prompts * each, *look.codes.shape[2:])
        asked: Sequence[Prompt] = [prompt for prompt in self.prompts for _ in range(each)]
        keys = [prompt.text.encode() + codes.tobytes() for prompt, codes in zip(asked, flat, strict=True)]
        fresh = [i for i, key in enumerate(keys) if key not in self.heard]
        for start in range(0, len(fresh), 32):
            rows = fresh[start : start + 32]
            for row, heard in zip(rows, self.judge(decode(self.model, flat[rows])), strict=True):
                tags = asked[row].tags
                liked = float(np.mean([listener.utility(heard, tags) for listener in self.listeners]))
                self.heard[keys[row]] = (liked, heard.adherence(tags))
            self.progress(start + len(rows), len(fresh))
        found = np.array([self.heard[key] for key in keys]).reshape(prompts, each, 2)
        return found[..., 0], found[..., 1]


def _about(ground: Ground, stages: Sequence[StageLooks]) -> dict[str, str]:
    recipe, models = ground.recipe, ground.models
    watch = recipe.watch
    return {
        "Start": f"{ground.start.name}, base {ground.start.base_sha256[:12]}",
        "Snapshot": f"{ground.snapshot.name}, {len(ground.snapshot.frozen.pairs):,} votes, sha256 "
                    f"{ground.snapshot.frozen.content_sha256[:12]}",
        "Reward models": f"{models.names[0]} trains, {models.names[1]} watches: no rater and no prompt in common",
        "Prompts": f"{len(ground.prompts)} sung in training; {len(ground.watched)} others at each look, "
                   f"{watch.clips_per_prompt} clips each, always with the same random numbers",
        "Stages": "; ".join(
            f"{stage.name}: {stage.method}, reward {_weights(stage.reward)}, KL to {stage.reference}, "
            f"{stage.looks[-1].step} steps in {stage.seconds:.0f} s, adapter of step {stage.kept_step}"
            for stage in stages
        ),
        "Seed": str(recipe.seed), "Commit": current_commit() or "not a checkout",
    }  # fmt: skip


def _weights(reward: dict[str, float] | Any) -> str:
    return " + ".join(f"{weight:g} {name}" for name, weight in reward.items() if weight)
