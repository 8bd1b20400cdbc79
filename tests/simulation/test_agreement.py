"""What is measured of a panel's votes, against panels whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from listener_support import TAGS, heard, random_pairs

from alignment.domain import Outcome
from alignment.errors import ConfigError, DataError
from alignment.simulation.agreement import CastVote, HeardPair, PerfectScorer, agreement, measure_panel
from alignment.simulation.listeners import Listener, ListenerProfile, Listeners

SIX_FOUR = PerfectScorer(6, 4)


def panel(profile: ListenerProfile, count: int = 12) -> list[Listener]:
    return [Listener(profile, seed) for seed in range(count)]


def test_the_perfect_scorer_of_a_population_has_the_mean_of_its_weights() -> None:
    one, other = ListenerProfile(adherence_weight=6, cleanliness_weight=4), ListenerProfile(adherence_weight=2)
    listeners = Listeners(profiles={"one": one, "other": other}, populations={"both": {"one": 0.75, "other": 0.25}})
    scorer = PerfectScorer.of_population(listeners, "both")
    assert (scorer.adherence_weight, scorer.cleanliness_weight) == (5, 4)
    assert scorer.score(heard(0.5, 0.25), TAGS) == pytest.approx(5 * 0.5 + 4 * 0.25)
    with pytest.raises(ConfigError, match="no population nobody"):
        PerfectScorer.of_population(listeners, "nobody")


def test_agreement_counts_decisive_votes_alone_and_half_for_equal_clips() -> None:
    good, poor = heard(0.9), heard(0.1)
    pairs = [HeardPair(0, TAGS, good, poor), HeardPair(1, TAGS, poor, good), HeardPair(2, TAGS, good, good)]
    votes = [
        CastVote(pairs[0], 0, Outcome.A), CastVote(pairs[0], 1, Outcome.B), CastVote(pairs[1], 0, Outcome.B),
        CastVote(pairs[2], 0, Outcome.A), CastVote(pairs[1], 1, Outcome.TIE), CastVote(pairs[1], 2, Outcome.BOTH_BAD),
    ]  # fmt: skip
    found = agreement(votes, SIX_FOUR)
    assert found.n == 4 and found.value == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert found.low < found.value < found.high
    with pytest.raises(DataError):
        agreement(votes[4:], SIX_FOUR)


def test_listeners_without_noise_or_likes_agree_with_everyone_every_time() -> None:
    found = measure_panel(panel(ListenerProfile()), random_pairs(200), SIX_FOUR, hearings=3)
    assert found.listeners == 12 and found.votes == 600
    assert found.agreement.value == found.repeat.value == found.repeat_answer.value == found.between.value == 1
    assert found.undecided.value == found.ties.value == found.both_bad.value == 0
    assert found.left.low < 0.5 < found.left.high


def test_listeners_who_only_toss_coins_agree_with_nobody_and_never_tie() -> None:
    found = measure_panel(panel(ListenerProfile(carelessness=1.0)), random_pairs(900), SIX_FOUR, hearings=2)
    for interval in (found.agreement, found.left, found.repeat, found.repeat_answer, found.between):
        assert interval.value == pytest.approx(0.5, abs=0.05)  # three standard errors of 900
    assert found.undecided.value == 0


def test_repeats_show_noise_and_two_listeners_show_likes_as_well() -> None:
    """Strong likes without noise: each listener is consistent, two of them are not."""
    found = measure_panel(panel(ListenerProfile(likes=3.0)), random_pairs(200), SIX_FOUR)
    assert found.repeat.value == found.repeat_answer.value == 1
    assert found.between.value < 0.85


def test_swapping_the_sides_shows_a_side_bias_in_the_left_share_and_in_repeats() -> None:
    found = measure_panel(panel(ListenerProfile(side_bias=100.0)), random_pairs(200), SIX_FOUR)
    assert found.left.value == 1 and found.repeat.value == 0 and found.agreement.value == pytest.approx(0.5, abs=0.1)


def test_the_sides_of_first_votes_are_drawn_whichever_way_a_pair_was_given() -> None:
    pairs = [HeardPair(i, TAGS, heard(0.9), heard(0.1)) for i in range(100)]
    found = measure_panel(panel(ListenerProfile()), pairs, SIX_FOUR, hearings=2)
    assert found.agreement.value == 1 and found.left.value == pytest.approx(0.5, abs=0.11)  # three standard errors


def test_ties_and_both_bad_add_up_and_a_panel_that_never_decides_has_no_other_figures() -> None:
    pairs = [HeardPair(i, TAGS, heard(0.1 if i % 4 else 0.9), heard(0.1 if i % 4 else 0.9)) for i in range(40)]
    found = measure_panel(panel(ListenerProfile(indifference=1.0, floor=4.0)), pairs, SIX_FOUR, hearings=2)
    assert found.both_bad.value == 0.75 and found.ties.value == 0.25 and found.undecided.value == 1
    assert found.agreement is found.left is found.repeat is found.between is None
    assert found.repeat_answer.value == 1


def test_the_figures_of_a_panel_repeat_with_their_seed_and_want_pairs_and_listeners() -> None:
    noisy, pairs = panel(ListenerProfile(noise=1.0, indifference=0.5)), random_pairs(60)
    assert measure_panel(noisy, pairs, SIX_FOUR, seed=1) == measure_panel(noisy, pairs, SIX_FOUR, seed=1)
    assert measure_panel(noisy, pairs, SIX_FOUR, seed=1) != measure_panel(noisy, pairs, SIX_FOUR, seed=2)
    for few in ((noisy, []), (noisy[:3], pairs)):
        with pytest.raises(DataError, match="there must be pairs, and as many listeners as hearings"):
            measure_panel(*few, SIX_FOUR, hearings=4)


def test_intervals_cover_a_known_agreement() -> None:
    """Half coin tosses, else the better clip: 75% in truth. Of 40 studies, about 38 intervals should have it."""
    covered = 0
    for seed in range(40):
        pairs = random_pairs(120, seed)
        found = measure_panel(panel(ListenerProfile(carelessness=0.5), 8), pairs, SIX_FOUR, hearings=2, seed=seed)
        covered += found.agreement.low <= 0.75 <= found.agreement.high
    assert covered >= 34 and np.isfinite(found.agreement.low)
