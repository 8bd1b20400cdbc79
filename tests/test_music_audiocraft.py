"""Parity with audiocraft's own code on the same random weights."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music import audiocraft
from alignment.music.delay import apply_delay, undo_delay
from alignment.music.distribution import guide, token_logprobs
from alignment.music.model import MusicModel
from alignment.music.text import encode_prompts, null_text
from tests.music_support import make_tiny_music

pytestmark = pytest.mark.skipif(importlib.util.find_spec("audiocraft") is None, reason="audiocraft is not installed")
PROMPTS = ["calm piano melody", "fast dark organ"]  # of equal length


@pytest.fixture(scope="module")
def model() -> MusicModel:
    return make_tiny_music()


@pytest.fixture(scope="module")
def native(model: MusicModel) -> nn.Module:
    return audiocraft.to_audiocraft(model)


def codes(frames: int) -> torch.Tensor:
    return torch.randint(64, (2, 4, frames), generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", [1, 2, 5, 30])
def test_our_delay_is_their_delay(frames: int):
    pattern = audiocraft.delay_pattern(4, frames)
    theirs, _, _ = pattern.build_pattern_sequence(codes(frames), 64)  # one step longer: the last code of the last book
    assert torch.equal(apply_delay(codes(frames), 64), theirs[..., :-1])
    values = torch.randn(2, 64, 4, frames + 3)
    reverted, _, _ = pattern.revert_pattern_logits(values, float("nan"))
    assert torch.equal(undo_delay(values.permute(0, 2, 3, 1)), reverted.permute(0, 2, 3, 1))


@pytest.mark.parametrize("frames", [1, 5, 30])
def test_log_probabilities_agree_token_by_token(model: MusicModel, native: nn.Module, frames: int):
    text = encode_prompts(model, PROMPTS)
    with torch.no_grad():
        theirs = audiocraft.compute_logits(native, codes(frames), text).log_softmax(-1)
        theirs = theirs.gather(-1, codes(frames)[..., None])[..., 0]
        ours = model.logprobs(codes(frames), text)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_guided_log_probabilities_agree(model: MusicModel, native: nn.Module):
    text, generation = encode_prompts(model, PROMPTS), GenerationConfig(guidance=3.0, top_k=20, temperature=0.8)
    nothing = type(text)(torch.zeros_like(text.hidden), text.mask)  # audiocraft's dropped caption: zeros
    with torch.no_grad():
        with_text = audiocraft.compute_logits(native, codes(9), text)
        without = audiocraft.compute_logits(native, codes(9), nothing)
        theirs = token_logprobs(guide(with_text, without, 3.0), codes(9), generation)
        ours = model.logprobs(codes(9), text, generation=generation)
        torch.testing.assert_close(model.logits(codes(9), null_text(model, 2)), without, atol=5e-5, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_weights_survive_the_way_there_and_back(model: MusicModel, native: nn.Module):
    other = make_tiny_music(1)
    assert other.base_sha256 != model.base_sha256
    audiocraft.from_audiocraft(native, other)
    ours, theirs = model.hf.decoder.state_dict(), other.hf.decoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert other.base_sha256 == other.checksum()


def test_every_decoder_tensor_has_a_name_on_the_other_side(model: MusicModel):
    state = {name: tensor for name, tensor in model.hf.state_dict().items() if name.startswith(("decoder.", "enc_to"))}
    back = audiocraft.from_audiocraft_state(audiocraft.to_audiocraft_state(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_model_of_other_shapes_is_refused(native: nn.Module):
    with pytest.raises(ModelError, match="does not fit"):
        audiocraft.from_audiocraft(native, make_tiny_music(width=48))
    adapted = make_tiny_music()
    adapted.add_adapter(LoraSettings(r=2), seed=0)
    with pytest.raises(ModelError, match="remove it first"):
        audiocraft.from_audiocraft(native, adapted)


def test_padded_prompts_are_refused(model: MusicModel, native: nn.Module):
    with pytest.raises(ModelError, match="equal length"):
        audiocraft.compute_logits(native, codes(3), encode_prompts(model, ["flute", PROMPTS[0]]))


def test_no_stand_in_stays_importable(native: nn.Module):
    assert not [name for name in sys.modules if name.partition(".")[0] in ("xformers", "spacy", "hydra")]
    assert importlib.util.find_spec("xformers") is None
