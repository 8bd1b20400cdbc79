"""The whole circle on attune-tiny: prompts, clips, votes, a trust gate, alignment, a blind comparison of methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.circle import learn, listen, methods
from alignment.circle.align import LABELS, NAMES, Aligned, align, label_of, score_pool
from alignment.circle.contest import Panel
from alignment.circle.demo_report import DemoResult, Turned, finish
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.trust import measure_trust
from alignment.circle.workspace import Progress, Workspace
from alignment.config import VOTES_PER_PAIR, DemoSettings, RewardSettings
from alignment.db import prompts as prompt_queries
from alignment.domain import Prompt, RaterKind, Split, Version
from alignment.errors import DataError
from alignment.simulation.captions import draw_captions
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.versions import BASE_NAME, register_base

StageBar = Callable[[str], AbstractContextManager[Progress]]
REWARD_NAME = "demo-reward"
VOTED_TRAIN_SHARE = 0.8  # the rest stops the reward model's training


@dataclass
class Clock:
    """Seconds by stage, and the bar shown meanwhile."""

    bar: StageBar
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        began = time.monotonic()
        with self.bar(name) as progress:
            yield progress
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class Voted:
    """What the votes are about: the base's clips of the prompts voted on, and the prompts held out from all of it."""

    base: Version
    judge: Judge
    prompts: list[Prompt]
    clips: Clips
    held_out: list[Prompt]


def run_demo(
    ws: Workspace, settings: DemoSettings, folder: Path, *, shuffle_seed: int | None = None, bar: StageBar
) -> DemoResult:
    """Turn the circle once; every file it writes lies under ``folder``.

    Clips and votes that the workspace holds already are used and not made again (``prepare`` makes them), so a
    control with shuffled votes costs no second pool. Where the trust gate refuses, the run ends without an aligned
    version and says so."""
    clock = Clock(bar)
    voted = collect_votes(ws, settings, clock)
    with clock.stage("snapshot"):
        snapshot = learn.take_snapshot(
            ws, "demo", ["demo-votes"], both_bad=settings.reward.both_bad, shuffle_seed=shuffle_seed
        )
    reward_settings = settings.reward.model_copy(update={"seed": settings.seed})
    with clock.stage("can the votes be learnt?") as progress:
        trust = measure_trust(ws, snapshot, reward_settings, settings.align.gate_folds, progress)
    turned = Turned(
        settings=settings, folder=folder, shuffled=shuffle_seed is not None, snapshot=snapshot, trust=trust,
        prompts=voted.held_out, seconds=clock.seconds, began=clock.began,
    )  # fmt: skip
    if trust.passed or not settings.align.gate:
        turned = _align_and_compare(ws, settings, folder, clock, voted, turned, reward_settings)
    with clock.stage("report"):
        return finish(ws, turned)


def collect_votes(ws: Workspace, settings: DemoSettings, clock: Clock) -> Voted:
    """The base's clips and simulated votes on them; what exists already is not made again."""
    with clock.stage("prompts"):
        judge = Judge()
        base_sha256 = ws.base_model("tiny").base_sha256
        base = register_base(
            ws.database, name=BASE_NAME, base="tiny", base_sha256=base_sha256, listening=settings.generation.to_domain()
        )
        prompts, held_out = _add_prompts(ws, settings)
    with clock.stage("generate") as progress:
        clips = generate_clips(
            ws, BASE_NAME, prompts, settings.generation.to_domain(), per_prompt=settings.best_of, seed=settings.seed,
            progress=progress,
        )  # fmt: skip
    with clock.stage("vote") as progress:
        shown: Clips = {prompt.id: clips[prompt.id][: settings.clips_per_prompt] for prompt in prompts}
        pairs = listen.pairs_within(shown, settings.train_votes, settings.seed)
        listen.open_study(ws, "demo-votes", pairs, rater_kind=RaterKind.SIMULATED)
        saved = len(listen.votes_of(ws, "demo-votes"))
        if 0 < saved < settings.train_votes and saved < VOTES_PER_PAIR * len(pairs):
            raise DataError(f"Study demo-votes stopped at {saved} votes; start the demo again in another folder.")
        if not saved:
            listen.simulate_votes(
                ws, "demo-votes", load_listeners(), judge=judge, raters=settings.train_raters,
                votes=settings.train_votes, seed=2 * settings.seed, per_pair=VOTES_PER_PAIR, progress=progress,
            )  # fmt: skip
    return Voted(base, judge, prompts, clips, held_out)


def prepare(ws: Workspace, settings: DemoSettings, bar: StageBar) -> dict[str, float]:
    """Everything of a demo that does not depend on how it is trained: clips of the base and votes; seconds by stage."""
    clock = Clock(bar)
    voted = collect_votes(ws, settings, clock)
    with clock.stage("sing held-out prompts") as progress:
        _sing_base(ws, settings, voted.held_out, progress)
    return clock.seconds


def _sing_base(ws: Workspace, settings: DemoSettings, held_out: list[Prompt], progress: Progress) -> Clips:
    generation = settings.generation.to_domain()
    return methods.sing_base(ws, held_out, generation, spare=settings.test_pool, seed=settings.seed, progress=progress)


def _align_and_compare(
    ws: Workspace, settings: DemoSettings, folder: Path, clock: Clock, voted: Voted, turned: Turned,
    reward_settings: RewardSettings,
) -> Turned:  # fmt: skip
    held_out, generation = voted.held_out, settings.generation.to_domain()
    with clock.stage("reward model") as progress:
        reward = learn.train_reward_model(ws, REWARD_NAME, turned.snapshot, reward_settings, progress)
        pool = score_pool(ws, reward, voted.prompts, voted.clips)
    headline = settings.align.method
    trained: dict[str, Aligned] = {}
    # The headline is the newest version.
    for method in [*(m for m in settings.align.beside if m != headline), headline]:
        with clock.stage(f"align ({LABELS[method]})") as progress:
            trained[method] = align(
                ws, NAMES[method], settings, method=method, rounds=settings.align.rounds if method == headline else 1,
                base=voted.base, snapshot=turned.snapshot, reward=reward, pool=pool, run_dir=folder / "runs",
                reward_name=REWARD_NAME, trained=trained, progress=progress,
            )  # fmt: skip
    with clock.stage("sing held-out prompts") as progress:
        base_clips = _sing_base(ws, settings, held_out, progress)
        sung = {
            method: methods.sing_version(
                ws, found.version.name, held_out, generation, seed=settings.seed, progress=progress
            )
            for method, found in trained.items()
        }
    panel = Panel(ws, voted.judge, settings.test_raters, seed=2 * settings.seed + 1)
    first = methods.firsts(held_out, base_clips)
    with clock.stage("compare blind") as progress:
        spare = score_pool(ws, reward, held_out, {p.id: base_clips[p.id][1:] for p in held_out})
        contestants = [
            methods.base_contestant(ws, panel, held_out, base_clips),
            *methods.best_of_contestants(panel, spare, first, votes=settings.test_votes, progress=progress),
            *(
                methods.version_contestant(
                    ws, panel, found, label_of(method, settings), held_out, sung[method], first,
                    votes=settings.test_votes, progress=progress,
                )
                for method, found in trained.items()
            ),
        ]  # fmt: skip
    return replace(turned, reward=reward, trained=trained, contestants=contestants, heard=panel.heard)


def _add_prompts(ws: Workspace, settings: DemoSettings) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to vote on (80% train, 20% valid) and prompts held out for the comparison.

    All are captions that attune-tiny never saw, and their split is fixed here, before any vote. No test split: the
    reward model is tested by cross-validation, which asks about every vote."""
    drawn = draw_captions(settings.train_prompts + settings.test_prompts, 1000 + settings.seed, reserved=True)
    items = []
    for number, (text, attributes) in enumerate(drawn):
        if number >= settings.train_prompts:
            split = Split.LEADERBOARD
        else:
            share = (number + 0.5) / settings.train_prompts
            split = Split.TRAIN if share < VOTED_TRAIN_SHARE else Split.VALID
        items.append((text, "attune-tiny captions", split, attributes.as_tags()))
    with ws.database.session() as s:
        prompts = prompt_queries.add_prompts(s, items)
    return prompts[: settings.train_prompts], prompts[settings.train_prompts :]
