"""Log-probabilities: what the sampler reports is what the model, forced along the same codes, says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ShapeError
from alignment.music.delay import apply_delay, delay_labels
from alignment.music.distribution import draw, shape_logits, token_logprobs
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts, null_text
from tests.music_support import make_tiny_music, randomise_adapter

PROMPTS = ["calm piano", "a fast dark trumpet tune with drums and strings over a slow organ", "flute", ""]


@pytest.fixture(scope="module", params=["base", "adapter"])
def model(request: pytest.FixtureRequest) -> MusicModel:
    model = make_tiny_music()
    if request.param == "adapter":
        model.add_adapter(LoraSettings(r=4, lora_alpha=8), seed=1)
        randomise_adapter(model)
    return model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize(("frames", "clips"), [(1, 1), (3, 4), (20, 3), (50, 2)])
def test_forced_log_probabilities_equal_the_samplers(
    model: MusicModel, guidance: float, top_k: int, frames: int, clips: int
):
    generation = GenerationConfig(top_k=top_k, guidance=guidance, temperature=0.9, clip_seconds=frames / 50)
    prompts = (PROMPTS * 2)[:clips]
    rollout = sample(model, prompts, generation=generation, seeds=range(clips))
    assert rollout.codes.shape == (clips, 4, frames)
    forced = model.logprobs(rollout.codes, encode_prompts(model, prompts), generation=generation)
    torch.testing.assert_close(forced, rollout.logprobs, atol=1e-4, rtol=0)
    assert rollout.logprobs.max() <= 1e-6
    if frames == 50:
        assert rollout.logprobs.mean() < -0.5  # the distributions are far from certain, so agreement means something


def test_the_adapter_and_guidance_change_the_log_probabilities():
    model = make_tiny_music()
    text = encode_prompts(model, PROMPTS[:2])
    codes = torch.randint(64, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    plain = model.logprobs(codes, text)
    guided = model.logprobs(codes, text, generation=GenerationConfig(guidance=3.0))
    model.add_adapter(LoraSettings(r=4), seed=1)
    torch.testing.assert_close(model.logprobs(codes, text), plain, atol=0, rtol=0)  # fresh: B is zero
    randomise_adapter(model)
    assert (guided - plain).abs().mean() > 0.1
    assert (model.logprobs(codes, text) - plain).abs().mean() > 0.1


def test_transformers_own_loss_is_minus_the_mean_log_probability(model: MusicModel):
    prompts = ["calm piano melody", "fast dark organ"]  # equal lengths
    codes = torch.randint(64, (2, 4, 17), generator=torch.Generator().manual_seed(1))
    tokens = model.tokenizer(prompts, return_tensors="pt")
    theirs = model.hf(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        decoder_input_ids=apply_delay(codes, model.pad).flatten(0, 1),
        labels=delay_labels(codes),
    ).loss
    ours = -model.logprobs(codes, encode_prompts(model, prompts)).mean()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_transformers_loss_agrees_when_it_makes_the_decoder_ids_from_our_labels(model: MusicModel):
    from transformers.models.musicgen.modeling_musicgen import shift_tokens_right

    codes = torch.randint(64, (2, 4, 6), generator=torch.Generator().manual_seed(1))
    theirs = shift_tokens_right(delay_labels(codes), model.pad, model.pad)
    assert torch.equal(apply_delay(codes, model.pad), theirs)


def test_padding_beside_a_longer_prompt_changes_nothing(model: MusicModel):
    codes = torch.randint(64, (1, 4, 12), generator=torch.Generator().manual_seed(2))
    alone = model.logprobs(codes, encode_prompts(model, ["flute"]))
    text = encode_prompts(model, ["flute", PROMPTS[1]])
    assert int(text.mask[0].sum()) < text.mask.shape[1]
    together = model.logprobs(codes.expand(2, -1, -1), text)[:1]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_is_not_heard(model: MusicModel):
    codes = torch.randint(64, (2, 4, 12), generator=torch.Generator().manual_seed(2))
    text = encode_prompts(model, ["flute", PROMPTS[1]])
    loud = type(text)(torch.where(text.mask[..., None] == 0, 100.0, text.hidden), text.mask)
    torch.testing.assert_close(model.logprobs(codes, loud), model.logprobs(codes, text), atol=1e-5, rtol=0)


def test_a_code_never_depends_on_later_ones(model: MusicModel):
    text = encode_prompts(model, ["flute"])
    codes = torch.randint(64, (1, 4, 10), generator=torch.Generator().manual_seed(3))
    changed = codes.clone()
    changed[:, :, 6:] = (codes[:, :, 6:] + 1) % 64
    before, after = model.logits(codes, text), model.logits(changed, text)
    # Book k's frame t is predicted at step t + k from codes read by then: book j up to frame t + k - j - 1.
    for k in range(4):
        untouched = 6 - k + 1  # frames t with t + k - 1 < 6 have read no changed code, not even of book 0
        torch.testing.assert_close(after[:, k, :untouched], before[:, k, :untouched], atol=1e-5, rtol=0)
        assert (after[:, k, untouched] - before[:, k, untouched]).abs().max() > 1e-3


def test_the_unconditional_text_is_what_transformers_uses_for_guidance(model: MusicModel):
    codes = torch.randint(64, (2, 4, 9), generator=torch.Generator().manual_seed(4))
    theirs = model.hf(
        encoder_outputs=(torch.zeros(2, 5, 24),),
        attention_mask=torch.zeros(2, 5, dtype=torch.int64),
        decoder_input_ids=apply_delay(codes, model.pad).flatten(0, 1),
    ).logits.unflatten(0, (2, 4))
    ours = model.logits(codes, null_text(model, 2))
    for k in range(4):
        torch.testing.assert_close(ours[:, k], theirs[:, k, k : k + 9], atol=1e-5, rtol=0)


def test_top_k_keeps_the_k_likeliest_and_renormalises():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    shaped = shape_logits(logits, GenerationConfig(top_k=2, temperature=0.5))
    assert shaped.tolist() == [[float("-inf"), 6.0, 4.0, float("-inf")]]
    scores = token_logprobs(logits.expand(4, 4), torch.arange(4), GenerationConfig(top_k=2))
    by_hand = -torch.log1p(torch.exp(torch.tensor(-1.0)))  # log(e^3 / (e^3 + e^2))
    torch.testing.assert_close(scores[1], by_hand)
    torch.testing.assert_close(scores[2], by_hand - 1)
    assert scores[0] == scores[3] == float("-inf")


def test_inverse_cdf_draws_each_code_for_its_own_share_of_the_unit_interval():
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log()
    uniforms = torch.tensor([0.0, 0.05, 0.15, 0.29, 0.31, 0.99, 1 - 2**-24])
    codes, logprobs = draw(logits.expand(7, 4), uniforms, GenerationConfig())
    assert codes.tolist() == [0, 0, 1, 1, 3, 3, 3]
    torch.testing.assert_close(logprobs, logits[codes])


def test_a_uniform_just_below_one_never_draws_an_impossible_code():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 64, generator=generator)
    for uniform in (0.0, 1 - 2**-24):
        _, logprobs = draw(logits, torch.full((2000,), uniform), GenerationConfig(top_k=5))
        assert torch.isfinite(logprobs).all()


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    codes, _ = draw(logits.expand(10_000, 3), uniforms, GenerationConfig())
    assert torch.bincount(codes).tolist() == [5000, 3000, 2000]


def test_gradients_reach_the_adapter_and_only_it():
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model)
    codes = torch.randint(64, (2, 4, 6))
    text = encode_prompts(model, PROMPTS[:2])
    model.logprobs(codes, text, generation=GenerationConfig(guidance=2.0)).sum().backward()
    for name, parameter in model.hf.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == ("lora_" in name), name


def test_training_mode_brings_no_dropout_back():
    model = make_tiny_music()  # its config asks for dropout 0.1
    codes = torch.randint(64, (1, 4, 6))
    text = encode_prompts(model, ["flute"])
    still = model.logprobs(codes, text)
    model.hf.train()
    assert torch.equal(model.logprobs(codes, text), still)
    assert F.dropout(torch.ones(1000), 0.1, True).min() == 0  # what it would have done


def test_prompts_encoded_in_training_mode_are_the_same():
    trained = make_tiny_music()
    trained.hf.train()
    ours, theirs = encode_prompts(trained, PROMPTS), encode_prompts(make_tiny_music(), PROMPTS)
    assert torch.equal(ours.hidden, theirs.hidden)
    assert trained.hf.text_encoder.training


def test_text_for_another_number_of_clips_is_refused():
    model = make_tiny_music()
    with pytest.raises(ShapeError, match="text for 2 clips"):
        model.logits(torch.zeros(3, 4, 5, dtype=torch.int64), encode_prompts(model, PROMPTS[:2]))
    with pytest.raises(ShapeError, match=r"\(1, 4, T\)"):
        model.logits(torch.zeros(1, 3, 5, dtype=torch.int64), encode_prompts(model, PROMPTS[:1]))
