"""How a run does while it trains: the same captions sung again and again, scored by every reward, kept as codes.

The gold judge hears them when all training is over, so that it can show where a reward was over-optimised without
having chosen anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle.generate import clip_seed
from alignment.config import MusicRlSettings
from alignment.domain import Prompt
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import draw_population, load_listeners

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.of_codes import CodesReward

# What a held-out reward model says in the place of a training reward; CLAP has no second CLAP.
HELD_OUT = {
    "clap_cosine": "text_adherence", "caption_contrast": "text_adherence", "text_adherence": "text_adherence",
    "quality": "quality", "preference": "preference",
}  # fmt: skip


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
