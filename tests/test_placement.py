"""Device and precision: an option, else the environment, else what is there."""

from __future__ import annotations

import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ConfigError
from alignment.music.placement import Placement, choose
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music, randomise_adapter


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTUNE_DEVICE", "ATTUNE_DTYPE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_the_cpu_in_float32():
    assert choose() == Placement("cpu", torch.float32)
    assert choose(dtype="bf16") == Placement("cpu", torch.bfloat16)
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        choose("cuda")


def test_a_gpu_is_taken_in_bfloat16_each_process_its_own(two_gpus: None, monkeypatch: pytest.MonkeyPatch):
    assert choose() == Placement("cuda:0", torch.bfloat16)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose() == Placement("cuda:1", torch.bfloat16)
    assert choose("cuda:0", "fp32") == Placement("cuda:0", torch.float32)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose().dtype == torch.float16
    with pytest.raises(ConfigError, match="cuda:4, and there are 2"):
        choose("cuda:4")


def test_an_option_goes_before_the_environment(two_gpus: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTUNE_DEVICE", "cpu")
    monkeypatch.setenv("ATTUNE_DTYPE", "bf16")
    assert choose() == Placement("cpu", torch.bfloat16)
    assert choose("cuda", "fp16") == Placement("cuda:0", torch.float16)


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("gpu", None, "'gpu'"), ("meta", None, "is meta"), ("cpu", "int8", "'int8'"), ("cpu", "fp16", "too slowly")],
)
def test_what_is_not_there_is_refused(device: str, dtype: str | None, words: str):
    with pytest.raises(ConfigError, match=words):
        choose(device, dtype)


def test_in_bfloat16_sampler_and_scores_agree_and_the_adapter_stays_in_float32():
    model = make_tiny_music()
    for part in (model.hf.text_encoder, model.hf.decoder, model.hf.enc_to_dec_proj):
        part.to(torch.bfloat16)
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model, scale=0.1)
    assert {p.dtype for p in model.trainable_parameters()} == {torch.float32}
    prompts = ["calm piano", "fast dark organ"]
    rollout = sample(model, prompts, generation=GenerationConfig(clip_seconds=0.4), seeds=[0, 1])
    text = encode_prompts(model, prompts)
    logprobs = model.logprobs(rollout.codes, text)
    assert logprobs.dtype == torch.float32
    assert (logprobs - rollout.logprobs).abs().mean() < 0.05  # what PPO refuses to go beyond
    logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.trainable_parameters())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.trainable_parameters())


@pytest.mark.gpu
def test_on_a_gpu_attune_tiny_sings_in_bfloat16_and_its_scores_agree():
    from alignment.music import memory
    from alignment.music.codec import render
    from alignment.music.model import MusicModel

    place = choose("cuda")
    model = MusicModel.load("tiny", device=place.device, dtype=place.dtype)
    assert model.base_sha256 == MusicModel.load("tiny").base_sha256
    torch.cuda.reset_peak_memory_stats()
    before, prompts = torch.cuda.memory_allocated(), ["a calm piano melody"] * 32
    rollout = sample(model, prompts, generation=GenerationConfig(guidance=3.0), seeds=range(32))
    assert render(model, rollout.codes).shape == (32, 80_000)
    logprobs = model.logprobs(rollout.codes, encode_prompts(model, prompts), generation=GenerationConfig(guidance=3.0))
    assert (logprobs.cpu() - rollout.logprobs).abs().mean() < 0.05
    wanted = memory.generation(memory.Shape.of_model(model), clips=32, seconds=5, guidance=3.0, dtype=place.dtype)
    assert torch.cuda.max_memory_allocated() - before < 1.5 * wanted.total
