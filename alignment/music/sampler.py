"""Batched rollouts with the log-probability of every code, drawn by inverse CDF from each clip's own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignment.domain import GenerationConfig
from alignment.errors import DataError
from alignment.music.delay import delay_values, delayed_steps, prediction_mask, undo_delay
from alignment.music.distribution import draw
from alignment.music.model import MusicModel
from alignment.music.step import DecoderStep
from alignment.music.text import TextBatch, encode_prompts


@dataclass(frozen=True)
class Rollout:
    """``codes`` (B, K, T) int64 and their ``logprobs`` (B, K, T) float32 in nats, both on the CPU."""

    codes: Tensor
    logprobs: Tensor


def sample(
    model: MusicModel,
    prompts: Sequence[str],
    *,
    generation: GenerationConfig,
    seeds: Sequence[int],
    batch_size: int = 128,
    on_step: Callable[[int, int], None] | None = None,
) -> Rollout:
    """One clip a prompt, sampled under ``generation`` with the adapter as it is (on, or off in ``reference()``).

    A clip is determined by model, prompt, generation and its own seed, whatever stands beside it in the batch;
    a longer clip of the same seed begins like a shorter one. ``on_step`` is told (steps done, steps in all) after
    each step of the decoder; what it raises ends the sampling. Raises DataError when prompts and seeds differ in
    number or a seed is negative."""
    if len(prompts) != len(seeds):
        raise DataError(f"Found {len(prompts)} prompts and {len(seeds)} seeds; needs one seed a prompt.")
    if any(seed < 0 for seed in seeds):
        raise DataError("Found a negative seed; seeds are whole numbers from 0.")
    frames = model.frames(generation.clip_seconds)
    text = encode_prompts(model, prompts)
    parts = []
    with torch.no_grad():
        step = DecoderStep(model, delayed_steps(frames, model.codebooks, model.channels))
    with torch.inference_mode():
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            uniforms = _uniforms(model, seeds[rows], frames)
            before, total = len(parts) * step.steps, -(-len(prompts) // batch_size) * step.steps
            parts.append(_rollout(model, step, text.rows(rows), uniforms, generation, on_step, before, total))
    codes = torch.cat([codes for codes, _ in parts]) if parts else torch.zeros(0, model.codebooks, frames).long()
    logprobs = torch.cat([logprobs for _, logprobs in parts]) if parts else torch.zeros(0, model.codebooks, frames)
    return Rollout(codes, logprobs)  # made outside inference mode, so that training may use them


def _uniforms(model: MusicModel, seeds: Sequence[int], frames: int) -> Tensor:
    """(B, K, T) float32 in [0, 1). Drawn frame by frame, so that length does not change what comes first."""
    rows = [np.random.Generator(np.random.Philox(int(seed))).random((frames, model.codebooks)) for seed in seeds]
    uniforms = torch.from_numpy(np.stack(rows)).float().clamp_max(1 - 2**-24)  # rounding may reach 1
    return uniforms.transpose(1, 2)


def _rollout(
    model: MusicModel,
    step: DecoderStep,
    text: TextBatch,
    uniforms: Tensor,
    generation: GenerationConfig,
    on_step: Callable[[int, int], None] | None,
    before: int,
    total: int,
) -> tuple[Tensor, Tensor]:
    batch, codebooks, frames = uniforms.shape
    # Step first: each step then works on contiguous memory.
    late = {"channels": model.channels}
    drawn = delay_values(uniforms, 0.5, **late).permute(2, 0, 1).contiguous().to(model.device)  # (S, B, K)
    counts = prediction_mask(frames, codebooks, **late).T[:, None].to(model.device)  # (S, 1, K)
    read = torch.full((batch, codebooks), model.pad, device=model.device)
    codes, logprobs = drawn.new_zeros(drawn.shape, dtype=torch.int64), torch.zeros_like(drawn)
    step.start(text, generation.guidance)
    for s in range(len(drawn)):
        codes[s], logprobs[s] = draw(step(read, s), drawn[s], generation)
        read = torch.where(counts[s], codes[s], model.pad)
        if on_step is not None:
            on_step(before + s + 1, total)
    return undo_delay(codes.permute(1, 2, 0), **late).cpu(), undo_delay(logprobs.permute(1, 2, 0), **late).cpu()
