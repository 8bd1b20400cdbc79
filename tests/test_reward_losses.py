"""Losses, terms and calibration of reward models, against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignment.rewards.calibration import best_temperature, calibration_bins, calibration_error
from alignment.rewards.heads import HEADS
from alignment.rewards.losses import davidson, first_log_tie, reward_loss, soft_bradley_terry
from alignment.rewards.terms import VoteTerms


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_davidsons_three_outcomes_cost_minus_the_log_of_their_probabilities() -> None:
    """At d = ln 4 and nu = 1/2: e^(d/2) = 2, e^(-d/2) = 1/2, Z = 3, so win 2/3, tie 1/6, loss 1/6."""
    d, log_tie = tensor(math.log(4)), tensor(math.log(0.5))
    for credit, expected in (
        (1.0, math.log(3 / 2)), (0.5, math.log(6)), (0.0, math.log(6)),
        (0.75, 0.5 * math.log(3 / 2) + 0.5 * math.log(6)), (0.25, math.log(6)),
    ):  # fmt: skip
        assert davidson(d, tensor(credit), log_tie).item() == pytest.approx(expected, abs=1e-12), credit
    # A tenth of wins taken to be flipped; a tie stays a tie.
    flipped = davidson(d, tensor(1.0, 0.5), log_tie, smoothing=0.1)
    assert flipped.tolist() == pytest.approx([0.9 * math.log(3 / 2) + 0.1 * math.log(6), math.log(6)], abs=1e-12)


def test_davidson_sums_to_one_and_is_bradley_terry_among_decisive_votes() -> None:
    d = torch.linspace(-6, 6, 25, dtype=torch.float64)
    log_tie = tensor(0.3)
    win, tie, loss = (torch.exp(-davidson(d, tensor(c), log_tie)) for c in (1.0, 0.5, 0.0))
    torch.testing.assert_close(win + tie + loss, torch.ones_like(d), rtol=0, atol=1e-12)
    torch.testing.assert_close(win / (win + loss), torch.sigmoid(d), rtol=0, atol=1e-12)
    torch.testing.assert_close(tie, math.exp(0.3) * torch.sqrt(win * loss), rtol=0, atol=1e-12)
    # Where ties are impossible the loss is Bradley and Terry's.
    none = davidson(d, tensor(1.0), tensor(-60.0))
    torch.testing.assert_close(none, soft_bradley_terry(d, torch.zeros_like(d), tensor(1.0)), rtol=0, atol=1e-12)
    far = davidson(tensor(800.0, -800.0), tensor(0.0), tensor(0.0))
    assert far.tolist() == pytest.approx([800.0, 0.0])


def test_the_tie_parameter_starts_at_the_share_of_ties_at_equal_scores() -> None:
    assert math.exp(first_log_tie(0.2)) == pytest.approx(0.5)  # 0.5 / (1 + 1 + 0.5) = 0.2
    assert math.isfinite(first_log_tie(0.0)) and math.isfinite(first_log_tie(1.0))


def test_each_heads_mean_is_over_its_own_answers_with_either_kind_of_ties() -> None:
    nan = float("nan")
    differences = {head: torch.tensor([[math.log(4), 0.0]]) for head in HEADS}
    targets = torch.tensor([[nan, 1.0, 1.0], [nan, nan, 0.5]])
    log_ties = torch.tensor([[9.0, math.log(0.5), math.log(0.5)]])
    # Quality: win at d = ln 4. Vote: the same, and a tie at d = 0, where P = 0.5 / 2.5.
    expected = 2 * math.log(3 / 2) + (math.log(3 / 2) + math.log(5)) / 2
    assert reward_loss(differences, targets, 2.0, log_ties=log_ties).item() == pytest.approx(expected, abs=1e-6)
    # Half-wins, a tenth of wins flipped: ln 1.25 for the win, ln 5 for its flip, ln 2 for the tie.
    win = 0.9 * math.log(1.25) + 0.1 * math.log(5)
    found = reward_loss(differences, targets, 2.0, smoothing=0.1).item()
    assert found == pytest.approx(2 * win + (win + math.log(2)) / 2, abs=1e-6)


def test_terms_scale_by_the_rater_and_add_the_pull_of_the_side() -> None:
    targets = torch.tensor([[float("nan"), 1.0, 0.5], [float("nan"), 0.0, 1.0]])
    terms = VoteTerms(2, 2, targets, ties=True, side=True, rater_deviation=0.5)
    # Ties: none known, none of two, one of two: nu = 2 * 0.5 / 0.5.
    assert terms.log_ties[1, 2].exp().item() == pytest.approx(2.0)
    with torch.no_grad():
        terms.raters.copy_(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]))
        terms.side[0] = torch.tensor([0.0, 0.0, 0.25])
    given = {head: torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]) for head in HEADS}
    found = terms(given, torch.tensor([0, 1, -1]), torch.tensor([1, 1, 0]))
    assert found["preference"][0].tolist() == pytest.approx([2.25, 6.25, 2.0])
    assert found["quality"][0].tolist() == pytest.approx([2.0, 6.0, 2.0])
    assert found["preference"][1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    # Minus the log-density of a normal prior: (ln 3)^2 / (2 * 0.25).
    assert terms.penalty().tolist() == pytest.approx([2 * math.log(3) ** 2, 0.0], abs=1e-6)
    alone = VoteTerms(2, 1, targets, ties=False, side=False, rater_deviation=0.5)
    assert alone.raters is None and not list(alone.parameters()) and alone.penalty() == 0.0


def test_the_temperature_is_the_one_that_makes_decisive_votes_likeliest() -> None:
    """Of votes at a difference of 3, three quarters are won: the log-odds are ln 3, so t = 3 / ln 3 = 2.73."""
    difference = torch.full((6,), 3.0)
    credit = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, float("nan")])
    assert best_temperature(difference, credit) == pytest.approx(3 / math.log(3), rel=0.012)
    assert best_temperature(difference[4:], credit[4:]) == 1.0


def test_the_calibration_error_weighs_each_bins_distance_by_its_votes() -> None:
    """Confidence 0.9 and half right, twice; 0.6 and all right, twice: (2 * 0.4 + 2 * 0.4) / 4."""
    probability, won = np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 0, 1, 1])
    assert calibration_error(probability, won) == pytest.approx(0.4)
    assert calibration_error(1 - probability, 1 - won) == pytest.approx(0.4)
    assert calibration_bins(probability, won) == [(pytest.approx(0.6), 1.0, 2), (pytest.approx(0.9), 0.5, 2)]
    assert math.isnan(calibration_error(np.array([]), np.array([])))
    assert calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0.0
