"""The gold judge and the captions: what it hears, how they are made. Listeners: tests/simulation."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.errors import ModelError
from alignment.simulation.captions import ATTRIBUTE_VALUES, draw_captions, is_reserved
from alignment.simulation.judge import Judge, Judgement

TAGS = {"lead": "piano", "tempo": "slow", "mode": "major", "accompaniment": "none", "drums": "no"}


def judgement(asked: float, cleanliness: float = 0.5) -> Judgement:
    """A judgement that gives every attribute asked for in TAGS the probability ``asked``."""
    attributes = {}
    for name, values in ATTRIBUTE_VALUES.items():
        rest = (1 - asked) / (len(values) - 1)
        attributes[name] = {value: asked if value == TAGS[name] else rest for value in values}
    return Judgement(attributes, {"noise": 1 - cleanliness, "clipping": 0.0})


def test_adherence_is_the_mean_probability_of_what_was_asked() -> None:
    assert judgement(0.7).adherence(TAGS) == pytest.approx(0.7)
    assert judgement(0.7).adherence({}) == 0.5


def test_reserved_captions_are_distinct_and_never_among_the_training_ones() -> None:
    held_out = draw_captions(300, 1, reserved=True)
    training = draw_captions(300, 1, reserved=False)
    assert len({text for text, _ in held_out}) == 300
    assert all(is_reserved(text) for text, _ in held_out)
    assert not any(is_reserved(text) for text, _ in training)
    assert draw_captions(300, 1, reserved=True) == held_out


def test_the_judge_hears_noise_as_less_clean_and_is_deaf_to_level() -> None:
    """A decaying tone, alone and under noise at the same level; twice as loud is the same music."""
    rng = np.random.default_rng(0)
    time = np.arange(64_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-(time % 0.5) * 4)).astype(np.float32)
    noisy = tone + 0.2 * rng.standard_normal(64_000).astype(np.float32)
    clean, dirty, quiet = Judge()(np.stack([tone, noisy, tone * 0.5]))
    assert clean.cleanliness > dirty.cleanliness
    assert quiet.cleanliness == pytest.approx(clean.cleanliness, abs=0.05)
    for name, values in ATTRIBUTE_VALUES.items():
        assert set(clean.attributes[name]) == set(values)
        assert sum(clean.attributes[name].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_damaged_judge_is_refused(tmp_path) -> None:
    from alignment.simulation.judge import WEIGHTS

    (tmp_path / "judge.safetensors").write_bytes((WEIGHTS / "judge.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged judge"):
        Judge(tmp_path)
    with pytest.raises(ModelError, match="no judge weights"):
        Judge(tmp_path / "nowhere")
