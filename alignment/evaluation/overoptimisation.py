"""Whether a run over-optimised its reward: what each look at the policy heard, compared prompt by prompt.

Gao, Schulman and Hilton (arXiv:2210.10760): the reward that is optimised keeps rising while what it stands for peaks
and falls. Here a reward model that learnt from other raters and prompts stands for it during the run; where there is
a gold judge it is read once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from alignment.errors import DataError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import bootstrap_mean
from alignment.training.best_of_n import best_of_n_kl, choose_best

PROXY, HELD_OUT, GOLD = "proxy_reward", "held_out_reward", "gold_reward"
OVER, FELL, NOT_SEEN, ONE_LOOK = "over-optimised", "fell", "not seen", "one look"


@dataclass(frozen=True)
class Look:
    """What was heard of a policy at one step: each value (P, n) of P held-out prompts' n clips, by name.

    ``codes`` (P, n, K, T) are the clips themselves, for a judge that hears them later."""

    step: int
    values: Mapping[str, np.ndarray]
    codes: np.ndarray

    def mean(self, name: str) -> Interval:
        """The mean over clips, its interval from resampled prompts."""
        values = self.values[name]
        return bootstrap_mean(values.ravel(), np.repeat(np.arange(len(values)), values.shape[1]))

    def by_prompt(self, name: str) -> np.ndarray:
        """(P,): each prompt's mean."""
        return self.values[name].mean(1)


@dataclass(frozen=True)
class StageLooks:
    """One stage: its looks in the order of their steps, and the step whose adapter became the version."""

    name: str
    method: str
    version: str
    reward: Mapping[str, float]
    reference: str
    kept_step: int
    looks: Sequence[Look]
    seconds: float = 0.0

    @property
    def kept(self) -> Look:
        """The look at the adapter that was kept."""
        return next(look for look in self.looks if look.step == self.kept_step)


@dataclass(frozen=True)
class Finding:
    """Whether a stage over-optimised. ``peak_step``: where the judging reward was highest. ``proxy`` and ``judged``:
    the last look less that one, paired by prompt, with intervals at ``confidence``."""

    kind: str
    judged_by: str
    peak_step: int
    last_step: int
    proxy: Interval | None = None
    judged: Interval | None = None

    @property
    def sentence(self) -> str:
        """The finding in plain words, without figures but steps."""
        name = {HELD_OUT: "held-out reward", GOLD: "gold judge"}[self.judged_by]
        if self.kind == ONE_LOOK:
            return "one look alone: nothing can be said of a course."
        if self.kind == OVER:
            return f"after step {self.peak_step} the reward that was optimised rose on while the {name} fell."
        if self.kind == FELL:
            return f"after step {self.peak_step} the {name} fell, and the reward that was optimised did not rise."
        if self.peak_step == self.last_step:
            return f"the {name} was highest at the last look, step {self.last_step}."
        return f"the {name} shows no sure fall from its highest look, step {self.peak_step}, to step {self.last_step}."


def find_overoptimisation(looks: Sequence[Look], *, judged_by: str = HELD_OUT, confidence: float = 0.95) -> Finding:
    """Over-optimised: from the look with the highest ``judged_by`` to the last one, ``judged_by`` fell and the proxy
    rose, both by more than their intervals, paired by prompt.

    The highest of several noisy looks is somewhat too high, so the fall's interval is Bonferroni's over the looks.
    Raises DataError without a look."""
    if not looks:
        raise DataError("The run has no looks; train it with a watch.")
    last = looks[-1]
    peak = max(looks, key=lambda look: float(look.values[judged_by].mean()))  # the first among equals
    if len(looks) == 1:
        return Finding(ONE_LOOK, judged_by, peak.step, last.step)
    if peak is last:
        return Finding(NOT_SEEN, judged_by, peak.step, last.step)
    strict = 1 - (1 - confidence) / (len(looks) - 1)
    judged = bootstrap_mean(last.by_prompt(judged_by) - peak.by_prompt(judged_by), confidence=strict, rounds=4000)
    proxy = bootstrap_mean(last.by_prompt(PROXY) - peak.by_prompt(PROXY), confidence=confidence)
    kind = NOT_SEEN if not judged.high < 0 else OVER if proxy.low > 0 else FELL
    return Finding(kind, judged_by, peak.step, last.step, proxy, judged)


@dataclass(frozen=True)
class Row:
    """One way to sing the held-out prompts, as a line of the comparison: means with intervals by name.

    ``kl_bound``: the most that best-of-N costs, nats a clip, where KL is not estimated."""

    name: str
    figures: Mapping[str, Interval]
    kl_bound: float | None = None

    @property
    def nats(self) -> float:
        """KL in nats a clip, measured or at its bound."""
        return self.figures["kl"].value if self.kl_bound is None else self.kl_bound


def best_of_rows(pool: Look, sizes: Sequence[int]) -> list[Row]:
    """Best-of-N out of one pool (P, n), chosen by the proxy: every group of N clips gives one, so that small N have
    more clips and less noise. Sizes above n are left out; diversity and duplicates are no property of a choice."""
    prompts, sung = pool.values[PROXY].shape
    rows = []
    for n in (size for size in sizes if size <= sung):
        groups = sung // n
        values = {name: found[:, : groups * n].reshape(prompts * groups, n) for name, found in pool.values.items()}
        best = choose_best(values[PROXY])
        clusters = np.repeat(np.arange(prompts), groups)
        figures = {
            name: bootstrap_mean(np.take_along_axis(found, best[:, None], axis=1)[:, 0], clusters)
            for name, found in values.items()
            if name not in ("kl", "diversity", "duplicates")
        }
        rows.append(Row(f"best-of-{n}", figures, best_of_n_kl(n)))
    return rows


def look_row(name: str, look: Look) -> Row:
    """A look as a line of the comparison."""
    return Row(name, {value: look.mean(value) for value in look.values})


@dataclass(frozen=True)
class RunPage:
    """Everything the page of a run says. ``pool`` is the start's clips for best-of-N. ``compared`` are looks at the
    start, what was trained beside, and every stage, by name: all scored by the last stage's reward, as the pool is.
    ``about``: facts of the run in the order shown."""

    title: str
    created_at: str
    simulated: bool
    stages: Sequence[StageLooks]
    pool: Look
    sizes: Sequence[int]
    compared: Mapping[str, Look]
    about: Mapping[str, str] = field(default_factory=dict)
    next_command: str = ""

    def __post_init__(self) -> None:
        if not self.stages or not all(stage.looks for stage in self.stages):
            raise DataError("A run's page needs at least one stage with at least one look; train with a watch.")

    @property
    def gold(self) -> bool:
        """Whether a gold judge was read."""
        return GOLD in self.pool.values

    @property
    def headline(self) -> Finding:
        """The last stage's finding, on the gold judge where it was read."""
        return self.findings[self.stages[-1].name][-1]

    @cached_property
    def findings(self) -> dict[str, list[Finding]]:
        """Each stage's findings, by its name: on the held-out reward, then on the gold judge where it was read."""
        judges = (HELD_OUT, GOLD) if self.gold else (HELD_OUT,)
        return {
            stage.name: [find_overoptimisation(stage.looks, judged_by=judge) for judge in judges]
            for stage in self.stages
        }

    @cached_property
    def rows(self) -> list[Row]:
        """The comparison: the start, best-of-N from its clips, then everything that was trained."""
        names = list(self.compared)
        first, rest = names[0], names[1:]
        return [
            look_row(first, self.compared[first]),
            *best_of_rows(self.pool, self.sizes),
            *(look_row(name, self.compared[name]) for name in rest),
        ]

    def as_json(self) -> dict[str, Any]:
        """Every figure, for scripts: intervals as value, low, high, n."""
        return {
            "title": self.title, "created_at": self.created_at, "simulated": self.simulated, "gold": self.gold,
            "about": dict(self.about),
            "stages": [
                {"name": stage.name, "method": stage.method, "version": stage.version, "reward": dict(stage.reward),
                 "reference": stage.reference, "kept_step": stage.kept_step, "seconds": round(stage.seconds, 1),
                 "findings": [_finding(found) for found in self.findings[stage.name]],
                 "looks": [{"step": look.step} | {name: _interval(look.mean(name)) for name in sorted(look.values)}
                           for look in stage.looks]}
                for stage in self.stages
            ],
            "comparison": [
                {"name": row.name, "kl_bound": row.kl_bound}
                | {name: _interval(row.figures[name]) for name in sorted(row.figures)} for row in self.rows
            ],
        }  # fmt: skip


def _interval(found: Interval | None) -> dict[str, float | int | None] | None:
    if found is None:
        return None
    numbers = {name: getattr(found, name) for name in ("value", "low", "high")}
    return {name: float(value) if np.isfinite(value) else None for name, value in numbers.items()} | {"n": found.n}


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "kind": found.kind, "judged_by": found.judged_by, "peak_step": found.peak_step, "last_step": found.last_step,
        "proxy": _interval(found.proxy), "judged": _interval(found.judged), "sentence": found.sentence,
    }  # fmt: skip
