"""Alignment stage by stage: fresh clips of the policy so far, scored, then DPO or expert iteration on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle import learn
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.workspace import Progress, Workspace, current_commit, no_progress
from alignment.config import DemoSettings
from alignment.db.versions import list_versions
from alignment.domain import Prompt, Split, Version
from alignment.errors import DataError
from alignment.versions import register_adapter

if TYPE_CHECKING:
    from alignment.rewards.model import RewardModel
    from alignment.training.trainer import TrainResult

# What comes before the repeated stage.
STAGES = {"dpo": (), "expert": (), "dpo_after_expert": ("expert",), "ppo_after_dpo": ("dpo",)}
REPEATED = {"dpo": "dpo", "expert": "expert", "dpo_after_expert": "dpo", "ppo_after_dpo": "ppo"}
NAMES = {
    "dpo": "tiny-dpo",
    "expert": "tiny-expert",
    "dpo_after_expert": "tiny-expert-dpo",
    "ppo_after_dpo": "tiny-dpo-ppo",
}
LABELS = {
    "dpo": "DPO",
    "expert": "expert iteration",
    "dpo_after_expert": "DPO after expert iteration",
    "ppo_after_dpo": "DPO, then PPO",
}


@dataclass(frozen=True)
class Pool:
    """N clips a prompt of one version, with the reward model's scores (P, N) and its members' (M, P, N)."""

    prompts: list[Prompt]
    clips: Clips
    scores: np.ndarray
    members: np.ndarray

    def of(self, split: Split) -> Pool:
        """The prompts of one split."""
        rows = [i for i, prompt in enumerate(self.prompts) if prompt.split == split]
        return Pool([self.prompts[i] for i in rows], self.clips, self.scores[rows], self.members[:, rows])


@dataclass(frozen=True)
class Aligned:
    """A version and how each of its stages was trained, in order."""

    version: Version
    stages: tuple[TrainResult, ...]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def label_of(method: str, settings: DemoSettings) -> str:
    """How a method is called in a report."""
    rounds = settings.align.rounds if method == settings.align.method else 1
    return LABELS[method] + (f", {rounds} rounds" if rounds > 1 else "")


def score_pool(ws: Workspace, reward: RewardModel, prompts: Sequence[Prompt], clips: Clips) -> Pool:
    """The pool of these prompts' clips, all of which are scored."""
    found = learn.score_each(ws, reward, prompts, clips)
    shape = (len(prompts), -1)
    members = found.members.reshape(len(found.members), *found.preference.reshape(shape).shape)
    return Pool(list(prompts), clips, found.preference.reshape(shape), members)


def align(
    ws: Workspace,
    name: str,
    settings: DemoSettings,
    *,
    method: str,
    rounds: int,
    base: Version,
    snapshot: learn.NamedSnapshot,
    reward: RewardModel,
    pool: Pool,
    run_dir: Path,
    reward_name: str | None = None,
    trained: Mapping[str, Aligned] | None = None,
    progress: Progress = no_progress,
) -> Aligned:
    """Train ``method`` from ``base`` and register the result as version ``name``, earlier stages as ``name-1`` and on.

    The first stage trains on ``pool``, the base's clips; every further one on fresh clips of the policy so far, with
    that policy as DPO's reference. PPO sings for itself, and its KL is to the base. A first stage that is among those
    ``trained`` already is not trained again. Raises DataError when the name is taken or the reward model's margins
    leave no pair. ``reward_name``: under which the reward model is on record, for the lineage."""
    learn.check_name(name)
    with ws.database.session(write=False) as s:
        if name in {known.name for known in list_versions(s)}:
            raise DataError(f"Version {name} exists already; give the new version another name.")
    todo = [*STAGES[method], *[REPEATED[method]] * rounds]
    policy, done = base, []
    if trained and todo[0] in trained and len(todo) > 1:
        policy, done = trained[todo[0]].version, list(trained[todo[0]].stages)
    for number in range(len(done), len(todo)):
        last = number == len(todo) - 1
        if number and todo[number] != "ppo":
            pool = _fresh_pool(ws, settings, policy, reward, pool.prompts, number)
        policy, result = _stage(
            ws, name if last else f"{name}-{number + 1}", settings, kind=todo[number], parent=policy,
            base=base, reward=reward, snapshot=snapshot, pool=pool, run_dir=run_dir / f"{name}-{number + 1}",
            reward_name=reward_name, progress=progress,
        )  # fmt: skip
        done.append(result)
    return Aligned(policy, tuple(done))


def _fresh_pool(
    ws: Workspace, settings: DemoSettings, policy: Version, reward: RewardModel, prompts: list[Prompt], number: int
) -> Pool:
    seed = 1000 * (settings.seed + 1) + number  # other random numbers than the base's clips
    clips = generate_clips(
        ws, policy.name, prompts, settings.generation.to_domain(), per_prompt=settings.best_of, seed=seed
    )
    return score_pool(ws, reward, prompts, clips)


def _stage(
    ws: Workspace, name: str, settings: DemoSettings, *, kind: str, parent: Version, base: Version,
    reward: RewardModel, snapshot: learn.NamedSnapshot, pool: Pool, run_dir: Path,
    reward_name: str | None, progress: Progress,
) -> tuple[Version, TrainResult]:  # fmt: skip
    """One training from ``parent``, registered as ``name``."""
    from alignment.training.dpo import train_dpo
    from alignment.training.expert_iteration import train_expert

    def on_step(step: int, steps: int, _: object) -> None:
        progress(step, steps)

    first, counts = parent.adapter_uri is None, {}
    if kind == "expert":
        chosen = settings.expert.model_copy(update={"seed": settings.seed})
        examples = kept(ws, pool, chosen.keep)
        counts["kept_clips"] = len(examples)
        result = train_expert(ws.policy(parent), examples, chosen, run_dir, on_step=on_step)
    elif kind == "ppo":
        from alignment.circle.online import train_online

        chosen, voted = settings.ppo.model_copy(update={"seed": settings.seed}), [p.text for p in pool.prompts]
        counts |= {"voted_prompts": len(voted), "online_captions": settings.align.online_captions}
        result = train_online(
            ws, settings, parent=parent, base=base, reward=reward, voted=voted, run_dir=run_dir, on_step=on_step
        )
    else:
        chosen = settings.dpo.model_copy(update={"seed": settings.seed})
        # Validation prompts train too, unless early stopping needs them.
        valid = ranked(ws, pool.of(Split.VALID), settings) if chosen.eval_steps else []
        examples = ranked(ws, pool.of(Split.TRAIN) if chosen.eval_steps else pool, settings)
        counts |= {"ranked_pairs": len(examples), "valid_pairs": len(valid)}
        if first and settings.align.use_voted_pairs:
            voted = learn.voted_examples(ws, snapshot, tie_weight=chosen.tie_weight)
            counts["voted_pairs"] = len(voted)
            examples = [*voted, *examples]
        result = train_dpo(
            ws.policy(parent), examples, chosen, run_dir, valid=valid, reference="base" if first else "start",
            on_step=on_step,
        )  # fmt: skip
    version = register_adapter(
        ws.database, ws.store, name=name, parent=parent, adapter=result.adapter_dir, commit=current_commit(),
        simulated=snapshot.frozen.simulated or parent.simulated,
        run={
            "kind": kind, "snapshot_id": snapshot.id,
            "config": chosen.model_dump(mode="json") | {"align": settings.align.model_dump(mode="json")},
            "metrics": counts | {"history": result.history, "valid": result.valid, "best_step": result.best_step},
            "seconds": result.seconds, "reward_models": [reward_name] if reward_name else [],
        },
    )  # fmt: skip
    return version, result


def ranked(ws: Workspace, pool: Pool, settings: DemoSettings) -> list:
    """DPO's examples from a pool: the best clips of each prompt against its worst, where the reward model is sure."""
    from alignment.training.best_of_n import best_worst_pairs

    made = best_worst_pairs(
        [prompt.text for prompt in pool.prompts], pool_codes(ws, pool), pool.scores,
        per_prompt=settings.align.pairs_per_prompt, min_margin=settings.align.min_margin, members=pool.members,
    )  # fmt: skip
    if not made:
        raise DataError(
            f"No pair of {pool.scores.size} clips differs by {settings.align.min_margin:g} deviations of the reward "
            "model's ensemble; lower align.min_margin."
        )
    return made


def kept(ws: Workspace, pool: Pool, keep: int) -> list:
    """Expert iteration's examples from a pool: the best clips of each prompt."""
    from alignment.training.best_of_n import kept_clips

    return kept_clips([prompt.text for prompt in pool.prompts], pool_codes(ws, pool), pool.scores, keep=keep)


def pool_codes(ws: Workspace, pool: Pool) -> np.ndarray:
    """(P, N, K, T): the codes of every clip of the pool."""
    return np.stack([[learn.codes_of(ws, clip) for clip in pool.clips[prompt.id]] for prompt in pool.prompts])
