"""Ratings against hand-worked values, an independent implementation, and simulation."""

from __future__ import annotations

import math

import evalica
import numpy as np
import pytest

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation import ratings as module
from alignment.evaluation.ratings import ELO_PER_NAT, fit_ratings

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


def test_the_gradient_is_the_losss_finite_difference():
    rng = np.random.default_rng(0)
    matchups = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b")]
    features = module._design(["a", "b", "c"], matchups, True, True)
    counts = rng.integers(1, 9, size=features.shape[:2]).astype(float)
    penalty = module._penalty(3, 5, 0.1)
    beta = rng.normal(size=5)
    _, gradient = module._loss_and_gradient(beta, features, counts, penalty)
    for i in range(5):
        step = 1e-6 * np.eye(5)[i]
        up = module._loss_and_gradient(beta + step, features, counts, penalty)[0]
        down = module._loss_and_gradient(beta - step, features, counts, penalty)[0]
        assert gradient[i] == pytest.approx((up - down) / 2e-6, abs=1e-5)


def test_the_warm_started_newton_fit_reaches_the_optimisers_answer():
    comparisons = random_comparisons({"a": 0.5, "b": 0.0, "c": -0.5}, 300, seed=5, side=0.3, tie=-0.5)
    fitted = fit_ratings(comparisons, rounds=100)
    versions = ["a", "b", "c"]
    matchups = sorted({(c.version_left, c.version_right) for c in comparisons})
    features = module._design(versions, matchups, True, True)
    counts = np.zeros(features.shape[:2])
    for c in comparisons:
        counts[matchups.index((c.version_left, c.version_right)), {1.0: 0, 0.0: 1, 0.5: 2}[c.credit]] += 1
    penalty = module._penalty(3, 5, 0.1)
    cold = module._newton(np.zeros(5), features, counts[None], penalty)[0]
    assert cold[:3] == pytest.approx([fitted[v].strength.value for v in versions], abs=1e-5)
    assert cold[4] == pytest.approx(fitted.tie, abs=1e-5)


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
