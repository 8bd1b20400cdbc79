"""The reward of sampled codes: decoded in batches with the model's codec, scored, one total a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from alignment.music.codec import decode
from alignment.music.model import MusicModel
from alignment.rewards.scorers import WeightedScorer


@dataclass(frozen=True)
class Rewards:
    """Rewards of B clips: ``total`` (B,) float64, what is optimised, and ``parts`` {scorer: (B,)}, reported
    unweighted and on the base's scale."""

    total: np.ndarray
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


class CodesReward:
    """Rewards of prompts (B,) and their codes (B, K, T) int64: what PPO calls after each rollout.

    Clips are decoded and scored ``batch_size`` at a time, so that memory does not grow with the rollout. The same
    codes get the same reward, to the bit, in the same batches; an adapter changes nothing, the codec is the base's."""

    def __init__(self, model: MusicModel, scorer: WeightedScorer, *, batch_size: int = 32) -> None:
        self.model, self.scorer, self.batch_size = model, scorer, batch_size

    def __call__(self, prompts: Sequence[str], codes: Tensor) -> Rewards:
        totals: list[np.ndarray] = []
        parts: dict[str, list[np.ndarray]] = {scorer.name: [] for scorer, _ in self.scorer.parts}
        for start in range(0, len(prompts), self.batch_size):
            end = start + self.batch_size
            audio = decode(self.model, codes[start:end])  # (b, samples)
            total, values = self.scorer.score_parts(prompts[start:end], audio, self.model.sample_rate_hz)
            totals.append(total)
            for name, found in values.items():
                parts[name].append(found)
        empty = np.zeros(0)
        return Rewards(
            np.concatenate(totals) if totals else empty,
            {name: np.concatenate(found) if found else empty for name, found in parts.items()},
        )


def base_reward(
    model: MusicModel, parts: Sequence[tuple], prompts: Sequence[str], codes: Tensor, **options: object
) -> CodesReward:
    """The reward whose scale is measured on codes (B, K, T) that the base sang to the prompts (B,); ``options`` are
    those of ``WeightedScorer``."""
    audio = decode(model, codes)
    return CodesReward(model, WeightedScorer.on_base_clips(parts, prompts, audio, model.sample_rate_hz, **options))
