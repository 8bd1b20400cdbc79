"""MusicRL's report: its own win rate, over-optimisation against numbers worked by hand, claims that can fail."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.evaluation import musicrl_page
from alignment.evaluation.intervals import Interval
from alignment.evaluation.musicrl_claims import outcome_of, terminal_table
from alignment.evaluation.musicrl_plots import runs_chart
from alignment.evaluation.musicrl_report import (
    PUBLISHED,
    Heard,
    Meeting,
    MusicRlReport,
    RunCurve,
    over_optimisation,
)  # fmt: skip
from alignment.evaluation.report import FigureTrace, Stage
from alignment.evaluation.win_rate import WinRate

PROMPTS = 8


def rate(wins: int, ties: int, losses: int, *, spread: float = 0.03, candidate: str = "R", against: str = "base"):
    decisive, votes = wins / (wins + losses), wins + ties + losses
    value = (wins + ties / 2) / votes
    return WinRate(
        candidate, (against,), value, value - spread, value + spread, votes, wins + losses, wins, losses, ties, 0, 24,
        100, decisive, decisive - spread, decisive + spread, None,
    )  # fmt: skip


def meeting(candidate: str, opponent: str, wins: int, ties: int, losses: int, **more) -> Meeting:
    found = rate(wins, ties, losses, candidate=candidate, against=opponent)
    return Meeting(candidate, opponent, found, more.pop("judges", "expert"), f"musicrl-{candidate}", **more)


def curve(run: str, gold: list[float], *, kept: int = 10, proxy: list[float] | None = None) -> RunCurve:
    """A run of steps 0, 10, 20, ...; every prompt differs from its neighbour, and all move alike."""
    offsets = np.linspace(-0.1, 0.1, PROMPTS)
    wobble = 0.01 * np.random.default_rng(0).standard_normal((len(gold), PROMPTS))

    def figure(levels: list[float]) -> np.ndarray:
        return np.array(levels)[:, None] + offsets + wobble

    rising = [float(i) for i in range(len(gold))]
    figures = {
        "gold": figure(gold), "proxy": figure(proxy or rising), "held_out_reward": figure(rising), "kl": figure(rising),
        "held_out/quality": figure(rising), "held_out/text_adherence": figure([-x for x in rising]),
        "gold_cleanliness": figure(rising), "gold_adherence": figure([-x for x in rising]),
        "score/preference": figure(rising),
    }  # fmt: skip
    return RunCurve(run, {"preference": 1.0}, [10 * i for i in range(len(gold))], figures, kept, 12.0)


def report(**more) -> MusicRlReport:
    accuracy = {"preference": Interval(0.58, 0.55, 0.61, 900), "clap_cosine": Interval(0.52, 0.49, 0.55, 900)}
    values = {
        "created_at": "2026-11-21T12:00:00+00:00", "simulated": True, "users": "musicrl", "raters": "expert",
        "meetings": [
            meeting("R", "base", 650, 221, 129), meeting("U", "base", 500, 200, 300),
            meeting("RU", "base", 600, 200, 200), meeting("RU", "R", 400, 200, 400), meeting("RU", "U", 300, 200, 500),
            meeting("R", "base", 500, 200, 300, judges="musicrl", headline=False),
        ],
        "curves": [curve("R", [1.0, 2.0, 3.0]), curve("U", [1.0, 2.0, 0.5])],
        "heard": [Heard("base", *np.ones((3, 5))), Heard("R", *np.ones((3, 5)), kl=Interval(9.0, 8.0, 10.0, 5))],
        "accuracy": accuracy, "perfect": Interval(0.6, 0.57, 0.63, 900), "votes": {"users": 7200},
        "stages": [Stage("votes", 61.0)], "traces": [FigureTrace("R vs base", "musicrl-R", 1000)], "run": {"seed": "0"},
    }  # fmt: skip
    return MusicRlReport(**(values | more))


def test_the_win_rate_is_musicrls_own_and_its_published_shares_give_its_published_rate() -> None:
    found = meeting("R", "base", 650, 221, 129)
    assert found.decisive.value == pytest.approx(650 / 779) and found.rate.value == pytest.approx(0.7605)
    theirs = PUBLISHED["R", "base"]
    assert theirs.win + theirs.tie + theirs.loss == pytest.approx(1.0)
    assert theirs.win / (theirs.win + theirs.loss) == pytest.approx(theirs.win_rate, abs=0.005)
    assert meeting("RU", "U", 1, 1, 1).published.win_rate == 0.62
    assert meeting("U", "RU", 1, 1, 1).published is None and found.decisive.n == 779
    assert meeting("R", "base", 1, 1, 1, judges="musicrl", headline=False).published is None, "users did not compare"


def test_over_optimisation_is_the_fall_from_the_peak_while_the_reward_rises() -> None:
    proxy = np.array([[0.0] * 4, [1.0] * 4, [2.0, 2.2, 1.8, 2.0]])
    gold = np.array([[0.0] * 4, [2.0] * 4, [1.0, 1.2, 0.8, 1.0]])
    found = over_optimisation([0, 10, 20], proxy, gold)
    assert (found.peak_step, found.last_step) == (10, 20)
    assert found.gold_fall.value == pytest.approx(-1.0) and found.proxy_rise.value == pytest.approx(1.0)
    assert found.shown
    assert not over_optimisation([0, 10, 20], proxy[[0, 2, 1]], gold).shown, "the trained reward fell as well"
    assert not over_optimisation([0, 10, 20], proxy, gold[[0, 2, 1]]).shown, "the judge's peak is the last step"


def test_a_peak_in_mere_noise_is_not_over_optimisation() -> None:
    shown, naive = 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gold = rng.standard_normal((12, 64))
        proxy = np.linspace(0, 3, 12)[:, None] + 0.1 * rng.standard_normal((12, 64))
        found = over_optimisation(list(range(12)), proxy, gold)
        shown += found.shown
        naive.append(gold[-1].mean() - gold.mean(1).max())
    assert np.mean(naive) < -0.15, "the highest of twelve means always lies above the last"
    assert shown <= 4, "at 95% two-sided, about one in forty"


def test_one_step_or_one_prompt_shows_nothing() -> None:
    with pytest.raises(DataError, match="at least two of each"):
        over_optimisation([0], np.zeros((1, 4)), np.zeros((1, 4)))
    with pytest.raises(DataError, match="at least two of each"):
        over_optimisation([0, 1], np.zeros((2, 4)), np.zeros((2, 5)))
    assert replace(curve("R", [1.0]), kept_step=0).over is None


def test_a_claim_is_reproduced_only_when_its_whole_interval_is_on_its_side() -> None:
    def at(low: float, high: float) -> Interval:
        return Interval((low + high) / 2, low, high, 100)

    assert outcome_of(at(0.51, 0.6), 0.5) == "reproduced" and outcome_of(at(0.49, 0.6), 0.5) == "not shown"
    assert outcome_of(at(0.4, 0.49), 0.5) == "contradicted" and outcome_of(None, 0.5) == "not shown"
    assert outcome_of(at(-0.2, -0.1), 0.0, above=False) == "reproduced"
    assert outcome_of(at(0.1, 0.2), 0.0, above=False) == "contradicted"


def test_every_claim_says_what_was_found_failures_included() -> None:
    found = {claim.text: claim.outcome for claim in report().claims}
    assert found == {
        "R (text and quality) is preferred to the base": "reproduced",
        "U (users' preference) is preferred to the base": "reproduced",
        "RU (R, then U) is preferred to the base": "reproduced",
        "RU is preferred to R": "not shown",
        "RU is preferred to U": "contradicted",
        "RU has the highest win rate over the base (order of the estimates)": "contradicted",
        "R raises quality": "reproduced",
        "R raises text adherence": "contradicted",
        "U raises quality": "reproduced",
        "U lowers text adherence": "reproduced",
        "U over-optimises its reward": "reproduced",
        "U over-optimises sooner than R": "reproduced",
    }
    both = report(curves=[curve("R", [1.0, 3.0, 2.0, 0.5]), curve("U", [1.0, 2.0, 3.0, 0.5])]).claims
    assert {c.text: c.outcome for c in both}["U over-optimises sooner than R"] == "contradicted"
    quick = {claim.text for claim in report(meetings=report().meetings[:1], curves=report().curves[:1]).claims}
    assert quick == {"R (text and quality) is preferred to the base", "R raises quality", "R raises text adherence"}


def test_aims_are_called_reached_only_above_them_and_both_definitions_stand_there() -> None:
    said = report().aims
    assert said[0].startswith("R wins 83.4% [80.4%, 86.4%]") and "reached, interval and all" in said[0]
    assert "With ties as half a win it is 76.0%" in said[0]
    assert "62.5% [59.5%, 65.5%]" in said[1] and "not reached" in said[1]
    assert "75.0% [72.0%, 78.0%]" in said[2] and "more than 75.0% is not reached" in said[2]


def test_a_run_that_kept_the_base_itself_is_said_to_have_reached_nothing() -> None:
    alike = report(meetings=[meeting("expert", "base", 5, 1, 4)], curves=[curve("R", [1.0, 0.5])])
    assert alike.aims == ["R sings exactly as the base does: the aim of more than 65.0% is not reached."]
    first = alike.claims[0]
    assert (first.outcome, first.figures) == ("not shown", "both sing exactly alike")
    assert "<h1>Expert iteration shows no gain over the base</h1>" in musicrl_page.render(
        replace(alike, meetings=[meeting("expert", "base", 500, 100, 490)])
    )


def test_a_change_is_measured_to_the_step_that_was_kept() -> None:
    assert curve("U", [1.0, 2.0, 0.5]).change("gold").value == pytest.approx(1.0, abs=0.02)
    assert curve("U", [1.0, 2.0, 0.5], kept=20).change("gold").value == pytest.approx(-0.5, abs=0.02)


def test_the_page_escapes_what_it_is_given_and_says_who_judged() -> None:
    page = musicrl_page.render(report(notes=["<script>alert(1)</script>"]))
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert "by musicrl listeners" in page and "by expert listeners" in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert 'class="contradicted">contradicted<' in page and 'class="not-shown">not shown<' in page
    assert "Simulated listeners" not in musicrl_page.render(report(simulated=False)).split('id="words"')[0]
    data = json.loads(re.search(r'id="attune-report">(.*?)</script>', page, re.S).group(1))
    assert data["meetings"][0]["win_rate"] == pytest.approx(650 / 779)
    assert data["curves"][1]["over_optimised"] is True and data["curves"][0]["over_optimised"] is False


def test_the_terminal_shows_the_table_with_musicrls_rate_beside_it() -> None:
    lines = terminal_table(report()).splitlines()
    row = next(line for line in lines if line.startswith("R vs base "))
    assert row.split("  ")[0] == "R vs base" and row.rstrip().endswith("83.0%")
    assert any("R vs base (musicrl)" in line for line in lines)
    assert any(line.split("  ")[0].strip() == "contradicted" for line in lines)
    assert "SIMULATED LISTENERS" in lines[0]


def test_a_chart_places_its_lines_and_rings_the_kept_step() -> None:
    chart = runs_chart("Reward", {"R": [(0, 0.0), (10, 5.0), (20, 10.0)], "U": [(0, 0.0), (20, float("nan"))]},
                       kept={"R": 10.0})  # fmt: skip
    assert 'class="line run-r" d="M0.0 100.0L50.0 50.0L100.0 0.0"' in chart
    assert chart.count('class="ring') == 1 and 'style="left:50.0%;top:50.0%"' in chart
    assert "step 0" in chart and ">20<" in chart and "R 0 to 10.0; U 0 to 0" in chart
    assert runs_chart("Reward", {"R": [(0, float("nan"))]}) == ""
