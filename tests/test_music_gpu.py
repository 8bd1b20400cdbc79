"""The sampler on a GPU: graphs that are replayed sing what the plain model says, and ask the host nothing."""

from __future__ import annotations

import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.music import slots as slots_module
from alignment.music.model import MusicModel
from alignment.music.sampler import Request, _uniforms, sample, sample_queue
from alignment.music.slots import Slots
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_melody, make_tiny_music, randomise_adapter
from tests.test_music_queue import REQUESTS
from tests.test_music_sampler import PROMPTS, generate_codes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_gpu(dtype: torch.dtype = torch.float32) -> MusicModel:
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make_tiny_music()
    for part in (model.hf.decoder, model.hf.text_encoder, model.hf.enc_to_dec_proj):
        part.to(dtype)
    model.hf.to("cuda")
    return model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("adapter", [False, True])
def test_replayed_greedy_codes_are_those_of_transformers_generate(adapter: bool, guidance: float) -> None:
    here = make_tiny_music()
    if adapter:
        here.add_adapter(LoraSettings(r=4), seed=1)
        randomise_adapter(here)
    theirs = generate_codes(here, PROMPTS, 25, guidance)  # on the CPU
    here.hf.to("cuda")
    here.text_cache.clear()
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.5)
    assert torch.equal(sample(here, PROMPTS, generation=greedy, seeds=[0, 1, 2]).codes, theirs.cpu())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_replayed_greedy_codes_of_a_melody_checkpoint_are_those_of_transformers_generate(guidance: float) -> None:
    here = make_tiny_melody()
    theirs = [generate_codes(here, [prompt], 25, guidance) for prompt in PROMPTS]  # on the CPU, each alone
    here.hf.to("cuda")
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=0.5)
    assert torch.equal(sample(here, PROMPTS, generation=greedy, seeds=[0, 1, 2]).codes, torch.cat(theirs).cpu())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_replayed_steps_follow_the_plain_forwards_probabilities(dtype: torch.dtype, most: float) -> None:
    model = on_gpu(dtype)
    generation = GenerationConfig(guidance=3.0, temperature=0.9, clip_seconds=0.8)
    rollout = sample(model, PROMPTS, generation=generation, seeds=[3, 4, 5])
    scored = model.logprobs(rollout.codes, encode_prompts(model, PROMPTS), generation=generation).cpu()
    assert (rollout.logprobs.exp() - scored.exp()).abs().max() < most


def test_clips_of_a_queue_are_those_sung_alone_across_several_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "REACH", 8)
    model, generation = on_gpu(), GenerationConfig(guidance=3.0, top_k=20)
    found = dict(sample_queue(model, REQUESTS, generation, rows=3))
    for place, wanted in enumerate(REQUESTS):
        alone = sample(
            model, [wanted.prompt], seeds=[wanted.seed],
            generation=GenerationConfig(guidance=3.0, top_k=20, clip_seconds=wanted.clip_seconds),
        )  # fmt: skip
        assert torch.equal(found[place].codes, alone.codes)


def test_steps_between_the_ends_of_clips_make_the_host_wait_for_nothing() -> None:
    model = on_gpu()
    with torch.inference_mode():
        text = encode_prompts(model, PROMPTS)
        slots = Slots(model, GenerationConfig(guidance=3.0, top_k=20), 3, 20, text.mask.shape[1])
        slots.place(range(3), text, list(_uniforms(model, [1, 2, 3], 20)))
        slots._advance(0)  # captures the graph
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in range(1, 20):
                slots._advance(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(slots.graphs) == 1


def test_an_adapter_that_has_learned_since_is_in_the_next_rollout() -> None:
    model = on_gpu()
    model.add_adapter(LoraSettings(r=4), seed=1)
    request = [Request("flute", 1, 0.5)]
    before = dict(sample_queue(model, request, GenerationConfig()))[0].codes
    randomise_adapter(model)
    assert not torch.equal(before, dict(sample_queue(model, request, GenerationConfig()))[0].codes)
