"""Preference losses on log-probabilities of whole clips, in nats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.errors import ConfigError, ShapeError

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust", "dpop")


def sequence_logprobs(token_logprobs: Tensor, frames: Tensor | None = None) -> Tensor:
    """Log-probability of each clip in nats, (B,) float64, summed over codebooks and counted frames.

    token_logprobs (B, K, T); frames (B,) int64, the frames of each clip that count (None = all T).
    Raises ShapeError on mismatch."""
    if token_logprobs.dim() != 3:
        raise ShapeError(f"token log-probabilities have shape {tuple(token_logprobs.shape)}; (B, K, T) is needed.")
    # Sums run to thousands of nats and DPO takes differences of them: float32 would round at 1e-4.
    token_logprobs = token_logprobs.double()
    if frames is None:
        return token_logprobs.sum(dim=(1, 2))
    if frames.shape != token_logprobs.shape[:1]:
        raise ShapeError(f"{tuple(frames.shape)} frame counts for {token_logprobs.shape[0]} clips; give one a clip.")
    counted = torch.arange(token_logprobs.shape[2], device=frames.device) < frames[:, None]  # (B, T)
    # where, not a product: a padded position may hold -inf, and 0 * -inf is NaN.
    return torch.where(counted[:, None], token_logprobs, 0.0).sum(dim=(1, 2))


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_codes: Tensor | int = 1,
    rejected_codes: Tensor | int = 1,
    dpop_lambda: float = 0.0,
) -> Tensor:
    """The loss of each pair, (B,), before any averaging; the same numbers as TRL's DPOTrainer.

    The four log-probabilities are (B,), in nats, summed over a clip. ``chosen_codes`` and ``rejected_codes`` are how
    many codes (K * T) each clip has; only ipo needs them, because it compares averages per code.
    ``label_smoothing`` is the share of flipped votes and is read by robust alone, ``dpop_lambda`` by dpop alone.

    sigmoid: arXiv:2305.18290, eq. 7. hinge: SLiC, arXiv:2305.10425. ipo: arXiv:2310.12036, eq. 17.
    robust: arXiv:2403.00409, eq. 12. dpop (TRL has none): arXiv:2402.13228, eq. 3; a chosen clip that falls below its
    reference costs lambda times its fall. Raises ConfigError for another loss type, ShapeError when shapes differ."""
    shapes = {tuple(x.shape) for x in (policy_chosen, policy_rejected, ref_chosen, ref_rejected)}
    if len(shapes) != 1:
        raise ShapeError(f"log-probabilities have shapes {sorted(shapes)}; all four must be (B,).")
    chosen_logratios = policy_chosen - ref_chosen
    rejected_logratios = policy_rejected - ref_rejected
    logits = beta * (chosen_logratios - rejected_logratios)
    if loss_type == "sigmoid":
        return -F.logsigmoid(logits)
    if loss_type == "dpop":
        return -F.logsigmoid(logits - beta * dpop_lambda * torch.relu(-chosen_logratios))
    if loss_type == "hinge":
        return torch.relu(1 - logits)
    if loss_type == "ipo":
        difference = chosen_logratios / chosen_codes - rejected_logratios / rejected_codes
        return (difference - 1 / (2 * beta)) ** 2
    if loss_type == "robust":
        clean, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
        return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    raise ConfigError(f"loss_type is {loss_type!r}; it must be one of {', '.join(LOSS_TYPES)}.")


def labelled_dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    labels: Tensor,
    chosen_codes: Tensor | int = 1,
    rejected_codes: Tensor | int = 1,
    **loss: Any,
) -> Tensor:
    """``dpo_loss`` averaged over both orders of each pair, (B,), by the probability ``labels`` (B,) that the chosen
    clip is the better one: 1 for a decisive vote, 0.5 for a tie, 1 - e for conservative DPO.

    E. Mitchell, A note on DPO with noisy preferences and relationship to IPO (2023), eq. 3."""
    as_voted = dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, chosen_codes=chosen_codes,
                        rejected_codes=rejected_codes, **loss)  # fmt: skip
    if bool((labels == 1).all()):
        return as_voted
    turned = dpo_loss(policy_rejected, policy_chosen, ref_rejected, ref_chosen, chosen_codes=rejected_codes,
                      rejected_codes=chosen_codes, **loss)  # fmt: skip
    return labels * as_voted + (1 - labels) * turned


def chosen_nll(policy_chosen: Tensor, chosen_codes: Tensor | int) -> Tensor:
    """Negative log-likelihood of each chosen clip in nats per code, (B,): the term of RPO (arXiv:2404.19733).

    It keeps the chosen clip likely: DPO alone is content when both fall and the rejected one falls faster."""
    return -policy_chosen / chosen_codes
