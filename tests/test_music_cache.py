"""Self-attention's caches: each says what plain attention says, over more steps than one chunk holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from alignment.domain import GenerationConfig
from alignment.music import cache, step
from alignment.music.cache import GrownCache, TableCache, self_attention
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music
from tests.test_music_sampler import PROMPTS, generate_codes

STEPS, HEADS, SIZE, LAYERS = 70, 6, 8, 2  # steps: a chunk of 64, and 6 of the next


@pytest.mark.parametrize("made", [GrownCache, TableCache])
def test_a_cache_attends_as_plain_attention_does(made: Callable[..., cache.Cache]) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(STEPS, LAYERS, HEADS, 3, SIZE, generator=generator)
    attends = made(LAYERS, HEADS, STEPS, 0.3, torch.zeros(1), SIZE)
    for s in range(STEPS):
        attends.begin(s)
        for layer in range(LAYERS):
            heard = attends.attend(layer, qkv[s, layer])
            queries, keys, values = qkv[: s + 1, layer].double().permute(2, 1, 0, 3)  # (H', s + 1, d) each
            weights = (0.3 * queries[:, -1:] @ keys.transpose(1, 2)).softmax(-1)
            torch.testing.assert_close(heard.double(), (weights @ values)[:, 0], atol=2e-6, rtol=0)


def test_what_stood_in_the_memory_before_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = lambda self, *shape, **_: torch.full(shape, float("nan"))  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", spoiled)
    attends = TableCache(1, 2, 20, 1.0, torch.zeros(1), 4)
    for s in range(20):
        attends.begin(s)
        heard = attends.attend(0, torch.ones(2, 3, 4))
        torch.testing.assert_close(heard, torch.ones(2, 4))


def test_many_heads_on_a_cpu_go_through_tables_and_few_or_other_precisions_do_not() -> None:
    pick = lambda heads, like: type(self_attention(1, heads, 5, 1.0, like, 4))  # noqa: E731
    assert pick(cache.FEWEST, torch.zeros(1)) is (TableCache if cache.has_fbgemm() else GrownCache)
    assert pick(cache.FEWEST - 1, torch.zeros(1)) is GrownCache
    assert pick(cache.FEWEST, torch.zeros(1, dtype=torch.bfloat16)) is GrownCache


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_through_tables_too_greedy_codes_are_transformers_and_log_probabilities_the_models(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "self_attention", TableCache)
    model = make_tiny_music()
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=1.4)  # 70 frames
    assert torch.equal(
        sample(model, PROMPTS, generation=greedy, seeds=[0, 1, 2]).codes, generate_codes(model, PROMPTS, 70, guidance)
    )
    drawn = GenerationConfig(top_k=20, guidance=guidance, temperature=0.9, clip_seconds=1.4)
    rollout = sample(model, PROMPTS, generation=drawn, seeds=[3, 4, 5])
    scored = model.logprobs(rollout.codes, encode_prompts(model, PROMPTS), generation=drawn)
    torch.testing.assert_close(rollout.logprobs.exp(), scored.exp(), atol=1e-4, rtol=0)
