"""The distribution codes are drawn from: guidance, then temperature, then top-k.

Sampling and scoring both come through here, so their log-probabilities cannot drift apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignment.domain import GenerationConfig


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits (arXiv:2207.12598): u + guidance * (c - u)."""
    return unconditional + guidance * (conditional - unconditional)


def shape_logits(logits: Tensor, generation: GenerationConfig) -> Tensor:
    """Float32 logits (..., V) after temperature and top-k; what is cut off is -inf. Ties at the k-th are kept."""
    logits = _temper(logits, generation)
    if 0 < generation.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < _kth_largest(logits.detach(), generation.top_k), float("-inf"))
    return logits


def _temper(logits: Tensor, generation: GenerationConfig) -> Tensor:
    return logits.float() if generation.temperature == 1.0 else logits.float() / generation.temperature


def _kth_largest(logits: Tensor, k: int) -> Tensor:
    """(..., 1): the k-th largest of each row of (..., V). numpy's partition is vectorised, torch's topk is not."""
    if logits.device.type == "cpu":
        at = logits.shape[-1] - k
        return torch.from_numpy(np.partition(logits.numpy(), at, axis=-1)[..., at : at + 1])
    return torch.topk(logits, k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)


def token_logprobs(logits: Tensor, codes: Tensor, generation: GenerationConfig) -> Tensor:
    """Log-probability in nats of each code (...,) under logits (..., V); -inf for a code that top-k cuts off."""
    shaped = shape_logits(logits, generation)
    chosen = shaped.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    return chosen - shaped.logsumexp(dim=-1)


def draw(logits: Tensor, uniforms: Tensor, generation: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Codes (...,) int64 by inverse CDF, and their log-probabilities in nats; ``uniforms`` (...,) in [0, 1)."""
    logits = _temper(logits, generation)
    weights = logits.softmax(dim=-1)
    if 0 < generation.top_k < logits.shape[-1]:
        # As shape_logits does, but multiplied: a 0 or 1 is written without a branch, twenty times as fast.
        kept = torch.ge(logits, _kth_largest(logits, generation.top_k), out=torch.empty_like(logits))
        weights.mul_(kept)
    cdf = weights.cumsum(dim=-1)
    total = cdf[..., -1:]  # what top-k left over
    # u * total may round up to the total itself, which would point past the last possible code.
    target = torch.minimum(uniforms.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    codes = torch.searchsorted(cdf, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return codes.squeeze(-1), (weights.gather(-1, codes) / total).log().squeeze(-1)
