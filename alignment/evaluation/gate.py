"""The gate: what a candidate must show to be promoted. Evidence in, a decision with its reasons out; nothing is read
or written here, and nothing is drawn, so the same evidence always gets the same answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from alignment.config import Recipe
from alignment.domain import json_plain
from alignment.errors import DataError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.sequential import Sequential, Unit

Bounds = tuple[float | None, float | None]


class GateRecipe(Recipe):
    """What promotion takes; configs/gate.yaml has each with its reason."""

    unit: Unit = Field(Unit.VOTE, description="what is fresh in each bet of the sequential test: vote, prompt or rater")
    votes_per_bet: int = Field(1, ge=1, le=1000, description="of a prompt's or a rater's bet, fixed beforehand")
    alpha_budget: float = Field(
        0.05, gt=0, lt=1, description="chance that any candidate of all is promoted for nothing"
    )
    alpha_share: float = Field(0.1, gt=0, le=1, description="of what is left of the budget, for the next candidate")
    most_votes: int = Field(2000, ge=10, description="after which a candidate that has not won is rejected")
    base_margin: float | None = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="how far below one half the win rate over the fixed base may be; none: not asked",
    )
    axis_margin: float = Field(0.25, ge=0, le=2, description="steps of an axis (-2 to 2) by which none may be worse")
    axes: tuple[str, ...] = Field(("text_adherence", "quality"), description="axes that are looked at")
    metrics: dict[str, Bounds] = Field({}, description="lowest and highest value of automatic metrics; null: no bound")
    flat_win_rate: float = Field(
        0.55, gt=0.5, lt=1, description="a win rate surely below this is no gain to speak of, if the reward rose"
    )
    simulated: bool = Field(False, description="simulated votes may decide; for versions that people never hear")

    @field_validator("metrics")
    @classmethod
    def _in_order(cls, metrics: dict[str, Bounds]) -> dict[str, Bounds]:
        for name, (low, high) in metrics.items():
            if low is None and high is None:
                raise ValueError(f"{name} has no bound; give its lowest or its highest value, or leave it out")
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name} lies from {low:g} to {high:g}; put the lower bound first")
        return metrics


@dataclass(frozen=True)
class Evidence:
    """What is known of a candidate. The sequential tests are its win rates over the champion and over the fixed base;
    where the champion is the base, ``base`` is its name and one test does for both. ``axes`` are mean steps by which
    it is better, ``metrics`` the automatic figures, ``reward`` how far it scores above the champion with the reward
    model that it was trained on. None, or a name that is missing, is not known yet. ``simulated``: programs
    voted, here or in its training."""

    candidate: str
    champion: str
    base: str
    over_champion: Sequential | None = None
    over_base: Sequential | None = None
    axes: Mapping[str, Interval] = field(default_factory=dict)
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    reward: Interval | None = None
    simulated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The same of plain values, for the record."""
        return json_plain(asdict(self))


State = Literal["pass", "fail", "open"]


@dataclass(frozen=True)
class Reason:
    """One check: its name, how it came out ("open": not decided yet), and why in a sentence."""

    check: str
    state: State
    sentence: str


@dataclass(frozen=True)
class Decision:
    """``outcome`` is promoted, rejected or undecided; ``alpha_spent`` what the test over the champion was allowed."""

    candidate: str
    champion: str
    outcome: Literal["promoted", "rejected", "undecided"]
    reasons: tuple[Reason, ...]
    alpha_spent: float

    @property
    def sentence(self) -> str:
        """The outcome with the reasons that made it."""
        wanted = {"promoted": "pass", "rejected": "fail", "undecided": "open"}[self.outcome]
        why = " ".join(reason.sentence for reason in self.reasons if reason.state == wanted)
        return f"{self.candidate} is {self.outcome}: {why}"


def decide(evidence: Evidence, recipe: GateRecipe) -> Decision:
    """Rejected when a check fails, else undecided while one is open, else promoted.

    Raises DataError on evidence of a test that the recipe does not ask for: another unit or another size of bets, or an
    alpha above the whole budget. They must be fixed before the first vote."""
    for test in (evidence.over_champion, evidence.over_base):
        _check_fixed(test, recipe)
    test = evidence.over_champion
    no_votes_left = test is not None and test.votes >= recipe.most_votes
    reasons = [
        _voters(evidence, recipe),
        _champion(evidence, recipe),
        *([_base(evidence, recipe)] if recipe.base_margin is not None else []),
        *(_axis(name, evidence.axes.get(name), recipe.axis_margin, no_votes_left) for name in recipe.axes),
        *(_metric(name, evidence.metrics.get(name), bounds) for name, bounds in recipe.metrics.items()),
        _sentinel(evidence, recipe),
    ]
    states = {reason.state for reason in reasons}
    outcome = "rejected" if "fail" in states else "undecided" if "open" in states else "promoted"
    return Decision(evidence.candidate, evidence.champion, outcome, tuple(reasons), test.alpha if test else 0.0)


def _check_fixed(test: Sequential | None, recipe: GateRecipe) -> None:
    if test is None:
        return
    size = 1 if recipe.unit is Unit.VOTE else recipe.votes_per_bet
    if (test.unit, test.size) != (recipe.unit, size):
        raise DataError(
            f"The test bet on each {test.unit.value} with {test.size} votes and the recipe asks for each "
            f"{recipe.unit.value} with {size}; run the test as the recipe had it before the first vote."
        )
    if test.alpha > recipe.alpha_budget:
        raise DataError(
            f"The test was allowed alpha {test.alpha:g}, more than the recipe's whole budget of "
            f"{recipe.alpha_budget:g}; take what next_alpha leaves."
        )


def _voters(evidence: Evidence, recipe: GateRecipe) -> Reason:
    if evidence.simulated and not recipe.simulated:
        return Reason(
            "voters",
            "fail",
            "Simulated listeners voted, here or in its training, and they promote nothing that people hear.",
        )
    who = "Simulated listeners voted, which the recipe allows." if evidence.simulated else "People voted."
    return Reason("voters", "pass", who)


def _champion(evidence: Evidence, recipe: GateRecipe) -> Reason:
    test, name = evidence.over_champion, f"over {evidence.champion}"
    if test is None or test.n == 0:
        return Reason("champion", "open", f"No bet is settled on {evidence.candidate} {name} yet.")
    figures = (
        f"win rate {test.value:.1%} [{test.low:.1%}, {test.high:.1%}] {name} in {test.n:,} bets, e-value "
        f"{test.e_value:.3g} of {1 / test.alpha:.3g} needed"
    )
    if test.verdict == "better":
        return Reason("champion", "pass", f"It won: {figures}.")
    if test.verdict == "worse":
        return Reason("champion", "fail", f"It lost: {figures}.")
    if test.votes >= recipe.most_votes:
        return Reason("champion", "fail", f"It did not win in the {recipe.most_votes:,} votes it had: {figures}.")
    return Reason("champion", "open", f"Not clear yet: {figures}; {recipe.most_votes - test.votes:,} votes are left.")


def _base(evidence: Evidence, recipe: GateRecipe) -> Reason:
    test = evidence.over_champion if evidence.champion == evidence.base else evidence.over_base
    floor = 0.5 - (recipe.base_margin or 0.0)
    if test is None or test.n == 0:
        return Reason("base", "open", f"No bet is settled on {evidence.candidate} over the base {evidence.base} yet.")
    figures = f"win rate {test.value:.1%} [{test.low:.1%}, {test.high:.1%}] over the base {evidence.base}"
    if test.low >= floor:
        return Reason("base", "pass", f"It holds against the base: {figures}, at least {floor:.0%}.")
    if test.high < floor:
        return Reason("base", "fail", f"It fell behind the base: {figures}, surely below {floor:.0%}.")
    if test.votes >= recipe.most_votes:
        return Reason("base", "fail", f"It was not shown to hold against the base: {figures}.")
    return Reason("base", "open", f"Against the base it is not clear yet: {figures}, {floor:.0%} needed.")


def _axis(name: str, change: Interval | None, margin: float, no_votes_left: bool) -> Reason:
    if change is None:
        return Reason(f"axis {name}", "open", f"Nobody has compared {name} yet.")
    figures = f"{name} {change.value:+.2f} steps [{change.low:+.2f}, {change.high:+.2f}], n {change.n:,}"
    if change.low >= -margin:
        return Reason(f"axis {name}", "pass", f"{figures}: not worse by more than {margin:g}.")
    if change.high < -margin:
        return Reason(f"axis {name}", "fail", f"{figures}: worse by more than {margin:g}.")
    if no_votes_left:
        return Reason(f"axis {name}", "fail", f"{figures}: not shown to be no worse by more than {margin:g}.")
    return Reason(f"axis {name}", "open", f"{figures}: it may be worse by more than {margin:g}.")


def _metric(name: str, found: Interval | None, bounds: Bounds) -> Reason:
    low, high = (-math.inf if bounds[0] is None else bounds[0]), (math.inf if bounds[1] is None else bounds[1])
    if found is None or not math.isfinite(found.value):
        return Reason(f"metric {name}", "open", f"{name} is not measured yet.")
    parts = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
    said = " and ".join(parts)
    figures = f"{name} {found.value:.3g} [{found.low:.3g}, {found.high:.3g}], n {found.n:,}; it must be {said}."
    return Reason(f"metric {name}", "pass" if low <= found.value <= high else "fail", figures)


def _sentinel(evidence: Evidence, recipe: GateRecipe) -> Reason:
    """Reward up while people hear no gain: the candidate has learnt the reward model, not the music (Gao et al. 2022,
    arXiv:2210.10760)."""
    reward, test = evidence.reward, evidence.over_champion
    if reward is None:
        return Reason("reward hacking", "open", "Its reward beside the champion's is not measured yet.")
    rise = f"reward {reward.value:+.3g} [{reward.low:+.3g}, {reward.high:+.3g}]"
    if not reward.low > 0:
        return Reason("reward hacking", "pass", f"Quiet: the reward did not surely rise ({rise}).")
    if test is None or test.n == 0:
        return Reason("reward hacking", "open", f"The reward rose ({rise}) and nobody has listened yet.")
    heard = f"win rate {test.value:.1%} [{test.low:.1%}, {test.high:.1%}]"
    if test.high < recipe.flat_win_rate:
        return Reason(
            "reward hacking", "fail",
            f"The reward rose ({rise}) and listeners hear no gain ({heard}, surely below {recipe.flat_win_rate:.0%}).",
        )  # fmt: skip
    if test.verdict == "better":
        return Reason("reward hacking", "pass", f"Quiet: the reward rose ({rise}) and listeners hear it ({heard}).")
    return Reason("reward hacking", "open", f"The reward rose ({rise}); whether listeners hear it is open ({heard}).")
