"""The whole circle on attune-tiny: prompts, clips, votes, reward model, DPO, a new version, a blind comparison."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.circle import learn, listen, measure
from alignment.circle.demo_report import ALIGNED, BEST_OF_4, Turned, build_report, peak_memory_mb
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.workspace import Progress, Workspace
from alignment.config import DemoSettings
from alignment.db import prompts as prompt_queries
from alignment.domain import Clip, Prompt, RaterKind, Split
from alignment.evaluation.report import ReportData, write_report
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.simulation.captions import draw_captions
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.training.best_of_n import choose_best
from alignment.versions import BASE_NAME, register_base

StageBar = Callable[[str], AbstractContextManager[Progress]]
POOL = 4  # clips that best-of-4 chooses from, beside the base's own


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
class DemoResult:
    """What ``attune demo --json`` prints, and the report behind it."""

    summary: dict[str, Any]
    report: ReportData


def run_demo(
    ws: Workspace, settings: DemoSettings, folder: Path, *, shuffle_votes: bool, bar: StageBar
) -> DemoResult:
    """Turn the circle once in an empty workspace; every file it writes lies under ``folder``."""
    clock, seed = Clock(bar), settings.seed
    generation = settings.generation.to_domain()

    with clock.stage("prompts"):
        judge = Judge()
        base_sha256 = ws.base_model("tiny").base_sha256
        base = register_base(ws.database, name=BASE_NAME, base="tiny", base_sha256=base_sha256)
        voted, held_out = _add_prompts(ws, settings)
    with clock.stage("generate") as progress:
        pool = generate_clips(
            ws, BASE_NAME, voted, generation, per_prompt=settings.best_of, seed=seed, progress=progress
        )
    with clock.stage("vote") as progress:
        shown: Clips = {prompt.id: pool[prompt.id][: settings.clips_per_prompt] for prompt in voted}
        pairs = listen.pairs_within(shown, settings.train_votes, seed)
        listen.open_study(ws, "demo-votes", pairs, rater_kind=RaterKind.SIMULATED)
        listen.simulate_votes(
            ws, "demo-votes", load_listeners(), judge=judge, raters=settings.train_raters,
            votes=settings.train_votes, seed=2 * seed, progress=progress,
        )  # fmt: skip
    with clock.stage("snapshot"):
        rule = settings.reward.both_bad
        snapshot = learn.take_snapshot(
            ws, "demo", ["demo-votes"], both_bad=rule, shuffle_seed=seed if shuffle_votes else None
        )
    with clock.stage("reward model") as progress:
        with_seed = settings.reward.model_copy(update={"seed": seed})
        reward = learn.train_reward_model(ws, "demo-reward", snapshot, with_seed, progress)
        trained_on = [prompt for prompt in voted if prompt.split == Split.TRAIN]
        scores = learn.score_clips(ws, reward, trained_on, pool)
    with clock.stage("align (DPO)") as progress:
        aligned, dpo = learn.align_dpo(
            ws, ALIGNED, parent=base, snapshot=snapshot, settings=settings.dpo.model_copy(update={"seed": seed}),
            run_dir=folder / "runs" / ALIGNED, pool=(trained_on, pool, scores), progress=progress,
        )  # fmt: skip
    with clock.stage("sing held-out prompts") as progress:
        base_clips = generate_clips(
            ws, BASE_NAME, held_out, generation, per_prompt=1 + POOL, seed=seed, progress=progress
        )
        new_clips = generate_clips(ws, ALIGNED, held_out, generation, per_prompt=2, seed=seed, progress=progress)
    with clock.stage("compare blind") as progress:
        first = {prompt: own[0] for prompt, own in base_clips.items()}
        spare = {prompt.id: base_clips[prompt.id][1:] for prompt in held_out}
        best = choose_best(learn.score_clips(ws, reward, held_out, spare))
        rivals = {
            ALIGNED: {prompt: own[0] for prompt, own in new_clips.items()},
            BEST_OF_4: {prompt.id: spare[prompt.id][pick] for prompt, pick in zip(held_out, best, strict=True)},
        }
        rates = {name: _contest(ws, settings, judge, name, first, rival, progress) for name, rival in rivals.items()}
    with clock.stage("measure") as progress:
        kl = measure.kl_to_base(ws, aligned, held_out, new_clips, progress)
        spread = tuple(measure.diversity_of(ws, held_out, own) for own in (base_clips, new_clips))
        heard = listen.judge_clips(
            ws, judge, [own[0] for clips in (base_clips, new_clips) for own in clips.values()]
        )
        # A shuffled run is judged on the votes as they were: only its training was shuffled.
        honest = learn.freeze_snapshot(listen.votes_of(ws, "demo-votes"), both_bad=rule)
        accuracy = learn.accuracy_of(ws, reward, honest.split(Split.TEST))
    with clock.stage("report"):
        data = build_report(
            ws,
            Turned(
                settings=settings, folder=folder, shuffled=shuffle_votes, snapshot=snapshot, reward=reward,
                accuracy=accuracy, aligned=aligned, history=dpo.history, rates=rates, kl=kl, diversity=spread,
                prompts=held_out, base_clips=base_clips, new_clips=new_clips, heard=heard, seconds=clock.seconds,
            ),
        )  # fmt: skip
        path = write_report(data, folder / "report.html")
    rate, rival, trust = rates[ALIGNED], rates[BEST_OF_4], accuracy["preference"]
    summary = {
        "win_rate": rate.value, "win_rate_low": rate.low, "win_rate_high": rate.high, "votes": rate.votes,
        "decisive_votes": rate.decisive, "best_of_4_win_rate": rival.value, "best_of_4_win_rate_low": rival.low,
        "best_of_4_win_rate_high": rival.high, "reward_accuracy": trust.value, "reward_accuracy_low": trust.low,
        "reward_accuracy_high": trust.high, "reward_accuracy_n": trust.n, "kl_nats_per_clip": kl.value,
        "diversity_base": spread[0].value, "diversity_aligned": spread[1].value, "verdict": rate.verdict,
        "shuffled": shuffle_votes, "stages": {name: round(value, 2) for name, value in clock.seconds.items()},
        "seconds": round(time.monotonic() - clock.began, 1), "peak_memory_mb": round(peak_memory_mb()),
        "database": ws.database.url, "report": str(path), "version": ALIGNED, "seed": seed, "simulated": True,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return DemoResult(summary, data)


def _add_prompts(ws: Workspace, settings: DemoSettings) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to vote on (65% train, 15% valid, 20% test) and prompts held out for the comparison.

    All are captions that attune-tiny never saw, and their split is fixed here, before any vote."""
    drawn = draw_captions(settings.train_prompts + settings.test_prompts, 1000 + settings.seed, reserved=True)
    items = []
    for number, (text, attributes) in enumerate(drawn):
        if number >= settings.train_prompts:
            split = Split.LEADERBOARD
        else:
            share = (number + 0.5) / settings.train_prompts
            split = Split.TRAIN if share < 0.65 else Split.VALID if share < 0.8 else Split.TEST
        items.append((text, "attune-tiny captions", split, attributes.as_tags()))
    with ws.database.session() as s:
        prompts = prompt_queries.add_prompts(s, items)
    return prompts[: settings.train_prompts], prompts[settings.train_prompts :]


def _contest(
    ws: Workspace, settings: DemoSettings, judge: Judge, name: str, first: dict[uuid.UUID, Clip],
    rival: dict[uuid.UUID, Clip], progress: Progress,
) -> WinRate:  # fmt: skip
    """A blind study of ``rival`` against the base's first clips, by listeners who trained nothing."""
    study = f"demo-{name}"
    listen.open_study(ws, study, listen.pairs_across(first, rival), rater_kind=RaterKind.SIMULATED)
    listen.simulate_votes(
        ws, study, load_listeners(), judge=judge, raters=settings.test_raters, votes=settings.test_votes,
        seed=2 * settings.seed + 1, progress=progress,
    )  # fmt: skip
    ours = {str(clip.id) for clip in rival.values()}
    rows = listen.votes_of(ws, study)
    return win_rate(listen.comparisons(rows, lambda clip, _: name if str(clip) in ours else BASE_NAME), name)
