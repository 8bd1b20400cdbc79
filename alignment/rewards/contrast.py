"""A scorer for "follow the caption": how much closer a clip is to its own caption than to captions in general."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignment.errors import DataError
from alignment.rewards.licences import UNKNOWN
from alignment.rewards.scorers import Encoder, Scored


class CaptionContrast:
    """Cosine of CLAP's audio and text embeddings, less the clip's mean cosine with ``captions``.

    The plain cosine can be raised by drifting to where all captions are near, whatever was asked; a clip that comes
    closer to every caption alike gains nothing here. docs/decisions/2026-11-21-ppo-on-attune-tiny.md has both side by
    side. Raises DataError without at least two captions."""

    def __init__(
        self, encoder: Encoder, captions: Sequence[str], *, licence: str = UNKNOWN, name: str = "caption_contrast"
    ) -> None:
        if len(set(captions)) < 2:
            raise DataError(
                f"Found {len(set(captions))} captions to compare with; give the prompts that are trained on."
            )
        self.encoder, self.licence, self.name = encoder, licence, name
        # The mean of cosines of unit vectors is the cosine's inner product with their mean.
        self.mean_caption = _unit(encoder.text(list(dict.fromkeys(captions)))).mean(axis=0)

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        heard = _unit(self.encoder.audio(audio, sample_rate_hz))
        asked = _unit(self.encoder.text(prompts))
        return Scored((heard * (asked - self.mean_caption)).sum(axis=1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
