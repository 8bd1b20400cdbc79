"""Measurements of a version on its own clips: KL to its base, diversity, what the captions asked for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment.circle.generate import Clips
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.domain import Clip, Prompt, Version
from alignment.evaluation.intervals import Interval, wilson
from alignment.evaluation.metrics import KlEstimate, bootstrap_mean, diversity, kl_nats_per_clip
from alignment.evaluation.win_rate import WinRate
from alignment.simulation.judge import Judgement


def kl_to_base(
    ws: Workspace, version: Version, prompts: Sequence[Prompt], clips: Clips, progress: Progress = no_progress
) -> KlEstimate:
    """KL(version || base) in nats, on the version's first clip of each prompt, as it was sampled."""
    sung = [(prompt.text, clips[prompt.id][0]) for prompt in prompts]
    ours, base = logprobs_with_base(ws, version, sung, progress)
    return kl_nats_per_clip(ours, base, [str(prompt.id) for prompt in prompts])


def logprobs_with_base(
    ws: Workspace, version: Version, sung: Sequence[tuple[str, Clip]], progress: Progress = no_progress
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities in nats, (B, K, T) each, of (prompt, clip) under the version and under its base, as the clips
    were sampled."""
    import torch

    from alignment.music.text import encode_prompts

    policy = ws.policy(version)
    ours, base = [], []
    for start in range(0, len(sung), 16):
        part = sung[start : start + 16]
        generation = part[0][1].generation
        codes = torch.from_numpy(np.stack([ws.store.get_codes(clip.codes_sha256) for _, clip in part])).long()
        text = encode_prompts(policy, [prompt for prompt, _ in part])
        with torch.no_grad():
            ours.append(policy.logprobs(codes, text, generation=generation).numpy())
            with policy.reference():
                base.append(policy.logprobs(codes, text, generation=generation).numpy())
        progress(start + len(part), len(sung))
    return np.concatenate(ours), np.concatenate(base)


def diversity_of(ws: Workspace, prompts: Sequence[Prompt], clips: Clips) -> Interval:
    """Mean cosine distance in CLAP space between the first two clips of each prompt."""
    shas = [[clip.audio_sha256 for clip in clips[prompt.id][:2]] for prompt in prompts]
    vectors = ws.embed_audio([sha for two in shas for sha in two])
    return diversity(np.array([[vectors[sha] for sha in two] for two in shas]))


@dataclass(frozen=True)
class Contestant:
    """One way to sing the held-out prompts, one clip a prompt, and what was measured of it.

    ``reward``, ``adherence``, ``cleanliness`` and each of ``faults`` are the judge's, (P,), in the order of the
    prompts. ``kl_bound`` is the bound in nats a clip where KL is not estimated (best-of-N); the base has neither."""

    name: str
    label: str
    clips: Mapping[uuid.UUID, Clip]
    reward: np.ndarray
    adherence: np.ndarray
    cleanliness: np.ndarray
    faults: Mapping[str, np.ndarray] = field(default_factory=dict)
    rate: WinRate | None = None
    kl: KlEstimate | None = None
    kl_bound: float | None = None
    diversity: Interval | None = None
    train_seconds: float | None = None

    def figures(self) -> dict[str, Any]:
        """Every figure with its interval, flat, for JSON and CSV."""
        out: dict[str, Any] = {"name": self.name, "label": self.label}
        rate = self.rate.interval if self.rate else None
        for key, found in {
            "win_rate": rate, "judge_reward": bootstrap_mean(self.reward),
            "adherence": bootstrap_mean(self.adherence), "cleanliness": bootstrap_mean(self.cleanliness),
            "kl_nats_per_clip": self.kl.per_clip if self.kl else None, "diversity": self.diversity,
        }.items():  # fmt: skip
            out[key] = found.value if found else None
            out[f"{key}_low"], out[f"{key}_high"] = (found.low, found.high) if found else (None, None)
        out |= {f"fault_{name}": float(values.mean()) for name, values in self.faults.items()}
        out["kl_bound_nats"] = self.kl_bound
        out["votes"], out["decisive_votes"] = (self.rate.votes, self.rate.decisive) if self.rate else (None, None)
        out["verdict"] = self.rate.verdict if self.rate else None
        out["prompts"], out["train_seconds"] = len(self.reward), self.train_seconds
        return out


def followed(
    attribute: str, prompts: Sequence[Prompt], clips: Mapping[uuid.UUID, Clip], heard: Mapping[str, Judgement]
) -> Interval | None:
    """Share of prompts whose clip has, to the judge, the attribute that the caption asked for; None if none asked."""
    asked = [prompt for prompt in prompts if attribute in prompt.tags]
    if not asked:
        return None
    hits = [heard[clips[p.id].audio_sha256].has(attribute, p.tags[attribute]) for p in asked]
    share = float(np.mean(hits))
    low, high = wilson(share, len(hits), 1.96)  # one clip a prompt: no clusters
    return Interval(share, low, high, n=len(hits))
