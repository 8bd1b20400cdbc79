"""Expert iteration asked the four questions, DPO's further rounds and its early stop, on a tiny random music model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.config import DpoSettings, ExpertSettings, LoraSettings
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.music.text import encode_prompts
from alignment.training.dpo import train_dpo
from alignment.training.examples import ClipExample
from alignment.training.expert_iteration import train_expert
from tests.music_support import make_tiny_music, randomise_adapter
from tests.training_support import random_examples

PROMPTS = ["calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major"]
QUICK = ExpertSettings(
    learning_rate=5e-3, num_train_epochs=4, per_device_train_batch_size=4, warmup_ratio=0.0, lora=LoraSettings(r=4)
)
QUICK_DPO = DpoSettings(**{k: v for k, v in QUICK.model_dump().items() if k != "keep"})


def settings(**changes: object) -> ExpertSettings:
    return ExpertSettings.model_validate({**QUICK.model_dump(), **changes})


def dpo_settings(**changes: object) -> DpoSettings:
    return DpoSettings.model_validate({**QUICK_DPO.model_dump(), **changes})


def clips(model, prompts: list[str] = PROMPTS) -> list[ClipExample]:
    return [ClipExample(e.prompt, e.chosen) for e in random_examples(model, prompts)]


def logprobs(model, examples: list[ClipExample]) -> np.ndarray:
    """Nats a clip, by the model itself and without the trainer."""
    with torch.no_grad():
        found = [
            model.logprobs(torch.from_numpy(e.codes)[None], encode_prompts(model, [e.prompt])).sum() for e in examples
        ]
    return np.array([float(value) for value in found])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_kept_clips_become_likelier_and_only_the_adapter_moves(tmp_path: Path) -> None:
    model = make_tiny_music()
    kept = clips(model)
    before, checksum = logprobs(model, kept), model.checksum()
    model.add_adapter(QUICK.lora, seed=0)
    untrained = [value.detach().clone() for value in model.trainable_parameters()]
    result = train_expert(model, kept, QUICK, tmp_path)
    after = logprobs(model, kept)
    assert (after > before + 1.0).all(), "every kept clip gains, by more than a nat"
    codes = kept[0].codes.size
    assert result.history[0]["loss"] == pytest.approx(-before.mean() / codes, abs=1e-5)
    assert result.history[0]["logps/chosen"] == pytest.approx(before.mean(), abs=1e-3)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert (result.steps, result.examples) == (4, 4)
    assert model.checksum() == checksum == model.base_sha256
    moved = [not torch.equal(a, b) for a, b in zip(untrained, model.trainable_parameters(), strict=True)]
    assert all(moved)
    assert all(value.grad is None for value in model.hf.parameters() if not value.requires_grad)
    model.remove_adapter()
    assert logprobs(model, kept) == pytest.approx(before, abs=1e-6)


def test_resuming_after_a_kill_ends_where_an_uninterrupted_run_ends(tmp_path: Path) -> None:
    run = settings(per_device_train_batch_size=2, num_train_epochs=3, save_steps=2)
    model = make_tiny_music()
    whole = train_expert(model, clips(model), run, tmp_path / "whole")

    def kill(step: int, steps: int, metrics: dict) -> None:
        if step == 5:
            raise KeyboardInterrupt

    model = make_tiny_music()
    with pytest.raises(KeyboardInterrupt):
        train_expert(model, clips(model), run, tmp_path / "killed", on_step=kill)
    model, seen = make_tiny_music(), []
    resumed = train_expert(
        model, clips(model), run, tmp_path / "killed", resume=True, on_step=lambda s, n, m: seen.append(s)
    )
    assert seen == [5, 6]
    one, other = weights(whole.adapter_dir), weights(resumed.adapter_dir)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gradient_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    found = []
    for batch, accumulation in ((4, 1), (3, 2)):
        model = make_tiny_music()
        run = settings(num_train_epochs=3, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        uneven = [ClipExample(e.prompt, e.codes[:, : 6 - n % 2], 1.0 + n) for n, e in enumerate(clips(model))]
        found.append(weights(train_expert(model, uneven, run, tmp_path / str(batch)).adapter_dir))
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0, atol=1e-5)


def test_clips_the_model_cannot_score_and_used_folders_are_refused(tmp_path: Path) -> None:
    model = make_tiny_music()
    good = clips(model)
    with pytest.raises(DataError, match=r"Example 1: its codes are \(2, 6\)"):
        train_expert(model, [good[0], ClipExample("x", good[0].codes[:2])], QUICK, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not model.has_adapter
    train_expert(model, good, settings(num_train_epochs=1), tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        train_expert(make_tiny_music(), good, QUICK, tmp_path / "run")
    with pytest.raises(TrainingError, match="Expert iteration's loss is nan at step 1, on the batch of"):
        for parameter in model.trainable_parameters():
            parameter.data.fill_(float("nan"))
        train_expert(model, good, QUICK, tmp_path / "broken")


def test_a_further_round_of_dpo_starts_at_its_own_policy_and_measures_from_there(tmp_path: Path) -> None:
    model = make_tiny_music()
    examples = random_examples(model, PROMPTS)
    model.add_adapter(QUICK.lora, seed=0)
    randomise_adapter(model, seed=2, scale=0.1)
    from_base = train_dpo(model, examples, dpo_settings(num_train_epochs=1), tmp_path / "base").history[0]
    randomise_adapter(model, seed=2, scale=0.1)
    kept = [value.detach().clone() for value in model.trainable_parameters()]
    run = dpo_settings(num_train_epochs=1)
    from_start = train_dpo(model, examples, run, tmp_path / "start", reference="start").history[0]
    assert from_base["rewards/margins"] != pytest.approx(0, abs=1e-3)
    assert from_start["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert from_start["logps/chosen"] == pytest.approx(from_base["logps/chosen"], abs=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(kept, model.trainable_parameters(), strict=True))
    # The same folder never goes on from another policy.
    randomise_adapter(model, seed=3, scale=0.1)
    with pytest.raises(ConfigError, match="holds a run with other start"):
        train_dpo(model, examples, run, tmp_path / "start", reference="start", resume=True)


def test_early_stopping_keeps_the_adapter_of_the_best_validation_loss(tmp_path: Path) -> None:
    model = make_tiny_music()
    examples = random_examples(model, PROMPTS)
    # Validation pairs are the training pairs turned round: every step makes them worse, so the first is the best.
    turned = [type(e)(e.prompt, e.rejected, e.chosen) for e in examples]
    run = dpo_settings(num_train_epochs=12, eval_steps=1, patience=2)
    result = train_dpo(model, examples, run, tmp_path / "early", valid=turned)
    assert [step for step, _ in result.valid] == [1, 2, 3] and result.steps == 3 and result.best_step == 1
    assert len(result.history) == 3, "validation leaves the step's own metrics alone"
    losses = [loss for _, loss in result.valid]
    assert losses[0] < losses[1] < losses[2]
    impatient = dpo_settings(num_train_epochs=12, eval_steps=1, patience=1)
    once = train_dpo(make_tiny_music(), examples, impatient, tmp_path / "one", valid=turned)
    assert once.steps == 2 and once.best_step == 1
    one, other = weights(result.adapter_dir), weights(once.adapter_dir)
    assert all(torch.equal(one[name], other[name]) for name in one)
    on_model = sorted(value.sum().item() for value in model.trainable_parameters())
    assert on_model == pytest.approx(sorted(value.sum().item() for value in one.values())), "the model is left with it"


def test_the_validation_loss_is_that_of_the_pairs_themselves_and_needs_both_settings(tmp_path: Path) -> None:
    model = make_tiny_music()
    examples = random_examples(model, PROMPTS)
    same = train_dpo(model, examples, dpo_settings(num_train_epochs=3, eval_steps=1), tmp_path / "same", valid=examples)
    # Validation on the training batch itself: the loss after step n is what step n + 1 begins with.
    assert [loss for _, loss in same.valid[:2]] == pytest.approx([e["loss"] for e in same.history[1:]], abs=1e-6)
    assert same.best_step == 3
    with pytest.raises(ConfigError, match="eval_steps is 0 and there are 4 validation pairs"):
        train_dpo(make_tiny_music(), examples, dpo_settings(), tmp_path / "x", valid=examples)
    with pytest.raises(ConfigError, match="eval_steps is 5 and there are 0 validation pairs"):
        train_dpo(make_tiny_music(), examples, dpo_settings(eval_steps=5), tmp_path / "x")
