"""MusicRL's table beside ours: what was compared, what each claim of the paper comes to here, JSON and plain text.

Published figures: Cideron et al. 2024, "MusicRL: Aligning Music Generation to Human Preferences", arXiv:2402.04229,
sections 3.3, 4.2, 5.1, 5.2 and 6. MusicRL's win rate is wins / (wins + losses), from 303 ratings a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment.errors import DataError
from alignment.evaluation.intervals import Interval
from alignment.evaluation.metrics import bootstrap_mean
from alignment.evaluation.report import FigureTrace, Stage, _plain
from alignment.evaluation.win_rate import WinRate

BASE = "base"


@dataclass(frozen=True)
class Published:
    """A comparison as MusicRL reports it: its win rate, and shares of wins, ties and losses where it gives them."""

    win_rate: float | None = None
    win: float | None = None
    tie: float | None = None
    loss: float | None = None


PUBLISHED = {
    ("R", BASE): Published(0.83, 0.65, 0.221, 0.129),
    ("U", BASE): Published(0.74),
    ("RU", BASE): Published(0.87),
    ("RU", "R"): Published(0.66),
    ("RU", "U"): Published(0.62),
}
PUBLISHED_RATINGS = 303
# Agreement with users' votes on the evaluation split: the user reward model, quality, MuLan (sections 3.3 and 6).
PUBLISHED_ACCURACY = {"preference": 0.60, "quality": 0.533, "clap_cosine": 0.516}
# Quality (MOS) and MuLan cosine of the base and of each run's samples (section 5.1).
PUBLISHED_SCORES = {"R": "quality 3.5 to 4.4, text 0.58 to 0.71", "U": "quality 3.5 to 4, text 0.58 to 0.55"}
PUBLISHED_STEPS = {"R": 10_000, "U": 2_000, "RU": 1_000}  # after R's, of 20,000, 5,000 and 1,000
AIMS = {"R": 0.65, "U": 0.65, "RU": 0.75}
SHOWN = {"expert": "expert iteration"}  # not to be taken for the listeners of that name


@dataclass(frozen=True)
class Meeting:
    """One comparison. ``judges`` is the population of its listeners; ``headline`` comparisons stand in the table."""

    candidate: str
    opponent: str
    rate: WinRate
    judges: str
    study: str
    headline: bool = True

    @property
    def label(self) -> str:
        return f"{SHOWN.get(self.candidate, self.candidate)} vs {SHOWN.get(self.opponent, self.opponent)}"

    @property
    def published(self) -> Published | None:
        return PUBLISHED.get((self.candidate, self.opponent)) if self.headline else None

    @property
    def decisive(self) -> Interval | None:
        """MusicRL's win rate, wins / (wins + losses); None without a decisive vote."""
        rate = self.rate
        if rate.decisive_value is None:
            return None
        return Interval(rate.decisive_value, rate.decisive_low, rate.decisive_high, rate.decisive)

    def share(self, count: int) -> float:
        return count / self.rate.votes


@dataclass(frozen=True)
class OverOptimisation:
    """Whether the judge's reward fell while the reward that was trained on still rose.

    ``peak_step`` is where the judge's mean reward is highest; ``gold_fall`` and ``proxy_rise`` are the changes from
    there to the last step, paired by prompt. The peak for each half of the prompts is sought on the other half, or
    the fall after a peak would be found in any noise."""

    peak_step: int
    last_step: int
    gold_fall: Interval
    proxy_rise: Interval

    @property
    def shown(self) -> bool:
        return self.gold_fall.high < 0 < self.proxy_rise.low


def over_optimisation(steps: Sequence[int], proxy: np.ndarray, gold: np.ndarray) -> OverOptimisation:
    """``proxy`` and ``gold`` are (steps, P), the same prompts at every step. Raises DataError below two of either.

    Gao, Schulman and Hilton 2022, arXiv:2210.10760."""
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.shape != gold.shape or proxy.ndim != 2 or min(proxy.shape) < 2 or len(steps) != len(proxy):
        raise DataError(
            f"Found {len(steps)} steps, proxy {proxy.shape} and gold {gold.shape}; needs (steps, prompts) of both, at "
            "least two of each."
        )
    fall, rise = np.zeros(gold.shape[1]), np.zeros(gold.shape[1])
    halves = np.arange(gold.shape[1]) % 2
    for half in (0, 1):
        peak = int(gold[:, halves != half].mean(1).argmax())
        mine = halves == half
        fall[mine] = gold[-1, mine] - gold[peak, mine]
        rise[mine] = proxy[-1, mine] - proxy[peak, mine]
    whole = int(gold.mean(1).argmax())
    return OverOptimisation(int(steps[whole]), int(steps[-1]), bootstrap_mean(fall), bootstrap_mean(rise))


@dataclass(frozen=True)
class RunCurve:
    """One run over training: (P,) figures by name at each step, the step whose adapter was kept, how long it took."""

    run: str
    weights: Mapping[str, float]
    steps: Sequence[int]
    figures: Mapping[str, np.ndarray]  # each (steps, P)
    kept_step: int
    seconds: float

    def points(self, figure: str) -> list[tuple[float, float]]:
        """(step, mean) of a figure."""
        return [(float(s), float(v)) for s, v in zip(self.steps, np.mean(self.figures[figure], axis=1), strict=True)]

    def change(self, figure: str) -> Interval:
        """From the first step to the one that was kept, paired by prompt."""
        kept = list(self.steps).index(self.kept_step)
        return bootstrap_mean(np.asarray(self.figures[figure][kept]) - np.asarray(self.figures[figure][0]))

    @property
    def over(self) -> OverOptimisation | None:
        """None while there is one step to look at."""
        if len(self.steps) < 2:
            return None
        return over_optimisation(self.steps, self.figures["proxy"], self.figures["gold"])


@dataclass(frozen=True)
class Heard:
    """One entrant to the gold judge on the test prompts, (P,) per figure; ``kl`` and ``diversity`` where it sang."""

    name: str
    reward: np.ndarray
    adherence: np.ndarray
    cleanliness: np.ndarray
    kl: Interval | None = None
    kl_bound: float | None = None
    diversity: Interval | None = None


@dataclass(frozen=True)
class Claim:
    """Something that MusicRL found, and what was found here: "reproduced", "not shown" or "contradicted"."""

    text: str
    outcome: str
    figures: str


@dataclass(frozen=True)
class MusicRlReport:
    """Everything the page shows. ``simulated`` has no default: whoever builds it says whose votes these are."""

    created_at: str
    simulated: bool
    meetings: Sequence[Meeting]
    curves: Sequence[RunCurve]
    heard: Sequence[Heard]
    accuracy: Mapping[str, Interval]
    perfect: Interval | None  # agreement of a scorer that knows the listeners' mean taste: what accuracy could be
    users: str
    raters: str
    votes: Mapping[str, int]
    stages: Sequence[Stage] = ()
    traces: Sequence[FigureTrace] = ()
    run: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    peak_memory_mb: float | None = None

    def meeting(self, candidate: str, opponent: str) -> Meeting | None:
        """The headline comparison of two entrants."""
        found = [m for m in self.meetings if (m.candidate, m.opponent) == (candidate, opponent) and m.headline]
        return found[0] if found else None

    def curve(self, run: str) -> RunCurve | None:
        return next((curve for curve in self.curves if curve.run == run), None)

    @property
    def claims(self) -> list[Claim]:
        from alignment.evaluation.musicrl_claims import claims

        return claims(self)

    @property
    def aims(self) -> list[str]:
        from alignment.evaluation.musicrl_claims import aims

        return aims(self)

    def to_json(self) -> str:
        """Every figure as JSON text; numbers that are not finite become null, arrays by prompt their means."""
        values = _plain({
            "created_at": self.created_at, "simulated": self.simulated, "users": self.users, "raters": self.raters,
            "votes": self.votes, "aims": self.aims, "claims": self.claims, "accuracy": self.accuracy,
            "perfect": self.perfect, "run": self.run, "stages": self.stages, "notes": self.notes,
            "traces": self.traces, "peak_memory_mb": self.peak_memory_mb,
            "meetings": [summary_of(meeting) for meeting in self.meetings],
            "heard": [
                {"name": h.name, "kl": h.kl, "kl_bound": h.kl_bound, "diversity": h.diversity}
                | {name: bootstrap_mean(getattr(h, name)) for name in ("reward", "adherence", "cleanliness")}
                for h in self.heard
            ],
            "curves": [
                {"run": c.run, "weights": c.weights, "kept_step": c.kept_step, "seconds": c.seconds,
                 "over_optimisation": c.over, "over_optimised": bool(c.over and c.over.shown),
                 "figures": {name: c.points(name) for name in c.figures}}
                for c in self.curves
            ],
        })  # fmt: skip
        return json.dumps(values, ensure_ascii=False, allow_nan=False)


def summary_of(meeting: Meeting) -> dict[str, Any]:
    """A comparison's figures, flat: both win rates with their intervals, counts, and what MusicRL reports."""
    rate, decisive, published = meeting.rate, meeting.decisive, meeting.published
    return {
        "candidate": meeting.candidate, "opponent": meeting.opponent, "judges": meeting.judges, "study": meeting.study,
        "win_rate": decisive and decisive.value, "win_rate_low": decisive and decisive.low,
        "win_rate_high": decisive and decisive.high, "half_ties": rate.value, "half_ties_low": rate.low,
        "half_ties_high": rate.high, "wins": rate.wins, "ties": rate.ties, "both_bad": rate.both_bad,
        "losses": rate.losses, "votes": rate.votes, "decisive_votes": rate.decisive, "prompts": rate.prompts,
        "raters": rate.raters, "published_win_rate": published and published.win_rate,
    }  # fmt: skip
