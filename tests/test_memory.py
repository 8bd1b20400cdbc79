"""Memory before a run: counted from the published shapes, and a run that cannot fit refused with what would."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

from alignment.config import DpoSettings, LoraSettings
from alignment.errors import ModelError
from alignment.music import checkpoint, memory
from alignment.music.memory import GIB, Shape
from alignment.music.model import MusicModel
from alignment.music.published import PUBLISHED, published_config
from tests.music_support import make_tiny_melody, make_tiny_music

MIB = 2**20


@pytest.fixture(scope="module")
def shape() -> Callable[[str], Shape]:
    """The shape of facebook/musicgen-NAME, counted once."""
    return lru_cache(lambda name: Shape.of(published_config(f"facebook/musicgen-{name}")))


# 300M, 1.5B and 3.3B in the paper, which leaves embeddings and heads out.
@pytest.mark.parametrize(
    ("name", "millions"), [("small", 420), ("stereo-medium", 1863), ("large", 3255), ("melody", 1384)]
)
def test_a_published_checkpoints_parameters_are_counted_to_the_last(
    shape: Callable[[str], Shape], name: str, millions: int
):
    config = published_config(f"facebook/musicgen-{name}")
    with torch.device("meta"), checkpoint.quiet():
        hf = (MusicgenMelodyForConditionalGeneration if "melody" in name else MusicgenForConditionalGeneration)(config)
    checkpoint.require_supported(hf, name)
    counted = sum(p.numel() for p in hf.decoder.parameters())
    assert shape(name).decoder_parameters == counted and round(counted / 1e6) == millions


def test_every_published_text_to_music_checkpoint_is_known():
    assert len(PUBLISHED) == 10 and sum(not one.melody for one in PUBLISHED.values()) == 6


@pytest.mark.parametrize("make", [make_tiny_music, make_tiny_melody])
def test_an_adapters_parameters_are_counted_to_the_last(make: Callable[[], MusicModel]):
    model = make()
    for groups in (("self_attention",), ("self_attention", "cross_attention", "feed_forward", "heads")):
        lora = LoraSettings(r=3, target_modules=groups)
        model.add_adapter(lora)
        counted = sum(p.numel() for p in model.trainable_parameters())
        model.remove_adapter()
        assert Shape.of_model(model).adapter_parameters(lora) == counted


@pytest.mark.parametrize(("name", "mib"), [("small", 141), ("stereo-medium", 423), ("large", 564)])
def test_the_cache_of_a_thirty_second_clip_has_its_known_size(shape: Callable[[str], Shape], name: str, mib: int):
    # 2 (keys and values) * layers * width * 2 bytes * 1503 steps
    found = shape(name)
    assert memory.cache_bytes(found, found.steps(30.0), torch.bfloat16) / MIB == pytest.approx(mib, abs=0.6)


def test_what_stands_ahead_of_a_melody_checkpoints_clips_takes_memory_too(shape: Callable[[str], Shape]):
    melody, plain = shape("melody"), shape("medium")
    sung = {"clips": 2, "seconds": 10.0, "dtype": torch.float32}
    # 503 steps behind 235 places and 20 tokens, in both halves of guidance; its codec is held back by few clips.
    found = memory.generation(melody, guidance=3.0, text_tokens=20, **sung).parts["cache"]
    assert found == int(1.25 * 2 * 48 * 1536 * 4 * 2 * 2 * (235 + 20 + 503))
    lora = LoraSettings(target_modules=("self_attention",))
    longer = memory.training(melody, lora=lora, **sung).parts["activations"]
    assert longer / memory.training(plain, lora=lora, **sung).parts["activations"] == pytest.approx((503 + 267) / 503)


def test_the_codec_takes_fewer_clips_at_once_the_longer_they_are():
    assert [memory.codec_batch(seconds * 32_000) for seconds in (5, 10, 30, 100)] == [16, 8, 2, 1]


def test_what_training_takes_grows_as_it_should(shape: Callable[[str], Shape]):
    shape, lora = shape("small"), LoraSettings()
    plain = {"clips": 2, "seconds": 10.0, "lora": lora, "dtype": torch.float32}
    one = memory.training(shape, **plain).parts
    two = memory.training(shape, **plain | {"clips": 4}).parts
    saved = memory.training(shape, **plain, checkpointing=True).parts
    half = memory.training(shape, **plain | {"dtype": torch.bfloat16}).parts
    assert two["activations"] == 2 * one["activations"] and two["weights"] == one["weights"]
    assert saved["activations"] < one["activations"] / 10
    assert half["adapter"] == one["adapter"] == 4 * shape.adapter_parameters(lora)  # LoRA stays in float32
    assert one["gradients and optimizer"] == 3 * one["adapter"]
    decoder_and_text = shape.decoder_parameters + shape.text_parameters
    assert one["weights"] - half["weights"] == 2 * decoder_and_text


def test_a_run_that_cannot_fit_names_its_parts_and_what_would(
    shape: Callable[[str], Shape], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATTUNE_MEMORY", "24")
    shape = shape("large")

    def estimate(count: int) -> memory.Estimate:
        return memory.training(shape, clips=2 * count, seconds=30, lora=LoraSettings(), dtype=torch.bfloat16)

    with pytest.raises(ModelError) as caught:
        memory.require_fits(estimate, 4, device="cuda:0", what="DPO", smaller="a batch of")
    message = str(caught.value)
    assert "weights 6" in message and "activations" in message and "24 GiB free" in message
    assert "not even a batch of 1" in message or "a batch of 1 would need" in message
    monkeypatch.setenv("ATTUNE_MEMORY", "0")
    assert memory.require_fits(estimate, 4, device="cpu", what="DPO", smaller="a batch of").total > 24 * GIB


def test_the_batch_that_would_fit_is_the_largest():
    def estimate(count: int) -> memory.Estimate:
        return memory.Estimate({"fixed": 2 * GIB, "clips": count * GIB})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTUNE_MEMORY", "10")  # of which a tenth is kept: 9, so 7 clips
        with pytest.raises(ModelError, match="a batch of 7 would need 9 GiB"):
            memory.require_fits(estimate, 8, device="cpu", what="It", smaller="a batch of")
        memory.require_fits(estimate, 7, device="cpu", what="It", smaller="a batch of")
        memory.require_fits(estimate, 9, device="cpu", what="It", smaller="a batch of", held=2 * GIB)


def test_rollouts_take_the_batch_that_fits_and_trainings_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from alignment.training.dpo import train_dpo
    from tests.training_support import random_examples

    model = make_tiny_music()
    wanted = {"seconds": 30.0, "guidance": 3.0, "what": "Singing"}
    assert memory.rollout_batch(model, 64, **wanted) == 64
    monkeypatch.setenv("ATTUNE_MEMORY", "0.05")  # 51 MiB
    found = memory.rollout_batch(model, 64, **wanted)
    assert 1 <= found < 64
    monkeypatch.setenv("ATTUNE_MEMORY", "0.001")
    with pytest.raises(ModelError, match="Singing needs about .* not even a batch of 1"):
        memory.rollout_batch(model, 64, **wanted)
    with pytest.raises(ModelError, match="DPO needs about .*gradient_checkpointing, or per_device"):
        train_dpo(model, random_examples(model, ["flute"]), DpoSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not model.has_adapter
    monkeypatch.setenv("ATTUNE_MEMORY", "much")
    with pytest.raises(ModelError, match="a number of GiB"):
        memory.rollout_batch(model, 1, **wanted)


def test_a_checkpoint_too_large_to_read_is_refused_before_it_is_read(tmp_path, monkeypatch: pytest.MonkeyPatch):
    from alignment.music.model import MusicModel
    from tests.music_support import save_tiny_music

    folder = save_tiny_music(tmp_path / "model")
    monkeypatch.setenv("ATTUNE_MEMORY", "0.0001")
    monkeypatch.setattr(checkpoint, "_load", lambda source: pytest.fail("it was read"))
    with pytest.raises(ModelError, match="reading it in float32 takes .* GiB free"):
        MusicModel.load(folder)


@pytest.mark.parametrize(("enabled", "calls"), [(False, 1), (True, 2)])
def test_checkpointing_reads_every_layer_again_on_the_way_back_even_outside_a_trainer(enabled: bool, calls: int):
    from alignment.music.text import encode_prompts
    from alignment.training.batches import PolicyModule

    model, seen = make_tiny_music(), []
    model.add_adapter(LoraSettings(r=2))
    layer = model.hf.decoder.model.decoder.layers[1].fc1
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    with PolicyModule(model).checkpointing(enabled=enabled):
        codes = torch.randint(64, (1, 4, 6), generator=torch.Generator().manual_seed(0))
        model.logprobs(codes, encode_prompts(model, ["flute"])).sum().backward()
    handle.remove()
    assert len(seen) == calls and not model.hf.training and not model.hf.decoder.training


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [("generate", "--clips", "32", "--seconds", "10"), ("train", "--clips", "16"), ("train", "--checkpointing")]
)
def test_the_estimate_is_within_a_third_of_the_measured_peak(run: tuple[str, ...]):
    import json
    import os
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).resolve().parent.parent / "scripts" / "measure_memory.py"
    # Where MALLOC_MMAP_THRESHOLD_ is raised, freed memory stays with the process and its peak is not what is in use.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, script, "tiny", *run, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.67 < found["estimated_mib"] / found["measured_mib"] < 1.5
