"""The caption contrast against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.rewards.contrast import CaptionContrast
from alignment.rewards.scorers import ClapCosine, Scorer

TEXT = {"calm": [1.0, 0.0], "fast": [0.0, 2.0], "dark": [-1.0, 0.0]}  # lengths do not count


class Plane:
    """Captions and clips as directions in a plane; a clip is its own embedding."""

    name = "plane"

    def text(self, prompts):
        return np.array([TEXT[prompt] for prompt in prompts])

    def audio(self, audio, sample_rate_hz):
        return np.asarray(audio)


def test_a_clip_is_compared_with_its_own_caption_and_with_all() -> None:
    scorer = CaptionContrast(Plane(), ["calm", "fast", "fast"])
    assert isinstance(scorer, Scorer)
    # Captions (1, 0) and (0, 1), each once: a clip's mean cosine is (x + y) / 2. For (0.6, 0.8): 0.6 - 0.7, 0.8 - 0.7.
    clip = np.array([[3.0, 4.0], [3.0, 4.0]])
    assert scorer.score(["calm", "fast"], clip, 16_000).values == pytest.approx([-0.1, 0.1])


def test_a_clip_between_all_captions_gains_nothing_where_the_plain_cosine_does() -> None:
    scorer, plain = CaptionContrast(Plane(), ["calm", "fast"]), ClapCosine(Plane())
    towards_all, away = np.array([[1.0, 1.0]]), np.array([[-1.0, -1.0]])
    assert plain.score(["calm"], towards_all, 16_000).values > plain.score(["calm"], away, 16_000).values + 1
    assert scorer.score(["calm"], towards_all, 16_000).values == pytest.approx([0], abs=1e-12)
    assert scorer.score(["calm"], away, 16_000).values == pytest.approx([0], abs=1e-12)


def test_one_caption_is_nothing_to_compare_with() -> None:
    with pytest.raises(DataError, match="Found 1 captions to compare with"):
        CaptionContrast(Plane(), ["calm", "calm"])
