"""Does training on "follow the caption" alone make attune-tiny follow captions, by an ear that trained nothing?

    python -m scripts.check_adherence --json            # PPO and DPO, each on its recipe below
    python -m scripts.check_adherence --methods ppo --seed 1 --out data/adherence

The reward is how much closer CLAP finds a clip to its caption than to captions in general, and nothing else (or, with
--reward clap_cosine, the plain cosine). PPO trains online; DPO on the best
against the worst of N of the base's own clips by the same reward. Base and policies then sing captions that nobody
trained on, each clip from the same seed, and the gold judge, which shares no weight and no recording with CLAP, says
how much of each caption its clip has. Run again with the same --out, PPO goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignment.config import REPOSITORY, DpoSettings, GenerationSettings, PpoSettings, load_recipe
from alignment.evaluation.metrics import bootstrap_mean, kl_nats_per_clip
from alignment.simulation.captions import draw_captions

METHODS = ("ppo", "dpo")
TRAIN_SEED, HELD_OUT_SEED, SCALE_SEED, POOL_SEED = 1, 4242, 77, 7_000_000
SCALE_PROMPTS, BATCH = 48, 16
COLUMNS = (("adherence", "", 3), ("adherence_gain", "+", 3), ("reward", "+", 2), ("cleanliness", "", 3), ("kl", "", 1))
DPO = DpoSettings(
    learning_rate=2e-3, beta=0.1, num_train_epochs=1, per_device_train_batch_size=16,
    lora={"r": 4, "lora_alpha": 8, "target_modules": ["cross_attention"]},
)  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """Held-out clips of one policy, one a caption: what judge and reward say of each, (P,), and log-probabilities
    under the policy and the base, (P, K, T)."""

    adherence: np.ndarray
    cleanliness: np.ndarray
    reward: np.ndarray
    own_logprobs: np.ndarray
    base_logprobs: np.ndarray


class Bench:
    """attune-tiny, its reward on the base's scale, and the judge."""

    def __init__(self, held_out: int, reward: str) -> None:
        from alignment.music.model import MusicModel
        from alignment.rewards.encoder import ClapEncoder
        from alignment.rewards.contrast import CaptionContrast
        from alignment.rewards.scorers import ClapCosine, SharedEncoder
        from alignment.simulation.judge import Judge

        self.model, self.judge = MusicModel.load("tiny"), Judge()
        encoder, captions = SharedEncoder(ClapEncoder()), [t for t, _ in draw_captions(256, 9, reserved=False)]
        if reward == "clap_cosine":
            self.scorer = ClapCosine(encoder, licence="MIT")
        else:
            self.scorer = CaptionContrast(encoder, captions, licence="MIT")
        drawn = draw_captions(held_out, HELD_OUT_SEED, reserved=True)
        self.held_out, self.tags = [text for text, _ in drawn], [asked.as_tags() for _, asked in drawn]
        self.rewards: dict[float, Any] = {}

    def reward(self, clip_seconds: float) -> Any:
        """The reward in deviations of the base's clips of this length."""
        from alignment.music.sampler import sample
        from alignment.rewards.of_codes import base_reward

        if clip_seconds not in self.rewards:
            prompts = [t for t, _ in draw_captions(SCALE_PROMPTS, SCALE_SEED, reserved=False) for _ in range(2)]
            how = GenerationSettings(clip_seconds=clip_seconds).to_domain()
            with self.model.reference():
                codes = sample(self.model, prompts, generation=how, seeds=range(len(prompts))).codes
            self.rewards[clip_seconds] = base_reward(self.model, [(self.scorer, 1.0)], prompts, codes)
        return self.rewards[clip_seconds]

    def hear(self) -> Heard:
        """The held-out captions, sung for five seconds by the model as it is now."""
        import torch

        from alignment.music.codec import decode
        from alignment.music.sampler import sample
        from alignment.music.text import encode_prompts

        model, generation = self.model, GenerationSettings().to_domain()
        reward, parts = self.reward(generation.clip_seconds), []
        seeds = range(1_000_000, 1_000_000 + len(self.held_out))
        codes = sample(model, self.held_out, generation=generation, seeds=seeds).codes
        for start in range(0, len(codes), BATCH):
            rows = slice(start, start + BATCH)
            judged = self.judge(decode(model, codes[rows]))
            text = encode_prompts(model, self.held_out[rows])
            with torch.no_grad():
                own = model.logprobs(codes[rows], text).numpy()
                with model.reference():
                    base = model.logprobs(codes[rows], text).numpy()
            adherence = [one.adherence(tags) for one, tags in zip(judged, self.tags[rows], strict=True)]
            parts.append((
                np.array(adherence), np.array([one.cleanliness for one in judged]),
                reward(self.held_out[rows], codes[rows]).total, own, base,
            ))  # fmt: skip
        return Heard(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def compared(ours: Heard, base: Heard, prompts: Sequence[str]) -> dict[str, Any]:
    """Each figure of a policy, and its difference to the base on the same captions, with 95% intervals."""
    out: dict[str, Any] = {"prompts": len(prompts)}
    for name in ("adherence", "cleanliness", "reward"):
        out |= _interval(name, bootstrap_mean(getattr(ours, name)))
        out |= _interval(f"{name}_gain", bootstrap_mean(getattr(ours, name) - getattr(base, name)))
    return out | _interval("kl", kl_nats_per_clip(ours.own_logprobs, ours.base_logprobs, list(prompts)).per_clip)


def _interval(name: str, found: Any) -> dict[str, float]:
    return {name: round(found.value, 4), f"{name}_low": round(found.low, 4), f"{name}_high": round(found.high, 4)}


def train_ppo_arm(bench: Bench, settings: PpoSettings, out: Path, prompts: int, say: Callable[[str], None]) -> int:
    """Train by PPO on the bench's reward; how many clips it took."""
    from alignment.training.ppo import train_ppo

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        say(f"ppo {step}/{steps}: reward {metrics['reward']:+.2f}, KL {metrics['kl']:.1f} nats a clip")

    reward = bench.reward(settings.generation.clip_seconds)
    captions = [text for text, _ in draw_captions(prompts, TRAIN_SEED, reserved=False)]
    return train_ppo(bench.model, captions, reward, settings, out, resume=True, on_step=on_step).examples


def train_dpo_arm(
    bench: Bench, settings: DpoSettings, out: Path, prompts: int, best_of: int, clip_seconds: float,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """Train by DPO on the best against the worst of ``best_of`` clips of the base; how many clips it took."""
    from alignment.music.sampler import sample
    from alignment.training.best_of_n import best_worst_pairs
    from alignment.training.dpo import train_dpo

    captions = list(dict.fromkeys(text for text, _ in draw_captions(2 * prompts, TRAIN_SEED, reserved=False)))
    captions = captions[:prompts]
    each = [text for text in captions for _ in range(best_of)]
    how, seeds = GenerationSettings(clip_seconds=clip_seconds).to_domain(), range(POOL_SEED, POOL_SEED + len(each))
    codes = sample(bench.model, each, generation=how, seeds=seeds).codes
    scores = bench.reward(clip_seconds)(each, codes).total.reshape(len(captions), best_of)
    pairs = best_worst_pairs(captions, codes.view(*scores.shape, *codes.shape[1:]).numpy(), scores)
    say(f"dpo: {len(pairs)} pairs of {len(each)} clips")

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        say(f"dpo {step}/{steps}: loss {metrics['loss']:.3f}, KL {metrics['kl']:.1f} nats a clip")

    train_dpo(bench.model, pairs, settings, out, on_step=on_step)
    return len(each)


def check(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Every method's figures beside the base's."""
    bench, started = Bench(options.held_out, options.reward), time.monotonic()
    base = bench.hear()
    ppo = load_recipe(options.config, PpoSettings).model_copy(update={"seed": options.seed})
    if options.steps:
        ppo = ppo.model_copy(update={"max_steps": options.steps})
    found: dict[str, Any] = {"base": compared(base, base, bench.held_out)}
    for method in options.methods:
        out, began = Path(options.out) / f"{method}-{options.seed}", time.monotonic()
        if method == "ppo":
            clips = train_ppo_arm(bench, ppo, out, options.prompts, say)
        else:
            dpo = DPO.model_copy(update={"seed": options.seed})
            seconds = ppo.generation.clip_seconds
            clips = train_dpo_arm(bench, dpo, out, options.dpo_prompts, options.best_of, seconds, say)
        spent = time.monotonic() - began
        found[method] = compared(bench.hear(), base, bench.held_out) | {
            "clips_trained_on": clips, "train_seconds": round(spent, 1),
        }  # fmt: skip
        bench.model.remove_adapter()
    return {"seed": options.seed, "reward": bench.scorer.name, "methods": found,
            "seconds": round(time.monotonic() - started, 1), **_machine()}  # fmt: skip


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    return {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "transformers": transformers.__version__}}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = ["| | adherence | gain | reward | cleanliness | KL, nats a clip |", "|---|---|---|---|---|---|"]
    for name, row in found["methods"].items():
        cells = []
        for key, sign, digits in COLUMNS:
            value, low, high = (f"{row[name]:{sign}.{digits}f}" for name in (key, f"{key}_low", f"{key}_high"))
            cells.append(f"{value} [{low}, {high}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--reward", choices=("caption_contrast", "clap_cosine"), default="caption_contrast")
    parser.add_argument("--config", default=str(REPOSITORY / "configs" / "ppo.yaml"), help="PPO's recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="rollouts of PPO instead of the recipe's")
    parser.add_argument("--prompts", type=int, default=13_000, help="training captions of PPO")
    parser.add_argument("--dpo-prompts", type=int, default=800, help="training captions of DPO")
    parser.add_argument("--best-of", type=int, default=4, help="N of DPO's best against worst of N")
    parser.add_argument("--held-out", type=int, default=300, help="captions that the judge hears")
    parser.add_argument("--out", default="data/adherence", help="run folders")
    parser.add_argument("--json", action="store_true", help="the figures as one line of JSON, the last of stdout")
    options = parser.parse_args(arguments)
    found = check(options, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    main()
