"""The first clips of an empty database: captions sung twice by attune-tiny, so that there is something to rate."""

from __future__ import annotations

from alignment.circle.captions import add_captions
from alignment.circle.generate import generate_clips
from alignment.circle.workspace import Progress, Workspace, no_progress
from alignment.domain import GenerationConfig, Split
from alignment.versions import BASE_NAME, register_base

GENERATION = GenerationConfig(guidance=3.0)  # follows captions twice as well as none (see attune-tiny's card)
TAKES = 2
SEED = 40_000  # its captions are none of the demo's
_AT_ONCE = 4  # prompts; small enough to show progress, large enough to be quick


def sing_first_clips(ws: Workspace, prompts: int, *, progress: Progress = no_progress) -> None:
    """``prompts`` captions with TAKES clips each; those there already are not sung again, so it can be repeated.

    Raises ModelError when attune-tiny is missing or damaged and StoreError when clips cannot be stored."""
    total = prompts * TAKES
    progress(0, total)
    base_sha256 = ws.base_model("tiny").base_sha256
    register_base(ws.database, name=BASE_NAME, base="tiny", base_sha256=base_sha256, listening=GENERATION)
    asked = add_captions(ws, prompts, SEED, lambda _: Split.LEADERBOARD)
    for start in range(0, prompts, _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        generate_clips(ws, BASE_NAME, part, GENERATION, per_prompt=TAKES, seed=SEED)
        progress(min(start + _AT_ONCE, prompts) * TAKES, total)
