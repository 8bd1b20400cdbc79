"""Stereo: left and right are books side by side, equally late, and two streams of one mono codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.clips import ClipStore
from alignment.domain import GenerationConfig
from alignment.errors import DataError, ShapeError
from alignment.music.codec import decode, encode, render
from alignment.music.delay import apply_delay, delay_labels, delay_values, delayed_steps, prediction_mask, undo_delay
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from alignment.training.policy_loss import step_logprobs
from tests.music_support import make_tiny_music

P = 9
PROMPTS = ["calm piano", "a fast dark trumpet tune with drums and strings over a slow organ", "flute"]


@pytest.fixture(scope="module")
def model() -> MusicModel:
    return make_tiny_music(channels=2)


def test_two_stereo_books_of_three_frames_are_read_as_worked_by_hand():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 1, 2]]])  # left, right, left, right
    by_hand = torch.tensor([[[P, 1, 2, 3], [P, 4, 5, 6], [P, P, 7, 8], [P, P, 0, 1]]])
    assert torch.equal(apply_delay(codes, P, channels=2), by_hand)
    assert delayed_steps(3, 4, 2) == 4
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(prediction_mask(3, 4, channels=2), mask)
    labels = torch.tensor([[[1, 4, P, P], [2, 5, 7, 0], [3, 6, 8, 1], [P, P, 9, 2]]])
    assert torch.equal(delay_labels(codes, P, channels=2), labels)
    assert torch.equal(undo_delay(delay_values(codes, -1, channels=2), channels=2), codes)
    with pytest.raises(ShapeError, match="at least K / channels"):
        undo_delay(torch.zeros(1, 4, 1), channels=2)


def test_a_step_of_stereo_sums_the_books_that_it_draws():
    logprobs = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0]]])
    assert step_logprobs(logprobs, channels=2).tolist() == [[11.0, 1122.0, 2200.0]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_stereo_audio_is_that_of_transformers_generate(model: MusicModel, guidance: float):
    tokens = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    theirs = model.hf.generate(
        **{name: tokens[name] for name in ("input_ids", "attention_mask")}, do_sample=False, guidance_scale=guidance,
        max_new_tokens=20 + 4 - 1,
    )  # (B, 2, samples)  # fmt: skip
    ours = sample(
        model, PROMPTS, generation=GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.4), seeds=[0, 1, 2]
    )
    assert ours.codes.shape == (3, 8, 20)
    audio = render(model, ours.codes, batch_size=2)
    assert audio.shape == (3, 20 * 320, 2)
    np.testing.assert_allclose(audio.transpose(0, 2, 1), theirs.numpy(), atol=1e-6)
    assert np.abs(audio[..., 0] - audio[..., 1]).max() > 1e-3
    np.testing.assert_allclose(decode(model, ours.codes), audio.mean(axis=2), atol=0)


def test_forced_log_probabilities_equal_the_samplers_in_stereo(model: MusicModel):
    generation = GenerationConfig(guidance=3.0, top_k=5, clip_seconds=0.4)
    rollout = sample(model, PROMPTS, generation=generation, seeds=range(3))
    forced = model.logprobs(rollout.codes, encode_prompts(model, PROMPTS), generation=generation)
    torch.testing.assert_close(forced, rollout.logprobs, atol=1e-4, rtol=0)


def test_stereo_encodes_each_channel_alone_and_one_channel_as_both(model: MusicModel):
    audio = np.random.default_rng(0).normal(size=(3, 3200, 2)).astype(np.float32)
    codes = encode(model, audio, batch_size=2)
    assert codes.shape == (3, 8, 10)
    mono = make_tiny_music()
    mono.hf.audio_encoder.load_state_dict(model.hf.audio_encoder.state_dict())
    assert torch.equal(codes[:, 0::2], encode(mono, audio[..., 0]))
    assert torch.equal(codes[:, 1::2], encode(mono, audio[..., 1]))
    assert torch.equal(encode(model, audio[..., 0])[:, 1::2], codes[:, 0::2])
    with pytest.raises(ShapeError, match=r"\(B, samples, 2\)"):
        encode(model, np.zeros((1, 3200, 3), np.float32))


def test_a_stereo_clip_is_stored_heard_in_stereo_and_scored_as_one_channel(tmp_path: Path):
    import io

    import soundfile

    store, seconds = ClipStore(tmp_path), np.arange(32_000) / 32_000
    audio = np.stack([0.5 * np.sin(2 * np.pi * 440 * seconds), np.zeros(32_000)], axis=1)
    sha256, facts = store.put_audio(audio, 32_000)
    assert facts.seconds == 1.0 and facts.silence_ratio == 0.0
    # BS.1770 sums the channels' power: a sine of amplitude 0.5 in one of them, -0.691 + 10 log10(0.125) + 0.69 dB of
    # its filter at 440 Hz (the standard's own 0 dBFS 997 Hz sine in one channel reads -3.01).
    assert facts.lufs == pytest.approx(-9.6, abs=0.4)
    assert facts.true_peak_dbtp == pytest.approx(-6.02, abs=0.1)
    mixed, rate = store.get_audio(sha256)
    assert mixed.shape == (32_000,) and rate == 32_000
    np.testing.assert_allclose(mixed, audio.mean(axis=1), atol=1 / 32768)
    heard, _ = soundfile.read(io.BytesIO(store.rendition(sha256)))
    assert heard.shape == (32_000, 2) and not heard[:, 1].any() and heard[:, 0].any()
    with pytest.raises(DataError, match=r"\(samples, 2\)"):
        store.put_audio(np.zeros((10, 3)), 32_000)
