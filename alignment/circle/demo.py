"""The whole circle on attune-tiny: prompts, clips, votes, reward model, DPO, a new version, a blind comparison."""

from __future__ import annotations

import json
import platform
import random
import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from alignment.circle import learn, listen, measure
from alignment.circle.generate import Clips, generate_clips
from alignment.circle.workspace import Progress, Workspace, current_commit
from alignment.config import DemoSettings
from alignment.db import prompts as prompt_queries
from alignment.domain import Clip, Prompt, RaterKind, Split, canonical_sha256
from alignment.evaluation import report as rep
from alignment.evaluation.intervals import Interval
from alignment.evaluation.win_rate import WinRate, win_rate
from alignment.simulation.captions import ATTRIBUTE_VALUES, draw_captions
from alignment.simulation.judge import Judge
from alignment.simulation.listeners import load_listeners
from alignment.training.best_of_n import best_of_n_kl, choose_best
from alignment.versions import BASE_NAME, register_base

StageBar = Callable[[str], AbstractContextManager[Progress]]
ALIGNED, BEST_OF_4 = "tiny-dpo", "best-of-4"
POOL = 4


@dataclass
class Clock:
    """Seconds by stage, and the bar shown meanwhile."""

    bar: StageBar
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
    report: rep.ReportData


def run_demo(ws: Workspace, settings: DemoSettings, folder: Path, *, shuffle_votes: bool, bar: StageBar) -> DemoResult:
    """Turn the circle once in an empty workspace; every file it writes lies under ``folder``."""
    began, clock, seed = time.monotonic(), Clock(bar), settings.seed
    generation = settings.generation.to_domain()
    listeners = load_listeners()

    with clock.stage("prompts"):
        judge = Judge()
        model = ws.base_model("tiny")
        base = register_base(ws.database, name=BASE_NAME, base="tiny", base_sha256=model.base_sha256)
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
            ws, "demo-votes", listeners, judge=judge, raters=settings.train_raters, votes=settings.train_votes,
            seed=2 * seed, progress=progress,
        )  # fmt: skip
    with clock.stage("snapshot"):
        snapshot = learn.take_snapshot(
            ws, "demo", ["demo-votes"], both_bad=settings.reward.both_bad, shuffle_seed=seed if shuffle_votes else None
        )
    with clock.stage("reward model") as progress:
        reward = learn.train_reward_model(
            ws, "demo-reward", snapshot, settings.reward.model_copy(update={"seed": seed}), progress
        )
        trained_on = [prompt for prompt in voted if prompt.split == Split.TRAIN]
        scores = learn.score_clips(ws, reward, trained_on, {p.id: pool[p.id] for p in trained_on})
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
        spare = {prompt.id: base_clips[prompt.id][1:] for prompt in held_out}
        best = choose_best(learn.score_clips(ws, reward, held_out, spare))
        chosen = {prompt.id: spare[prompt.id][pick] for prompt, pick in zip(held_out, best, strict=True)}
        first = {prompt: own[0] for prompt, own in base_clips.items()}
        rates = {
            name: _contest(ws, settings, judge, name, first, rival, number, progress)
            for number, (name, rival) in enumerate(
                ((ALIGNED, {p: own[0] for p, own in new_clips.items()}), (BEST_OF_4, chosen))
            )
        }
    with clock.stage("measure") as progress:
        kl = measure.kl_to_base(ws, aligned, held_out, new_clips, progress)
        spread = {
            name: measure.diversity_of(ws, held_out, own)
            for name, own in (("base", base_clips), ("aligned", new_clips))
        }
        heard = listen.judge_clips(
            ws, judge, [own[0] for clips in (base_clips, new_clips) for own in clips.values()] + list(chosen.values())
        )

    # A shuffled run is judged on honest votes: only its training was shuffled.
    honest = snapshot.frozen if not shuffle_votes else learn.freeze_snapshot(
        listen.votes_of(ws, "demo-votes"), both_bad=settings.reward.both_bad
    )  # fmt: skip
    test_pairs = honest.split(Split.TEST)
    text = ws.embed_text([pair.prompt_text for pair in test_pairs])
    audio = ws.embed_audio([ref.audio_sha256 for pair in test_pairs for ref in (pair.a, pair.b)])
    heads = {head: reward.accuracy(test_pairs, audio, text, head=head) for head in reward.trained_heads}
    accuracy = heads["preference"]
    with clock.stage("report"):
        trace = _Trace(snapshot.frozen.content_sha256, "demo-reward", aligned.adapter_sha256 or "",
                       canonical_sha256(settings.model_dump(mode="json")))  # fmt: skip
        data = rep.ReportData(
            title="Attune demo", created_at=datetime.now(UTC).isoformat(timespec="seconds"), simulated=True,
            candidate=ALIGNED, base=BASE_NAME,
            contests=[
                rep.Contest("DPO vs base", rates[ALIGNED], "one fresh clip each, held-out prompts and listeners"),
                rep.Contest("best-of-4 vs base", rates[BEST_OF_4], "the one the reward model likes best of four"),
            ],
            reward=rep.RewardCard(
                "demo-reward",
                [rep.HeadAccuracy(head, Interval(a.value, a.low, a.high, a.n, a.prompts), 0.5, "chance")
                 for head, a in heads.items()],
                {"encoder": reward.encoder, "training pairs": str(reward.metrics["train_pairs"]),
                 "ensemble": str(settings.reward.ensemble), "measured on": "votes on prompts it never saw"},
            ),
            curves=_curves(dpo.history),
            metrics=[
                rep.MetricRow("KL to base, per clip", None, kl.per_clip, "nats",
                              "mean log-ratio of the aligned version's own clips (k1 estimate); "
                              f"best-of-4 costs at most {best_of_n_kl(4):.2f} nats"),
                rep.MetricRow("KL to base, per code", None, kl.per_token, "nats", "the same for one sampled code"),
                rep.MetricRow("diversity", spread["base"], spread["aligned"], "cosine distance",
                              "mean distance in CLAP space between two clips of one prompt; 0 is one clip for ever"),
                rep.MetricRow("cleanliness", *(
                    measure.heard_mean([heard[own[0].audio_sha256].cleanliness for own in clips.values()])
                    for clips in (base_clips, new_clips)), "judge, 0 to 1", "1: a render; 0: half its codes replaced"),
            ],
            adherence=[
                rep.AdherenceRow(name, measure.followed(name, held_out, base_clips, heard),
                                 measure.followed(name, held_out, new_clips, heard), 1 / len(values))
                for name, values in ATTRIBUTE_VALUES.items()
            ],
            examples=_examples(ws, held_out, first, new_clips, random.Random(seed)),
            stages=[rep.Stage(name, seconds) for name, seconds in clock.seconds.items()],
            peak_memory_mb=peak_memory_mb(),
            traces=[
                trace.figure("DPO vs base", f"demo-{ALIGNED}", rates[ALIGNED].votes),
                trace.figure("best-of-4 vs base", f"demo-{BEST_OF_4}", rates[BEST_OF_4].votes),
                trace.figure("reward accuracy", "demo-votes", accuracy.n),
            ],
            run={
                "seed": str(seed), "commit": current_commit() or "not a checkout", "database": ws.database.url,
                "votes shuffled": "yes, a control run" if shuffle_votes else "no", "machine": machine(),
                **{name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate", "trl")},
            },
            notes=["Control run: winners were permuted when the snapshot was made, so nothing true could be learnt."]
            if shuffle_votes else [],
            next_command=f"attune serve --home {folder}",
        )  # fmt: skip
        path = rep.write_report(data, folder / "report.html")
        (folder / "report.json").write_text(data.to_json(), encoding="utf-8")
    rate = rates[ALIGNED]
    summary = {
        "win_rate": rate.value, "win_rate_low": rate.low, "win_rate_high": rate.high, "votes": rate.votes,
        "decisive_votes": rate.decisive, "best_of_4_win_rate": rates[BEST_OF_4].value,
        "best_of_4_win_rate_low": rates[BEST_OF_4].low, "best_of_4_win_rate_high": rates[BEST_OF_4].high,
        "reward_accuracy": accuracy.value, "reward_accuracy_low": accuracy.low, "reward_accuracy_high": accuracy.high,
        "reward_accuracy_n": accuracy.n, "kl_nats_per_clip": kl.value, "diversity_base": spread["base"].value,
        "diversity_aligned": spread["aligned"].value, "verdict": rate.verdict, "shuffled": shuffle_votes,
        "stages": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "seconds": round(time.monotonic() - began, 1), "peak_memory_mb": round(peak_memory_mb()),
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
    rival: dict[uuid.UUID, Clip], number: int, progress: Progress,
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


@dataclass(frozen=True)
class _Trace:
    snapshot_sha256: str
    reward_model: str
    adapter_sha256: str
    config_sha256: str

    def figure(self, figure: str, study: str, votes: int) -> rep.FigureTrace:
        return rep.FigureTrace(
            figure, study, votes, self.snapshot_sha256, self.reward_model, self.adapter_sha256, self.config_sha256
        )


def _curves(history: list[dict[str, float]]) -> list[rep.Curve]:
    def points(key: str) -> list[tuple[float, float]]:
        return [(float(i + 1), entry[key]) for i, entry in enumerate(history) if np.isfinite(entry.get(key, np.nan))]

    wanted = (
        ("DPO loss", "loss", "nats", float(np.log(2)), "dashed: a policy equal to its reference"),
        ("Reward margin", "rewards/margins", "nats x beta", 0.0, "chosen minus rejected"),
        ("Accuracy on training pairs", "rewards/accuracies", "", 0.5, "dashed: chance"),
        ("Log-probability of the chosen clip", "logps/chosen", "nats a clip", None, "a fall is a warning"),
    )
    return [rep.Curve(label, points(key), unit, level, note) for label, key, unit, level, note in wanted if points(key)]


def _examples(
    ws: Workspace, prompts: list[Prompt], first: dict[uuid.UUID, Clip], new: Clips, rng: random.Random
) -> list[rep.Example]:
    """Six held-out prompts drawn at random, not picked: what the two versions sang and how the votes fell."""
    wins: dict[str, int] = {}
    undecided: dict[str, int] = {}
    for row in listen.votes_of(ws, f"demo-{ALIGNED}"):
        if row.outcome.is_decisive:
            winner = row.left if row.outcome == "A" else row.right
            wins[str(winner.clip_id)] = wins.get(str(winner.clip_id), 0) + 1
        else:
            undecided[str(row.prompt_id)] = undecided.get(str(row.prompt_id), 0) + 1
    out = []
    for prompt in rng.sample(prompts, min(6, len(prompts))):
        pair = ((BASE_NAME, first[prompt.id]), (ALIGNED, new[prompt.id][0]))
        clips = [
            rep.ExampleClip(
                name,
                rep.audio_data_uri(ws.store.rendition(clip.audio_sha256)),
                clip.audio_sha256,
                wins.get(str(clip.id), 0),
            )
            for name, clip in pair
        ]
        ties = undecided.get(str(prompt.id), 0)
        out.append(
            rep.Example(
                prompt.text, clips, f"{clips[1].votes} for {ALIGNED}, {clips[0].votes} for the base, {ties} undecided"
            )
        )
    return out


def peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def machine() -> str:
    import torch

    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{system}, {torch.get_num_threads()} threads"
