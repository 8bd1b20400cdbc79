"""Ratings against hand-worked values, an independent implementation, and simulation."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pytest
from scipy import optimize, stats

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation import davidson
from alignment.evaluation.intervals import resample_totals
from alignment.evaluation.ratings import ELO_PER_NAT, fit_ratings
from alignment.evaluation.vote_arrays import VoteArrays

CREDIT = {Outcome.A: 1.0, Outcome.B: 0.0, Outcome.TIE: 0.5, Outcome.BOTH_BAD: 0.5}


def votes(left, right, outcome, count, start=0):
    outcome = Outcome(outcome)
    credit = CREDIT.get(outcome, 0.5)
    return [
        Comparison(left, right, credit, outcome, f"r{(start + i) % 6}", f"p{(start + i) % 11}") for i in range(count)
    ]


def random_comparisons(strengths, count, seed, side=0.0, tie=None):
    rng = np.random.default_rng(seed)
    names = list(strengths)
    out = []
    for i in range(count):
        left, right = rng.choice(names, 2, replace=False)
        u = (strengths[left] - strengths[right] + side) / 2
        weights = np.exp([u, -u] + ([] if tie is None else [tie]))
        outcome = (Outcome.A, Outcome.B, Outcome.TIE)[rng.choice(len(weights), p=weights / weights.sum())]
        out.append(Comparison(left, right, CREDIT[outcome], outcome, f"r{i % 10}", f"p{i % 37}"))
    return out


def test_two_versions_without_ridge_give_the_log_odds_worked_by_hand():
    # x wins 30, y wins 10, 20 ties, sides balanced: theta_x - theta_y = ln(30/10); nu = ties / sqrt(wins x losses).
    comparisons = [
        *votes("x", "y", "A", 15), *votes("y", "x", "B", 15, 15),
        *votes("x", "y", "B", 5, 30), *votes("y", "x", "A", 5, 35),
        *votes("x", "y", "TIE", 10, 40), *votes("y", "x", "TIE", 10, 50),
    ]  # fmt: skip
    fitted = fit_ratings(comparisons, ridge=0, rounds=100)
    assert fitted.difference("x", "y").value == pytest.approx(math.log(3), abs=1e-6)
    assert fitted["x"].strength.value == pytest.approx(math.log(3) / 2, abs=1e-6)
    assert fitted.tie == pytest.approx(math.log(20 / math.sqrt(300)), abs=1e-6)
    assert fitted.side.value == pytest.approx(0, abs=1e-6)
    assert fitted["x"].elo.value - fitted["y"].elo.value == pytest.approx(400 * math.log10(3), abs=1e-3)
    assert ELO_PER_NAT * math.log(10) == pytest.approx(400)


def test_the_side_intercept_is_the_log_odds_of_the_left_clip_between_equals():
    # Both orders: the left clip wins 30 of 40, so the versions are equal and the side term is ln 3.
    comparisons = [
        *votes("x", "y", "A", 30), *votes("x", "y", "B", 10, 30),
        *votes("y", "x", "A", 30, 40), *votes("y", "x", "B", 10, 70),
    ]  # fmt: skip
    fitted = fit_ratings(comparisons, ridge=0, rounds=100)
    assert fitted.side.value == pytest.approx(math.log(3), abs=1e-6)
    assert fitted["x"].strength.value == pytest.approx(0, abs=1e-6)
    assert fitted.side.low > 0


def test_without_ties_sides_or_ridge_the_strengths_are_evalicas_bradley_terry():
    comparisons = random_comparisons({"a": 0.8, "b": 0.1, "c": -0.3, "d": -0.6}, 600, seed=3)
    result = evalica.bradley_terry(
        [c.version_left for c in comparisons],
        [c.version_right for c in comparisons],
        [evalica.Winner.X if c.outcome is Outcome.A else evalica.Winner.Y for c in comparisons],
        tolerance=1e-12,
        limit=10_000,
    )
    expected = {name: math.log(score) for name, score in result.scores.items()}
    mean = sum(expected.values()) / len(expected)
    fitted = fit_ratings(comparisons, ridge=1e-9, side=False, rounds=100)
    assert fitted.tie is None and fitted.side is None
    for name, value in expected.items():
        assert fitted[name].strength.value == pytest.approx(value - mean, abs=1e-3)


def a_design(comparisons):
    votes = VoteArrays.from_comparisons(comparisons)
    matchups, columns = davidson.aggregate(votes, side=True)
    return votes, matchups, davidson.count_columns(columns, matchups)


def test_the_gradient_and_the_hessian_are_the_losss_finite_differences():
    comparisons = random_comparisons({"a": 0.5, "b": 0.0, "c": -0.5}, 60, seed=5, side=0.3, tie=-0.5)
    _, matchups, counts = a_design(comparisons)
    pull = davidson.penalty(matchups, 0.1)
    beta = np.random.default_rng(0).normal(size=5)
    gradient, hessian = davidson.derivatives(beta[None], matchups, counts[None], pull)
    for i in range(5):
        step = 1e-5 * np.eye(5)[i]
        up, down = (davidson.loss((beta + sign * step)[None], matchups, counts[None], pull)[0] for sign in (1, -1))
        assert gradient[0, i] == pytest.approx((up - down) / 2e-5, abs=1e-5)
        up, down = (davidson.derivatives((beta + sign * step)[None], matchups, counts[None], pull)[0][0]
                    for sign in (1, -1))  # fmt: skip
        assert hessian[0, i] == pytest.approx((up - down) / 2e-5, abs=1e-5)


def test_the_fit_of_counts_reaches_a_general_optimisers_answer_on_votes_one_by_one():
    comparisons = random_comparisons({"a": 0.5, "b": 0.0, "c": -0.5}, 300, seed=5, side=0.3, tie=-0.5)
    fitted = fit_ratings(comparisons, rounds=100)
    names = ["a", "b", "c"]

    def loss(beta):  # vote by vote, from the model's definition
        total = 0.05 * float(beta @ beta) + 0.5 * float(beta[:3].sum()) ** 2
        for c in comparisons:
            u = (beta[names.index(c.version_left)] - beta[names.index(c.version_right)] + beta[3]) / 2
            said = {1.0: u, 0.0: -u, 0.5: beta[4]}[c.credit]
            total += math.log(math.exp(u) + math.exp(-u) + math.exp(beta[4])) - said
        return total

    best = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-6}).x
    assert best[:3] == pytest.approx([fitted[v].strength.value for v in names], abs=2e-5)
    assert best[3:] == pytest.approx([fitted.side.value, fitted.tie], abs=2e-5)


def test_with_ties_the_strengths_are_evalicas_newman_within_a_thousandth_of_a_nat():
    comparisons = random_comparisons({"a": 0.8, "b": 0.1, "c": -0.3, "d": -0.6}, 900, seed=6, tie=-0.4)
    winner = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    result = evalica.newman(
        [c.version_left for c in comparisons], [c.version_right for c in comparisons],
        [winner[c.credit] for c in comparisons], tolerance=1e-12, limit=10_000,
    )  # fmt: skip
    expected = {name: math.log(score) for name, score in result.scores.items()}
    mean = sum(expected.values()) / len(expected)
    fitted = fit_ratings(comparisons, ridge=1e-9, side=False, rounds=100)
    for name, value in expected.items():
        assert fitted[name].strength.value == pytest.approx(value - mean, abs=1e-3)
    assert fitted.tie == pytest.approx(math.log(2 * result.v), abs=1e-3)  # Newman (2023), equation 30: his v, twice


def test_the_interval_of_a_version_with_few_battles_stays_sane_where_evalicas_bootstrap_collapses():
    # "new" fought three battles and lost one of them: three resamples in ten lack that one, and it never loses.
    few = [*votes("new", "a", "A", 2), *votes("new", "a", "B", 1, 2)]
    comparisons = [*random_comparisons({"a": 0.3, "b": 0.0, "c": -0.3}, 300, seed=4), *few]
    winner = [evalica.Winner.X if c.credit == 1 else evalica.Winner.Y for c in comparisons]
    theirs = evalica.bootstrap(
        evalica.bradley_terry, [c.version_left for c in comparisons], [c.version_right for c in comparisons], winner,
        n_resamples=100, bootstrap_method="percentile", random_state=0,
    )  # fmt: skip
    assert (theirs.low < 1e-5).all()  # every version's lower bound, where a score of 1 is the average version
    ours = fit_ratings(comparisons, rounds=200)
    assert all(-2 < ours[name].strength.low < ours[name].strength.high < 2 for name in "abc")
    assert -4 < ours["new"].strength.low < 0 < ours["new"].strength.high < 6
    unbeaten = fit_ratings([*comparisons[:-3], *votes("new", "a", "A", 3)], rounds=100)
    assert unbeaten.unbounded == ("new",) and unbeaten.separable


def test_clusters_of_one_vote_are_drawn_as_counts_with_the_spread_of_drawing_each():
    # 40 votes of as many raters, 30 wins: the number of wins drawn is binomial (40, 3/4) with variance 7.5; two raters
    # of three votes each beside 34 single ones make it 40 draws of a cluster, each holding 0, 1 or 3 wins.
    columns = np.repeat([0, 1], [30, 10])
    drawn = resample_totals(columns, np.arange(40), 20_000, np.random.default_rng(0))
    assert drawn.sum(axis=1).tolist() == [40.0] * 20_000
    assert drawn[:, 0].mean() == pytest.approx(30, abs=0.1) and drawn[:, 0].var() == pytest.approx(7.5, rel=0.05)
    clusters = np.concatenate([[0, 0, 0, 1, 1, 1], np.arange(2, 36)])
    drawn = resample_totals(columns, clusters, 20_000, np.random.default_rng(0))
    one = np.array([3, 3] + [1] * 24 + [0] * 10)  # wins in each of the 36 clusters
    assert drawn[:, 0].var() == pytest.approx(36 * one.var(), rel=0.05)


def test_a_version_is_ranked_by_differences_that_leave_no_doubt():
    truth = {"best": 1.5, "second": 0.05, "third": 0.0, "worst": -1.5}
    fitted = fit_ratings(random_comparisons(truth, 1500, seed=8, tie=-1.0), rounds=200)
    ranks = fitted.ranks()
    assert ranks["best"] == (1, 1) and ranks["worst"] == (4, 4)
    assert ranks["second"] == ranks["third"] == (2, 3)
    gap = fitted.difference("second", "third")
    clustered, alone = fitted.standard_error("second", "third")
    assert gap.high - gap.value == pytest.approx(stats.t.ppf(0.975, fitted.raters - 1) * clustered, rel=1e-6)
    assert clustered >= alone > 0


def test_columns_that_do_not_fit_together_are_refused_in_a_sentence():
    good = VoteArrays.from_comparisons(votes("x", "y", "A", 3))
    columns = {name: getattr(good, name) for name in ("versions", "left", "right", "outcome", "rater", "prompt")}
    for change, message in (
        ({"left": good.left[:2]}, "differ in length"),
        ({"left": good.left + 2}, "left must hold codes from 0 to 1"),
        ({"outcome": good.outcome + 4}, "outcome must hold codes from 0 to 3"),
        ({"right": good.left}, "x with itself"),
        ({"rater": good.rater - 1}, "negative"),
    ):
        with pytest.raises(DataError, match=message):
            VoteArrays(**{**columns, **change})


def test_known_strengths_side_and_ties_are_recovered_inside_their_intervals():
    truth = {"a": 0.6, "b": 0.0, "c": -0.6}
    fitted = fit_ratings(random_comparisons(truth, 3000, seed=1, side=0.4, tie=-0.7), rounds=200)
    assert [r.version for r in fitted.ratings] == ["a", "b", "c"]
    for name, value in truth.items():
        assert fitted[name].strength.low < value < fitted[name].strength.high
        assert fitted[name].strength.high - fitted[name].strength.low < 0.5
    assert fitted.side.low < 0.4 < fitted.side.high
    assert fitted.tie == pytest.approx(-0.7, abs=0.15)
    assert not fitted.separable


def test_a_ridge_shrinks_and_keeps_an_unbeaten_version_finite_with_a_wide_interval():
    comparisons = [*votes("x", "y", "A", 4), *votes("y", "x", "B", 4, 4)]
    fitted = fit_ratings(comparisons, ridge=0.1, rounds=100)
    stronger = fit_ratings(comparisons, ridge=1.0, rounds=100)
    assert fitted.separable
    assert 0 < stronger["x"].strength.value < fitted["x"].strength.value < 10
    # Every resample is the same eight wins; the interval must not collapse with them.
    assert fitted["x"].strength.high - fitted["x"].strength.low > 1


def test_without_a_ridge_an_unbeaten_version_is_refused():
    with pytest.raises(DataError, match="never lost.*ridge above 0"):
        fit_ratings(votes("x", "y", "A", 8), ridge=0, rounds=100)


def test_versions_that_no_vote_connects_are_refused_by_name():
    with pytest.raises(DataError, match=r"2 groups.*a, b; c, d"):
        fit_ratings([*votes("a", "b", "A", 6), *votes("c", "d", "B", 6)], rounds=100)


def test_both_bad_is_a_tie_or_dropped_and_skips_never_count():
    base = [*votes("x", "y", "A", 12), *votes("x", "y", "B", 6)]
    with_bad = [*base, *votes("x", "y", "BOTH_BAD", 6), *votes("x", "y", "SKIP", 3), *votes("x", "y", "FAULT", 3)]
    assert fit_ratings(with_bad, rounds=100).votes == 24
    dropped = fit_ratings(with_bad, both_bad="drop", rounds=100)
    assert dropped.votes == 18
    assert dropped["x"].strength.value == pytest.approx(fit_ratings(base, rounds=100)["x"].strength.value, abs=1e-9)


def test_no_votes_and_senseless_settings_are_refused_in_a_sentence():
    with pytest.raises(DataError, match="No counted vote among the 3"):
        fit_ratings(votes("x", "y", "SKIP", 3))
    with pytest.raises(DataError, match="ridge is -1"):
        fit_ratings(votes("x", "y", "A", 3), ridge=-1)
    with pytest.raises(DataError, match="'tie' or 'drop'"):
        fit_ratings(votes("x", "y", "A", 3), both_bad="loss")
    with pytest.raises(DataError, match="z has no rating"):
        fit_ratings(votes("x", "y", "A", 3), rounds=100)["z"]


def test_the_same_seed_gives_the_same_intervals():
    comparisons = random_comparisons({"a": 0.4, "b": -0.4}, 120, seed=2)
    assert fit_ratings(comparisons, rounds=100, seed=7) == fit_ratings(comparisons, rounds=100, seed=7)
    assert fit_ratings(comparisons, rounds=100, seed=7) != fit_ratings(comparisons, rounds=100, seed=8)
