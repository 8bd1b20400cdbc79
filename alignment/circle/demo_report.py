"""The demo's report: what was measured, put where its reader looks for it, each figure with its source."""

from __future__ import annotations

import json
import platform
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment.circle import listen, measure
from alignment.circle.align import NAMES, REPEATED, Aligned
from alignment.circle.learn import NamedSnapshot
from alignment.circle.measure import Contestant
from alignment.circle.trust import REFUSAL, Trust
from alignment.circle.workspace import Workspace, current_commit
from alignment.config import DemoSettings
from alignment.domain import Outcome, Prompt, canonical_sha256
from alignment.evaluation import report as rep
from alignment.evaluation.metrics import bootstrap_mean
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import Judgement
from alignment.training.best_of_n import best_of_n_kl
from alignment.versions import BASE_NAME

if TYPE_CHECKING:
    from alignment.rewards.model import RewardModel

EXAMPLES = 6
HELD_OUT = (
    "Held out: the compared prompts are captions worded differently from every caption voted on, though some ask for "
    "the same attributes; the comparing listeners voted on nothing before. Reward accuracy is cross-validated: "
    "each vote is predicted by a model that saw no vote on its prompt, though others by the same listener."
)
CONTROL = "Control run: winners were permuted when the snapshot was made, so nothing true could be learnt."
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl")


@dataclass(frozen=True)
class Turned:
    """Everything one turn of the circle left behind that its report speaks of.

    Without ``contestants`` the trust gate refused, and nothing was trained. ``trained`` is in the order of training,
    the headline last; ``contestants`` begin with the base."""

    settings: DemoSettings
    folder: Path
    shuffled: bool
    snapshot: NamedSnapshot
    trust: Trust
    prompts: list[Prompt]
    seconds: Mapping[str, float]
    began: float
    reward: RewardModel | None = None
    trained: Mapping[str, Aligned] = field(default_factory=dict)
    contestants: Sequence[Contestant] = ()
    heard: Mapping[str, Judgement] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.settings.align.method

    @property
    def base(self) -> Contestant:
        return self.contestants[0]

    @property
    def headline(self) -> Contestant:
        return next(c for c in self.contestants if c.name == NAMES[self.method])

    @property
    def met(self) -> list[Contestant]:
        """Who met the base, the headline first."""
        return [self.headline, *(c for c in self.contestants if c.rate is not None and c is not self.headline)]


@dataclass(frozen=True)
class DemoResult:
    """What ``attune demo --json`` prints, and the report behind it."""

    summary: dict[str, Any]
    report: rep.ReportData


def finish(ws: Workspace, turned: Turned) -> DemoResult:
    """Write report.html and summary.json into the run's folder."""
    data = build_report(ws, turned)
    path = rep.write_report(data, turned.folder / "report.html")
    summary = summarise(ws, turned) | {"verdict": data.verdict, "report": str(path)}
    (turned.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return DemoResult(summary, data)


def summarise(ws: Workspace, turned: Turned) -> dict[str, Any]:
    """The run's figures, flat, and those of every method; null where nothing was trained."""
    aligned = bool(turned.contestants)
    by_name = {c.name: c.figures() for c in turned.contestants}
    headline, best = by_name.get(NAMES[turned.method], {}), by_name.get("best-of-4", {})
    trust = turned.trust.accuracy["preference"]
    return {
        "aligned": aligned, "method": turned.method, "version": NAMES[turned.method] if aligned else None,
        **{key: headline.get(key) for key in ("win_rate", "win_rate_low", "win_rate_high", "votes", "decisive_votes")},
        **{f"best_of_4_{key}": best.get(key) for key in ("win_rate", "win_rate_low", "win_rate_high")},
        "reward_accuracy": trust.value, "reward_accuracy_low": trust.low, "reward_accuracy_high": trust.high,
        "reward_accuracy_n": trust.n, "gate_passed": turned.trust.passed, "gate": turned.settings.align.gate,
        "kl_nats_per_clip": headline.get("kl_nats_per_clip"),
        "diversity_base": by_name.get(BASE_NAME, {}).get("diversity"), "diversity_aligned": headline.get("diversity"),
        "methods": list(by_name.values()), "shuffled": turned.shuffled, "quick": turned.settings.quick,
        "stages": {name: round(value, 2) for name, value in turned.seconds.items()},
        "seconds": round(time.monotonic() - turned.began, 1), "peak_memory_mb": round(peak_memory_mb()),
        "database": ws.database.url, "seed": turned.settings.seed, "simulated": True,
    }  # fmt: skip


def build_report(ws: Workspace, turned: Turned) -> rep.ReportData:
    """The report's values; every figure rests on simulated listeners and says so."""
    seed, aligned = turned.settings.seed, bool(turned.contestants)
    notes = [CONTROL] if turned.shuffled else []
    if turned.settings.quick:
        notes.append(_quick_note(turned.settings))
    if aligned and not turned.trust.passed:
        notes.append("The trust gate was switched off: the reward model is not better than chance on unseen prompts.")
    if aligned:
        notes += [carries(turned), HELD_OUT]
    return rep.ReportData(
        title="Attune demo",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=True,
        candidate=NAMES[turned.method],
        base=BASE_NAME,
        contests=[rep.Contest(f"{c.label} vs base", c.rate, _kind(c)) for c in turned.met] if aligned else [],
        reward=_reward_card(turned),
        curves=_curves(turned),
        methods=[_method_row(c, turned) for c in turned.contestants],
        metrics=_metrics(turned) if aligned else [],
        adherence=_adherence(turned) if aligned else [],
        examples=_examples(ws, turned, random.Random(seed)) if aligned else [],
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
        notes=notes,
        next_command=f"attune serve --home {turned.folder}",
        not_trained="" if aligned else REFUSAL,
    )


def carries(turned: Turned) -> str:
    """What carries the difference to the base, in plain words with intervals, and whether training was needed."""
    headline, base = turned.headline, turned.base
    changes, better = [], []
    for name, words in (("cleanliness", "cleaner sound"), ("adherence", "following captions")):
        found = bootstrap_mean(getattr(headline, name) - getattr(base, name))
        changes.append(f"{name} {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
        if found.low > 0:
            better.append(words)
    heard = []
    for name in base.faults:
        found = bootstrap_mean(headline.faults[name] - base.faults[name])
        if found.high < 0 or found.low > 0:
            heard.append(f"{name} {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    faults = f" Faults that changed: {', '.join(heard)}." if heard else ""
    carried = f"What improved is {' and '.join(better)}." if better else "Neither is shown to have improved."
    rivals = [c for c in turned.met if c is not headline]
    beside = "; ".join(f"{c.label} {100 * c.rate.value:.1f}%" for c in rivals)
    return (
        f"To the gold judge, {headline.label} against the base: {', '.join(changes)} (paired by prompt, n = "
        f"{len(headline.reward)}). {carried}{faults} Beside it, by the same listeners: {beside}."
    )


def _quick_note(settings: DemoSettings) -> str:
    return (
        f"A quick run: {settings.test_prompts} held-out prompts and {settings.test_votes} votes a contest, where the "
        "full demo has 300 and 900. Its intervals are wide, and it may miss a gain that the full demo finds."
    )


def _kind(contestant: Contestant) -> str:
    if contestant.kl is None:
        return "the one the reward model likes best; nothing trained"
    return "one fresh clip each, held-out prompts and listeners"


def _reward_card(turned: Turned) -> rep.RewardCard:
    order = [head for head in ("preference", "text_adherence", "quality") if head in turned.trust.accuracy]
    heads = [rep.HeadAccuracy(head.replace("_", " "), turned.trust.accuracy[head], 0.5, "chance") for head in order]
    facts = {
        "votes": str(len(turned.snapshot.frozen.pairs)),
        "measured by": f"{turned.trust.folds}-fold cross-validation over prompts, decisive votes",
        "trust gate": "passed" if turned.trust.passed else "refused",
        "ensemble": str(turned.settings.reward.ensemble),
    }
    if turned.reward:
        facts |= {"encoder": turned.reward.encoder, "training pairs": str(turned.reward.metrics["train_pairs"])}
    return rep.RewardCard("demo-reward", heads, facts)


def _method_row(contestant: Contestant, turned: Turned) -> rep.MethodRow:
    return rep.MethodRow(
        label=contestant.label, judge_reward=bootstrap_mean(contestant.reward),
        cleanliness=bootstrap_mean(contestant.cleanliness), adherence=bootstrap_mean(contestant.adherence),
        win_rate=contestant.rate.interval if contestant.rate else None,
        kl=contestant.kl.per_clip if contestant.kl else None, kl_bound=contestant.kl_bound,
        diversity=contestant.diversity, headline=contestant is turned.headline,
    )  # fmt: skip


def _metrics(turned: Turned) -> list[rep.MetricRow]:
    base, aligned = turned.base, turned.headline
    return [
        rep.MetricRow(
            "KL to base, per clip", None, aligned.kl.per_clip, "nats",
            "mean log-ratio of the aligned version's own clips (k1 estimate); "
            f"best-of-4 costs at most {best_of_n_kl(4):.2f} nats",
        ),
        rep.MetricRow(
            "diversity", base.diversity, aligned.diversity, "",
            "mean cosine distance in CLAP space between two clips of one prompt; 0 is one clip for ever",
        ),
        rep.MetricRow("KL to base, per code", None, aligned.kl.per_token, "nats", "the same for one sampled code"),
        rep.MetricRow(
            "cleanliness", bootstrap_mean(base.cleanliness), bootstrap_mean(aligned.cleanliness), "",
            "as the gold judge hears it, from 0 to 1",
        ),
    ]  # fmt: skip


def _adherence(turned: Turned) -> list[rep.AdherenceRow]:
    rows = []
    for name, values in ATTRIBUTE_VALUES.items():
        found = [measure.followed(name, turned.prompts, c.clips, turned.heard) for c in (turned.base, turned.headline)]
        if None not in found:  # asked for by some caption
            rows.append(rep.AdherenceRow(name, *found, 1 / len(values)))
    return rows


def _traces(turned: Turned) -> list[rep.FigureTrace]:
    config = canonical_sha256(turned.settings.model_dump(mode="json"))
    adapters = {NAMES[method]: found.version.adapter_sha256 or "" for method, found in turned.trained.items()}
    trust = turned.trust.accuracy["preference"]
    figures = [("reward accuracy", "demo-votes", trust.n, "")]
    if turned.contestants:
        figures = [
            *((f"{c.label} vs base", f"demo-{c.name}", c.rate.votes, adapters.get(c.name, "")) for c in turned.met),
            *figures,
            ("KL, diversity, captions followed", "", None, adapters[turned.headline.name]),
        ]
    return [
        rep.FigureTrace(figure, study, votes, turned.snapshot.frozen.content_sha256, "demo-reward", adapter, config)
        for figure, study, votes, adapter in figures
    ]


def _curves(turned: Turned) -> list[rep.Curve]:
    """How the headline was trained: its stages one after the other."""
    if not turned.trained:
        return []
    stages = turned.trained[turned.method].stages
    history = [entry for stage in stages for entry in stage.history]

    def points(key: str) -> list[tuple[float, float]]:
        return [(float(i + 1), entry[key]) for i, entry in enumerate(history) if np.isfinite(entry.get(key, np.nan))]

    dpo = REPEATED[turned.method] == "dpo"
    wanted = [
        ("Reward margin", "rewards/margins", "nats x beta", 0.0, "chosen minus rejected"),
        ("Accuracy on training pairs", "rewards/accuracies", "", 0.5, "dashed: chance"),
        ("Log-probability of the chosen clip", "logps/chosen", "nats a clip", None, "a fall is a warning"),
        ("Reward of the clips sung", "reward", "deviations", 0.0, "PPO, a rollout a step; dashed: the base"),
        ("KL to the base while training", "kl", "nats a clip", 0.0, "of the clips sung or trained on"),
    ]
    if len(stages) == 1:  # losses of different methods share no axis
        wanted.insert(
            0,
            ("DPO loss", "loss", "nats", float(np.log(2)), "dashed: a policy equal to its reference")
            if dpo
            else ("Loss on the kept clips", "loss", "nats a code", None, "negative log-likelihood"),
        )
    return [rep.Curve(label, points(key), unit, level, note) for label, key, unit, level, note in wanted if points(key)]


def _examples(ws: Workspace, turned: Turned, rng: random.Random) -> list[rep.Example]:
    """Held-out prompts drawn at random, not picked: what the two versions sang and how the votes fell."""
    wins: Counter[str] = Counter()
    undecided: Counter[str] = Counter()
    aligned = turned.headline
    for row in listen.votes_of(ws, f"demo-{aligned.name}"):
        if row.outcome.is_decisive:
            wins[str((row.left if row.outcome is Outcome.A else row.right).clip_id)] += 1
        else:
            undecided[str(row.prompt_id)] += 1
    out = []
    for prompt in rng.sample(turned.prompts, min(EXAMPLES, len(turned.prompts))):
        pair = [(c.name, c.clips[prompt.id]) for c in (turned.base, aligned)]
        clips = [
            rep.ExampleClip(
                name, rep.audio_data_uri(ws.store.rendition(clip.audio_sha256)), clip.audio_sha256, wins[str(clip.id)]
            )
            for name, clip in pair
        ]
        open_votes = undecided[str(prompt.id)]
        fell = f"{clips[1].votes} for {aligned.name}, {clips[0].votes} for the base, {open_votes} undecided"
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
