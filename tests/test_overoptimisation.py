"""Over-optimisation is found where it was planted and seldom elsewhere; best-of-N by hand; the page and its charts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignment.errors import DataError, StoreError
from alignment.evaluation.curves import Curve, curves_chart
from alignment.evaluation.intervals import Interval
from alignment.evaluation.overoptimisation import (
    FELL,
    NOT_SEEN,
    ONE_LOOK,
    OVER,
    Look,
    RunPage,
    StageLooks,
    best_of_rows,
    find_overoptimisation,
)
from alignment.evaluation.overoptimisation_page import render, write_page
from tests.watch_support import look


def course(proxy: list[float], held_out: list[float], *, noise: float, prompts: int = 24, seed: int = 0) -> list[Look]:
    """Looks whose means follow the two courses; clips of a prompt share its level at every look."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(prompts, 1))

    def around(mean: float) -> np.ndarray:
        return mean + level + noise * rng.normal(size=(prompts, 2))

    return [look(10 * i, around(p), around(h)) for i, (p, h) in enumerate(zip(proxy, held_out, strict=True))]


def test_a_proxy_that_rises_while_the_held_out_reward_falls_is_over_optimisation() -> None:
    found = find_overoptimisation(course([0, 1, 2, 3], [0, 0.8, 0.4, -0.5], noise=0.4))
    assert (found.kind, found.peak_step, found.last_step) == (OVER, 10, 30)
    assert found.judged is not None and found.judged.value == pytest.approx(-1.3, abs=0.3)
    assert found.proxy is not None and found.proxy.value == pytest.approx(2.0, abs=0.3)
    assert "after step 10" in found.sentence and "rose on" in found.sentence


def test_both_falling_is_no_over_optimisation_but_is_said() -> None:
    assert find_overoptimisation(course([0, 1, 1, 0.2], [0, 1, 0, -1], noise=0.3)).kind == FELL


def test_what_rises_to_the_end_and_what_stays_within_its_noise_is_not_called_over_optimised() -> None:
    assert find_overoptimisation(course([0, 1, 2], [0, 0.5, 1], noise=0.3)).kind == NOT_SEEN
    assert find_overoptimisation(course([0, 1, 2], [0, 0.05, 0], noise=1.0)).kind == NOT_SEEN
    assert find_overoptimisation(course([0], [0], noise=1.0)).kind == ONE_LOOK
    with pytest.raises(DataError, match="no looks"):
        find_overoptimisation([])


def test_a_run_without_any_true_change_of_the_held_out_reward_is_seldom_called_over_optimised() -> None:
    """The peak of eight noisy looks is picked after the fact; uncorrected intervals would call far more."""
    runs = 150
    called = sum(
        find_overoptimisation(course([0, 1, 2, 3, 4, 5, 6, 7], [0] * 8, noise=1.0, seed=seed)).kind == OVER
        for seed in range(runs)
    )
    assert called / runs <= 0.08  # nominal 5%; binomial error of 150 runs is 1.8 points


def test_prompts_are_compared_with_themselves() -> None:
    """Levels that differ between prompts ten times as much as the fall hide nothing, since they cancel."""
    rng = np.random.default_rng(1)
    level = 10 * rng.normal(size=(20, 1))
    before = look(0, level + np.zeros((20, 2)), level + 1 + 0.01 * rng.normal(size=(20, 2)))
    after = look(5, level + 1 + 0.01 * rng.normal(size=(20, 2)), level + np.zeros((20, 2)))
    assert find_overoptimisation([before, after]).kind == OVER


def test_best_of_n_uses_every_group_of_the_pool_and_is_chosen_by_the_proxy_alone() -> None:
    proxy = np.array([[1.0, 2.0, 4.0, 3.0], [5.0, 1.0, 0.0, 2.0]])
    held_out = np.array([[10.0, 20.0, 40.0, 30.0], [7.0, 9.0, 8.0, 6.0]])
    two, four = best_of_rows(look(0, proxy, held_out), (2, 4, 8))
    assert (two.name, four.name) == ("best-of-2", "best-of-4")  # eight clips are not there
    # Groups of two: (1, 2), (4, 3) and (5, 1), (0, 2): 2, 4, 5, 2.
    assert two.figures["proxy_reward"].value == (2 + 4 + 5 + 2) / 4
    assert two.figures["held_out_reward"].value == (20 + 40 + 7 + 6) / 4
    assert four.figures["held_out_reward"].value == (40 + 7) / 2
    assert (two.figures["proxy_reward"].n, four.figures["proxy_reward"].n) == (4, 2)
    assert two.kl_bound == pytest.approx(math.log(2) - 0.5) and two.nats == two.kl_bound
    assert not {"kl", "diversity", "duplicates"} & set(two.figures)


def test_best_of_n_of_normal_scores_is_their_expected_maximum() -> None:
    pool = look(0, *np.random.default_rng(0).normal(size=(2, 1500, 16)))
    found = {row.name: row.figures for row in best_of_rows(pool, (2, 4, 8, 16))}
    # Harter (1961), "Expected values of normal order statistics", table 1.
    for name, expected in (("2", 0.5642), ("4", 1.0294), ("8", 1.4236), ("16", 1.7660)):
        assert found[f"best-of-{name}"]["proxy_reward"].value == pytest.approx(expected, abs=0.05)
        assert found[f"best-of-{name}"]["held_out_reward"].value == pytest.approx(0.0, abs=0.1)


def page(**changes: object) -> RunPage:
    looks = course([0, 1, 2, 3], [0, 0.8, 0.4, -0.5], noise=0.4)
    gold = [replace(one, values={**one.values, "gold_reward": one.values["held_out_reward"]}) for one in looks]
    stage = StageLooks("likes", "ppo", "tiny-v1", {"preference": 1.0}, "start", 10, gold, 12.0)
    pool = look(0, *np.random.default_rng(0).normal(size=(2, 24, 16)))
    pool = replace(pool, values={**pool.values, "gold_reward": pool.values["held_out_reward"]})
    values: dict = {
        "title": "tiny-v1", "created_at": "2026-11-21T12:00:00+00:00", "simulated": True, "stages": [stage],
        "pool": pool, "sizes": (2, 4, 8, 16),
        "compared": {"start": gold[0], "expert (beside)": gold[1], "tiny-v1": gold[1], "tiny-v1, last step": gold[3]},
        "about": {"Seed": "0"}, "next_command": "attune compare tiny-v1 tiny-base",
    }  # fmt: skip
    return RunPage(**values | changes)


def test_the_page_stands_alone_and_its_json_holds_every_figure_it_shows() -> None:
    text = render(page())
    assert not re.search(r'(?:src|href)="|@import|url\(', text) and "<script>" in text
    figures = json.loads(re.search(r'id="attune-report">(.*?)</script>', text, re.S).group(1))
    names = ["start", "best-of-2", "best-of-4", "best-of-8", "best-of-16", "expert (beside)", "tiny-v1"]
    assert [row["name"] for row in figures["comparison"]] == [*names, "tiny-v1, last step"]
    assert [found["kind"] for found in figures["stages"][0]["findings"]] == [OVER, OVER]
    assert figures["stages"][0]["looks"][1]["held_out_reward"]["n"] == 48
    for name in ("KL to the base", "Diversity", "Duplicates", "Level", "Silence", "Onset rate", "Pitch-class entropy"):
        assert f'<span class="chart-label">{name}</span>' in text
    for word in ("over-optimised its reward", "Simulated listeners", "held-out reward", "gold judge", "best-of-16"):
        assert word in text
    assert len(text.encode()) < 300_000


def test_a_page_of_human_votes_has_neither_the_mark_nor_a_gold_judge() -> None:
    made = page()
    plain = [
        replace(one, values={k: v for k, v in one.values.items() if "gold" not in k}) for one in made.stages[0].looks
    ]
    without = {k: v for k, v in made.pool.values.items() if "gold" not in k}
    human = page(
        simulated=False, stages=[replace(made.stages[0], looks=plain)], pool=replace(made.pool, values=without),
        compared={"start": plain[0], "tiny-v1": plain[1]},
    )  # fmt: skip
    text = render(human)
    assert "Simulated listeners" not in text and not human.gold
    assert [found["judged_by"] for found in human.as_json()["stages"][0]["findings"]] == ["held_out_reward"]
    assert "Gold judge against KL" not in text


def test_a_hostile_name_stays_text() -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    text = render(page(title=evil, about={evil: evil}))
    assert evil not in text and "\\u003c/script" in text and "&lt;/script&gt;" in text


def test_figures_that_are_not_finite_become_null_and_a_page_needs_looks() -> None:
    one = look(0, np.zeros((1, 2)), np.zeros((1, 2)))  # one prompt: no interval
    alone = page(stages=[replace(page().stages[0], looks=[one], kept_step=0)], compared={"start": one, "tiny-v1": one},
                 pool=one, sizes=(2,))  # fmt: skip
    assert "NaN" not in json.dumps(alone.as_json()) and "nan" not in render(alone)
    with pytest.raises(DataError, match="at least one look"):
        page(stages=[replace(page().stages[0], looks=[])])


def test_the_page_is_written_whole_and_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    written = write_page(page(), tmp_path / "deep" / "report.html")
    assert written.read_text(encoding="utf-8").endswith("</html>\n") and len(list(written.parent.iterdir())) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_page(page(), tmp_path / "file" / "report.html")


def test_a_chart_draws_each_curve_its_band_and_the_step_that_was_kept() -> None:
    def points(*values: float) -> list[tuple[int, Interval]]:
        return [(10 * i, Interval(v, v - 1, v + 1, 5)) for i, v in enumerate(values)]

    text = curves_chart("Rewards", [Curve("one", "proxy", points(1, 2, 3)), Curve("two", "gold", points(3, 2, 1))],
                        marked=(10, "kept"), levels=[(2.0, "best-of-2")])  # fmt: skip
    # Values from 0 to 4: 1 lies three quarters down, 3 a quarter.
    assert 'class="line proxy" points="0.00,75.00 50.00,50.00 100.00,25.00"' in text
    assert 'class="band gold" points="0.00,50.00 50.00,75.00 100.00,100.00 100.00,50.00 50.00,25.00 0.00,0.00"' in text
    assert '<line class="reference" x1="50.00" x2="50.00"' in text and "best-of-2" in text
    assert curves_chart("Nothing", [Curve("one", "proxy", [(0, Interval(float("nan"), 0, 0, 1))])]) == ""
    floored = curves_chart("Silence", [Curve("s", "plain", [(0, Interval(0.0, -0.5, 0.5, 5))])], floor=0.0)
    assert "−" not in floored.split("chart-body")[1].split("chart-plot")[0]
