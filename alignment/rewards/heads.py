"""The heads of a reward model: an ensemble of three small networks on CLAP embeddings, run as one batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = ("text_adherence", "quality", "preference")
BOTH = ("text_adherence", "preference")  # the heads that read the prompt beside the clip


class HeadEnsemble(nn.Module):
    """Scores (M, B) of each head from M members; only differences between scores for one prompt mean something.

    Text adherence and preference see the audio and text embeddings, their product and their cosine; quality sees the
    audio alone. Every weight has a leading axis M; all members run in one multiplication."""

    def __init__(self, width: int, *, hidden: int, members: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.width, self.hidden, self.members, self.dropout = width, hidden, members, dropout
        generator = torch.Generator().manual_seed(seed)
        both = 3 * width + 1
        self.weights = nn.ParameterDict()
        for head in HEADS:
            inputs = both if head in BOTH else width
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

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """{head: scores (M, B)} of features (B, 3 D + 1), without dropout."""
        inner = {
            head: torch.matmul(features if head in BOTH else features[:, : self.width], self.weights[f"{head}_in"])
            for head in HEADS
        }  # (M, B, H)
        return {
            head: torch.bmm(F.gelu(values + self.weights[f"{head}_bias"]), self.weights[f"{head}_out"]).squeeze(-1)
            for head, values in inner.items()
        }

    def differences(
        self, audio: Tensor, text: Tensor, *, one_text: bool, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{head: scores of a minus scores of b (M, B)} of B pairs: what ``forward`` gives, in fewer operations.

        audio (2 B, D), all clips a and then all clips b; text (B, D) where both clips of each pair have one prompt
        (``one_text``), else (2 B, D). With a generator the hidden units are dropped, the same ones for both clips of
        a pair, so that their difference is one network's."""
        width, members, hidden = self.width, self.members, self.hidden
        mean, deviation = self.mean.split([width, width, width + 1]), self.deviation.split([width, width, width + 1])
        texts = torch.cat([text, text]) if one_text else text
        alone = (audio - mean[0]) / deviation[0]  # (2 B, D)
        words = (text - mean[1]) / deviation[1]  # (B, D) or (2 B, D)
        cosine = F.cosine_similarity(audio, texts, dim=-1)[:, None]
        product = (torch.cat([audio * texts, cosine], dim=-1) - mean[2]) / deviation[2]  # (2 B, D + 1)

        # Of each head's input weights, the rows for audio, for text and for their product; members side by side.
        rows = {head: self.weights[f"{head}_in"].split([width, width, width + 1], dim=1) for head in BOTH}
        for_audio = [rows[BOTH[0]][0], rows[BOTH[1]][0], self.weights["quality_in"]]
        inner = alone @ _side_by_side(for_audio)  # (2 B, 3 M H)
        from_text = words @ _side_by_side([rows[head][1] for head in BOTH])
        both = product @ _side_by_side([rows[head][2] for head in BOTH])
        both = both + (torch.cat([from_text, from_text]) if one_text else from_text)  # (2 B, 2 M H)
        bias = torch.cat([self.weights[f"{head}_bias"] for head in (*BOTH, "quality")]).reshape(-1)
        inner = F.gelu(torch.cat([inner[:, : 2 * members * hidden] + both, inner[:, 2 * members * hidden :]], 1) + bias)
        out = torch.cat([self.weights[f"{head}_out"] for head in (*BOTH, "quality")]).reshape(-1)
        change = inner[: len(inner) // 2] - inner[len(inner) // 2 :]  # (B, 3 M H): the last layer is linear
        if generator is not None and self.dropout:
            kept = torch.rand(change.shape, generator=generator, device=change.device) >= self.dropout
            change = change * kept / (1 - self.dropout)
        scores = (change * out).view(len(change), 3, members, hidden).sum(-1).float()  # (B, 3, M)
        return {head: scores[:, place].T for place, head in enumerate((*BOTH, "quality"))}


def _side_by_side(weights: list[Tensor]) -> Tensor:
    """(D, 3 M H) of three weights (M, D, H), say: one multiplication for all heads and members."""
    stacked = torch.cat(weights)
    return stacked.transpose(0, 1).reshape(stacked.shape[1], -1)


def _raw_features(audio: Tensor, text: Tensor) -> Tensor:
    cosine = F.cosine_similarity(audio, text, dim=-1)[..., None]
    return torch.cat([audio, text, audio * text, cosine], dim=-1)
