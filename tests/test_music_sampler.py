"""The sampler: identical to transformers where both are defined, and every clip its own seed's."""

from __future__ import annotations

import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import DataError
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music, randomise_adapter

PROMPTS = ["calm piano", "a fast dark trumpet tune with drums and strings over a slow organ", "flute"]


def generate_codes(model: MusicModel, prompts: list[str], frames: int, guidance: float) -> torch.Tensor:
    """What transformers' own greedy generate() hands to the codec, (B, K, T)."""
    caught: list[torch.Tensor] = []
    codec = model.hf.audio_encoder
    original = codec.decode

    def catch(audio_codes: torch.Tensor, *args: object, **kwargs: object) -> object:
        caught.append(audio_codes)
        return original(audio_codes, *args, **kwargs)

    codec.decode = catch
    try:
        tokens = model.tokenizer(prompts, return_tensors="pt", padding=True)
        model.hf.generate(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], do_sample=False,
            guidance_scale=guidance, max_new_tokens=frames + model.codebooks - 1,
        )  # fmt: skip
    finally:
        del codec.decode
    return caught[0][0]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_are_those_of_transformers_generate(adapter: bool, guidance: float):
    model = make_tiny_music()
    if adapter:
        model.add_adapter(LoraSettings(r=4), seed=1)
        randomise_adapter(model)
    theirs = generate_codes(model, PROMPTS, 25, guidance)
    ours = sample(
        model, PROMPTS, generation=GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.5), seeds=[0, 1, 2]
    )
    assert torch.equal(ours.codes, theirs)
    assert len(ours.codes.unique()) > 10
    assert ours.logprobs.abs().max() < 1e-6


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_clip_depends_on_its_own_seed_and_not_on_the_batch(guidance: float):
    model = make_tiny_music()
    generation = GenerationConfig(guidance=guidance, clip_seconds=0.6)
    together = sample(model, PROMPTS, generation=generation, seeds=[7, 8, 9])
    for row, (prompt, seed) in enumerate(zip(PROMPTS, [7, 8, 9], strict=True)):
        alone = sample(model, [prompt], generation=generation, seeds=[seed])
        assert torch.equal(alone.codes[0], together.codes[row])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], atol=1e-4, rtol=0)
    in_parts = sample(model, PROMPTS, generation=generation, seeds=[7, 8, 9], batch_size=2)
    assert torch.equal(in_parts.codes, together.codes)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another():
    model = make_tiny_music()
    generation = GenerationConfig(clip_seconds=0.5)
    codes = sample(model, ["flute"] * 3, generation=generation, seeds=[5, 5, 6]).codes
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_seeds_that_agree_in_their_low_32_bits_give_different_clips():
    generation = GenerationConfig(clip_seconds=0.5)
    codes = sample(make_tiny_music(), ["flute"] * 2, generation=generation, seeds=[5, 5 + 2**32]).codes
    assert not torch.equal(codes[0], codes[1])


def test_a_longer_clip_begins_like_a_shorter_one_of_the_same_seed():
    model = make_tiny_music()
    short = sample(model, ["flute"], generation=GenerationConfig(clip_seconds=0.2), seeds=[5]).codes
    long = sample(model, ["flute"], generation=GenerationConfig(clip_seconds=0.5), seeds=[5]).codes
    # After step T the short clip reads pads where the long one reads codes, but draws no frame of book 0 any more.
    assert torch.equal(short[:, 0], long[:, 0, : short.shape[2]])


def test_inside_reference_the_base_sings_exactly():
    model = make_tiny_music()
    generation = GenerationConfig(guidance=2.0, clip_seconds=0.4)
    base = sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3])
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model)
    with model.reference():
        reference = sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3])
    policy = sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3])
    assert torch.equal(reference.codes, base.codes) and torch.equal(reference.logprobs, base.logprobs)
    assert not torch.equal(policy.codes, base.codes)


def test_sampled_codes_follow_the_models_first_step_distribution():
    model = make_tiny_music()
    clips = 4000
    codes = sample(
        model, ["flute"] * clips, generation=GenerationConfig(clip_seconds=0.02), seeds=range(clips), batch_size=1000
    ).codes
    expected = model.logits(codes[:1], encode_prompts(model, ["flute"]))[0, 0, 0].softmax(-1)  # book 0, frame 0
    observed = torch.bincount(codes[:, 0, 0], minlength=64) / clips
    # Five standard errors of a share.
    assert ((observed - expected).abs() < 5 * (expected * (1 - expected) / clips).sqrt() + 1e-3).all()


def test_prompts_and_seeds_must_match():
    model = make_tiny_music()
    with pytest.raises(DataError, match="2 prompts and 1 seeds"):
        sample(model, PROMPTS[:2], generation=GenerationConfig(), seeds=[1])
    with pytest.raises(DataError, match="negative"):
        sample(model, PROMPTS[:1], generation=GenerationConfig(), seeds=[-1])


def test_no_prompts_give_an_empty_rollout():
    rollout = sample(make_tiny_music(), [], generation=GenerationConfig(clip_seconds=1.0), seeds=[])
    assert rollout.codes.shape == rollout.logprobs.shape == (0, 4, 50)


def test_whoever_wants_to_be_told_hears_of_every_step_of_all_batches_and_may_end_it():
    model, generation, told = make_tiny_music(), GenerationConfig(clip_seconds=0.2), []
    plain = sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3], batch_size=2)
    heard = sample(
        model, PROMPTS, generation=generation, seeds=[1, 2, 3], batch_size=2,
        on_step=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    steps = 2 * (10 + 3)  # two batches of 10 frames, delayed by 3 steps
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert torch.equal(plain.codes, heard.codes)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3], on_step=stop)
    assert torch.equal(sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3], batch_size=2).codes, plain.codes)
