"""The sequential test: worked by hand, against a closed form, and on many simulated studies without a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation import sequential
from alignment.evaluation.sequential import Unit, bets, credits_of, log_wealth, next_alpha, sequential_test
from alignment.evaluation.vote_arrays import VoteArrays


def studies(count, *, raters, prompts, per_prompt, taste, pull, win_rate=0.5, ties=0.2, seed=0):
    """(credits, rater, prompt), each (count, votes) in the order of voting. Every prompt is heard by ``per_prompt``
    raters in turn; taste and pull are the standard deviations in nats of raters' and prompts' preference for the
    candidate, drawn anew for each study around a mean that gives ``win_rate`` of the decisive votes."""
    rng = np.random.default_rng(seed)
    votes = prompts * per_prompt
    prompt = np.repeat(np.arange(prompts), per_prompt)
    rater = np.arange(votes) % raters
    lean = taste * rng.normal(size=(count, raters))[:, rater] + pull * rng.normal(size=(count, prompts))[:, prompt]
    wins = rng.random((count, votes)) < special.expit(special.logit(win_rate) + lean)
    credits = np.where(rng.random((count, votes)) < ties, 0.5, wins)
    return credits, np.broadcast_to(rater, credits.shape), np.broadcast_to(prompt, credits.shape)


def false_alarms(count, unit, size, **study):
    """(share promoted by the test, share promoted by a z test peeked at after every vote from the tenth)."""
    credits, rater, prompt = studies(count, **study)
    placed = np.array([bets(*one, unit, size=size) for one in zip(credits, rater, prompt, strict=True)])
    ours = log_wealth(placed).max(axis=1) >= math.log(1 / 0.05)
    n = np.arange(1, credits.shape[1] + 1)
    mean = np.cumsum(credits, axis=1) / n
    spread = np.sqrt(np.maximum(np.cumsum(credits**2, axis=1) / n - mean**2, 1e-9) / n)
    naive = ((mean - 0.5) / spread)[:, 10:].max(axis=1) > stats.norm.ppf(0.95)
    return ours.mean(), naive.mean()


# One vote for each of 300 fresh pairs; prompts that sway all raters alike; and, of the hardest kind, raters with tastes
# of their own and prompts that sway, in a study where each rater hears prompts of their own.
NULLS = {
    "independent votes": (Unit.VOTE, 1, dict(raters=12, prompts=300, per_prompt=1, taste=0.0, pull=0.0)),
    "prompts that sway": (Unit.PROMPT, 4, dict(raters=12, prompts=120, per_prompt=4, taste=0.0, pull=1.0)),
    "raters and prompts that sway": (Unit.RATER, 8, dict(raters=60, prompts=480, per_prompt=1, taste=0.8, pull=0.8)),
    "every rater on shared prompts": (Unit.RATER, 2, dict(raters=60, prompts=160, per_prompt=3, taste=0.8, pull=0.8)),
}


@pytest.mark.parametrize("kind", NULLS)
def test_of_two_hundred_studies_without_a_difference_few_promote_however_often_one_looks(kind):
    unit, size, study = NULLS[kind]
    ours, naive = false_alarms(200, unit, size, seed=1, **study)
    assert ours <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)  # two standard errors of a share of 200
    assert naive > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", NULLS)
def test_of_a_thousand_studies_without_a_difference_at_most_one_in_twenty_promotes(kind):
    unit, size, study = NULLS[kind]
    ours, naive = false_alarms(1000, unit, size, seed=2, **study)
    print(f"{kind}: {ours:.1%} promoted, a z test peeked at {naive:.1%}")
    assert ours <= 0.05
    assert naive > 0.2


def test_the_wrong_unit_promotes_too_often_where_raters_have_tastes():
    # What the choice of unit is for: 12 raters with tastes, each vote a bet as though votes were independent.
    study = dict(raters=12, prompts=600, per_prompt=1, taste=0.8, pull=0.0)
    assert false_alarms(200, Unit.VOTE, 1, seed=3, **study)[0] > 0.1


def test_three_wins_and_a_loss_bet_as_worked_by_hand(monkeypatch):
    monkeypatch.setattr(sequential, "BETS", np.array([0.5]))
    # 1.5, 1.5^2, 1.5^3, 1.5^3 x 0.5
    assert np.exp(log_wealth(np.array([1.0, 1.0, 1.0, 0.0]))) == pytest.approx([1.5, 2.25, 3.375, 1.6875])
    # A tie bets nothing; against a mean of 0.8 a win is worth 1 + 0.5 x 0.25.
    assert np.exp(log_wealth(np.array([0.5]))) == pytest.approx([1.0])
    assert np.exp(log_wealth(np.array([1.0]), 0.8)) == pytest.approx([1.125])


def test_on_single_votes_the_wealth_is_the_mixture_likelihood_ratio_over_win_rates_above_a_half():
    # Integral over p in (1/2, 1) with density 2 of p^w (1-p)^l, over (1/2)^(w+l): an incomplete beta function.
    wins, losses = 26, 14
    credits = np.array([1.0] * wins + [0.0] * losses)
    upper = special.betaincc(wins + 1, losses + 1, 0.5) * special.beta(wins + 1, losses + 1)
    assert float(np.exp(log_wealth(credits)[-1])) == pytest.approx(2 * upper * 2 ** (wins + losses), rel=5e-3)
    assert log_wealth(credits)[-1] == pytest.approx(log_wealth(credits[::-1])[-1])


def test_the_wealths_mean_over_all_outcomes_of_a_fair_coin_is_one():
    outcomes = np.array([[(i >> bit) & 1 for bit in range(10)] for i in range(1024)], dtype=float)
    assert np.exp(log_wealth(outcomes)).mean(axis=0) == pytest.approx(np.ones(10))
    # and so for three values of the same mean, each as likely
    ties = np.array([[(i // 3**k) % 3 / 2 for k in range(6)] for i in range(729)])
    assert np.exp(log_wealth(ties)).mean(axis=0) == pytest.approx(np.ones(6))


def test_a_bet_takes_what_is_fresh_and_waits_until_it_is_full():
    credits = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.5])
    rater = np.array([0, 1, 0, 1, 0, 1, 2])
    prompt = np.array([0, 0, 1, 1, 2, 3, 0])
    assert bets(credits, rater, prompt, Unit.VOTE).tolist() == [1.0, 1.0, 0.0, 1.0]  # the first vote on each prompt
    assert bets(credits, rater, prompt, Unit.PROMPT, size=2).tolist() == [0.5, 1.0]  # prompts 2 and 3 wait
    # Prompts 0, 1 and 2 are rater 0's, so rater 1 has prompt 3 alone and rater 2 none; a third vote changes nothing.
    assert bets(credits, rater, prompt, Unit.RATER, size=2).tolist() == [1.0]
    assert bets(credits, rater, prompt, Unit.RATER, size=3).tolist() == [pytest.approx(2 / 3)]


def test_a_study_is_decided_by_what_crossed_first_and_stays_decided():
    wins = np.array([1.0] * 8)
    where = np.arange(16)
    done = sequential_test(wins, where[:8], where[:8], unit=Unit.VOTE)
    # After k wins in a row the wealth is 2^(k+1) (1 - 2^-(k+1)) / (k + 1): 18.1 at 6 and 31.9 at 7.
    assert done.crossed_at == 7 and done.verdict == "better"
    assert done.e_value == pytest.approx((2**9 - 1) / 9, rel=0.02)
    later = sequential_test(np.concatenate([wins, np.zeros(8)]), where, where, unit=Unit.VOTE)
    assert later.verdict == "better" and later.n == 16
    lost = sequential_test(np.concatenate([1 - wins, np.ones(8)]), where, where, unit=Unit.VOTE)
    assert lost.verdict == "worse" and lost.crossed_at is None and lost.against_candidate > 20
    # It had lost by the eighth vote; forty wins after that come too late.
    late, many = np.concatenate([np.zeros(8), np.ones(40)]), np.arange(48)
    recovered = sequential_test(late, many, many, unit=Unit.VOTE)
    assert recovered.e_value > 20 and recovered.verdict == "worse"
    assert sequential_test(wins[:3], where[:3], where[:3], unit=Unit.VOTE).verdict == "open"
    assert sequential_test(wins[:0], where[:0], where[:0], unit=Unit.VOTE).e_value == 1.0


def test_the_confidence_sequence_holds_the_true_win_rate_at_all_times():
    credits, rater, prompt = studies(30, raters=12, prompts=100, per_prompt=1, taste=0, pull=0, win_rate=0.65, ties=0.2)
    truth = 0.1 + 0.8 * 0.65
    missed = 0
    for one in zip(credits, rater, prompt, strict=True):
        found = sequential_test(*one, unit=Unit.VOTE)
        missed += not found.low <= truth <= found.high  # low and high are the tightest of all looks
        assert found.low < found.value < found.high
    assert missed <= 3  # 5% of 30, and one standard error
    assert found.high - found.low < 0.4


def test_credits_between_two_versions_are_the_candidates_whichever_side_it_was_on():
    votes = VoteArrays.from_comparisons([
        Comparison("new", "old", 1.0, Outcome.A, "r", "p"), Comparison("old", "new", 1.0, Outcome.A, "r", "q"),
        Comparison("old", "new", 0.5, Outcome.BOTH_BAD, "s", "q"), Comparison("old", "base", 1.0, Outcome.A, "s", "q"),
    ])  # fmt: skip
    credits, rater, prompt = credits_of(votes, "new", "old")
    assert credits.tolist() == [1.0, 0.0, 0.5]
    assert rater.tolist() == [0, 0, 1] and prompt.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match="v9 has no vote here; voted on are base, new, old"):
        credits_of(votes, "v9", "old")


def test_an_alpha_budget_is_never_overspent_and_many_nights_promote_nothing_false():
    spent = []
    for _ in range(1000):
        spent.append(next_alpha(spent))
    assert spent[:3] == pytest.approx([0.005, 0.0045, 0.00405])
    assert sum(spent) <= 0.05
    # A hundred chains of thirty candidates as good as the champion, 100 votes each.
    rng = np.random.default_rng(5)
    wealth = log_wealth((rng.random((100 * 30, 100)) < 0.5).astype(float)).max(axis=1).reshape(100, 30)
    assert (wealth >= np.log(1 / np.array(spent[:30]))).any(axis=1).mean() <= 0.05
    assert (wealth >= math.log(20)).any(axis=1).mean() > 0.3  # what testing each night at 5% would have done


def test_settings_that_make_no_sense_are_refused_in_a_sentence():
    one = np.array([1.0]), np.array([0]), np.array([0])
    with pytest.raises(DataError, match="alpha is 5"):
        sequential_test(*one, unit=Unit.VOTE, alpha=5)
    with pytest.raises(DataError, match="differ in number"):
        sequential_test(one[0], one[1], np.array([0, 1]), unit=Unit.VOTE)
    with pytest.raises(DataError, match="outside 0 to 1"):
        sequential_test(one[0] * 2, *one[1:], unit=Unit.VOTE)
    with pytest.raises(DataError, match="bet of 0 votes"):
        sequential_test(*one, unit=Unit.PROMPT, size=0)
    with pytest.raises(DataError, match="spent 0.06 of an alpha budget of 0.05; open a new budget"):
        next_alpha([0.06])
