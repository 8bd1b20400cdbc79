"""The runs of MusicRL: R, U, RU and all at once, each trained by PPO and watched while it trains.

What a watch hears is kept as codes. The gold judge hears them when all training is over, so that it can show where a
reward was over-optimised without having chosen anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import learn
from alignment.circle.generate import Clips, clip_seed
from alignment.circle.kept import Kept
from alignment.circle.musicrl_votes import PREFIX, Asked, Learnt
from alignment.circle.workspace import Progress, Workspace, current_commit
from alignment.config import MusicRlRun, MusicRlSettings
from alignment.db.versions import list_versions
from alignment.domain import Prompt, Version
from alignment.errors import ConfigError
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import draw_population, load_listeners
from alignment.versions import BASE_NAME, register_adapter

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.of_codes import CodesReward
    from alignment.rewards.scorers import Scorer

ORDER = ("R", "U", "RU", "joint")
STARTS = {"RU": "R"}  # KL is then measured to where the run starts, as in MusicRL
SCALE_CLIPS = 512  # the base's clips on which every reward gets its level and its unit
# What a held-out reward model says in the place of a training reward; CLAP's cosine has no second CLAP.
HELD_OUT = {
    "clap_cosine": "text_adherence", "text_adherence": "text_adherence", "quality": "quality",
    "preference": "preference",
}  # fmt: skip


def version_name(run: str) -> str:
    return f"tiny-{PREFIX}-{run.lower()}"


class Terms:
    """The rewards by name, all on one scale: 0 is the base's level, 1 the spread among its clips of one prompt."""

    def __init__(
        self, ws: Workspace, learnt: Mapping[str, Learnt], prompts: Sequence[Prompt], clips: Clips, model: MusicModel
    ) -> None:
        from alignment.rewards.scorers import ClapCosine, RewardHead, SharedEncoder

        self.model = model
        self.encoder = SharedEncoder(ws.encoder)

        def heads(suffix: str) -> dict[str, Scorer]:
            panels = {"text_adherence": "raters", "quality": "raters", "preference": "users"}
            return {
                head: RewardHead(learnt[panel + suffix].model, self.encoder, head)
                for head, panel in panels.items()
                if head in learnt[panel + suffix].model.trained_heads
            }

        self.trained: dict[str, Scorer] = {"clap_cosine": ClapCosine(self.encoder), **heads("")}
        self.held_out = heads("-held-out")
        sung = [(prompt.text, clip) for prompt in prompts for clip in clips[prompt.id]][:SCALE_CLIPS]
        self.base_texts = [text for text, _ in sung]
        self.base_audio = np.stack([ws.store.get_audio(clip.audio_sha256)[0] for _, clip in sung])

    def reward(
        self, weights: Mapping[str, float], *, held_out: bool = False, uncertainty_penalty: float = 0.0
    ) -> CodesReward:
        """The reward of codes with these weights. Raises ConfigError for a reward that nobody's votes trained."""
        from alignment.rewards.of_codes import CodesReward
        from alignment.rewards.scorers import WeightedScorer

        known = self.held_out if held_out else self.trained
        if unknown := sorted(set(weights) - set(known)):
            raise ConfigError(f"No vote trained the reward {', '.join(unknown)}; there are {', '.join(known)}.")
        scorer = WeightedScorer.on_base_clips(
            [(known[name], weight) for name, weight in weights.items()], self.base_texts, self.base_audio,
            self.model.sample_rate_hz, uncertainty_penalty=uncertainty_penalty,
        )  # fmt: skip
        return CodesReward(self.model, scorer)


def held_out_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the held-out rewards that stand for those of a run; two that share one add up."""
    out: dict[str, float] = {}
    for name, weight in weights.items():
        out[HELD_OUT[name]] = out.get(HELD_OUT[name], 0.0) + weight
    return out


class CurveWatch:
    """Sings the same captions with the same random numbers whenever it is called, and keeps what every reward says.

    The adapter is chosen by ``held_out_reward``: the run's own weights on reward models of other listeners' votes on
    other prompts. Codes and figures of each step lie in ``folder``."""

    def __init__(
        self, folder: Path, prompts: Sequence[Prompt], settings: MusicRlSettings, weights: Mapping[str, float],
        every: CodesReward, held_out: CodesReward,
    ) -> None:  # fmt: skip
        self.folder, self.weights, self.every, self.held_out = folder, dict(weights), every, held_out
        self.texts = [prompt.text for prompt in prompts]
        self.seeds = [clip_seed(settings.seed, prompt, 0) for prompt in prompts]
        self.generation = settings.generation.to_domain()

    def __call__(self, step: int, model: MusicModel) -> dict[str, float]:
        from alignment.music.sampler import sample

        rollout = sample(model, self.texts, generation=self.generation, seeds=self.seeds)
        every = self.every(self.texts, rollout.codes).parts
        held_out = self.held_out(self.texts, rollout.codes).parts
        figures = {
            "proxy": sum(weight * every[name] for name, weight in self.weights.items()),
            "held_out_reward": sum(w * held_out[name] for name, w in held_out_weights(self.weights).items()),
            "kl": self._nats(model, rollout),
            **{f"score/{name}": values for name, values in every.items()},
            **{f"held_out/{name}": values for name, values in held_out.items()},
        }  # each (P,)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:06d}.npz"
        temporary = path.with_name(f".partial-{path.name}")
        np.savez(temporary, codes=rollout.codes.numpy().astype(np.int32), **figures)
        temporary.replace(path)
        return {name: float(np.mean(values)) for name, values in figures.items()}

    def _nats(self, model: MusicModel, rollout: Any) -> np.ndarray:
        """Log-ratio to the base in nats, (P,), of clips that the policy sampled: its mean is the KL."""
        import torch

        from alignment.music.text import encode_prompts

        found = []
        with torch.no_grad(), model.reference():
            for start in range(0, len(self.texts), 16):
                rows = slice(start, start + 16)
                base = model.logprobs(
                    rollout.codes[rows], encode_prompts(model, self.texts[rows]), generation=self.generation
                )
                found.append((rollout.logprobs[rows] - base.cpu()).double().sum((1, 2)).numpy())
        return np.concatenate(found)


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its version, where its curve lies, the step whose adapter was kept, rewards by step."""

    run: str
    version: Version
    curve: Path
    kept_step: int
    steps: int
    seconds: float
    history: list[dict[str, float]]


def train_run(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, run: str, terms: Terms, asked: Asked,
    learnt: Mapping[str, Learnt], folder: Path, progress: Progress,
) -> TrainedRun:  # fmt: skip
    """Train one run, or go on with it, and register its adapter as a version."""
    curve = folder / "curves" / run
    found = kept.stage(
        f"run-{run}", lambda: _train(ws, settings, run, terms, asked, learnt, folder / "runs" / run, curve, progress)
    )
    return TrainedRun(
        run, ws.version(version_name(run)), curve, found["kept_step"], found["steps"], found["seconds"],
        found["history"],
    )  # fmt: skip


def _train(
    ws: Workspace, settings: MusicRlSettings, run: str, terms: Terms, asked: Asked, learnt: Mapping[str, Learnt],
    run_dir: Path, curve: Path, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    from alignment.training.ppo import train_ppo

    recipe: MusicRlRun = settings.runs[run]
    ppo = recipe.ppo.model_copy(update={"seed": settings.seed, "generation": settings.generation})
    parent = ws.version(version_name(STARTS[run]) if run in STARTS else BASE_NAME)
    watch = CurveWatch(
        curve, asked.watch, settings, recipe.weights, terms.reward(dict.fromkeys(terms.trained, 1.0)),
        terms.reward(dict.fromkeys(terms.held_out, 1.0), held_out=True),
    )  # fmt: skip
    result = train_ppo(
        ws.policy(parent), asked.policy, terms.reward(
            recipe.weights, uncertainty_penalty=recipe.uncertainty_penalty
        ), ppo, run_dir, reference="start" if run in STARTS else "base", watch=watch, resume=True,
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
                "seconds": result.seconds,
            },
        )  # fmt: skip
    return {
        "kept_step": result.best_step, "steps": result.steps, "seconds": result.seconds, "history": result.history,
        "watched": [[step, dict(found)] for step, found in result.watched],
    }  # fmt: skip


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


def hear_curve(
    curve: Path, prompts: Sequence[Prompt], model: MusicModel, judge: Judge, *, population: str, listeners: int,
    seed: int,
) -> dict[str, list]:  # fmt: skip
    """Everything a curve kept, and what the gold judge makes of it, after all training: per step, and (P,) per figure.

    ``gold`` is the mean utility to the panel that compares."""
    from alignment.music.codec import decode

    members = [member for _, member in draw_population(load_listeners(), population, listeners, seed)]
    out: dict[str, list] = {"step": []}
    for path in sorted(curve.glob("step-*.npz")):
        with np.load(path) as stored:
            figures = {name: stored[name] for name in stored.files if name != "codes"}
            heard = judge(decode(model, stored["codes"]))
        figures["gold"] = np.array(
            [np.mean([m.utility(h, p.tags) for m in members]) for h, p in zip(heard, prompts, strict=True)]
        )
        figures["gold_adherence"] = np.array([h.adherence(p.tags) for h, p in zip(heard, prompts, strict=True)])
        figures["gold_cleanliness"] = np.array([h.cleanliness for h in heard])
        out["step"].append(int(path.stem.split("-")[1]))
        for name, values in figures.items():
            out.setdefault(name, []).append([float(value) for value in values])
    return out
