"""Melody checkpoints sung from text alone: what transformers' own class does with a text and no melody, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music.delay import apply_delay, delay_labels, undo_delay
from alignment.music.model import MusicModel
from alignment.music.sampler import Request, sample, sample_queue
from alignment.music.text import encode_prompts, without_prompts
from tests.music_support import make_tiny_melody, randomise_adapter
from tests.test_music_sampler import generate_codes

LONG = "a fast dark trumpet tune with drums and strings over a slow organ"
PROMPTS = ["calm piano", LONG, "flute", ""]


@pytest.fixture(scope="module", params=["base", "adapter", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicModel:
    model = make_tiny_melody(channels=2 if request.param == "stereo" else 1)
    if request.param == "adapter":
        model.add_adapter(LoraSettings(r=4, lora_alpha=8), seed=1)
        randomise_adapter(model, scale=0.15)
    return model


def random_codes(model: MusicModel, clips: int, frames: int) -> torch.Tensor:
    return torch.randint(64, (clips, model.codebooks, frames), generator=torch.Generator().manual_seed(frames))


def theirs_alone(model: MusicModel, codes: torch.Tensor, prompt: str) -> torch.Tensor:
    """Logits (1, K, T, V) of transformers' own forward pass over one clip."""
    tokens = model.tokenizer([prompt], return_tensors="pt")
    read = apply_delay(codes, model.pad, channels=model.channels)
    out = model.hf(**tokens, decoder_input_ids=read.flatten(0, 1)).logits  # (K, 7 + L + S, V)
    assert out.shape[1] == 7 + tokens["input_ids"].shape[1] + read.shape[2]
    return undo_delay(out[None, :, -read.shape[2] :], channels=model.channels)


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_logits_are_those_of_transformers_for_each_prompt_alone(model: MusicModel, frames: int):
    prompts = PROMPTS[:3]  # of three lengths, in one batch of ours
    codes = random_codes(model, 3, frames)
    with torch.no_grad():
        ours = model.logits(codes, encode_prompts(model, prompts))
        theirs = torch.cat([theirs_alone(model, codes[row : row + 1], prompts[row]) for row in range(3)])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert ours.std() > 0.5


def test_transformers_own_loss_is_minus_the_mean_log_probability(model: MusicModel):
    codes = random_codes(model, 1, 17)
    tokens = model.tokenizer(["calm piano"], return_tensors="pt")
    read = apply_delay(codes, model.pad, channels=model.channels).flatten(0, 1)
    labels = delay_labels(codes, channels=model.channels)
    theirs = model.hf(**tokens, decoder_input_ids=read, labels=labels).loss
    ours = -model.logprobs(codes, encode_prompts(model, ["calm piano"])).mean()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_are_those_of_transformers_generate(model: MusicModel, guidance: float):
    generation = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.5)
    ours = sample(model, PROMPTS[:3], generation=generation, seeds=[0, 1, 2])
    for row, prompt in enumerate(PROMPTS[:3]):  # alone: transformers' padding stands between prompt and codes
        # Of a stereo model the left channel's books, and steps as if its eight books were late one by one.
        theirs = generate_codes(model, [prompt], 25 if model.channels == 1 else 21, guidance)
        assert torch.equal(ours.codes[row, :: model.channels], theirs[0])
    assert len(ours.codes.unique()) > 10
    assert ours.logprobs.abs().max() < 1e-6


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize(("frames", "clips"), [(1, 1), (3, 4), (50, 3)])
def test_forced_log_probabilities_equal_the_samplers(
    model: MusicModel, guidance: float, top_k: int, frames: int, clips: int
):
    generation = GenerationConfig(top_k=top_k, guidance=guidance, temperature=0.9, clip_seconds=frames / 50)
    prompts = PROMPTS[:clips]
    rollout = sample(model, prompts, generation=generation, seeds=range(clips))
    assert rollout.codes.shape == (clips, model.codebooks, frames)
    forced = model.logprobs(rollout.codes, encode_prompts(model, prompts), generation=generation)
    torch.testing.assert_close(forced, rollout.logprobs, atol=2e-4, rtol=0)
    if frames == 50:
        assert rollout.logprobs.mean() < -0.5


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_clip_depends_on_neither_the_prompts_beside_it_nor_the_queue(model: MusicModel, guidance: float):
    generation = GenerationConfig(guidance=guidance, clip_seconds=0.6)
    together = sample(model, PROMPTS, generation=generation, seeds=[7, 8, 9, 10])
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, [prompt], generation=generation, seeds=[7 + row])
        assert torch.equal(alone.codes[0], together.codes[row])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], atol=1e-4, rtol=0)
    # Two slots, taken by prompts longer and shorter than those that stood there before, at lengths of their own.
    wanted = [Request(prompt, 7 + row, seconds) for row, (prompt, seconds) in enumerate(
        zip(PROMPTS, [0.6, 0.3, 0.6, 0.4], strict=True)
    )]  # fmt: skip
    for place, rollout in sample_queue(model, wanted, generation, rows=2):
        frames = model.frames(wanted[place].clip_seconds)
        assert torch.equal(rollout.codes[0, 0], together.codes[place, 0, :frames])


def test_padding_beside_a_longer_prompt_changes_nothing_and_is_not_heard(model: MusicModel):
    codes = random_codes(model, 1, 12)
    alone = model.logprobs(codes, encode_prompts(model, ["flute"]))
    text = encode_prompts(model, ["flute", LONG])
    assert int(text.mask[0].sum()) < text.mask.shape[1]
    loud = type(text)(torch.where(text.mask[..., None] == 0, 100.0, text.hidden), text.mask)
    for heard in (text, loud):
        together = model.logprobs(codes.expand(2, -1, -1), heard)[:1]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_without_a_prompt_zeros_are_heard_in_as_many_places(model: MusicModel):
    text = encode_prompts(model, ["flute", LONG])
    nothing = without_prompts(model, text)
    assert torch.equal(nothing.mask, text.mask) and not nothing.hidden.any()
    codes, projected = random_codes(model, 1, 9), model.hf.audio_enc_to_dec_proj
    melody = (projected.weight[:, 0] + projected.bias).expand(1, 7, -1)
    for row, tokens in enumerate(text.mask.sum(dim=1).tolist()):
        read = apply_delay(codes, model.pad, channels=model.channels)
        ahead = torch.cat([melody, torch.zeros(1, tokens, model.width)], dim=1)
        theirs = model.hf.decoder(input_ids=read.flatten(0, 1), encoder_hidden_states=ahead).logits
        theirs = undo_delay(theirs[None, :, -read.shape[2] :], channels=model.channels)
        ours = model.logits(codes, nothing.rows([row]))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_code_never_depends_on_later_ones(model: MusicModel):
    text, codes = encode_prompts(model, ["flute"]), random_codes(model, 1, 10)
    changed = codes.clone()
    changed[:, :, 6:] = (codes[:, :, 6:] + 1) % 64
    before, after = model.logits(codes, text), model.logits(changed, text)
    torch.testing.assert_close(after[:, 0, :7], before[:, 0, :7], atol=1e-5, rtol=0)
    assert (after[:, 0, 7:] - before[:, 0, 7:]).abs().max() > 1e-3


def targets(model: MusicModel) -> Sequence[str]:
    return sorted({name.split(".layers.0.")[1].split(".")[0] for name, _ in model.hf.named_parameters()
                   if "lora_A" in name and ".layers.0." in name})  # fmt: skip


def test_adapters_sit_where_there_is_something_and_are_refused_where_there_is_nothing():
    model = make_tiny_melody()
    with pytest.raises(ModelError, match=r"no cross-attention.*self_attention, feed_forward, heads"):
        model.add_adapter(LoraSettings(target_modules=("cross_attention",)))
    assert not model.has_adapter and not model.trainable_parameters()
    model.add_adapter(LoraSettings(r=2))  # by default cross-attention is among them
    assert targets(model) == ["fc1", "fc2", "self_attn"]
    model.remove_adapter()
    model.add_adapter(LoraSettings(r=2, target_modules=("cross_attention", "self_attention")))
    assert targets(model) == ["self_attn"]
