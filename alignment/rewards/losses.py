"""The losses of a reward model: Bradley-Terry with soft targets, and Davidson's model of ties."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.rewards.heads import HEADS


def soft_bradley_terry(score_a: Tensor, score_b: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats between ``target`` and P(a beats b) = sigmoid(score_a - score_b), same shape.

    ``target`` is the credit of a in [0, 1]; a tie is 0.5. With targets of 1 this is the loss of TRL's RewardTrainer
    (Bradley and Terry, 1952)."""
    difference = score_a - score_b
    return F.binary_cross_entropy_with_logits(difference, target.expand_as(difference), reduction="none")


def davidson(difference: Tensor, credit: Tensor, log_tie: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of the three outcomes of a vote, in the shape that the arguments broadcast to.

    With d the log-odds that a beats b and nu = exp(log_tie): P(a) = e^(d/2) / Z, P(tie) = nu / Z, P(b) = e^(-d/2) / Z
    (Davidson, JASA 65, 1970, whose nu this is). ``credit`` is that of a in [0, 1]: 1 is a win, 0.5 a tie and 0.75 half
    a win and half a tie. ``smoothing`` is the share of wins taken to be flipped; ties stay ties."""
    lean = (credit - 0.5) * (1 - 2 * smoothing)
    tied = 1 - (2 * credit - 1).abs()
    # Z in logs: e^(d/2) + e^(-d/2) = e^(|d|/2) (1 + e^(-|d|)).
    either = difference.abs() / 2 + F.softplus(-difference.abs())
    return torch.logaddexp(either, log_tie) - lean * difference - tied * log_tie


def first_log_tie(share_tied: float) -> float:
    """The log of Davidson's nu at which clips of equal score tie as often as ``share_tied`` of the votes.

    P(tie) = nu / (2 + nu) at equal scores, so nu = 2 p / (1 - p); p is kept within [0.001, 0.9]."""
    p = min(max(share_tied, 0.001), 0.9)
    return math.log(2 * p / (1 - p))


def reward_loss(
    differences: dict[str, Tensor],
    targets: Tensor,
    axis_weight: float,
    *,
    log_ties: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Loss of each member in nats, (M,): the vote's, plus ``axis_weight`` times each axis's over those answered.

    differences (M, B) by head, the log-odds that a beats b; targets (B, 3) in the order of HEADS, NaN = not asked.
    ``log_ties`` (M, 3): Davidson's ties; None: a tie is half a win (soft Bradley-Terry)."""
    total = torch.zeros(differences["preference"].shape[0], device=targets.device)
    for column, head in enumerate(HEADS):
        difference, target = differences[head], targets[..., column]
        answered = ~target.isnan()
        credit = target.nan_to_num(0.5)
        if log_ties is None:
            smoothed = 0.5 + (credit - 0.5) * (1 - 2 * smoothing)
            losses = soft_bradley_terry(difference, torch.zeros_like(difference), smoothed)
        else:
            losses = davidson(difference, credit, log_ties[:, column, None], smoothing=smoothing)
        mean = (losses * answered).sum(-1) / answered.sum(-1).clamp(min=1)
        total = total + (mean if head == "preference" else axis_weight * mean)
    return total
