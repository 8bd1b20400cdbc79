"""GAE, RLOO and GRPO, the clipped loss, KL and its price, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignment.errors import ShapeError
from alignment.music.delay import prediction_mask
from alignment.training.advantages import explained_variance, gae, grpo, rloo
from alignment.training.policy_loss import (
    adapted_kl_coef,
    approximate_kl,
    clipped_loss,
    kl_per_step,
    step_logprobs,
    step_rewards,
)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gae_gives_the_numbers_worked_by_hand() -> None:
    # Three steps, r = (0, 0, 1), V = (0.5, 0.4, 0.6), gamma 0.9, lambda 0.8:
    # deltas: 0 + .9 * .4 - .5 = -.14;  0 + .9 * .6 - .4 = .14;  1 - .6 = .4
    # A2 = .4;  A1 = .14 + .72 * .4 = .428;  A0 = -.14 + .72 * .428 = .16816
    advantages, returns = gae(rows([0, 0, 1]), rows([0.5, 0.4, 0.6]), lam=0.8, gamma=0.9)
    torch.testing.assert_close(advantages, rows([0.16816, 0.428, 0.4]), rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, rows([0.66816, 0.828, 1.0]), rtol=0, atol=1e-12)


def test_with_lambda_one_an_advantage_is_what_was_earned_from_there_on_minus_what_was_expected() -> None:
    rewards, values = rows([1, -2, 0.5], [0, 0, 3]), rows([0.1, 0.2, 0.3], [1, 2, 3])
    advantages, returns = gae(rewards, values, lam=1.0)
    torch.testing.assert_close(returns, rows([-0.5, -1.5, 0.5], [3, 3, 3]), rtol=0, atol=1e-12)
    torch.testing.assert_close(advantages, rows([-0.6, -1.7, 0.2], [2, 1, 0]), rtol=0, atol=1e-12)


def test_with_lambda_zero_an_advantage_is_one_steps_surprise() -> None:
    advantages, _ = gae(rows([1, -2, 0.5]), rows([0.1, 0.2, 0.3]), lam=0.0)
    torch.testing.assert_close(advantages, rows([1.1, -1.9, 0.2]), rtol=0, atol=1e-12)


def test_rloo_compares_a_clip_with_the_others_of_its_prompt() -> None:
    # (1, 2, 6): 1 - (2 + 6) / 2 = -3;  2 - 3.5 = -1.5;  6 - 1.5 = 4.5
    found = rloo(rows([1, 2, 6], [5, 5, 5]))
    torch.testing.assert_close(found, rows([-3, -1.5, 4.5], [0, 0, 0]), rtol=0, atol=1e-12)


def test_grpo_counts_in_deviations_of_the_prompts_own_clips_and_equal_rewards_give_nothing() -> None:
    # (1, 2, 6): mean 3, deviation over n - 1: sqrt((4 + 1 + 9) / 2) = sqrt(7)
    found = grpo(rows([1, 2, 6], [5, 5, 5]))
    expected = rows([-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7)], [0, 0, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_shapes_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"rewards \(1, 3\) and values \(1, 2\)"):
        gae(rows([1, 2, 3]), rows([1, 2]), lam=1.0)
    for compare in (rloo, grpo):
        with pytest.raises(ShapeError, match="at least 2 clips of each prompt"):
            compare(rows([1], [2]))
    with pytest.raises(ShapeError, match="thrice"):
        clipped_loss(rows([1, 2]), rows([1, 2]), rows([1]), cliprange=0.2)


def test_explained_variance_is_one_for_a_perfect_forecast_and_zero_for_a_constant_one() -> None:
    returns = rows([1, 2], [3, 4])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns, torch.full_like(returns, 7.0)) == 0.0
    # Errors (0, 0, 0, 2): variance 0.75 of 1.25.
    assert explained_variance(returns, rows([1, 2], [3, 2])) == pytest.approx(1 - 0.75 / 1.25)
    assert explained_variance(torch.ones(1, 2), torch.zeros(1, 2)) == 0.0


def test_a_step_sums_the_codebooks_that_it_predicts() -> None:
    # K = 2, T = 3, S = 4: step s predicts book 0's frame s and book 1's frame s - 1.
    token = torch.tensor([[[1.0, 2, 3], [10, 20, 30]]])
    assert step_logprobs(token).tolist() == [[1, 12, 23, 30]]
    ones = step_logprobs(torch.ones(1, 4, 6))
    assert torch.equal(ones[0], prediction_mask(6, 4).sum(dim=0).float())


def test_the_clipped_loss_gives_the_numbers_worked_by_hand() -> None:
    # One clip of four steps, cliprange 0.2, ratios 1.5, 1.5, 0.5, 0.5 and advantages 2, -2, 2, -2:
    #   -2 * min(1.5, 1.2) = -2.4 (cut);   2 * 1.5 = 3;   -2 * 0.5 = -1;   2 * max(0.5, 0.8) = 1.6 (cut)
    old = rows([-1, -2, -3, -4])
    new = old + rows([1.5, 1.5, 0.5, 0.5]).log()
    loss, clipped = clipped_loss(new, old, rows([2, -2, 2, -2]), cliprange=0.2)
    assert loss.tolist() == pytest.approx([(-2.4 + 3 - 1 + 1.6) / 4], abs=1e-12)
    assert clipped.tolist() == [0.5]


def test_at_the_policy_that_sang_the_gradient_is_the_policy_gradient() -> None:
    old = rows([-1, -2], [-0.5, -3])
    advantages = rows([1, -1], [0.5, 2])
    new = old.clone().requires_grad_()
    clipped_loss(new, old, advantages, cliprange=0.2)[0].sum().backward()
    torch.testing.assert_close(new.grad, -advantages / 2, rtol=0, atol=1e-12)  # a mean over two steps


def test_a_step_that_is_cut_off_pulls_no_more() -> None:
    old = rows([-1, -1])
    new = (old + rows([1.5, 0.5]).log()).requires_grad_()
    clipped_loss(new, old, rows([1, -1]), cliprange=0.2)[0].sum().backward()
    assert new.grad.tolist() == [[0, 0]]


def test_kl_per_step_sums_to_the_kl_of_the_policy_from_the_reference() -> None:
    # A coin of (0.75, 0.25) against a fair one: KL = .75 ln 1.5 + .25 ln .5, as the mean over what the coin shows.
    policy, reference = torch.tensor([0.75, 0.25]).double(), torch.tensor([0.5, 0.5]).double()
    shown = torch.tensor([[0], [0], [0], [1]])  # as often as the coin shows it
    kl = kl_per_step(policy.log()[shown], reference.log()[shown])
    assert float(kl.sum(1).mean()) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-12)


def test_the_approximate_kl_is_never_negative_and_worked_by_hand() -> None:
    old = rows([0, 0])
    new = rows([math.log(2), math.log(0.5)])
    # 2 - 1 - ln 2 and 0.5 - 1 + ln 2: their mean is 0.25
    assert approximate_kl(new, old).tolist() == pytest.approx([0.25], abs=1e-12)
    assert approximate_kl(old, old).tolist() == [0]


def test_every_step_pays_for_its_kl_and_the_last_one_earns_the_reward() -> None:
    earned = step_rewards(torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.0, 3.0], [0.5, 0.5, 0.5]]), kl_coef=0.1)
    torch.testing.assert_close(earned, torch.tensor([[-0.1, 0.0, 1.7], [-0.05, -0.05, -1.05]]))


def test_the_price_of_kl_rises_above_the_target_and_falls_below_by_a_fifth_at_most() -> None:
    for kl, expected in ((10.0, 0.5), (11.0, 0.55), (9.5, 0.475), (50.0, 0.6), (0.0, 0.4), (-3.0, 0.4)):
        assert adapted_kl_coef(0.5, kl, target=10.0) == pytest.approx(expected, abs=1e-12)
