"""Codes to audio and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.errors import ShapeError
from alignment.music.codec import decode, encode
from alignment.music.model import MusicModel
from tests.music_support import make_tiny_music


@pytest.fixture(scope="module")
def model() -> MusicModel:
    return make_tiny_music()


def test_audio_has_one_row_a_clip_and_320_samples_a_frame(model: MusicModel):
    codes = torch.randint(64, (5, 4, 13), generator=torch.Generator().manual_seed(0))
    audio = decode(model, codes, batch_size=2)
    assert audio.shape == (5, 13 * 320) and audio.dtype == np.float32
    theirs = model.hf.audio_encoder.decode(codes[None], [None]).audio_values[:, 0].detach().numpy()
    np.testing.assert_allclose(audio, theirs, atol=1e-6)
    np.testing.assert_array_equal(decode(model, codes.numpy().astype(np.int16)), decode(model, codes))


def test_encoding_gives_codes_the_decoder_can_read(model: MusicModel):
    audio = np.random.default_rng(0).normal(size=(3, 3200)).astype(np.float32)
    codes = encode(model, audio, batch_size=2)
    assert codes.shape == (3, 4, 10) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 64
    theirs = model.hf.audio_encoder.encode(torch.from_numpy(audio)[:, None], bandwidth=model.bandwidth_kbps)
    assert torch.equal(codes, theirs.audio_codes[0])


def test_no_clips_give_no_audio(model: MusicModel):
    assert decode(model, torch.zeros(0, 4, 10, dtype=torch.int64)).shape == (0, 3200)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(2, 3, 5), r"\(B, 4, T\)"),
        (torch.full((1, 4, 5), 64), "outside"),
        (torch.full((1, 4, 5), -1), "outside"),
    ],
)
def test_codes_of_another_model_are_refused(model: MusicModel, codes: torch.Tensor, words: str):
    with pytest.raises(ShapeError, match=words):
        decode(model, codes)


def test_audio_without_a_batch_axis_is_refused(model: MusicModel):
    with pytest.raises(ShapeError, match=r"\(B, samples\)"):
        encode(model, np.zeros(3200, np.float32))
