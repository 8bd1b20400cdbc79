"""The field of a comparison: the base, best-of-N and trained versions, sung and judged under the same conditions."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from alignment.circle import measure
from alignment.circle.align import Aligned, Pool
from alignment.circle.contest import Panel
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.measure import Contestant
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.domain import Clip, GenerationConfig, Prompt
from alignment.training.best_of_n import best_of_n_kl, choose_best
from alignment.versions import BASE_NAME

SIZES = (2, 4, 8, 16, 32, 64)
DIVERSITY_PROMPTS = 60  # prompts that every version sings twice


def firsts(prompts: Sequence[Prompt], clips: Clips) -> dict[uuid.UUID, Clip]:
    """The clip of each prompt that stands for its version in a contest."""
    return {prompt.id: clips[prompt.id][0] for prompt in prompts}


def sing_base(
    ws: Workspace, prompts: Sequence[Prompt], generation: GenerationConfig, *, spare: int, seed: int,
    progress: Progress = no_progress,
) -> Clips:  # fmt: skip
    """The base's clips of held-out prompts: one for the contests, then ``spare`` for best-of-N to choose from."""
    return generate_clips(ws, BASE_NAME, prompts, generation, per_prompt=1 + spare, seed=seed, progress=progress)


def sing_version(
    ws: Workspace, name: str, prompts: Sequence[Prompt], generation: GenerationConfig, *, seed: int,
    progress: Progress = no_progress,
) -> Clips:  # fmt: skip
    """A version's clips of held-out prompts: one each, and a second one of the first few for diversity."""
    once = generate_clips(ws, name, prompts, generation, per_prompt=1, seed=seed, progress=progress)
    return once | generate_clips(ws, name, prompts[:DIVERSITY_PROMPTS], generation, per_prompt=2, seed=seed)


def base_contestant(ws: Workspace, panel: Panel, prompts: Sequence[Prompt], base_clips: Clips) -> Contestant:
    """What everyone else meets."""
    diversity = measure.diversity_of(ws, prompts[:DIVERSITY_PROMPTS], base_clips)
    return judged(panel, BASE_NAME, "base", prompts, firsts(prompts, base_clips), diversity=diversity)


def best_of_contestants(
    panel: Panel, spare: Pool, first: Mapping[uuid.UUID, Clip], *, votes: int, meet: Sequence[int] | None = None,
    prefix: str = "demo", progress: Progress = no_progress,
) -> list[Contestant]:  # fmt: skip
    """Best-of-2, -4, ... out of one pool; those of ``meet`` (default the largest) also meet the base."""
    sizes = [n for n in SIZES if n <= spare.scores.shape[1]]
    out = []
    for n in sizes:
        best = choose_best(spare.scores[:, :n])
        picked = {p.id: spare.clips[p.id][i] for p, i in zip(spare.prompts, best, strict=True)}
        name, rate = f"best-of-{n}", None
        if n in (sizes[-1:] if meet is None else meet):
            rate = panel.contest(f"{prefix}-{name}", name, first, picked, votes, progress)
        out.append(judged(panel, name, name, spare.prompts, picked, rate=rate, kl_bound=best_of_n_kl(n)))
    return out


def version_contestant(
    ws: Workspace, panel: Panel, aligned: Aligned, label: str, prompts: Sequence[Prompt], own: Clips,
    first: Mapping[uuid.UUID, Clip], *, votes: int, prefix: str = "demo", progress: Progress = no_progress,
) -> Contestant:  # fmt: skip
    """A trained version, its contest with the base, and its distance from it."""
    version, clips = aligned.version, firsts(prompts, own)
    rate = panel.contest(f"{prefix}-{version.name}", version.name, first, clips, votes, progress)
    return judged(
        panel, version.name, label, prompts, clips, rate=rate, kl=measure.kl_to_base(ws, version, prompts, own),
        diversity=measure.diversity_of(ws, prompts[:DIVERSITY_PROMPTS], own), train_seconds=aligned.seconds,
    )  # fmt: skip


def judged(
    panel: Panel, name: str, label: str, prompts: Sequence[Prompt], clips: Mapping[uuid.UUID, Clip], **more
) -> Contestant:
    """The contestant as the gold judge hears it."""
    heard = (panel.rewards(prompts, clips), panel.adherence(prompts, clips), panel.cleanliness(prompts, clips))
    return Contestant(name, label, dict(clips), *heard, faults=panel.faults(prompts, clips), **more)
