"""Measurements of a version on its own clips: KL to its base, diversity, what the captions asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alignment.circle.generate import Clips
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.domain import Prompt, Version
from alignment.evaluation.intervals import Interval, wilson
from alignment.evaluation.metrics import KlEstimate, bootstrap_mean, diversity, kl_nats_per_clip
from alignment.simulation.judge import Judgement


def kl_to_base(
    ws: Workspace, version: Version, prompts: Sequence[Prompt], clips: Clips, progress: Progress = no_progress
) -> KlEstimate:
    """KL(version || base) in nats, on the version's first clip of each prompt, as it was sampled."""
    import torch

    from alignment.music.text import encode_prompts

    policy = ws.policy(version)
    ours, base = [], []
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        own = [clips[prompt.id][0] for prompt in part]
        codes = torch.from_numpy(np.stack([ws.store.get_codes(clip.codes_sha256) for clip in own])).long()
        text = encode_prompts(policy, [prompt.text for prompt in part])
        with torch.no_grad():
            ours.append(policy.logprobs(codes, text, generation=own[0].generation).numpy())
            with policy.reference():
                base.append(policy.logprobs(codes, text, generation=own[0].generation).numpy())
        progress(start + len(part), len(prompts))
    return kl_nats_per_clip(np.concatenate(ours), np.concatenate(base), [str(prompt.id) for prompt in prompts])


def diversity_of(ws: Workspace, prompts: Sequence[Prompt], clips: Clips) -> Interval:
    """Mean cosine distance in CLAP space between the first two clips of each prompt."""
    shas = [[clip.audio_sha256 for clip in clips[prompt.id][:2]] for prompt in prompts]
    vectors = ws.embed_audio([sha for two in shas for sha in two])
    return diversity(np.array([[vectors[sha] for sha in two] for two in shas]))


def followed(attribute: str, prompts: Sequence[Prompt], clips: Clips, heard: Mapping[str, Judgement]) -> Interval:
    """Share of prompts whose first clip has, to the judge, the attribute that the caption asked for."""
    asked = [prompt for prompt in prompts if attribute in prompt.tags]
    hits = [heard[clips[p.id][0].audio_sha256].has(attribute, p.tags[attribute]) for p in asked]
    share = float(np.mean(hits))
    low, high = wilson(share, len(hits), 1.96)  # one clip a prompt: no clusters
    return Interval(share, low, high, n=len(hits))


def heard_mean(values: Sequence[float]) -> Interval:
    return bootstrap_mean(np.array(values, dtype=float))
