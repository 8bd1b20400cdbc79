"""What MusicRL's rewards are learnt from: the base's clips, votes of users and of selected raters, reward models.

Two panels vote on the same clips, as in MusicRL (arXiv:2402.04229): *selected raters*, whose answers on text and
quality make the text and quality heads, and *users*, whose overall votes make the preference head. A second pair of
panels, on other prompts, makes a second set of reward models that no training sees; they choose the adapter that is
kept. Every listener is simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle import learn, listen
from alignment.circle.captions import SOURCE
from alignment.circle.demo import VOTED_TRAIN_SHARE
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.kept import Kept, StageBar
from alignment.circle.workspace import Progress, Workspace
from alignment.config import VOTES_PER_PAIR, MusicRlSettings
from alignment.db import prompts as prompt_queries
from alignment.db import runs
from alignment.domain import Pair, Prompt, RaterKind, Split
from alignment.evaluation.intervals import Interval, clustered_share
from alignment.simulation.captions import draw_captions
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.versions import BASE_NAME

if TYPE_CHECKING:
    from alignment.rewards.model import RewardModel

PREFIX = "musicrl"
VOTERS = ("raters", "users")
SEEDS = {"raters": 1, "users": 2, "raters-held-out": 3, "users-held-out": 4, "test": 5, "test-users": 6}
SEEDS_A_RUN = 10


@dataclass(frozen=True)
class Asked:
    """Every caption of a run by what it is for; no caption serves two ends, and attune-tiny saw none of them."""

    voted: list[Prompt]
    held_out: list[Prompt]
    watch: list[Prompt]
    test: list[Prompt]
    policy: list[str]


@dataclass(frozen=True)
class Learnt:
    """One panel's votes and the reward model they made."""

    snapshot: learn.NamedSnapshot
    model: RewardModel


def listener_seed(settings: MusicRlSettings, panel: str) -> int:
    """The seed of a panel: no two panels of a run share a listener."""
    return SEEDS_A_RUN * settings.seed + SEEDS[panel]


def ask(ws: Workspace, settings: MusicRlSettings) -> Asked:
    """Draw and record the captions; the same seed always draws the same ones."""
    sizes = (settings.voted_prompts, settings.held_out_prompts, settings.watch_prompts, settings.test_prompts)
    drawn = draw_captions(sum(sizes) + settings.policy_prompts, 2000 + settings.seed, reserved=True)
    splits: list[Split] = []
    for size in sizes[:2]:  # those that votes are asked about
        train = round(VOTED_TRAIN_SHARE * size)
        splits += [Split.TRAIN] * train + [Split.VALID] * (size - train)
    splits += [Split.TEST] * sizes[2] + [Split.LEADERBOARD] * sizes[3]
    items = [(text, SOURCE, split, tags.as_tags()) for (text, tags), split in zip(drawn, splits, strict=False)]
    with ws.database.session() as s:
        recorded = prompt_queries.add_prompts(s, items)
    parts, start = [], 0
    for size in sizes:
        parts.append(recorded[start : start + size])
        start += size
    return Asked(*parts, policy=[text for text, _ in drawn[start:]])


def sing_base(ws: Workspace, prompts: Sequence[Prompt], settings: MusicRlSettings, progress: Progress) -> Clips:
    """The base's clips of prompts that votes are asked about."""
    return generate_clips(
        ws, BASE_NAME, prompts, settings.generation.to_domain(), per_prompt=settings.clips_per_prompt,
        seed=settings.seed, progress=progress,
    )  # fmt: skip


def learn_rewards(
    ws: Workspace, settings: MusicRlSettings, kept: Kept, judge: Judge, clips: Mapping[str, Clips], bar: StageBar
) -> dict[str, Learnt]:
    """Votes and reward models of all four panels, by panel; ``clips`` by "voted" and "held-out"."""
    share = settings.held_out_prompts / settings.voted_prompts
    out = {}
    for held in (False, True):
        shown = clips["held-out" if held else "voted"]
        for voters in VOTERS:
            panel = f"{voters}-held-out" if held else voters
            wanted = {"raters": settings.rater_votes, "users": settings.user_votes}[voters]
            votes = max(20, round(share * wanted)) if held else wanted
            with kept.timed("votes", bar) as progress:
                study = kept.stage(f"votes-{panel}", partial(_vote, ws, settings, panel, shown, votes, judge, progress))
            with kept.timed("reward models", bar) as progress:
                out[panel] = _learn(ws, settings, panel, study, progress)
    return out


def _vote(
    ws: Workspace, settings: MusicRlSettings, panel: str, clips: Clips, votes: int, judge: Judge, progress: Progress
) -> str:
    """A panel's votes; the study's name."""
    seed = listener_seed(settings, panel)
    population = settings.users if panel.startswith("users") else settings.raters
    study = open_untouched(ws, f"{PREFIX}-{panel}", listen.pairs_within(clips, votes, seed))
    listen.simulate_votes(
        ws, study, load_listeners(), judge=judge, population=population, raters=settings.listeners, votes=votes,
        seed=seed, per_pair=VOTES_PER_PAIR, progress=progress,
    )  # fmt: skip
    return study


def open_untouched(ws: Workspace, name: str, pairs: Sequence) -> str:
    """The name of a study of these pairs without votes: ``name``, or the next free ``name-2``.

    Votes that were interrupted stay where they are and count nowhere: listeners start over, so that what a stopped
    run ends with is what it would have ended with."""
    number = 1
    while True:
        study = name if number == 1 else f"{name}-{number}"
        listen.open_study(ws, study, pairs, rater_kind=RaterKind.SIMULATED)
        if not listen.votes_of(ws, study):
            return study
        number += 1


def _learn(ws: Workspace, settings: MusicRlSettings, panel: str, study: str, progress: Progress) -> Learnt:
    name = f"{PREFIX}-{panel}"
    snapshot = learn.take_snapshot(ws, name, [study], both_bad=settings.reward.both_bad)
    with ws.database.session(write=False) as s:
        known = {model.name for model in runs.list_reward_models(s)}
    if name in known:
        return Learnt(snapshot, learn.load_reward_model(ws, name))
    chosen = settings.reward.model_copy(update={"seed": settings.seed})
    return Learnt(snapshot, learn.train_reward_model(ws, name, snapshot, chosen, progress))


def accuracies(ws: Workspace, learnt: Mapping[str, Learnt]) -> dict[str, Interval]:
    """How often each reward agrees with decisive votes of users on prompts, by listeners, that it never saw.

    One row for each head, and for CLAP's cosine, which no vote trained; clustered by rater and prompt."""
    pairs = [pair for pair in learnt["users-held-out"].snapshot.frozen.pairs if pair.preference != 0.5]
    audio = ws.embed_audio([ref.audio_sha256 for pair in pairs for ref in (pair.a, pair.b)])
    text = ws.embed_text([pair.prompt_text for pair in pairs])
    models = {"preference": "users", "quality": "raters", "text_adherence": "raters"}
    found = {
        head: learnt[panel].model.agreement(pairs, audio, text, head=head)
        for head, panel in models.items()
        if head in learnt[panel].model.trained_heads
    }
    cosine = [[float(audio[ref.audio_sha256] @ text[pair.prompt_text]) for ref in (pair.a, pair.b)] for pair in pairs]
    found["clap_cosine"] = agrees(pairs, np.array(cosine))
    return {name: by_listener_and_prompt(pairs, credits) for name, credits in found.items()}


def agrees(pairs: Sequence[Pair], scores: np.ndarray) -> np.ndarray:
    """(n,) 1 where the clip that a decisive vote chose scores higher, 0 where lower, 0.5 where equal; scores (n, 2)."""
    sign = np.where([pair.preference > 0.5 for pair in pairs], 1.0, -1.0)
    return 0.5 + 0.5 * np.sign((scores[:, 0] - scores[:, 1]) * sign)


def by_listener_and_prompt(pairs: Sequence[Pair], credits: np.ndarray) -> Interval:
    """The mean credit with its interval."""
    return clustered_share(credits, [pair.rater_id for pair in pairs], [pair.prompt_id for pair in pairs])
