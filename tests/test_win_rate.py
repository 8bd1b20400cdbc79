"""Win rates by hand, and their intervals' coverage on clustered votes by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation.intervals import clustered_share, label_codes, resample_totals, two_way_draws, wilson
from alignment.evaluation.win_rate import win_rate

CREDIT = {Outcome.A: 1.0, Outcome.B: 0.0, Outcome.TIE: 0.5, Outcome.BOTH_BAD: 0.5}


def vote(left, right, outcome, rater="r0", prompt="p0"):
    outcome = Outcome(outcome)
    return Comparison(left, right, CREDIT.get(outcome, 0.5), outcome, rater, prompt)


def test_wins_losses_ties_and_both_bad_are_counted_from_the_candidates_side():
    comparisons = [
        vote("new", "base", "A", "r0", "p0"),  # win, left
        vote("base", "new", "B", "r1", "p0"),  # win, right
        vote("new", "base", "A", "r2", "p1"),  # win, left
        vote("base", "new", "A", "r0", "p1"),  # loss, left won
        vote("new", "base", "TIE", "r1", "p2"),
        vote("base", "new", "BOTH_BAD", "r2", "p2"),
        vote("base", "new", "SKIP", "r2", "p3"),
        vote("base", "new", "FAULT", "r2", "p3"),
        vote("base", "old", "A", "r2", "p3"),  # the candidate took no part
    ]
    rate = win_rate(comparisons, "new")
    assert (rate.wins, rate.losses, rate.ties, rate.both_bad) == (3, 1, 1, 1)
    assert (rate.votes, rate.decisive, rate.raters, rate.prompts) == (6, 4, 3, 3)
    assert rate.value == pytest.approx((3 + 0.5 + 0.5) / 6)
    assert rate.decisive_value == pytest.approx(0.75)
    assert rate.left_share.value == pytest.approx(0.75) and rate.left_share.n == 4
    assert rate.opponents == ("base",)
    assert 0 <= rate.low < rate.value < rate.high <= 1
    assert win_rate(comparisons, "base", opponent="old").votes == 1


def test_swapping_the_candidate_mirrors_the_win_rate_and_its_interval():
    rng = np.random.default_rng(4)
    comparisons = [
        vote("new", "base", rng.choice(["A", "B", "TIE"], p=[0.5, 0.3, 0.2]), f"r{i % 7}", f"p{i % 30}")
        for i in range(210)
    ]
    new, base = win_rate(comparisons, "new", seed=1), win_rate(comparisons, "base", seed=1)
    assert base.value == pytest.approx(1 - new.value, abs=1e-12)
    assert (base.low, base.high) == (pytest.approx(1 - new.high, abs=1e-9), pytest.approx(1 - new.low, abs=1e-9))


def test_the_verdict_is_gain_only_when_the_lower_bound_is_above_one_half():
    clear = [vote("new", "base", "A" if i % 10 else "B", f"r{i % 8}", f"p{i}") for i in range(200)]
    even = [vote("new", "base", "A" if i % 2 else "B", f"r{i % 8}", f"p{i // 2}") for i in range(200)]
    assert win_rate(clear, "new").verdict == "gain"
    assert win_rate(clear, "base").verdict == "no gain"
    assert win_rate(even, "new").verdict == "no gain"


def test_bootstrap_variances_match_the_cluster_sandwich_worked_in_closed_form():
    # For a mean, the cluster bootstrap's variance is sum over clusters of (sum of residuals)^2 / n^2 (linearised).
    rng = np.random.default_rng(0)
    raters, prompts = rng.integers(0, 20, 4000), rng.integers(0, 200, 4000)
    credits = (rng.random(4000) < 0.4 + 0.3 * (raters % 2)).astype(float)
    features = np.column_stack([credits, np.ones(4000)])
    draws = two_way_draws(features, raters, prompts, lambda t: t[:, :1] / t[:, 1:], rounds=8000, seed=1)
    residual = credits - credits.mean()
    for found, codes in ((draws.by_rater, raters), (draws.by_prompt, prompts)):
        expected = (np.bincount(codes, residual) ** 2).sum() / 4000**2
        assert float(np.var(found)) == pytest.approx(expected, rel=0.06)


def test_resampled_totals_are_totals_of_whole_clusters():
    features = np.array([[1.0], [10.0], [100.0]])
    totals = resample_totals(features, np.array([0, 0, 1]), 500, np.random.default_rng(0))
    # Two clusters worth 11 and 100, drawn twice: only these sums can occur.
    assert sorted(set(totals[:, 0].tolist())) == [22.0, 111.0, 200.0]


def test_label_codes_number_labels_in_order_of_first_appearance():
    assert label_codes(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_wilson_gives_the_published_interval():
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    low, high = wilson(81 / 263, 263, stats.norm.ppf(0.975))
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    # and 0 of 20 gives 0 to 0.1611
    assert wilson(0.0, 20, stats.norm.ppf(0.975)) == (0.0, pytest.approx(0.1611, abs=5e-5))


def test_one_rater_agreeing_with_himself_is_not_taken_for_many():
    # 20 prompts, one rater: clustered by prompt alone, and the count says so.
    one = win_rate([vote("new", "base", "A" if i % 4 else "B", "r0", f"p{i}") for i in range(20)], "new")
    assert one.raters == 1 and 0 < one.low < 0.75 < one.high < 1
    # The same 300 votes by 3 raters who each always say the same: three opinions, not 300.
    three = [vote("new", "base", "A" if i % 3 else "B", f"r{i % 3}", f"p{i}") for i in range(300)]
    rate = win_rate(three, "new")
    assert rate.high - rate.low > 0.8


def test_without_a_decisive_vote_the_rate_is_half_with_a_wide_interval_and_no_side_share():
    rate = win_rate([vote("new", "base", "TIE", f"r{i % 5}", f"p{i % 10}") for i in range(40)], "new")
    assert rate.value == 0.5 and rate.decisive == 0
    assert rate.decisive_value is None and rate.left_share is None
    # Five raters count as five votes: Wilson's interval with n = 5 and Student's t with 4 degrees of freedom.
    t2 = stats.t.ppf(0.975, 4) ** 2
    half = math.sqrt(t2) / (1 + t2 / 5) * math.sqrt(0.25 / 5 + t2 / 100)
    assert (rate.low, rate.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert rate.verdict == "no gain"


def test_unanimous_votes_do_not_give_a_point_interval():
    rate = win_rate([vote("new", "base", "A", f"r{i % 4}", f"p{i}") for i in range(12)], "new")
    assert rate.value == 1.0 and rate.high == 1.0 and rate.low < 0.5
    single = win_rate([vote("new", "base", "A")], "new")
    assert single.low < 0.1 and single.high == 1.0


def test_votes_that_cannot_be_used_are_refused_in_a_sentence():
    with pytest.raises(DataError, match="No counted vote on new: 1 votes were given, on base, old"):
        win_rate([vote("base", "old", "A")], "new")
    with pytest.raises(DataError, match="No counted vote on new"):
        win_rate([vote("new", "base", "SKIP")], "new")
    with pytest.raises(DataError, match="outcome A and credit 0.0"):
        win_rate([Comparison("new", "base", 0.0, Outcome.A, "r", "p")], "new")
    with pytest.raises(DataError, match="with itself"):
        win_rate([vote("new", "new", "A")], "new")
    with pytest.raises(DataError, match="confidence is 95"):
        win_rate([vote("new", "base", "A")], "new", confidence=95)
    with pytest.raises(DataError, match="rounds is 10"):
        win_rate([vote("new", "base", "A")], "new", rounds=10)


@pytest.mark.parametrize(
    ("rater_spread", "prompt_spread", "at_least", "at_most"),
    [(0.0, 0.0, 0.93, 1.0), (0.8, 0.0, 0.91, 0.99), (0.6, 1.0, 0.92, 0.99)],
)
def test_the_interval_covers_the_truth_on_votes_clustered_by_rater_and_prompt(
    rater_spread, prompt_spread, at_least, at_most
):
    """400 studies of 8 raters and 48 prompts, 144 votes each; one vote in five is a tie."""
    rng = np.random.default_rng(11)
    spread = math.hypot(rater_spread, prompt_spread)
    logits = 0.3 + spread * np.random.default_rng(1).normal(size=400_000)
    truth = 0.1 + 0.8 * float((1 / (1 + np.exp(-logits))).mean())
    prompts = np.repeat(np.arange(48), 3)
    covered = naive = 0
    for study in range(400):
        raters = np.concatenate([rng.permutation(8)[:3] for _ in range(48)])
        taste = rng.normal(size=8) * rater_spread
        pull = rng.normal(size=48) * prompt_spread
        wins = rng.random(144) < 1 / (1 + np.exp(-(0.3 + taste[raters] + pull[prompts])))
        credits = np.where(rng.random(144) < 0.2, 0.5, wins)
        found = clustered_share(credits, raters.tolist(), prompts.tolist(), rounds=200, seed=study)
        covered += found.low <= truth <= found.high
        naive += abs(credits.mean() - truth) <= 1.96 * credits.std() / 12
    assert at_least <= covered / 400 <= at_most
    if rater_spread:
        assert naive / 400 < 0.9  # what treating votes as independent would have given
