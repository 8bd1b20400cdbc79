"""A melody checkpoint is trained, saved and exported as any other, from its text alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTextToWaveform, AutoTokenizer

from alignment.config import DpoSettings, LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music.export import write_merged
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from alignment.training.dpo import train_dpo
from alignment.training.ppo import train_ppo
from alignment.training.value import decoder_states
from tests.music_support import make_tiny_melody, make_tiny_music, randomise_adapter, save_tiny_music
from tests.ppo_support import low_codes, settings
from tests.test_music_sampler import generate_codes
from tests.training_support import random_examples

PROMPTS = ["calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_music(tmp_path_factory.mktemp("melody"), melody_frames=7)


def test_dpo_lowers_its_loss_on_four_pairs_and_moves_the_adapter_alone(tmp_path: Path):
    model = make_tiny_melody()
    chosen = DpoSettings(
        learning_rate=5e-3, num_train_epochs=8, per_device_train_batch_size=4, warmup_ratio=0.0,
        gradient_checkpointing=True, lora=LoraSettings(r=4),
    )  # fmt: skip
    result = train_dpo(model, random_examples(model, PROMPTS), chosen, tmp_path)
    losses = [entry["loss"] for entry in result.history]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its reference before the first step
    assert losses[-1] < losses[0] - 0.02 * math.log(2) and result.history[-1]["rewards/accuracies"] == 1.0
    assert model.checksum() == model.base_sha256
    trained = load_file(result.adapter_dir / "adapter_model.safetensors")
    assert trained and all(bool(value.any()) for name, value in trained.items() if "lora_B" in name)


def test_in_half_precision_sampler_and_scores_still_agree(folder: Path):
    model, generation = MusicModel.load(folder, dtype=torch.bfloat16), GenerationConfig(guidance=3.0, clip_seconds=0.5)
    assert model.base_sha256 == MusicModel.load(folder).base_sha256
    rollout = sample(model, PROMPTS, generation=generation, seeds=range(4))
    scored = model.logprobs(rollout.codes, encode_prompts(model, PROMPTS), generation=generation)
    assert (rollout.logprobs.exp() - scored.exp()).abs().mean() < 0.02


def test_checkpointing_gives_the_same_gradients():
    model = make_tiny_melody()
    model.add_adapter(LoraSettings(r=2), seed=0)
    randomise_adapter(model)
    text, codes = encode_prompts(model, PROMPTS[:2]), torch.randint(64, (2, 4, 12))
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.hf.decoder.gradient_checkpointing_enable({"use_reentrant": False})
            model.hf.decoder.train()
        model.logprobs(codes, text).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.trainable_parameters()])
        model.hf.zero_grad()
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-4, rtol=1e-4)
        assert bool(plain.any())


def test_ppo_with_a_value_head_raises_its_reward_and_reads_the_states_of_the_codes(tmp_path: Path):
    model = make_tiny_melody()
    # Its rollouts are checked against the trainer's own log-probabilities at every step, or it would stop.
    result = train_ppo(model, PROMPTS, low_codes, settings(max_steps=6), tmp_path)
    rewards = [entry["reward"] for entry in result.history]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.2
    assert max(entry["drift"] for entry in result.history) < 1e-5
    assert all(math.isfinite(entry["loss/value"]) for entry in result.history)
    assert model.checksum() == model.base_sha256
    text, codes = encode_prompts(model, PROMPTS), torch.randint(64, (4, 4, 20))
    with torch.no_grad(), decoder_states(model) as states:
        logits = model.logits(codes, text)
    assert states[0].shape == (4, 20 + 3, 32)  # the steps of the codes, and nothing of what stands ahead of them
    again = model.hf.decoder.lm_heads[1](states[0][:, 4])  # book 1's frame 3 is read from step 4
    torch.testing.assert_close(again, logits[:, 1, 3], rtol=0, atol=1e-5)


def test_a_saved_checkpoint_and_its_adapter_come_back_and_the_merged_one_sings_the_same_in_transformers(
    folder: Path, tmp_path: Path
):
    generation = GenerationConfig(top_k=1, guidance=3.0, clip_seconds=0.5)
    model = MusicModel.load(folder)
    base = sample(model, PROMPTS, generation=generation, seeds=range(4))
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model, scale=0.15)
    sung = sample(model, PROMPTS, generation=generation, seeds=range(4))
    assert not torch.equal(sung.codes, base.codes)
    with model.reference():
        assert torch.equal(sample(model, PROMPTS, generation=generation, seeds=range(4)).codes, base.codes)
    model.save_adapter(tmp_path / "adapter")
    again = MusicModel.load(folder)
    again.load_adapter(tmp_path / "adapter")
    assert torch.equal(sample(again, PROMPTS, generation=generation, seeds=range(4)).codes, sung.codes)
    with pytest.raises(ModelError, match="trained on another base"):
        make_tiny_music().load_adapter(tmp_path / "adapter")
    write_merged(again, tmp_path / "merged", listening=generation)
    plain = AutoModelForTextToWaveform.from_pretrained(tmp_path / "merged")
    told = plain.generation_config
    assert (told.top_k, told.guidance_scale, told.max_new_tokens) == (1, 3.0, 28)
    whole = MusicModel(plain, AutoTokenizer.from_pretrained(tmp_path / "merged"))
    assert whole.melody_frames == 7
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(generate_codes(whole, [prompt], 25, 3.0)[0], sung.codes[row])
