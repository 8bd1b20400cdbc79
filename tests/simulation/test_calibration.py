"""Calibration finds the noise and indifference that were used, and refuses what no noise can give."""

from __future__ import annotations

import random

import numpy as np
import pytest
from listener_support import TAGS, random_pairs

from alignment.domain import Outcome
from alignment.errors import ConfigError, DataError
from alignment.simulation.agreement import PerfectScorer, measure_panel
from alignment.simulation.calibration import calibrate, expected, own_differences, vote_chances
from alignment.simulation.listeners import Listener, ListenerProfile

EVERYTHING = ListenerProfile(
    likes=0.4, noise=0.7, side_bias=0.4, indifference=0.6, carelessness=0.2, contrary=0.3, floor=6.0
)


@pytest.mark.parametrize(
    "profile", [EVERYTHING, ListenerProfile(noise=0.5), ListenerProfile(side_bias=-0.3, indifference=0.2)]
)
def test_the_closed_form_gives_the_shares_that_votes_come_to(profile: ListenerProfile) -> None:
    listener, rng = Listener(profile, seed=4), random.Random(4)
    for pair in random_pairs(4, seed=2):
        difference = listener.utility(pair.left, TAGS) - listener.utility(pair.right, TAGS)
        left, right = vote_chances(profile, np.array([difference]))
        outcomes = [listener.vote(pair.left, pair.right, TAGS, rng)[0] for _ in range(4000)]
        assert np.mean([o is Outcome.A for o in outcomes]) == pytest.approx(left[0], abs=0.025)
        assert np.mean([o is Outcome.B for o in outcomes]) == pytest.approx(right[0], abs=0.025)


def test_expected_figures_are_those_that_a_large_panel_shows() -> None:
    pairs = random_pairs(500)
    scorer = PerfectScorer.of_profile(EVERYTHING)
    mean = np.array([scorer.difference(pair) for pair in pairs])
    long_run = expected(EVERYTHING, own_differences(EVERYTHING, pairs, 30, 1), mean)
    found = measure_panel([Listener(EVERYTHING, 900 + n) for n in range(30)], pairs, scorer, hearings=6)
    assert found.undecided.value == pytest.approx(long_run.undecided, abs=0.03)
    assert found.agreement.value == pytest.approx(long_run.agreement, abs=0.03)


@pytest.mark.parametrize(("agreement", "undecided"), [(0.70, 0.28), (0.60, 0.21), (0.80, 0.36), (0.75, 0.0)])
def test_calibration_gives_the_figures_that_were_asked_for(agreement: float, undecided: float) -> None:
    profile = ListenerProfile(likes=0.3, side_bias=0.1, carelessness=0.02, floor=6.0)
    found, reached = calibrate(profile, random_pairs(150), agreement=agreement, undecided=undecided, listeners=12)
    assert reached.agreement == pytest.approx(agreement, abs=0.002)
    assert reached.undecided == pytest.approx(undecided, abs=0.002)
    assert found.noise > 0 and (found.indifference > 0) == (undecided > 0)
    assert found.model_copy(update={"noise": 0.0, "indifference": 0.0}) == profile  # nothing else has changed


def test_calibration_finds_the_noise_and_indifference_again_that_made_the_figures() -> None:
    true, pairs = ListenerProfile(noise=0.9, indifference=0.5, likes=0.2, side_bias=0.2), random_pairs(150)
    scorer = PerfectScorer.of_profile(true)
    made = expected(true, own_differences(true, pairs, 12, 0), np.array([scorer.difference(pair) for pair in pairs]))
    start = true.model_copy(update={"noise": 5.0, "indifference": 3.0})
    found, _ = calibrate(start, pairs, agreement=made.agreement, undecided=made.undecided, listeners=12, seed=0)
    assert found.noise == pytest.approx(0.9, rel=2e-3) and found.indifference == pytest.approx(0.5, rel=2e-3)


def test_figures_that_no_noise_can_give_are_refused_with_what_can_be_reached() -> None:
    pairs = random_pairs(80)
    tossing = ListenerProfile(carelessness=0.5)
    with pytest.raises(ConfigError, match=r"agreement of 0.95 cannot be reached .* hardly any noise it is 0\.7"):
        calibrate(tossing, pairs, agreement=0.95, undecided=0.1, listeners=4)
    with pytest.raises(ConfigError, match="agreement of 0.4 cannot be reached"):
        calibrate(ListenerProfile(), pairs, agreement=0.4, undecided=0.2, listeners=4)
    with pytest.raises(ConfigError, match="share of ties of 0.5 cannot be reached: 50% .* from 0 to below 0.5"):
        calibrate(tossing, pairs, agreement=0.6, undecided=0.5, listeners=4)
    with pytest.raises(DataError, match="no pairs to calibrate on"):
        calibrate(ListenerProfile(), [], agreement=0.7, undecided=0.2)
