"""Advantages: how much better a clip, or a step of it, did than was to be expected."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.errors import ShapeError

EPSILON = 1e-8  # a group of equal rewards gets advantages of 0, not 0 / 0


def gae(rewards: Tensor, values: Tensor, *, lam: float, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Advantages (B, S) and returns (B, S) of B episodes of S steps; returns = advantages + values.

    rewards (B, S): what each step earned; values (B, S): what was expected before each step; after the last step
    nothing is. A_s = sum over l of (gamma lam)^l (r_{s+l} + gamma V_{s+l+1} - V_{s+l}): generalised advantage
    estimation, arXiv:1506.02438, eq. 16. Raises ShapeError on mismatch."""
    if rewards.ndim != 2 or rewards.shape != values.shape:
        raise ShapeError(f"Found rewards {tuple(rewards.shape)} and values {tuple(values.shape)}; needs (B, S) twice.")
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(rewards[:, 0])
    for s in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, s] + gamma * following - values[:, s] + gamma * lam * running
        advantages[:, s], following = running, values[:, s]
    return advantages, advantages + values


def rloo(rewards: Tensor) -> Tensor:
    """Advantages (P, G): each clip's reward above the mean of the other clips of its prompt.

    rewards (P, G). REINFORCE leave-one-out, arXiv:2402.14740, section 2.2. Raises ShapeError when G is below 2."""
    group = _groups(rewards)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (group - 1)
    return rewards - others


def grpo(rewards: Tensor) -> Tensor:
    """Advantages (P, G): deviations of each clip's reward from its prompt's mean, in its prompt's deviations.

    rewards (P, G). Group-relative policy optimisation, arXiv:2402.03300, section 4.1.2, with the deviation over
    G - 1 as TRL takes it. Raises ShapeError when G is below 2."""
    _groups(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + EPSILON)


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect forecast, 0 no better than a constant one."""
    spread = float(returns.var(correction=0))
    return 1.0 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0


def _groups(rewards: Tensor) -> int:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ShapeError(f"Found rewards {tuple(rewards.shape)}; needs (P, G) with at least 2 clips of each prompt.")
    return rewards.shape[1]
