"""PPO asked the four questions on a tiny random music model, its agreement with the sampler, and its bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.domain import GenerationConfig
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from alignment.training import experience
from alignment.training.policy_loss import step_logprobs
from alignment.training.ppo import PpoTrainer, train_ppo
from alignment.training.ranks import Ranks
from alignment.training.reinforce import Rewards
from alignment.training.value import ValueHead, decoder_states
from tests.music_support import make_tiny_music, randomise_adapter
from tests.ppo_support import PROMPTS, QUICK, adapter_weights, low_codes, settings, without_times


def prepared(run: object, tmp_path: Path, *, reference: str = "base", scale: float = 0.1) -> PpoTrainer:
    """A trainer whose adapter does something already."""
    model = make_tiny_music()
    model.add_adapter(run.lora, seed=0)
    randomise_adapter(model, seed=2, scale=scale)
    return PpoTrainer(model, PROMPTS, low_codes, run, tmp_path, Ranks(model.device), reference=reference)


def rollout(trainer: PpoTrainer, **changes: object) -> experience.Experience:
    asked = {"step": 1, "kl_coef": trainer.settings.kl_coef, "reference": trainer.reference, "ranks": trainer.ranks}
    asked |= changes
    return experience.collect(trainer.model, trainer.head, PROMPTS, trainer.reward, trainer.settings, **asked)


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_the_reward_rises_and_only_adapter_weights_move_and_all_of_them_do(tmp_path: Path, advantage: str) -> None:
    model = make_tiny_music()
    base = {name: value.clone() for name, value in model.hf.state_dict().items()}
    model.add_adapter(QUICK.lora, seed=0)
    before = [value.detach().clone() for value in model.trainable_parameters()]
    run = settings(
        advantage=advantage, max_steps=8, num_generations=16, per_device_train_batch_size=64, value={"lam": 1.0}
    )
    result = train_ppo(model, PROMPTS, low_codes, run, tmp_path)
    rewards = [entry["reward"] for entry in result.history]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.2, rewards
    assert result.steps == 8 and result.examples == 8 * 64
    assert result.history[0]["kl"] == pytest.approx(0, abs=1e-4), "the policy starts as its reference"
    assert result.history[-1]["kl"] > 0.1
    assert model.checksum() == model.base_sha256
    trained = model.trainable_parameters()
    assert all(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    assert all(value.grad is None for value in model.hf.parameters() if not value.requires_grad)
    assert len(adapter_weights(result.adapter_dir)) == len(trained)
    model.remove_adapter()
    assert all(torch.equal(value, base[name]) for name, value in model.hf.state_dict().items())


def test_the_history_names_every_part_of_the_reward_and_what_training_did(tmp_path: Path) -> None:
    told: list[tuple] = []
    model = make_tiny_music()
    result = train_ppo(
        model, PROMPTS, low_codes, settings(max_steps=2), tmp_path, on_step=lambda *x: told.append(x)
    )  # fmt: skip
    assert [(step, steps) for step, steps, _ in told] == [(1, 2), (2, 2)]
    for entry in result.history:
        assert entry["reward"] == pytest.approx(4 * entry["rewards/low"] + 0.1 * entry["rewards/words"])
        assert entry.keys() >= {
            "step", "reward_std", "kl", "kl_coef", "entropy", "loss", "approx_kl", "clip_ratio", "grad_norm",
            "learning_rate", "loss/value", "explained_variance", "drift",
        }  # fmt: skip
    assert result.history[0]["rewards/words"] == np.mean([3, 7, 2, 4])
    assert 0 < result.history[0]["entropy"] < np.log(64)


def test_sampler_and_trainer_agree_and_the_first_update_starts_at_ratio_one(tmp_path: Path) -> None:
    trainer = prepared(settings(num_ppo_epochs=1, num_mini_batches=1), tmp_path)
    found = rollout(trainer)
    assert found.drift < 1e-5
    text = encode_prompts(trainer.model, found.prompts)
    seeds = experience.clip_seeds(16, 1, 0)
    sung = sample(trainer.model, found.prompts, generation=GenerationConfig(clip_seconds=0.5), seeds=seeds)
    assert torch.equal(sung.codes, found.codes)
    torch.testing.assert_close(step_logprobs(sung.logprobs), found.logprobs, rtol=0, atol=1e-4)
    with torch.no_grad(), trainer.model.reference():
        base = step_logprobs(trainer.model.logprobs(found.codes, text))
    torch.testing.assert_close(base, found.ref_logprobs, rtol=0, atol=1e-4)
    assert float((found.kl - (found.logprobs - base).sum(1)).abs().max()) < 1e-3 and float(found.kl.abs().max()) > 0.1
    assert float(found.advantages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.advantages.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert float(found.returns.mean()) > 0.5, "before that their mean was far from 0"
    metrics = trainer.step()
    # Nothing has moved when the only optimizer step's loss is taken: ratios are 1, standardised advantages mean 0.
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-9) and metrics["clip_ratio"] == 0
    assert metrics["loss"] == pytest.approx(0, abs=1e-6) and metrics["grad_norm"] > 1e-3


def test_a_sampler_that_draws_from_another_model_stops_the_run(tmp_path: Path, monkeypatch) -> None:
    trainer = prepared(QUICK, tmp_path, scale=0.5)

    def astray(model, prompts, **how):
        with model.reference():
            return sample(model, prompts, **how)

    monkeypatch.setattr(experience, "sample", astray)
    with pytest.raises(TrainingError, match="Step 1: sampler and trainer differ by 2.* nats a code; what is trained"):
        trainer.step()


def test_the_states_are_what_the_heads_read_before_each_step(tmp_path: Path) -> None:
    trainer = prepared(QUICK, tmp_path)
    model, found = trainer.model, rollout(prepared(QUICK, tmp_path))
    text = encode_prompts(model, found.prompts)
    with torch.no_grad(), decoder_states(model) as states:
        logits = model.logits(found.codes, text)  # (B, K, T, V)
    torch.testing.assert_close(states[0], found.states, rtol=0, atol=1e-5)
    # Book 1's frame 3 is read from step 4.
    again = model.hf.decoder.lm_heads[1](states[0][:, 4])
    torch.testing.assert_close(again, logits[:, 1, 3], rtol=0, atol=1e-5)
    # What a step's state has not read cannot change it: other codes from frame 6 on.
    other = found.codes.clone()
    other[:, :, 6:] = (other[:, :, 6:] + 1) % 64
    with torch.no_grad(), decoder_states(model) as changed:
        model.logits(other, text)
    assert torch.equal(changed[0][:, :7], states[0][:, :7]) and not torch.equal(changed[0][:, 7], states[0][:, 7])
    assert not model.hf.decoder.lm_heads[0]._forward_pre_hooks


def test_the_value_head_learns_and_sends_no_gradient_into_the_decoder(tmp_path: Path) -> None:
    head = ValueHead(4, 8, seed=1)
    states = torch.randn(2, 3, 4, requires_grad=True)
    assert torch.equal(head(states), torch.zeros(2, 3))
    torch.nn.init.ones_(head.out.weight)
    head(states).sum().backward()
    assert states.grad is None and all(value.grad is not None for value in head.parameters())
    trainer = prepared(settings(value={"epochs": 50, "learning_rate": 1e-2}), tmp_path)
    found = rollout(trainer)
    found = dataclasses.replace(found, returns=found.states[..., 0] - 2 * found.states[..., 1])
    first = trainer._fit_values(dataclasses.replace(found, values=torch.zeros_like(found.returns)), 1)
    after = trainer._fit_values(dataclasses.replace(found, values=trainer.head(found.states).detach()), 2)
    assert first["explained_variance"] == 0 and after["explained_variance"] > 0.9
    assert after["loss/value"] < 0.1 * float(found.returns.var())


def test_the_value_heads_first_rollouts_leave_the_policy_alone(tmp_path: Path) -> None:
    run = settings(max_steps=3, value={"warmup_steps": 2})
    history = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, tmp_path).history
    assert ["loss" in entry for entry in history] == [False, False, True]
    assert [entry["kl"] for entry in history] == pytest.approx([0, 0, 0], abs=1e-4)
    assert all(entry["loss/value"] > 0 for entry in history)


def test_small_batches_add_up_to_one_large_batch(tmp_path: Path) -> None:
    found = []
    for size in (16, 3):
        model = make_tiny_music()
        result = train_ppo(
            model, PROMPTS, low_codes, settings(max_steps=3, per_device_train_batch_size=size), tmp_path / str(size)
        )
        found.append((adapter_weights(result.adapter_dir), without_times(result.history)))
    for name in found[0][0]:
        torch.testing.assert_close(found[1][0][name], found[0][0][name], rtol=0, atol=2e-5)  # steps are 1e-2
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_gradient_checkpointing_gives_the_same_adapter(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_tiny_music()
        run = settings(max_steps=2, gradient_checkpointing=checkpointing)
        found.append(
            adapter_weights(train_ppo(model, PROMPTS, low_codes, run, tmp_path / str(checkpointing)).adapter_dir)
        )
        assert not model.hf.training and not model.hf.decoder.model.decoder.gradient_checkpointing
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-5)


def test_a_further_stage_measures_its_kl_from_its_own_start(tmp_path: Path) -> None:
    one = settings(max_steps=1)
    base, start = (rollout(prepared(one, tmp_path, reference=name)) for name in ("base", "start"))
    assert torch.equal(base.codes, start.codes)
    assert float(base.kl.abs().mean()) > 0.1 and float(start.kl.abs().max()) < 1e-4
    trainer = prepared(settings(learning_rate=5e-2), tmp_path, reference="start")
    kept = [value.detach().clone() for value in trainer.parameters]
    trainer.step()
    moved = [value.detach().clone() for value in trainer.parameters]
    assert float(rollout(trainer, step=2).kl.mean()) > 0.01
    assert all(torch.equal(a, b) for a, b in zip(moved, trainer.parameters, strict=True)), "the policy is put back"
    assert any(not torch.equal(a, b) for a, b in zip(kept, moved, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, trainer.start, strict=True)), "the start is kept"


def test_the_price_of_kl_follows_its_target(tmp_path: Path) -> None:
    history = train_ppo(make_tiny_music(), PROMPTS, low_codes, settings(max_steps=3, kl_target=0.5), tmp_path).history
    assert history[0]["kl_coef"] == 0.05 and history[1]["kl_coef"] == pytest.approx(0.04)
    change = np.clip(history[1]["kl"] / 0.5 - 1, -0.2, 0.2)
    assert history[2]["kl_coef"] == pytest.approx(0.04 * (1 + change))


def test_a_high_price_of_kl_keeps_the_policy_near_its_reference(tmp_path: Path) -> None:
    found = [
        train_ppo(make_tiny_music(), PROMPTS, low_codes, settings(max_steps=10, kl_coef=c), tmp_path / str(c)).history
        for c in (0.0, 2.0)
    ]
    free, held = [np.mean([entry["kl"] for entry in history[-3:]]) for history in found]
    assert held < 0.5 * free


def test_prompts_come_round_in_passes_and_every_clip_has_a_seed_of_its_own() -> None:
    prompts = [f"prompt {n}" for n in range(6)]
    drawn = [experience.prompts_of_step(prompts, 4, step, seed=3) for step in (1, 2, 3)]
    flat = sum(drawn, [])
    assert sorted(flat[:6]) == sorted(flat[6:]) == prompts and flat[:6] != flat[6:]
    assert drawn[1] == experience.prompts_of_step(prompts, 4, 2, seed=3)
    assert drawn[1] != experience.prompts_of_step(prompts, 4, 2, seed=4)
    seeds = [seed for step in (1, 2, 3) for seed in experience.clip_seeds(16, step, 3)]
    assert len(set(seeds)) == 48 and min(seeds) >= 0


def test_a_constant_reward_stops_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="All 16 clips of step 1 have the reward 0.5: a constant reward teaches"):
        train_ppo(make_tiny_music(), PROMPTS, lambda p, c: Rewards(np.full(len(p), 0.5)), QUICK, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_reward_that_is_no_number_stops_the_run_and_names_the_prompt(tmp_path: Path) -> None:
    def broken(prompts, codes):
        rewards = low_codes(prompts, codes)
        return dataclasses.replace(rewards, total=np.where(np.arange(len(prompts)) == 5, np.nan, rewards.total))

    with pytest.raises(TrainingError, match='Step 1: the reward of 1 of 16 clips is no number, first for .*"'):
        train_ppo(make_tiny_music(), PROMPTS, broken, QUICK, tmp_path / "nan")
    with pytest.raises(TrainingError, match=r"rewards \(total\) are \(3,\) for 16 clips"):
        train_ppo(make_tiny_music(), PROMPTS, lambda p, c: Rewards(np.zeros(3)), QUICK, tmp_path / "few")


def test_a_nan_in_training_stops_the_run_naming_step_batch_and_last_good_checkpoint(tmp_path: Path) -> None:
    model = make_tiny_music()

    def spoil(step: int, steps: int, metrics: dict) -> None:
        if step == 2:
            trained = model.trainable_parameters()
            trained[0].register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(TrainingError, match="gradient norm is nan at step 3; lower learning_rate") as stopped:
        train_ppo(model, PROMPTS, low_codes, settings(save_steps=1), tmp_path, on_step=spoil)
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-2'}." in str(stopped.value)
    assert any(prompt in str(stopped.value) for prompt in PROMPTS)
    assert not (tmp_path / "adapter").exists()


def test_settings_that_do_not_fit_together_are_refused_before_anything_is_sung(tmp_path: Path) -> None:
    for changes, prompts, kind, message in (
        ({"advantage": "rloo", "num_generations": 1}, PROMPTS, ConfigError, "it compares clips of one prompt"),
        ({"num_mini_batches": 17}, PROMPTS, ConfigError, "num_mini_batches is 17 for 16 clips"),
        ({"generation": {"top_k": 5}}, PROMPTS, ConfigError, "top_k is 5: a code that it cuts off"),
        ({}, [], DataError, "no prompts to sing"),
    ):
        model = make_tiny_music()
        with pytest.raises(kind, match=message):
            train_ppo(model, prompts, low_codes, settings(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists() and not model.has_adapter


def test_metrics_reach_whatever_report_to_names_and_an_unknown_name_is_refused_first(tmp_path, monkeypatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    told, ended = [], []

    class Diary(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            told.append((state.global_step, dict(logs)))

        def on_train_end(self, args, state, control, **kwargs) -> None:
            ended.append(args.output_dir)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "diary", Diary)
    run, folder = settings(max_steps=2), tmp_path / "run"
    result = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, folder, report_to="diary")
    assert [{"step": step, **logs} for step, logs in told] == result.history and ended == [str(folder)]
    with pytest.raises(ConfigError, match=r"report_to is 'notebook'.*metrics\.jsonl by itself"):
        train_ppo(make_tiny_music(), PROMPTS, low_codes, run, tmp_path / "other", report_to="notebook")
    assert not (tmp_path / "other").exists()
