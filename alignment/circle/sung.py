"""Clips of a version as arrays, and what a reward makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle import learn
from alignment.circle.generate import generate_clips
from alignment.circle.watch import Scorers
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.config import AlignRecipe
from alignment.domain import Prompt, Version
from alignment.evaluation.overoptimisation import Look

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.rewards.scorers import WeightedScorer

AT_ONCE = 32  # clips scored together, so that memory does not grow with a pool


@dataclass(frozen=True)
class Sung:
    """Prompts with N clips each, as texts (P N), codes (P, N, K, T) and audio (P N, samples)."""

    prompts: Sequence[Prompt]
    texts: list[str]
    codes: np.ndarray
    audio: np.ndarray
    sample_rate_hz: int


def sing(
    ws: Workspace, version: Version, prompts: Sequence[Prompt], recipe: AlignRecipe, *, each: int, seed: int,
    progress: Progress = no_progress,
) -> Sung:  # fmt: skip
    """``each`` clips a prompt of a version, recorded; those there already are not sung again."""
    clips = generate_clips(
        ws, version.name, prompts, recipe.generation.to_domain(), per_prompt=each, seed=seed, progress=progress
    )
    own = [clip for prompt in prompts for clip in clips[prompt.id]]
    loaded = [ws.store.get_audio(clip.audio_sha256) for clip in own]
    codes = np.stack([learn.codes_of(ws, clip) for clip in own])
    return Sung(
        list(prompts), [prompt.text for prompt in prompts for _ in range(each)],
        codes.reshape(len(prompts), each, *codes.shape[1:]), np.stack([audio for audio, _ in loaded]), loaded[0][1],
    )  # fmt: skip


def rescored(model: MusicModel, look: Look, scorers: Scorers, texts: Sequence[str]) -> Look:
    """The look with the rewards of other scorers: stages that were rewarded differently are compared by one reward.

    ``model`` decodes, with or without an adapter."""
    from alignment.music.codec import decode

    prompts, each = look.codes.shape[:2]
    flat, asked = look.codes.reshape(prompts * each, *look.codes.shape[2:]), [t for t in texts for _ in range(each)]
    found: dict[str, list[np.ndarray]] = {"proxy_reward": [], "held_out_reward": []}
    for start in range(0, len(flat), AT_ONCE):
        audio = decode(model, flat[start : start + AT_ONCE])
        for name, scorer in (("proxy_reward", scorers.proxy), ("held_out_reward", scorers.held_out)):
            found[name].append(scorer.score_parts(asked[start : start + AT_ONCE], audio, model.sample_rate_hz)[0])
    kept = {name: values for name, values in look.values.items() if "/" not in name}
    return replace(
        look, values=kept | {name: np.concatenate(parts).reshape(prompts, each) for name, parts in found.items()}
    )


def score_sung(scorer: WeightedScorer, sung: Sung) -> np.ndarray:
    """Rewards (P, N), some at a time."""
    parts = [
        scorer.score_parts(sung.texts[i : i + AT_ONCE], sung.audio[i : i + AT_ONCE], sung.sample_rate_hz)[0]
        for i in range(0, len(sung.texts), AT_ONCE)
    ]
    return np.concatenate(parts).reshape(sung.codes.shape[:2])
