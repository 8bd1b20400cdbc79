"""A reward model's card: how well it predicts votes it never saw, where, and what simpler scorers would have said."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from alignment.domain import Axis, Pair
from alignment.errors import DataError
from alignment.evaluation.calibration import Calibration, calibration
from alignment.evaluation.intervals import Interval, clustered_share
from alignment.evaluation.level_probe import LevelProbe, level_probe
from alignment.evaluation.report import _plain
from alignment.evaluation.terminal import percent
from alignment.rewards.baselines import WORDS
from alignment.rewards.card import Baseline, Evidence, agreement, axis_credit, preferences, taken_out

LABELS = {"clap_cosine": "CLAP cosine", "loudness": "Loudness", "level": "Level", "length": "Length"}
HEAD_LABELS = {"text_adherence": "text adherence", "quality": "quality", "preference": "preference"}


@dataclass(frozen=True)
class CardRow:
    """The share of decisive votes of some kind that a head predicts."""

    group: str
    label: str
    accuracy: Interval
    note: str = ""


@dataclass(frozen=True)
class BaselineRow:
    """A simple scorer on the same votes: its ``accuracy``, the model's ``advantage`` over it vote by vote, and the
    share of pairs on which the model ``follows`` it (equal values count half). ``beyond`` is the model's accuracy once
    the scorer is taken out of its scores: chance if it hears nothing else."""

    name: str
    label: str
    prefers: str
    accuracy: Interval
    advantage: Interval
    follows: Interval
    beyond: Interval

    @property
    def explains(self) -> bool:
        """Whether it predicts votes, the model goes with it, and nothing more is shown of the model."""
        more = self.advantage.low > 0 or self.beyond.low > 0.5
        return self.accuracy.low > 0.5 and self.follows.low > 0.5 and not more


@dataclass(frozen=True)
class RaterFigures:
    """How raters agree with each other: ``same`` is the share of two raters' decisive votes on one pair of clips that
    choose the same clip; ``model`` is the model's accuracy on such pairs; ``alpha`` Krippendorff's, of all answers."""

    same: Interval
    model: Interval | None
    alpha: Interval | None


@dataclass(frozen=True)
class RewardCard:
    """Everything a card shows. ``verdict``: "sound", "unproven" or "exposed"."""

    name: str
    verdict: str
    headline: str
    findings: tuple[str, ...]
    asked: str
    rows: tuple[CardRow, ...]
    baselines: tuple[BaselineRow, ...]
    calibration: Calibration
    curve: tuple[tuple[int, Interval], ...]
    raters: RaterFigures | None
    level: LevelProbe | None
    simulated: bool
    created_at: str
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The whole card as JSON; what is not finite is null."""
        return json.dumps(_plain(self), ensure_ascii=False, allow_nan=False)


def make_card(
    name: str,
    evidence: Evidence,
    *,
    simulated: bool,
    created_at: str,
    heard_by: Sequence[Pair] = (),
    alpha: Interval | None = None,
    level_shifts: tuple[Sequence[str], np.ndarray] | None = None,
    facts: Mapping[str, str] | None = None,
    contest_votes: int = 0,
) -> RewardCard:
    """The card of the evidence. Raises DataError without a preference head or a decisive vote.

    ``heard_by``: all votes in which raters may be compared with each other; ``level_shifts``: prompts (n,) and how much
    each clip's score drops when it is played 6 dB quieter (n,); ``contest_votes``: how many were left out."""
    pairs, preference = evidence.pairs, evidence.differences["preference"]
    vote = preferences(pairs)
    correct = agreement(preference, vote)
    overall = _share(correct, pairs)
    if overall is None:
        raise DataError(
            f"{name} has no trained preference head, or no vote asked about is decisive; a card needs both."
        )
    baselines = tuple(_baseline_row(one, preference, correct, pairs, vote) for one in evidence.baselines)
    decisive = ~np.isnan(correct)
    told = [pair for pair, is_decisive in zip(pairs, decisive, strict=True) if is_decisive]
    chance = 1 / (1 + np.exp(-np.abs(preference[decisive])))  # that the clip with the higher score wins
    calibrated = calibration(chance, correct[decisive], [p.rater_id for p in told], [p.prompt_id for p in told])
    curve = []
    for point in evidence.curve:
        share = _share(point.agreement, point.pairs)
        if share is not None:
            curve.append((point.votes, share))
    level = level_probe(evidence, *level_shifts) if level_shifts is not None and len(level_shifts[1]) else None
    verdict, headline, findings = _judge(name, overall, baselines, level)
    asked = (
        f"cross-validation: {evidence.folds} models of the same recipe, each asked only about prompts it never saw"
        if evidence.folds
        else "the test split: prompts that the model never saw"
    )
    return RewardCard(
        name=name, verdict=verdict, headline=headline, findings=findings, asked=asked,
        rows=tuple(_rows(evidence, correct, overall)), baselines=baselines, calibration=calibrated, curve=tuple(curve),
        raters=_rater_figures(heard_by, pairs, correct, alpha), level=level, simulated=simulated,
        created_at=created_at, facts=dict(facts or {}), notes=_notes(evidence, contest_votes),
    )  # fmt: skip


def _rows(evidence: Evidence, correct: np.ndarray, overall: Interval) -> list[CardRow]:
    pairs, vote = evidence.pairs, preferences(evidence.pairs)
    rows = [CardRow("Overall", "Preference head, overall vote", overall)]

    def add(group: str, label: str, values: np.ndarray, note: str = "") -> None:
        share = _share(values, pairs)
        if share is not None:
            rows.append(CardRow(group, label, share, note))

    def where(keep: Sequence[bool] | np.ndarray) -> np.ndarray:
        return np.where(np.asarray(keep, dtype=bool), correct, np.nan)

    for axis in Axis:
        label = HEAD_LABELS[axis.value]
        add("By axis", f"{label.capitalize()} head, its own question",
            agreement(evidence.differences[axis.value], axis_credit(pairs, axis)))  # fmt: skip
    for axis in Axis:
        label = HEAD_LABELS[axis.value]
        add("By axis", f"{label.capitalize()} head, overall vote", agreement(evidence.differences[axis.value], vote))
    same = np.array([pair.a.version == pair.b.version for pair in pairs])
    add("By version", "Within one version", where(same), "what alignment needs")
    add("By version", "Across versions", where(~same), "may be won by telling versions apart")
    cohorts = [getattr(pair, "cohort", None) for pair in pairs]
    for cohort in sorted({c for c in cohorts if c}):
        add("By cohort", cohort, where([c == cohort for c in cohorts]))
    if any(cohorts) and not all(cohorts):
        add("By cohort", "cohort not told", where([not c for c in cohorts]))
    loud = next((b for b in evidence.baselines if b.name == "loudness"), None)
    if loud is not None:
        agreed = agreement(loud.values[:, 0] - loud.values[:, 1], vote)  # as it is, whichever way it was turned
        add("By loudness", "The louder clip won", where(agreed == 1))
        add("By loudness", "The quieter clip won", where(agreed == 0), "near 0% if it only hears loudness")
    return rows


def _baseline_row(
    one: Baseline, preference: np.ndarray, correct: np.ndarray, pairs: Sequence[Pair], vote: np.ndarray
) -> BaselineRow:
    theirs = agreement(one.differences, vote)
    accuracy, half = _share(theirs, pairs), _share(0.5 + 0.5 * (correct - theirs), pairs)
    if accuracy is not None and not one.differences.any():  # equal values: a half by rule, with nothing uncertain
        accuracy = replace(accuracy, low=0.5, high=0.5)
    follows = _share(0.5 + 0.5 * np.sign(one.differences * preference), pairs)
    beyond = _share(agreement(taken_out(preference, one.values), vote), pairs)
    assert accuracy is not None and half is not None and follows is not None and beyond is not None
    value, low, high = (2 * x - 1 for x in (half.value, half.low, half.high))
    advantage = Interval(value, low, high, half.n, half.clusters, half.confidence)
    prefers = WORDS[one.name][0 if one.signs.sum() >= 0 else 1]
    return BaselineRow(one.name, LABELS[one.name], prefers, accuracy, advantage, follows, beyond)


def _judge(
    name: str, overall: Interval, baselines: Sequence[BaselineRow], level: LevelProbe | None
) -> tuple[str, str, tuple[str, ...]]:
    """(verdict, headline, findings): what the figures allow to say and no more."""
    better = overall.low > 0.5
    explained = [_named(row) for row in baselines if row.explains]
    unbeaten = [_named(row) for row in baselines if row.advantage.low <= 0]
    sure = f"{percent(overall.value)} ({percent(overall.low)} to {percent(overall.high)}) of decisive votes"
    findings = [f"{'Better than chance' if better else 'Not shown to be better than chance'}: it predicts {sure}."]
    for row in baselines:
        by = f"{_points(row.advantage.value)} points ({_points(row.advantage.low)} to {_points(row.advantage.high)})"
        if row.advantage.low > 0:
            findings.append(f"Beats {_named(row)} by {by}.")
            continue
        said = f"{'Worse than' if row.advantage.high < 0 else 'Not shown to beat'} {_named(row)}: {by}."
        if row.explains:
            left = f"{percent(row.beyond.value)} ({percent(row.beyond.low)} to {percent(row.beyond.high)})"
            said += (
                f" It prefers {row.prefers} in {percent(row.follows.value)} of pairs; with {_named(row)} taken out of "
                f"its scores it predicts {left}."
            )
        findings.append(said)
    if level is not None:
        findings.append(f"{level.sentence}.")
    if explained:
        headline = f"{name} is not shown to hear more than {' or '.join(explained)}"
        if level is not None and not level.hears_level and set(explained) <= {"loudness", "level"}:
            headline = f"{name} is not shown to predict more than {' or '.join(explained)}"
            return "unproven", f"{headline}, though level itself moves it little", tuple(findings)
        return "exposed", headline, tuple(findings)
    if not better:
        return "unproven", f"{name} is not shown to predict votes better than chance", tuple(findings)
    if unbeaten:
        headline = f"{name} predicts votes, but is not shown to beat {' or '.join(unbeaten)}"
        return "unproven", headline, tuple(findings)
    return "sound", f"{name} predicts votes better than chance and every baseline", tuple(findings)


def _rater_figures(
    heard_by: Sequence[Pair], pairs: Sequence[Pair], correct: np.ndarray, alpha: Interval | None
) -> RaterFigures | None:
    """None unless two raters were decisive on some pair of clips. A rater's first vote on a pair counts."""
    by_pair: dict[frozenset[str], dict[str, Pair]] = defaultdict(dict)
    for pair in heard_by:
        by_pair[frozenset((pair.a.clip_id, pair.b.clip_id))].setdefault(pair.rater_id, pair)
    same, prompts, shared = [], [], set()
    for clips, votes in by_pair.items():
        choices = [(_chosen(pair), pair) for pair in votes.values() if pair.preference != 0.5]
        for (one, pair), (other, _) in combinations(choices, 2):
            same.append(float(one == other))
            prompts.append(pair.prompt_id)
            shared.add(clips)
    if not same:
        return None
    asked = [frozenset((pair.a.clip_id, pair.b.clip_id)) in shared for pair in pairs]
    return RaterFigures(
        clustered_share(np.array(same), prompts, prompts),
        _share(np.where(asked, correct, np.nan), pairs), alpha,
    )  # fmt: skip


def _chosen(pair: Pair) -> str:
    return pair.a.clip_id if pair.preference > 0.5 else pair.b.clip_id


def _share(values: np.ndarray, pairs: Sequence[Pair]) -> Interval | None:
    """Mean of the values that are numbers, clustered by rater and prompt; None where there are none."""
    kept = np.flatnonzero(~np.isnan(values))
    if not kept.size:
        return None
    return clustered_share(values[kept], [pairs[i].rater_id for i in kept], [pairs[i].prompt_id for i in kept])


def _notes(evidence: Evidence, contest_votes: int) -> tuple[str, ...]:
    notes = []
    if contest_votes:
        notes.append(f"{contest_votes:,} votes of contests between versions are left out: they train nothing, and "
                     "clips of two good versions are hard to tell apart.")  # fmt: skip
    if evidence.folds:
        notes.append("The votes have no test split, so the figures are of the recipe: the model itself learnt from "
                     "votes on these prompts.")  # fmt: skip
    if not any(pair.a.version != pair.b.version for pair in evidence.pairs):
        notes.append("All pairs lie within one version; nothing is known of pairs across versions.")
    elif not any(pair.a.version == pair.b.version for pair in evidence.pairs):
        notes.append("All pairs lie across versions; a model that only tells versions apart would look the same.")
    if len({pair.rater_id for pair in evidence.pairs}) == 1:
        notes.append("One rater alone was asked: intervals speak of this rater.")
    length = next((b for b in evidence.baselines if b.name == "length"), None)
    if length is not None and not length.differences.any():
        notes.append("All clips of a pair are equally long, so length says nothing here.")
    return tuple(notes)


def _named(row: BaselineRow) -> str:
    return row.label if row.name == "clap_cosine" else row.label.lower()


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
