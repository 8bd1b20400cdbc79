"""DPO's losses against TRL's own code and against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from alignment.errors import ConfigError, ShapeError
from alignment.training.losses import LOSS_TYPES, chosen_nll, dpo_loss, labelled_dpo_loss, sequence_logprobs
from tests.training_support import trl_dpo_loss


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.7])
@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "dpop"])  # TRL has no DPOP
def test_each_loss_and_its_gradient_equal_trls_on_the_same_log_probabilities(loss_type: str, beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    pairs, longest = 5, 12
    lengths = [12, 9, 12, 4, 7, 12, 12, 3, 8, 11]  # chosen and rejected clips of different length
    counted = torch.arange(longest) < torch.tensor(lengths)[:, None]
    policy = (-4 * torch.rand(2 * pairs, longest, generator=generator, dtype=torch.float64) * counted).requires_grad_()
    reference = policy.detach().sum(1) + 3 * torch.randn(2 * pairs, generator=generator, dtype=torch.float64)

    theirs, _ = trl_dpo_loss(policy, reference, lengths, beta=beta, loss_type=loss_type, smoothing=0.2)
    (their_gradient,) = torch.autograd.grad(theirs, policy)
    chosen, rejected = policy.sum(1).chunk(2)
    counts = torch.tensor(lengths).chunk(2)
    ours = dpo_loss(chosen, rejected, *reference.chunk(2), beta=beta, loss_type=loss_type, label_smoothing=0.2,
                    chosen_codes=counts[0], rejected_codes=counts[1])  # fmt: skip
    (our_gradient,) = torch.autograd.grad(ours.mean(), policy)

    assert ours.shape == (pairs,)
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=0, abs=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-9)


def test_losses_of_one_pair_are_those_worked_by_hand() -> None:
    # chosen rose by 2 nats, rejected fell by 1: with beta 0.5 the logit is 1.5.
    values = [torch.tensor([x], dtype=torch.float64) for x in (-10.0, -21.0, -12.0, -20.0)]
    assert dpo_loss(*values, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1.5)), abs=1e-12)
    assert dpo_loss(*values, beta=0.5, loss_type="hinge").item() == 0.0
    assert dpo_loss(*values, beta=0.1, loss_type="hinge").item() == pytest.approx(0.7, abs=1e-12)
    # Averages per code: 2 / 4 - (-1) / 2 = 1, and 1 / (2 beta) = 1.25, so the square of -0.25.
    ipo = dpo_loss(*values, beta=0.4, loss_type="ipo", chosen_codes=4, rejected_codes=2)
    assert ipo.item() == pytest.approx(0.0625, abs=1e-12)


def test_dpop_charges_a_chosen_clip_that_falls_and_is_sigmoid_for_one_that_rises() -> None:
    # chosen fell by 2 nats, rejected by 5: the logit is 0.5 * 3, less 0.5 * 4 for lambda 2 (arXiv:2402.13228, eq. 3).
    fell = [torch.tensor([x], dtype=torch.float64) for x in (-14.0, -25.0, -12.0, -20.0)]
    found = dpo_loss(*fell, beta=0.5, loss_type="dpop", dpop_lambda=2.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(0.5)), abs=1e-12)
    rose = [torch.tensor([x], dtype=torch.float64) for x in (-10.0, -21.0, -12.0, -20.0)]
    torch.testing.assert_close(dpo_loss(*rose, beta=0.5, loss_type="dpop", dpop_lambda=2.0), dpo_loss(*rose, beta=0.5))


def test_dpop_pushes_a_fallen_chosen_clip_up_harder_than_it_pushes_the_rejected_one_down() -> None:
    values = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-14.0, -25.0, -12.0, -20.0)]
    dpo_loss(*values, beta=0.5, loss_type="dpop", dpop_lambda=2.0).sum().backward()
    assert values[0].grad.item() == pytest.approx(-3 * values[1].grad.item())  # 1 + lambda times


def test_labels_average_both_orders_of_a_pair_as_worked_by_hand() -> None:
    # The logit is 1.5 (above): conservative DPO with a fifth of the votes flipped, and a tie.
    values = [torch.tensor([x] * 3, dtype=torch.float64) for x in (-10.0, -21.0, -12.0, -20.0)]
    found = labelled_dpo_loss(*values, labels=torch.tensor([1.0, 0.8, 0.5]), beta=0.5, loss_type="sigmoid")
    won, lost = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert found.tolist() == pytest.approx([won, 0.8 * won + 0.2 * lost, (won + lost) / 2], abs=1e-12)
    # IPO per code: 2 / 4 + 1 / 2 = 1 against 1.25, turned round -1 against 1.25.
    ipo = labelled_dpo_loss(*values, labels=torch.tensor([1.0, 0.8, 0.5]), beta=0.4, loss_type="ipo", chosen_codes=4,
                            rejected_codes=2)  # fmt: skip
    assert ipo.tolist() == pytest.approx([0.0625, 0.8 * 0.0625 + 0.2 * 5.0625, 2.5625], abs=1e-12)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "robust"])
def test_a_tie_pulls_the_clips_together_whichever_came_first_and_rests_where_they_are_equal(loss_type: str) -> None:
    settings = {"labels": torch.tensor([0.5]), "beta": 0.3, "loss_type": loss_type, "label_smoothing": 0.1}

    def gradient(chosen: float, rejected: float) -> list[float]:
        values = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (chosen, rejected)]
        labelled_dpo_loss(*values, torch.zeros(1).double(), torch.zeros(1).double(), **settings).sum().backward()
        return [value.grad.item() for value in values]

    assert gradient(-1.0, -1.0) == pytest.approx([0, 0], abs=1e-12)
    ahead, behind = gradient(2.0, -1.0), gradient(-1.0, 2.0)
    assert ahead[0] > 0 > ahead[1] and behind == pytest.approx(ahead[::-1])


def test_robust_loss_averages_back_to_the_clean_loss_when_votes_flip_at_the_stated_rate() -> None:
    # The property that defines it (arXiv:2403.00409, lemma 3.1): unbiased under flips.
    pair = [torch.tensor([x], dtype=torch.float64) for x in (-10.0, -21.0, -12.0, -20.0)]
    flipped = [pair[1], pair[0], pair[3], pair[2]]
    robust = {"beta": 0.3, "loss_type": "robust", "label_smoothing": 0.2}
    expected = 0.8 * dpo_loss(*pair, **robust) + 0.2 * dpo_loss(*flipped, **robust)
    torch.testing.assert_close(expected, dpo_loss(*pair, beta=0.3), rtol=0, atol=1e-12)


def test_the_sum_over_a_clip_ignores_padded_frames_even_where_they_are_impossible() -> None:
    token_logprobs = torch.tensor([[[-1.0, -2.0, -torch.inf], [-3.0, -4.0, -torch.inf]], [[-1.0] * 3, [-0.5] * 3]])
    found = sequence_logprobs(token_logprobs, torch.tensor([2, 3]))
    assert found.tolist() == [-10.0, -4.5]
    with pytest.raises(ShapeError, match="one a clip"):
        sequence_logprobs(token_logprobs, torch.tensor([2]))


def test_the_sum_over_a_long_clip_keeps_more_digits_than_float32() -> None:
    values = torch.full((1, 4, 1500), -3.1, dtype=torch.float32)
    exact = 6000 * values[0, 0, 0].item()
    assert sequence_logprobs(values).item() == pytest.approx(exact, rel=0, abs=1e-8)


def test_the_chosen_term_is_nats_per_code() -> None:
    assert chosen_nll(torch.tensor([-12.0, -6.0]), torch.tensor([4, 3])).tolist() == [3.0, 2.0]


def test_an_unknown_loss_and_unequal_shapes_are_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ConfigError, match="'exo'.*sigmoid"):
        dpo_loss(one, one, one, one, beta=0.1, loss_type="exo")
    with pytest.raises(ShapeError, match="all four"):
        dpo_loss(one, one, torch.zeros(2), one, beta=0.1)
