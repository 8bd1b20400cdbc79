"""Clips sung by a version: sampled, decoded, measured, stored by content and recorded."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence

from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.db.clips import NewClip, add_clips, list_clips
from alignment.domain import Clip, GenerationConfig, Prompt
from alignment.errors import DataError

BATCH = 64
Clips = dict[uuid.UUID, list[Clip]]


def clip_seed(seed: int, prompt: Prompt, index: int) -> int:
    """The sampling seed of clip ``index`` of a prompt: 48 bits of sha256, the same on every machine."""
    return int(hashlib.sha256(f"{seed}:{prompt.sha256}:{index}".encode()).hexdigest()[:12], 16)


def generate_clips(
    ws: Workspace,
    version_name: str,
    prompts: Sequence[Prompt],
    generation: GenerationConfig,
    *,
    per_prompt: int,
    seed: int,
    progress: Progress = no_progress,
) -> Clips:
    """``per_prompt`` clips of each prompt, in order of their index; clips that exist already are not sung again.

    Every batch is committed as a whole, so an interrupted run loses at most one batch and goes on where it
    stopped. Raises DataError without prompts and NotFoundError for an unknown version."""
    if not prompts:
        raise DataError("There are no prompts to sing; add some with `attune generate --prompt TEXT`.")
    prompts = list({prompt.id: prompt for prompt in prompts}.values())
    version = ws.version(version_name)
    if not version.is_model:
        raise DataError(f"Version {version_name} is clips from elsewhere and no model; choose a version that sings.")
    wanted = [(prompt, clip_seed(seed, prompt, index)) for prompt in prompts for index in range(per_prompt)]

    def known_clips() -> dict[tuple[uuid.UUID, int], Clip]:
        with ws.database.session(write=False) as s:
            found = list_clips(s, version=version_name, prompt_ids=[p.id for p in prompts], generation=generation)
        return {(clip.prompt_id, clip.seed): clip for clip in found}

    known = known_clips()
    missing = [(prompt, one) for prompt, one in wanted if (prompt.id, one) not in known]
    done = len(wanted) - len(missing)
    progress(done, len(wanted))
    # Under torchrun all processes come along, even one that finds nothing left to sing: the others wait for it.
    if missing or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from alignment.music.codec import render
        from alignment.music.memory import rollout_batch
        from alignment.music.sampler import sample
        from alignment.training.processes import wait_for_all
        from alignment.training.ranks import Ranks

        policy = ws.policy(version)
        # Under torchrun every process sings its part of what is wanted, and finds the others' in the database.
        ranks = Ranks(policy.device)
        own = wanted[ranks.index :: ranks.count]
        missing = [(prompt, one) for prompt, one in own if (prompt.id, one) not in known]
        size = rollout_batch(
            policy, min(BATCH, max(1, len(missing))), seconds=generation.clip_seconds, guidance=generation.guidance,
            what=f"Singing with {version_name}",
        )  # fmt: skip
        for start in range(0, len(missing), size):
            batch, began = missing[start : start + size], time.monotonic()
            codes = sample(
                policy, [prompt.text for prompt, _ in batch], generation=generation, seeds=[one for _, one in batch]
            ).codes  # (B, K, T)
            audio = render(policy, codes)  # (B, samples), or (B, samples, 2)
            seconds = (time.monotonic() - began) / len(batch)
            fresh = []
            for (prompt, one), clip_codes, wave in zip(batch, codes.numpy(), audio, strict=True):
                audio_sha256, facts = ws.store.put_audio(wave, policy.sample_rate_hz)
                codes_sha256 = ws.store.put_codes(clip_codes)
                fresh.append(
                    NewClip(prompt.id, version_name, generation, one, audio_sha256, codes_sha256, facts, seconds)
                )
            with ws.database.session() as s:
                known |= {(clip.prompt_id, clip.seed): clip for clip in add_clips(s, fresh)}
            done += len(batch)
            progress(done, len(wanted))
        if ranks.count > 1:
            wait_for_all()
            known = known_clips()
            progress(len(wanted), len(wanted))
    out: Clips = {prompt.id: [] for prompt in prompts}
    for prompt, one in wanted:
        out[prompt.id].append(known[prompt.id, one])
    return out
