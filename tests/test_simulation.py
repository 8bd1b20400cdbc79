"""Simulated listeners and the gold judge: what they hear, how they vote, how their captions are made."""

from __future__ import annotations

import random

import numpy as np
import pytest

from alignment.domain import Axis, Outcome
from alignment.errors import ConfigError, ModelError
from alignment.simulation.captions import ATTRIBUTE_VALUES, draw_captions, is_reserved
from alignment.simulation.judge import Judge, Judgement
from alignment.simulation.listeners import Listener, ListenerProfile, draw_population, load_listeners

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


def test_a_noiseless_listener_prefers_the_clip_that_follows_the_caption_on_either_side() -> None:
    listener = Listener(ListenerProfile(noise=0, likes=0, side_bias=0, carelessness=0), seed=1)
    rng = random.Random(0)
    assert listener.vote(judgement(0.9), judgement(0.2), TAGS, rng)[0] is Outcome.A
    outcome, axes = listener.vote(judgement(0.2), judgement(0.9), TAGS, rng)
    assert outcome is Outcome.B
    assert axes == {Axis.TEXT_ADHERENCE: 2, Axis.QUALITY: 0}


def test_equal_clips_tie_and_equally_poor_clips_are_both_bad() -> None:
    listener = Listener(ListenerProfile(noise=0, likes=0, side_bias=0, carelessness=0, floor=2.0), seed=1)
    assert listener.vote(judgement(0.8), judgement(0.8), TAGS, random.Random(0))[0] is Outcome.TIE
    assert listener.vote(judgement(0.05, 0.1), judgement(0.05, 0.1), TAGS, random.Random(0))[0] is Outcome.BOTH_BAD


def test_a_vote_is_won_as_often_as_the_logistic_model_says() -> None:
    """P(A) with ties impossible is 1 / (1 + exp(-difference / noise)): 6 * 0.1 / 0.5 = 1.2 gives 0.7685."""
    listener = Listener(
        ListenerProfile(adherence_weight=6, likes=0, side_bias=0, indifference=0, carelessness=0, noise=0.5), seed=1
    )
    rng = random.Random(3)
    wins = [listener.vote(judgement(0.6), judgement(0.5), TAGS, rng)[0] is Outcome.A for _ in range(4000)]
    assert np.mean(wins) == pytest.approx(0.7685, abs=0.02)  # three standard errors


def test_the_side_bias_favours_the_left_clip() -> None:
    listener = Listener(ListenerProfile(likes=0, side_bias=0.5, indifference=0, carelessness=0), seed=1)
    rng = random.Random(4)
    left = [listener.vote(judgement(0.5), judgement(0.5), TAGS, rng)[0] is Outcome.A for _ in range(4000)]
    assert np.mean(left) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.025)


def test_a_population_is_fixed_by_its_seed_and_mixes_its_profiles() -> None:
    listeners = load_listeners()
    once, again = (draw_population(listeners, "default", 200, 5) for _ in range(2))
    assert [name for name, _ in once] == [name for name, _ in again]
    assert once[0][1].taste == again[0][1].taste
    assert once[0][1].taste != once[1][1].taste
    assert 0.75 < np.mean([name == "default" for name, _ in once]) < 0.95
    with pytest.raises(ConfigError, match="no population nobody"):
        draw_population(listeners, "nobody", 2, 0)


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
