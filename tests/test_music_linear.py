"""Packed products: the same numbers as F.linear, kept for the frozen base and made anew for what an adapter changes."""

from __future__ import annotations

import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.music.distribution import _kth_largest
from alignment.music.linear import pack, pack_layers
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music, randomise_adapter
from tests.test_music_sampler import PROMPTS, generate_codes


def half_valued_music() -> MusicModel:
    """A model whose weights are float16 numbers, as a checkpoint stored in float16 has them."""
    model = make_tiny_music()
    with torch.no_grad():
        for parameter in model.hf.decoder.parameters():
            parameter.copy_(parameter.half())
    return model


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("kind", ["float16 numbers", "float32 numbers", "one number too large for float16"])
def test_a_packed_product_is_exact_in_float32(kind: str, rows: int):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator)
    weight[0, :3] = torch.tensor([2**-24, 2**-15, 0.0])  # float16's smallest numbers are kept too
    weight = weight.half().float() if kind != "float32 numbers" else weight
    if kind.startswith("one"):
        weight[5, 5] = 7e4
    given = torch.randn(rows, 64, generator=generator)
    exact = given.double() @ weight.double().T
    # What 64 sums in float32 may lose whatever their order; weights rounded to float16 would lose 128 times as much.
    bound = 64 * 2.0**-24 * (given.abs().double() @ weight.abs().double().T)
    assert ((pack(weight)(given).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_half_valued_weights_give_transformers_greedy_codes_and_the_models_log_probabilities(guidance: float):
    model = half_valued_music()
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.8)  # 40 frames: the cache grows twice
    assert torch.equal(
        sample(model, PROMPTS, generation=greedy, seeds=[0, 1, 2]).codes, generate_codes(model, PROMPTS, 40, guidance)
    )
    drawn = GenerationConfig(top_k=20, guidance=guidance, temperature=0.9, clip_seconds=0.8)
    rollout = sample(model, PROMPTS, generation=drawn, seeds=[3, 4, 5])
    scored = model.logprobs(rollout.codes, encode_prompts(model, PROMPTS), generation=drawn)
    torch.testing.assert_close(rollout.logprobs.exp(), scored.exp(), atol=1e-4, rtol=0)


def test_the_base_is_packed_once_and_again_when_its_weights_change():
    model = half_valued_music()
    layer = model.hf.decoder.model.decoder.layers[0].fc1
    first = pack_layers(model.packed, "fc1", [layer])
    assert pack_layers(model.packed, "fc1", [layer]) is first
    with torch.no_grad():
        layer.weight.mul_(2)
    given = torch.randn(2, model.width)
    torch.testing.assert_close(pack_layers(model.packed, "fc1", [layer])(given), 2 * first(given))


def test_an_adapter_is_packed_as_it_is_at_each_rollout_and_leaves_the_base_packed():
    model = half_valued_music()
    generation = GenerationConfig(clip_seconds=0.3)

    def sing() -> torch.Tensor:
        return sample(model, PROMPTS, generation=generation, seeds=[1, 2, 3]).logprobs

    base = sing()
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model, seed=1)
    first = sing()
    randomise_adapter(model, seed=2)
    second = sing()
    with model.reference():
        assert torch.equal(sing(), base)
    assert not torch.equal(first, base) and not torch.equal(first, second)
    assert torch.equal(sing(), second)


def test_a_rollout_may_be_used_in_training():
    rollout = sample(make_tiny_music(), PROMPTS, generation=GenerationConfig(clip_seconds=0.1), seeds=[1, 2, 3])
    weight = torch.ones((), requires_grad=True)
    (weight * rollout.logprobs).sum().backward()
    assert weight.grad is not None and not rollout.codes.is_inference()


@pytest.mark.parametrize("k", [1, 2, 63])
def test_the_kth_largest_is_that_of_a_sorted_row(k: int):
    rows = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(k))
    assert torch.equal(_kth_largest(rows, k), rows.sort(dim=-1, descending=True).values[..., k - 1 : k])
