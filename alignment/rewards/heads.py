"""The heads of a reward model: an ensemble of three small networks on CLAP embeddings, run as one batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("text_adherence", "quality", "preference")


class HeadEnsemble(nn.Module):
    """Scores (M, B) of each head from M members; only differences between scores for one prompt mean something.

    Text adherence and preference see the audio and text embeddings, their product and their cosine; quality sees the
    audio alone. Every weight has a leading axis M, so that one ``bmm`` runs all members."""

    def __init__(self, width: int, *, hidden: int, members: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.width, self.hidden, self.members, self.dropout = width, hidden, members, dropout
        generator = torch.Generator().manual_seed(seed)
        both = 3 * width + 1
        self.weights = nn.ParameterDict()
        for head, inputs in (("text_adherence", both), ("quality", width), ("preference", both)):
            for name, shape, fan_in in (
                ("in", (members, inputs, hidden), inputs),
                ("bias", (members, 1, hidden), inputs),
                ("out", (members, hidden, 1), hidden),  # no bias: a constant cancels between two clips
            ):
                bound = 1 / math.sqrt(fan_in)
                values = torch.rand(shape, generator=generator) * 2 * bound - bound
                self.weights[f"{head}_{name}"] = nn.Parameter(values)
        # Features of the training clips, so that each enters with mean 0 and deviation 1.
        self.register_buffer("mean", torch.zeros(both))
        self.register_buffer("deviation", torch.ones(both))

    def fit_features(self, audio: Tensor, text: Tensor) -> None:
        """Set the means and deviations of the features from training clips: audio (N, D), text (N, D)."""
        raw = _raw_features(audio, text)
        self.mean.copy_(raw.mean(0))
        spread = raw.std(0, correction=0)
        # A feature that never varies carries nothing; dividing by its rounding noise would let it in.
        self.deviation.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def features(self, audio: Tensor, text: Tensor) -> Tensor:
        """Standardised features (..., 3 D + 1) of audio (..., D) and text (..., D); the first D are audio alone."""
        return (_raw_features(audio, text) - self.mean) / self.deviation

    def forward(self, features: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """{head: scores (M, B)} of features (B, F) or, a batch of its own for each member, (M, B, F).

        Dropout is applied when a generator is given, and only then."""
        if features.dim() == 2:
            features = features.expand(self.members, -1, -1)
        return {
            head: self._head(head, features[..., : self.width] if head == "quality" else features, generator)
            for head in HEADS
        }

    def _head(self, head: str, inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        inner = torch.baddbmm(self.weights[f"{head}_bias"], inputs, self.weights[f"{head}_in"])  # (M, B, H)
        inner = F.gelu(inner)
        if generator is not None and self.dropout:
            kept = torch.rand(inner.shape, generator=generator, device=inner.device) >= self.dropout
            inner = inner * kept / (1 - self.dropout)
        return torch.bmm(inner, self.weights[f"{head}_out"]).squeeze(-1)  # (M, B)


def _raw_features(audio: Tensor, text: Tensor) -> Tensor:
    cosine = F.cosine_similarity(audio, text, dim=-1)[..., None]
    return torch.cat([audio, text, audio * text, cosine], dim=-1)


def soft_bradley_terry(score_a: Tensor, score_b: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats between ``target`` and P(a beats b) = sigmoid(score_a - score_b), same shape.

    ``target`` is the credit of a in [0, 1]; a tie is 0.5. With targets of 1 this is the loss of TRL's RewardTrainer
    (Bradley and Terry, 1952)."""
    difference = score_a - score_b
    return F.binary_cross_entropy_with_logits(difference, target.expand_as(difference), reduction="none")
