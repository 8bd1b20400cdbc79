"""Batched rollouts with the log-probability of every code, drawn by inverse CDF from each clip's own seed.

``sample`` sings clips of one length; ``sample_queue`` clips of any, in a batch that it keeps full."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alignment.domain import GenerationConfig
from alignment.errors import DataError
from alignment.music.delay import delay_values, delayed_steps, prediction_mask, undo_delay
from alignment.music.distribution import draw
from alignment.music.model import MusicModel
from alignment.music.slots import Slots
from alignment.music.step import DecoderStep
from alignment.music.text import TextBatch, encode_prompts


@dataclass(frozen=True)
class Rollout:
    """``codes`` (B, K, T) int64 and their ``logprobs`` (B, K, T) float32 in nats, both on the CPU."""

    codes: Tensor
    logprobs: Tensor


@dataclass(frozen=True)
class Request:
    """A clip to be sung."""

    prompt: str
    seed: int
    clip_seconds: float


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
    _require_seeds(seeds)
    frames = model.frames(generation.clip_seconds)
    if model.device.type == "cuda" or model.melody_frames:
        wanted = [Request(prompt, seed, generation.clip_seconds) for prompt, seed in zip(prompts, seeds, strict=True)]
        return _joined(
            frames, model.codebooks, sample_queue(model, wanted, generation, rows=batch_size, on_step=on_step)
        )
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


def sample_queue(
    model: MusicModel,
    requests: Sequence[Request],
    generation: GenerationConfig,
    *,
    rows: int = 128,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Rollout]]:
    """The place of each request and its clip, a Rollout of one row, in the order in which they are finished.

    ``rows`` clips are sung at a time; where one ends the next of the queue begins, the longest first, so that the
    batch stays full to the end. A clip is the one that ``sample`` sings for its prompt and seed, whatever the queue.
    ``generation.clip_seconds`` plays no part; ``on_step`` as in ``sample``. Raises DataError for a negative seed and
    for rows below 1."""
    _require_seeds([request.seed for request in requests])
    if rows < 1:
        raise DataError(f"rows is {rows}; needs at least 1 clip at a time.")
    frames = [model.frames(request.clip_seconds) for request in requests]
    tokens = 1
    for start in range(0, len(requests), 256):  # the longest prompt decides the room; the texts are cached
        part = [request.prompt for request in requests[start : start + 256]]
        tokens = max(tokens, encode_prompts(model, part).mask.shape[1])
    return _sing(model, requests, frames, generation, min(rows, max(1, len(requests))), tokens, on_step)


def _sing(
    model: MusicModel,
    requests: Sequence[Request],
    frames: list[int],
    generation: GenerationConfig,
    rows: int,
    tokens: int,
    on_step: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, Rollout]]:
    waiting = sorted(range(len(requests)), key=lambda place: -frames[place])
    total = _steps_in_all(model, [frames[place] for place in waiting], rows)
    with torch.no_grad():
        slots = Slots(model, generation, rows, max(frames, default=1), tokens)
    sung_in: dict[int, int] = {}  # slot: place
    steps = 0

    def told() -> None:
        nonlocal steps
        steps += 1
        if on_step is not None:
            on_step(steps, total)

    while waiting or sung_in:
        with torch.inference_mode():
            free = [slot for slot in range(rows) if slot not in sung_in][: len(waiting)]
            if free:
                places, waiting = waiting[: len(free)], waiting[len(free) :]
                text = encode_prompts(model, [requests[place].prompt for place in places])
                slots.place(free, text, [_uniforms(model, [requests[p].seed], frames[p])[0] for p in places])
                sung_in.update(zip(free, places, strict=True))
            finished = slots.run(told)
            sung = slots.take(finished)
        for slot, (codes, logprobs) in zip(finished, sung, strict=True):
            yield sung_in.pop(slot), Rollout(codes[None].clone(), logprobs[None].clone())


def _steps_in_all(model: MusicModel, frames: Sequence[int], rows: int) -> int:
    """Steps of the decoder until the last clip is sung, each clip in turn taking the slot that is free first."""
    free = [0] * rows
    for length in frames:
        heapq.heapreplace(free, free[0] + delayed_steps(length, model.codebooks, model.channels))
    return max(free)


def _joined(frames: int, codebooks: int, sung: Iterator[tuple[int, Rollout]]) -> Rollout:
    """Clips of one length in the order of their requests."""
    found = [rollout for _, rollout in sorted(sung, key=lambda pair: pair[0])]
    codes = torch.cat([torch.zeros(0, codebooks, frames, dtype=torch.int64), *(each.codes for each in found)])
    return Rollout(codes, torch.cat([torch.zeros(0, codebooks, frames), *(each.logprobs for each in found)]))


def _require_seeds(seeds: Sequence[int]) -> None:
    if any(seed < 0 for seed in seeds):
        raise DataError("Found a negative seed; seeds are whole numbers from 0.")


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
