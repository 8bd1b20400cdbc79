"""Everyone against the base and among themselves: blind comparisons of held-out prompts by held-out listeners."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from alignment.circle import listen, measure, methods
from alignment.circle.contest import ClipOf, Panel
from alignment.circle.generate import Clips
from alignment.circle.kept import Kept
from alignment.circle.musicrl_runs import Terms, score_clips, version_name
from alignment.circle.musicrl_votes import PREFIX, open_untouched
from alignment.circle.workspace import Progress, Workspace
from alignment.config import MusicRlSettings
from alignment.domain import Prompt
from alignment.evaluation.intervals import Interval
from alignment.evaluation.win_rate import WinRate
from alignment.training.best_of_n import choose_best

BASE = "base"
AMONG = (("R", "U"), ("R", "RU"), ("U", "RU"), ("joint", "RU"))  # (opponent, candidate)
KL_PROMPTS = 128  # each takes two more passes through the model


def sing(
    ws: Workspace, settings: MusicRlSettings, entrants: Mapping[str, str], prompts: Sequence[Prompt],
    progress: Progress,
) -> dict[str, Clips]:  # fmt: skip
    """{entrant: clips of the held-out prompts}; ``entrants`` maps a run to its version, and the base sings too."""
    generation = settings.generation.to_domain()
    sung = {
        BASE: methods.sing_base(
            ws, prompts, generation, spare=settings.test_pool, seed=settings.seed, progress=progress
        )
    }
    for name, version in entrants.items():
        sung[name] = methods.sing_version(ws, version, prompts, generation, seed=settings.seed, progress=progress)
    return sung


def best_of(
    ws: Workspace, settings: MusicRlSettings, terms: Terms, weights: Mapping[str, float], prompts: Sequence[Prompt],
    base: Clips,
) -> dict[uuid.UUID, Any]:  # fmt: skip
    """The one of N spare clips of the base that the reward likes best, by prompt."""
    spare = {prompt.id: base[prompt.id][1 : 1 + settings.test_pool] for prompt in prompts}
    best = choose_best(score_clips(ws, terms, weights, prompts, spare)[1])
    return {prompt.id: spare[prompt.id][index] for prompt, index in zip(prompts, best, strict=True)}


def meetings(entrants: Sequence[str]) -> list[tuple[str, str]]:
    """(opponent, candidate) of every comparison: each against the base, then those of AMONG that there are."""
    return [(BASE, name) for name in entrants] + [
        (first, rival) for first, rival in AMONG if first in entrants and rival in entrants
    ]


def meet(
    panel: Panel, kept: Kept, opponent: str, candidate: str, heard: Mapping[str, ClipOf], votes: int,
    progress: Progress, *, suffix: str = "",
) -> tuple[str, WinRate] | None:  # fmt: skip
    """(study, win rate of ``candidate`` over ``opponent``); a comparison that was finished before is not made again.

    None when both sound exactly alike on every prompt: the step that was kept is then the one it started from."""
    found = kept.stage(
        f"meet-{candidate}-{opponent}{suffix}",
        lambda: _meet(panel, opponent, candidate, heard, votes, progress, suffix),
    )
    return found and (found["study"], rate_from(found["rate"]))


def _meet(
    panel: Panel, opponent: str, candidate: str, heard: Mapping[str, ClipOf], votes: int, progress: Progress,
    suffix: str,
) -> dict[str, Any] | None:  # fmt: skip
    first, rival = differing(heard[opponent], heard[candidate])
    if not listen.pairs_across(first, rival):
        return None
    name = f"{PREFIX}-{candidate}-against-{opponent}{suffix}".lower()
    study = open_untouched(panel.ws, name, listen.pairs_across(first, rival))
    rate = panel.contest(study, candidate, first, rival, votes, progress)
    return {"study": study, "rate": asdict(replace(rate, opponents=(opponent,)))}


def differing(first: ClipOf, rival: ClipOf) -> tuple[ClipOf, ClipOf]:
    """Both, on those prompts where different codes were sampled.

    The same codes decoded in other batches differ by a rounding, and so does their hash, though nobody hears it."""
    prompts = [prompt for prompt in first if first[prompt].codes_sha256 != rival[prompt].codes_sha256]
    return {prompt: first[prompt] for prompt in prompts}, {prompt: rival[prompt] for prompt in prompts}


def rate_from(values: Mapping[str, Any]) -> WinRate:
    """A win rate as ``asdict`` and JSON left it."""
    left = values["left_share"]
    return WinRate(**{**values, "opponents": tuple(values["opponents"]), "left_share": left and Interval(**left)})


def judged(
    ws: Workspace, panel: Panel, kept: Kept, prompts: Sequence[Prompt], heard: Mapping[str, ClipOf],
    sung: Mapping[str, Clips], progress: Progress,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What the gold judge hears of each entrant, (P,) per figure, with diversity and KL where a version sang."""
    out = {}
    for number, (name, clips) in enumerate(heard.items()):
        out[name] = kept.stage(
            f"judge-{name}", lambda name=name, clips=clips: _judged(ws, panel, name, prompts, clips, sung.get(name))
        )
        progress(number + 1, len(heard))
    return out


def _judged(
    ws: Workspace, panel: Panel, name: str, prompts: Sequence[Prompt], clips: ClipOf, own: Clips | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "reward": panel.rewards(prompts, clips).tolist(),
        "adherence": panel.adherence(prompts, clips).tolist(),
        "cleanliness": panel.cleanliness(prompts, clips).tolist(),
    }
    if own is not None:
        found["diversity"] = asdict(measure.diversity_of(ws, prompts[: methods.DIVERSITY_PROMPTS], own))
        if name != BASE:
            found["kl"] = asdict(
                measure.kl_to_base(ws, ws.version(version_name(name)), prompts[:KL_PROMPTS], own).per_clip
            )
    return found
