"""The runs of MusicRL: R, U, RU and all at once, each trained by PPO and watched while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import learn
from alignment.circle.generate import Clips
from alignment.circle.kept import Kept
from alignment.circle.musicrl_curves import CurveWatch
from alignment.circle.musicrl_votes import PREFIX, Asked, Learnt
from alignment.circle.workspace import Progress, Workspace, current_commit
from alignment.config import MusicRlRun, MusicRlSettings
from alignment.db.versions import list_versions
from alignment.domain import Prompt, Version
from alignment.errors import ConfigError
from alignment.versions import BASE_NAME, register_adapter

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.of_codes import CodesReward
    from alignment.rewards.scorers import Scorer, WeightedScorer

ORDER = ("R", "U", "RU", "joint")
STARTS = {"RU": "R"}  # KL is then measured to where the run starts, as in MusicRL
SCALE_CLIPS = 256  # the base's clips on which every reward gets its level and its unit
CAPTIONS = 256  # what "captions in general" are to the contrast


def version_name(run: str) -> str:
    return f"tiny-{PREFIX}-{run.lower()}"


class Terms:
    """The rewards by name, all on one scale: 0 is the base's level, 1 the spread among its clips of one prompt."""

    def __init__(
        self, ws: Workspace, learnt: Mapping[str, Learnt], prompts: Sequence[Prompt], clips: Clips, asked: Asked,
        model: MusicModel,
    ) -> None:  # fmt: skip
        from alignment.rewards.contrast import CaptionContrast
        from alignment.rewards.scorers import ClapCosine, RewardHead, SharedEncoder

        self.model = model
        encoder = SharedEncoder(ws.encoder)

        def heads(suffix: str) -> dict[str, Scorer]:
            panels = {"text_adherence": "raters", "quality": "raters", "preference": "users"}
            return {
                head: RewardHead(learnt[panel + suffix].model, encoder, head)
                for head, panel in panels.items()
                if head in learnt[panel + suffix].model.trained_heads
            }

        captions = asked.policy[:CAPTIONS]
        clap = {"clap_cosine": ClapCosine(encoder), "caption_contrast": CaptionContrast(encoder, captions)}
        self.trained: dict[str, Scorer] = {**clap, **heads("")}
        self.held_out = heads("-held-out")
        sung = [(prompt.text, clip) for prompt in prompts for clip in clips[prompt.id]][:SCALE_CLIPS]
        self.base_texts = [text for text, _ in sung]
        self.base_codes = np.stack([learn.codes_of(ws, clip) for _, clip in sung])  # (B, K, T)
        self._measured: dict[tuple[int | None, bool], WeightedScorer] = {}

    def reward(
        self, weights: Mapping[str, float], clip_seconds: float | None = None, *, held_out: bool = False,
        uncertainty_penalty: float = 0.0, batch_size: int = 32,
    ) -> CodesReward:  # fmt: skip
        """The reward of codes with these weights, its scale that of the base's clips of ``clip_seconds`` (None: whole).

        Raises ConfigError for a reward that nobody's votes trained."""
        from alignment.rewards.of_codes import CodesReward
        from alignment.rewards.scorers import WeightedScorer

        known = self.held_out if held_out else self.trained
        if unknown := sorted(set(weights) - set(known)):
            raise ConfigError(f"No vote trained the reward {', '.join(unknown)}; there are {', '.join(known)}.")
        measured = self._on_base_clips(clip_seconds, held_out)
        parts = [(scorer, weights[scorer.name]) for scorer, _ in measured.parts if scorer.name in weights]
        scorer = WeightedScorer(parts, measured.scales, uncertainty_penalty=uncertainty_penalty)
        return CodesReward(self.model, scorer, batch_size=batch_size)

    def _on_base_clips(self, clip_seconds: float | None, held_out: bool) -> WeightedScorer:
        """Every reward with its scale, measured once for each length of clips.

        A clip's beginning is what a shorter one of its seed would have been, so none is sung for it."""
        import torch

        from alignment.rewards.of_codes import base_reward

        frames = None if clip_seconds is None else self.model.frames(clip_seconds)
        key = (frames, held_out)
        if key not in self._measured:
            scorers = (self.held_out if held_out else self.trained).values()
            codes = torch.from_numpy(self.base_codes[..., :frames]).long()
            self._measured[key] = base_reward(
                self.model, [(scorer, 1.0) for scorer in scorers], self.base_texts, codes
            ).scorer
        return self._measured[key]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its version, where its curve lies, the step whose adapter was kept."""

    run: str
    version: Version
    curve: Path
    kept_step: int
    seconds: float


def train_run(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, run: str, terms: Terms, asked: Asked,
    learnt: Mapping[str, Learnt], folder: Path, progress: Progress,
) -> TrainedRun:  # fmt: skip
    """Train one run, or go on with it, and register its adapter as a version."""
    curve = folder / "curves" / run
    found = kept.stage(
        f"run-{run}", lambda: _train(ws, settings, run, terms, asked, learnt, folder / "runs" / run, curve, progress)
    )
    return TrainedRun(run, ws.version(version_name(run)), curve, found["kept_step"], found["seconds"])


def _train(
    ws: Workspace, settings: MusicRlSettings, run: str, terms: Terms, asked: Asked, learnt: Mapping[str, Learnt],
    run_dir: Path, curve: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    from alignment.training.ppo import train_ppo

    recipe: MusicRlRun = settings.runs[run]
    ppo = recipe.ppo.model_copy(update={"seed": settings.seed})
    parent = ws.version(version_name(STARTS[run]) if run in STARTS else BASE_NAME)
    reward = terms.reward(recipe.weights, ppo.generation.clip_seconds, uncertainty_penalty=recipe.uncertainty_penalty)
    watch = CurveWatch(
        curve, asked.watch, settings, recipe.weights, *(
            # One batch: the second of the two finds the embeddings of the first.
            terms.reward(dict.fromkeys(known, 1.0), held_out=held, batch_size=settings.watch_prompts)
            for held, known in ((False, terms.trained), (True, terms.held_out))
        ),
    )  # fmt: skip
    result = train_ppo(
        ws.policy(parent), asked.policy, reward, ppo, run_dir,
        reference="start" if run in STARTS else "base", watch=watch, resume=True,
        on_step=lambda step, steps, _: progress(step, steps),
    )  # fmt: skip
    snapshot = learnt["users" if "preference" in recipe.weights else "raters"].snapshot
    with ws.database.session(write=False) as s:
        registered = version_name(run) in {version.name for version in list_versions(s)}
    if not registered:
        register_adapter(
            ws.database, ws.store, name=version_name(run), parent=parent, adapter=result.adapter_dir,
            commit=current_commit(), simulated=True,
            run={
                "kind": "ppo", "snapshot_id": snapshot.id, "config": recipe.model_dump(mode="json") | {
                    "ppo": ppo.model_dump(mode="json")
                },
                "metrics": {"history": result.history, "watched": result.watched, "best_step": result.best_step},
                "seconds": result.seconds, "reward_models": [one.snapshot.name for one in learnt.values()],
            },
        )  # fmt: skip
    return {"kept_step": result.best_step, "seconds": result.seconds}


def train_expert_run(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, weights: Mapping[str, float], terms: Terms,
    prompts: Sequence[Prompt], clips: Clips, snapshot: learn.NamedSnapshot, folder: Path, progress: Progress,
) -> Version:  # fmt: skip
    """Expert iteration on the clips that were voted on: the best of each prompt by the same reward."""
    kept.stage("run-expert", lambda: _expert(ws, settings, weights, terms, prompts, clips, snapshot, folder, progress))
    return ws.version(version_name("expert"))


def _expert(
    ws: Workspace, settings: MusicRlSettings, weights: Mapping[str, float], terms: Terms, prompts: Sequence[Prompt],
    clips: Clips, snapshot: learn.NamedSnapshot, folder: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    import shutil

    from alignment.training.best_of_n import kept_clips
    from alignment.training.expert_iteration import train_expert

    codes, scores = score_clips(ws, terms, weights, prompts, clips)
    chosen = settings.expert.model_copy(update={"seed": settings.seed})
    examples = kept_clips([prompt.text for prompt in prompts], codes, scores, keep=chosen.keep)
    base, run_dir = ws.version(BASE_NAME), folder / "runs" / "expert"
    shutil.rmtree(run_dir, ignore_errors=True)  # a minute's work: it starts over rather than goes on
    result = train_expert(
        ws.policy(base), examples, chosen, run_dir, on_step=lambda step, steps, _: progress(step, steps)
    )
    name = version_name("expert")
    with ws.database.session(write=False) as s:
        registered = name in {version.name for version in list_versions(s)}
    if not registered:
        register_adapter(
            ws.database, ws.store, name=name, parent=base, adapter=result.adapter_dir, commit=current_commit(),
            simulated=True,
            run={
                "kind": "expert", "snapshot_id": snapshot.id, "config": chosen.model_dump(mode="json"),
                "metrics": {"kept_clips": len(examples), "history": result.history}, "seconds": result.seconds,
            },
        )  # fmt: skip
    return {"seconds": result.seconds}


def score_clips(
    ws: Workspace, terms: Terms, weights: Mapping[str, float], prompts: Sequence[Prompt], clips: Clips
) -> tuple[np.ndarray, np.ndarray]:
    """(codes (P, N, K, T), rewards (P, N)) of stored clips of the base."""
    import torch

    codes = np.stack([[learn.codes_of(ws, clip) for clip in clips[prompt.id]] for prompt in prompts])
    texts = [prompt.text for prompt in prompts for _ in range(codes.shape[1])]
    total = terms.reward(weights)(texts, torch.from_numpy(codes.reshape(-1, *codes.shape[2:])).long()).total
    return codes, total.reshape(codes.shape[:2])
