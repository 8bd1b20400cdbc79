"""The demo's report: what was measured, put where its reader looks for it, each figure with its source."""

from __future__ import annotations

import platform
import random
import resource
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.circle import listen, measure
from alignment.circle.generate import Clips
from alignment.circle.learn import NamedSnapshot
from alignment.circle.workspace import Workspace, current_commit
from alignment.config import DemoSettings
from alignment.domain import Outcome, Prompt, Version, canonical_sha256
from alignment.evaluation import report as rep
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import KlEstimate
from alignment.evaluation.win_rate import WinRate
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import Judgement
from alignment.training.best_of_n import best_of_n_kl
from alignment.versions import BASE_NAME

if TYPE_CHECKING:
    from alignment.rewards.model import RewardAccuracy, RewardModel

ALIGNED, BEST_OF_4 = "tiny-dpo", "best-of-4"
EXAMPLES = 6
HELD_OUT = (
    "Held out: the compared prompts are captions worded differently from every caption voted on, though some ask for "
    "the same five attributes; the comparing listeners voted on nothing before. Reward accuracy is on new prompts, "
    "with the listeners of the training votes."
)
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl")


@dataclass(frozen=True)
class Turned:
    """Everything one turn of the circle left behind that its report speaks of."""

    settings: DemoSettings
    folder: Path
    shuffled: bool
    snapshot: NamedSnapshot
    reward: RewardModel
    accuracy: Mapping[str, RewardAccuracy]
    aligned: Version
    history: Sequence[Mapping[str, float]]
    rates: Mapping[str, WinRate]
    kl: KlEstimate
    diversity: tuple[Interval, Interval]
    prompts: list[Prompt]
    base_clips: Clips
    new_clips: Clips
    heard: Mapping[str, Judgement]
    seconds: Mapping[str, float]


def build_report(ws: Workspace, turned: Turned) -> rep.ReportData:
    """The report's values; every figure rests on simulated listeners and says so."""
    seed = turned.settings.seed
    control = "Control run: winners were permuted when the snapshot was made, so nothing true could be learnt."
    return rep.ReportData(
        title="Attune demo",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=True,
        candidate=ALIGNED,
        base=BASE_NAME,
        contests=[
            rep.Contest("DPO vs base", turned.rates[ALIGNED], "one fresh clip each, held-out prompts and listeners"),
            rep.Contest("best-of-4 vs base", turned.rates[BEST_OF_4], "the one the reward model likes best of four"),
        ],
        reward=_reward_card(turned),
        curves=_curves(turned.history),
        metrics=_metrics(turned),
        adherence=[
            rep.AdherenceRow(
                name,
                measure.followed(name, turned.prompts, turned.base_clips, turned.heard),
                measure.followed(name, turned.prompts, turned.new_clips, turned.heard),
                1 / len(values),
            )
            for name, values in ATTRIBUTE_VALUES.items()
        ],
        examples=_examples(ws, turned, random.Random(seed)),
        stages=[rep.Stage(name, seconds) for name, seconds in turned.seconds.items()],
        peak_memory_mb=peak_memory_mb(),
        traces=_traces(turned),
        run={
            "seed": str(seed),
            "commit": current_commit() or "not a checkout",
            "database": ws.database.url,
            "votes shuffled": "yes, a control run" if turned.shuffled else "no",
            "machine": machine(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        notes=[*([control] if turned.shuffled else []), HELD_OUT],
        next_command=f"attune serve --home {turned.folder}",
    )


def _reward_card(turned: Turned) -> rep.RewardCard:
    order = [head for head in ("preference", "text_adherence", "quality") if head in turned.accuracy]
    heads = []
    for head in order:
        found = turned.accuracy[head]
        share = Interval(found.value, found.low, found.high, found.n, found.prompts)
        heads.append(rep.HeadAccuracy(head.replace("_", " "), share, 0.5, "chance"))
    facts = {
        "encoder": turned.reward.encoder,
        "training pairs": str(turned.reward.metrics["train_pairs"]),
        "ensemble": str(turned.settings.reward.ensemble),
        "measured on": "decisive votes on prompts it never saw",
    }
    return rep.RewardCard("demo-reward", heads, facts)


def _metrics(turned: Turned) -> list[rep.MetricRow]:
    cleanliness = [
        measure.heard_mean([turned.heard[own[0].audio_sha256].cleanliness for own in clips.values()])
        for clips in (turned.base_clips, turned.new_clips)
    ]
    return [
        rep.MetricRow(
            "KL to base, per clip", None, turned.kl.per_clip, "nats",
            "mean log-ratio of the aligned version's own clips (k1 estimate); "
            f"best-of-4 costs at most {best_of_n_kl(4):.2f} nats",
        ),
        rep.MetricRow(
            "diversity", *turned.diversity, "",
            "mean cosine distance in CLAP space between two clips of one prompt; 0 is one clip for ever",
        ),
        rep.MetricRow("KL to base, per code", None, turned.kl.per_token, "nats", "the same for one sampled code"),
        rep.MetricRow(
            "cleanliness", *cleanliness, "",
            "as the gold judge hears it: 1 is a render, 0 a clip with half of its codes replaced",
        ),
    ]  # fmt: skip


def _traces(turned: Turned) -> list[rep.FigureTrace]:
    config = canonical_sha256(turned.settings.model_dump(mode="json"))
    figures = (
        ("DPO vs base", f"demo-{ALIGNED}", turned.rates[ALIGNED].votes, True),
        ("best-of-4 vs base", f"demo-{BEST_OF_4}", turned.rates[BEST_OF_4].votes, False),
        ("reward accuracy", "demo-votes", turned.accuracy["preference"].n, False),
        ("KL, diversity, captions followed", "", None, True),
    )
    adapter = turned.aligned.adapter_sha256 or ""
    return [
        rep.FigureTrace(
            figure, study, votes, turned.snapshot.frozen.content_sha256, "demo-reward", adapter if uses else "", config
        )
        for figure, study, votes, uses in figures
    ]


def _curves(history: Sequence[Mapping[str, float]]) -> list[rep.Curve]:
    def points(key: str) -> list[tuple[float, float]]:
        return [(float(i + 1), entry[key]) for i, entry in enumerate(history) if np.isfinite(entry.get(key, np.nan))]

    wanted = (
        ("DPO loss", "loss", "nats", float(np.log(2)), "dashed: a policy equal to its reference"),
        ("Reward margin", "rewards/margins", "nats x beta", 0.0, "chosen minus rejected"),
        ("Accuracy on training pairs", "rewards/accuracies", "", 0.5, "dashed: chance"),
        ("Log-probability of the chosen clip", "logps/chosen", "nats a clip", None, "a fall is a warning"),
    )
    return [rep.Curve(label, points(key), unit, level, note) for label, key, unit, level, note in wanted if points(key)]


def _examples(ws: Workspace, turned: Turned, rng: random.Random) -> list[rep.Example]:
    """Held-out prompts drawn at random, not picked: what the two versions sang and how the votes fell."""
    wins: Counter[str] = Counter()
    undecided: Counter[str] = Counter()
    for row in listen.votes_of(ws, f"demo-{ALIGNED}"):
        if row.outcome.is_decisive:
            wins[str((row.left if row.outcome is Outcome.A else row.right).clip_id)] += 1
        else:
            undecided[str(row.prompt_id)] += 1
    out = []
    for prompt in rng.sample(turned.prompts, min(EXAMPLES, len(turned.prompts))):
        pair = ((BASE_NAME, turned.base_clips[prompt.id][0]), (ALIGNED, turned.new_clips[prompt.id][0]))
        clips = [
            rep.ExampleClip(
                name, rep.audio_data_uri(ws.store.rendition(clip.audio_sha256)), clip.audio_sha256, wins[str(clip.id)]
            )
            for name, clip in pair
        ]
        fell = f"{clips[1].votes} for {ALIGNED}, {clips[0].votes} for the base, {undecided[str(prompt.id)]} undecided"
        out.append(rep.Example(prompt.text, clips, fell))
    return out


def peak_memory_mb() -> float:
    """The most memory this process ever held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def machine() -> str:
    import torch

    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{system}, {torch.get_num_threads()} threads"
