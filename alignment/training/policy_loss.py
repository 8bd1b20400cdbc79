"""The policy's side of PPO: log-probabilities per delayed step, the clipped ratio, and the price of KL."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.errors import ShapeError
from alignment.music.delay import delay_values

MOST_KL_CHANGE = 0.2  # of kl_coef in one rollout


def step_logprobs(token_logprobs: Tensor, *, channels: int = 1) -> Tensor:
    """Log-probability of each delayed step in nats, (B, S): the sum over the books that it predicts a code of.

    token_logprobs (B, K, T). One step of the decoder is one action: its codes are drawn at once, from one state."""
    return delay_values(token_logprobs, 0.0, channels=channels).sum(dim=1)


def clipped_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, cliprange: float
) -> tuple[Tensor, Tensor]:
    """The loss of each clip, (B,), a mean over its steps, and the share of its steps that clipping cut off, (B,).

    logprobs, old_logprobs and advantages (B, S): the steps' log-probabilities now and when they were sampled. With
    r = exp(new - old), a step's loss is max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange)): arXiv:1707.06347, eq. 7.
    Raises ShapeError on mismatch."""
    if not logprobs.shape == old_logprobs.shape == advantages.shape or logprobs.ndim != 2:
        found = ", ".join(str(tuple(x.shape)) for x in (logprobs, old_logprobs, advantages))
        raise ShapeError(f"Found new and old log-probabilities and advantages of {found}; needs (B, S) thrice.")
    ratio = (logprobs - old_logprobs).exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(free, clipped).mean(dim=1), (clipped > free).double().mean(dim=1)


def kl_per_step(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log ref of each step, (B, S), in nats: summed over a clip that p sampled, an unbiased estimate of
    KL(p || ref) (John Schulman's k1)."""
    return logprobs - ref_logprobs


def approximate_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """How far each clip's policy has moved since it was sampled, (B,), nats a step: the mean of r - 1 - log r with
    r = new / old, never negative (Schulman's k3)."""
    log_ratio = logprobs - old_logprobs
    return (log_ratio.exp() - 1 - log_ratio).mean(dim=1)


def step_rewards(rewards: Tensor, kl: Tensor, *, kl_coef: float) -> Tensor:
    """What each step earned, (B, S): minus the price of its KL (B, S) and, at the last one, the clip's reward (B,)."""
    earned = -kl_coef * kl
    earned[:, -1] = earned[:, -1] + rewards
    return earned


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float) -> float:
    """The price of KL for the next rollout: up when ``kl`` (nats a clip) is above ``target``, down when below, by the
    relative distance and at most a fifth. Ziegler et al., arXiv:1909.08593, section 2.2, with a gain of 1 a rollout
    (theirs, 0.1 a batch, is for thousands of batches)."""
    return kl_coef * (1.0 + max(-MOST_KL_CHANGE, min(kl / target - 1.0, MOST_KL_CHANGE)))
