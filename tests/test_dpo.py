"""DPO asked the four questions, on a tiny random music model, and its bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.config import DpoSettings, LoraSettings
from alignment.domain import GenerationConfig, Outcome
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from alignment.training.batches import PairDataset, PolicyModule, _held, _padded, collate
from alignment.training.dpo import DpoExample, examples_from_pairs, train_dpo
from alignment.training.losses import dpo_loss
from tests.music_support import make_tiny_music, randomise_adapter
from tests.training_support import pair, random_examples

PROMPTS = ["calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major"]
QUICK = DpoSettings(
    learning_rate=5e-3, num_train_epochs=4, per_device_train_batch_size=4, warmup_ratio=0.0, lora=LoraSettings(r=4)
)


def settings(**changes: object) -> DpoSettings:
    return DpoSettings.model_validate({**QUICK.model_dump(), **changes})


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust", "dpop"])
def test_the_loss_falls_on_four_pairs_and_the_chosen_clips_become_likelier(tmp_path: Path, loss_type: str) -> None:
    model = make_tiny_music()
    smoothing = 0.1 if loss_type == "robust" else 0.0
    weight = 5.0 if loss_type == "dpop" else 0.0
    chosen = settings(loss_type=loss_type, num_train_epochs=8, label_smoothing=smoothing, chosen_weight=weight)
    result = train_dpo(model, random_examples(model, PROMPTS), chosen, tmp_path)
    losses = [entry["loss"] for entry in result.history]
    assert result.steps == len(losses) == 8 and result.examples == 4
    # Before the first step the policy is the reference: every logit is 0, so the loss is known.
    start = {"ipo": 25.0, "hinge": 1.0}.get(loss_type, math.log(2))
    assert losses[0] == pytest.approx(start, abs=1e-5)
    assert losses[-1] < losses[0] - 0.02 * start
    first, last = result.history[0], result.history[-1]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4) and last["rewards/margins"] > 0
    assert last["rewards/accuracies"] == 1.0
    assert result.seconds > 0 and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_only_adapter_weights_move_and_all_of_them_do(tmp_path: Path) -> None:
    model = make_tiny_music()
    base = {name: value.clone() for name, value in model.hf.state_dict().items()}
    checksum = model.checksum()
    examples = random_examples(model, PROMPTS)
    model.add_adapter(QUICK.lora, seed=0)
    before = [value.detach().clone() for value in model.trainable_parameters()]
    result = train_dpo(model, examples, QUICK, tmp_path)
    assert model.checksum() == checksum == model.base_sha256
    trained = model.trainable_parameters()
    assert all(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))
    assert all(value.grad is None for value in model.hf.parameters() if not value.requires_grad)
    saved = adapter_weights(result.adapter_dir)
    assert len(saved) == len(trained) and all("lora_" in name for name in saved)
    model.remove_adapter()
    assert all(torch.equal(value, base[name]) for name, value in model.hf.state_dict().items())


@pytest.mark.parametrize("torn", [False, True], ids=["last checkpoint whole", "last checkpoint torn by the kill"])
def test_resuming_after_a_kill_ends_bit_for_bit_where_an_uninterrupted_run_ends(tmp_path: Path, torn: bool) -> None:
    # 6 pairs in batches of 2: 3 steps an epoch, so the checkpoints at 2 and 4 lie inside epochs.
    run = settings(per_device_train_batch_size=2, num_train_epochs=3, save_steps=2, warmup_ratio=0.3)

    def started() -> tuple:
        model = make_tiny_music()
        return model, random_examples(model, [*PROMPTS, "calm piano", "slow flute"])

    whole = train_dpo(*started(), run, tmp_path / "whole")

    def kill(step: int, steps: int, metrics: dict) -> None:
        assert steps == 9
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dpo(*started(), run, tmp_path / "killed", on_step=kill)
    assert not (tmp_path / "killed" / "adapter").exists()
    if torn:
        (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").unlink()
    torch.manual_seed(123)
    np.random.seed(4)
    seen: list[int] = []
    resumed = train_dpo(*started(), run, tmp_path / "killed", resume=True, on_step=lambda s, n, m: seen.append(s))
    assert seen == list(range(3 if torn else 5, 10))
    one, other = adapter_weights(whole.adapter_dir), adapter_weights(resumed.adapter_dir)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    steady = [[{k: v for k, v in entry.items() if "runtime" not in k} for entry in r.history] for r in (whole, resumed)]
    assert steady[0] == steady[1] and len(steady[0]) == 9


@pytest.mark.parametrize(("batch", "accumulation", "pairs"), [(1, 4, 4), (3, 2, 4), (2, 3, 6)])
def test_gradient_accumulation_equals_one_large_batch(
    tmp_path: Path, batch: int, accumulation: int, pairs: int
) -> None:
    # (3, 2, 4) is a ragged window, a batch of 3 and a batch of 1; weights and lengths differ between the pairs.
    def trained(name: str, **changes: object) -> tuple:
        model = make_tiny_music()
        examples = [
            DpoExample(e.prompt, e.chosen[:, : 6 - n % 2], e.rejected, 1.0 + n)
            for n, e in enumerate(random_examples(model, [*PROMPTS, "calm piano", "slow flute"][:pairs]))
        ]
        run = settings(num_train_epochs=3, chosen_weight=0.2, **changes)
        result = train_dpo(model, examples, run, tmp_path / name)
        return adapter_weights(result.adapter_dir), result

    large, one = trained("large", per_device_train_batch_size=pairs)
    small, other = trained("small", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert one.steps == other.steps == 3
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=0, atol=1e-5)  # steps are 5e-3
    for ours, theirs in zip(other.history, one.history, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "rewards/accuracies", "logps/chosen", "kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


def test_the_trainers_first_losses_are_those_of_the_models_own_log_probabilities(tmp_path: Path) -> None:
    model = make_tiny_music()
    model.add_adapter(QUICK.lora, seed=0)
    randomise_adapter(model, seed=2, scale=0.1)
    examples = random_examples(model, PROMPTS)
    with torch.no_grad():
        text = encode_prompts(model, PROMPTS)
        codes = [torch.from_numpy(np.stack([getattr(e, side) for e in examples])) for side in ("chosen", "rejected")]
        policy = [model.logprobs(c, text).sum((1, 2)) for c in codes]
        with model.reference():
            reference = [model.logprobs(c, text).sum((1, 2)) for c in codes]
    expected = dpo_loss(*policy, *reference, beta=0.1).mean().item()
    result = train_dpo(model, examples, settings(num_train_epochs=1), tmp_path)
    entry = result.history[0]
    assert entry["loss"] == pytest.approx(expected, abs=1e-4)
    ratios = [(p - r).mean().item() for p, r in zip(policy, reference, strict=True)]
    assert entry["rewards/chosen"] == pytest.approx(0.1 * ratios[0], abs=1e-4)
    assert entry["rewards/rejected"] == pytest.approx(0.1 * ratios[1], abs=1e-4)
    assert entry["rewards/margins"] == pytest.approx(0.1 * (ratios[0] - ratios[1]), abs=1e-4)
    assert entry["logps/chosen"] == pytest.approx(policy[0].mean().item(), abs=1e-3)
    assert entry["kl"] == pytest.approx(-sum(ratios) / 2, abs=1e-3)
    assert abs(ratios[0]) > 0.1  # the adapter does something, or nothing was tested


def test_a_clip_scores_the_same_beside_longer_clips_and_longer_prompts() -> None:
    model = make_tiny_music()
    policy = PolicyModule(model)
    examples = random_examples(model, PROMPTS)
    examples = [DpoExample(e.prompt, e.chosen[:, : 3 + n], e.rejected) for n, e in enumerate(examples)]
    together = PairDataset.with_reference(policy, examples, batch_size=4)
    for example, item in zip(examples, together.items, strict=True):
        (alone,) = PairDataset.with_reference(policy, [example], batch_size=1).items
        assert item["ref_chosen"] == pytest.approx(alone["ref_chosen"], abs=1e-5)
        assert item["ref_rejected"] == pytest.approx(alone["ref_rejected"], abs=1e-5)
    batch = collate(together.items)
    assert batch["frames"].tolist() == [3, 4, 5, 6, 6, 6, 6, 6] and batch["counts"][0] == 12


def test_gradient_checkpointing_gives_the_same_adapter(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_tiny_music()
        run = settings(gradient_checkpointing=checkpointing, num_train_epochs=2)
        result = train_dpo(model, random_examples(model, PROMPTS), run, tmp_path / str(checkpointing))
        found.append(adapter_weights(result.adapter_dir))
        assert not model.hf.training and not model.hf.decoder.model.decoder.gradient_checkpointing
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=2e-6)


def test_checkpoints_hold_the_adapter_and_nothing_of_the_base(tmp_path: Path) -> None:
    model = make_tiny_music()
    train_dpo(model, random_examples(model, PROMPTS), settings(save_steps=2), tmp_path)
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert names == {"policy.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    saved = load_file(tmp_path / "checkpoint-2" / "policy.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(v.numel() for v in model.trainable_parameters())
    assert all("lora_" in name for name in saved)


def test_nothing_is_written_to_stdout_and_every_step_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_music()
    seen: list[tuple[int, int]] = []
    train_dpo(model, random_examples(model, PROMPTS), QUICK, tmp_path, on_step=lambda s, n, m: seen.append((s, n)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("weights", [slice(0, 1), slice(None)], ids=["in one query", "everywhere"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_and_names_the_step(tmp_path: Path, weights: slice) -> None:
    # Attention on a CPU turns NaN queries into zeros: the loss stays finite and only the gradient tells.
    model = make_tiny_music()

    def spoil(step: int, steps: int, metrics: dict) -> None:
        if step == 2:
            with torch.no_grad():
                for parameter in model.trainable_parameters()[weights]:
                    parameter.fill_(float("nan"))

    run = settings(per_device_train_batch_size=2, save_steps=1)
    message = r"is nan at step 3, on the batch of '.*', '.*'; the last good checkpoint is .*checkpoint-1\. Lower learn"
    with pytest.raises(TrainingError, match=message) as caught:
        train_dpo(model, random_examples(model, PROMPTS), run, tmp_path, on_step=spoil)
    assert sum(prompt in str(caught.value) for prompt in PROMPTS) == 2, "the two of that batch and no others"
    assert (tmp_path / "checkpoint-2").exists(), "it was written after the weights broke, and is not called good"
    assert not (tmp_path / "adapter").exists()


def test_a_broken_run_without_checkpoints_says_so_and_names_a_few_of_many_prompts(tmp_path: Path) -> None:
    model = make_tiny_music()
    model.add_adapter(QUICK.lora, seed=0)
    model.trainable_parameters()[-1].data.fill_(float("nan"))
    examples = random_examples(model, [*PROMPTS, "calm piano"])
    with pytest.raises(TrainingError, match=r"and 2 more; there is no checkpoint to go back to; set save_steps"):
        train_dpo(model, examples, settings(per_device_train_batch_size=5), tmp_path)


def test_examples_the_model_cannot_score_are_refused_before_training(tmp_path: Path) -> None:
    model = make_tiny_music()
    (good,) = random_examples(model, PROMPTS[:1])
    for wrong, message in (
        ([], "no pairs to train on"),
        ([good, DpoExample("x", good.chosen[:2], good.rejected)], r"Example 1: chosen codes are \(2, 6\)"),
        ([DpoExample("x", good.chosen, good.rejected + 64)], "sampled by another model"),
        ([DpoExample("x", good.chosen, good.rejected, 0.0)], "weight is 0.0"),
        ([DpoExample("x", good.chosen, good.rejected, 1.0, 0.4)], "label is 0.4"),
        ([DpoExample("x", good.chosen, good.rejected, 1.0, 0.5)] * 3, "All 3 pairs are ties"),
    ):
        with pytest.raises(DataError, match=message):
            train_dpo(model, wrong, QUICK, tmp_path / "run")
    with pytest.raises(ConfigError, match="dpop without chosen_weight"):
        train_dpo(model, [good], settings(loss_type="dpop"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"report_to is 'notebook'.*metrics\.jsonl by itself"):
        train_dpo(model, [good], settings(report_to="notebook"), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not model.has_adapter


def test_a_run_folder_belongs_to_one_run(tmp_path: Path) -> None:
    model = make_tiny_music()
    examples = random_examples(model, PROMPTS)
    one = settings(num_train_epochs=1)
    first = train_dpo(model, examples, one, tmp_path, resume=True)  # nothing there yet: starts
    with pytest.raises(ConfigError, match="already holds a run"):
        train_dpo(make_tiny_music(), examples, one, tmp_path)
    with pytest.raises(ConfigError, match="other settings;"):
        train_dpo(make_tiny_music(), examples, settings(beta=0.2), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="examples, examples_sha256"):
        train_dpo(make_tiny_music(), examples[:2], one, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="base_sha256"):
        train_dpo(make_tiny_music(1), examples, one, tmp_path, resume=True)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["beta"] == 0.1
    assert first.adapter_dir == tmp_path / "adapter"


def test_decisive_votes_become_examples_and_ties_do_not() -> None:
    codes = {f"codes-{n}{s}": np.full((2, 3), 10 * n + (s == "b")) for n in range(3) for s in "ab"}
    votes = [pair(0, Outcome.A), pair(1, Outcome.TIE), pair(2, Outcome.B, prompt="dark organ")]
    made = examples_from_pairs(votes, codes.__getitem__, weight=0.5)
    assert [(e.prompt, int(e.chosen[0, 0]), int(e.rejected[0, 0]), e.weight) for e in made] == [
        ("calm piano", 0, 1, 0.5), ("dark organ", 21, 20, 0.5),
    ]  # fmt: skip


def test_ties_are_kept_with_half_a_label_where_the_recipe_gives_them_weight() -> None:
    codes = {f"codes-{n}{s}": np.full((2, 3), 10 * n + (s == "b")) for n in range(2) for s in "ab"}
    votes = [pair(0, Outcome.A), pair(1, Outcome.TIE)]
    made = examples_from_pairs(votes, codes.__getitem__, weight=2.0, tie_weight=0.25)
    assert [(int(e.chosen[0, 0]), int(e.rejected[0, 0]), e.weight, e.label) for e in made] == [
        (0, 1, 2.0, 1.0), (10, 11, 0.5, 0.5),
    ]  # fmt: skip


def test_votes_that_contradict_each_other_train_as_ties(tmp_path: Path) -> None:
    model = make_tiny_music()
    model.add_adapter(QUICK.lora, seed=0)
    randomise_adapter(model, seed=2, scale=0.1)
    start = [value.detach().clone() for value in model.trainable_parameters()]
    one, other = random_examples(model, PROMPTS[:2])
    run, found = settings(num_train_epochs=1), []
    for name, examples in (
        ("contradicting", [one, DpoExample(one.prompt, one.rejected, one.chosen), other, other]),
        ("tied", [replace(one, label=0.5), replace(one, label=0.5), other, other]),
    ):
        with torch.no_grad():
            for value, was in zip(model.trainable_parameters(), start, strict=True):
                value.copy_(was)
        result = train_dpo(model, examples, run, tmp_path / name)
        found.append((result.history[0]["loss"], adapter_weights(result.adapter_dir)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=0, atol=1e-5)


def test_conservative_labels_smooth_every_vote_and_leave_robust_its_own_rule(tmp_path: Path) -> None:
    model = make_tiny_music()
    model.add_adapter(QUICK.lora, seed=0)
    randomise_adapter(model, seed=2, scale=0.1)
    (example,) = random_examples(model, PROMPTS[:1])
    run = {"num_train_epochs": 1, "learning_rate": 1e-9, "label_smoothing": 0.2}
    found = {}
    for loss_type in ("sigmoid", "robust"):
        (entry,) = train_dpo(model, [example], settings(loss_type=loss_type, **run), tmp_path / loss_type).history
        found[loss_type] = entry
    won, lost = (math.log(1 + math.exp(sign * found["sigmoid"]["rewards/margins"])) for sign in (-1, 1))
    assert abs(won - lost) > 0.1
    assert found["sigmoid"]["loss"] == pytest.approx(0.8 * won + 0.2 * lost, abs=1e-5)
    assert found["robust"]["loss"] == pytest.approx((0.8 * won - 0.2 * lost) / 0.6, abs=1e-5)


def test_the_run_stops_with_the_reason_when_the_chosen_clips_collapse(tmp_path: Path) -> None:
    model = make_tiny_music()
    # The chosen clips are the likeliest there are, the rejected ones theirs but for the last frame: both fall.
    greedy = sample(model, PROMPTS, generation=GenerationConfig(clip_seconds=0.12, top_k=1), seeds=range(4)).codes
    near = [
        DpoExample(e.prompt, codes, np.where(np.arange(6) == 5, e.rejected, codes))
        for e, codes in zip(random_examples(model, PROMPTS), greedy.numpy(), strict=True)
    ]
    wild = settings(learning_rate=0.1, num_train_epochs=12, chosen_floor=0.5, max_grad_norm=1e3)
    message = r"DPO stopped at step \d+: the chosen clips' log-probability has fallen [\d.]+ nats a code below .*0\.5"
    with pytest.raises(TrainingError, match=message):
        train_dpo(model, near, wild, tmp_path / "alone")
    assert not (tmp_path / "alone" / "adapter").exists()
    watched = wild.model_copy(update={"eval_steps": 1, "patience": 99})
    result = train_dpo(make_tiny_music(), near, watched, tmp_path / "watched",
                       watch=lambda step, policy: {"held_out_reward": -abs(step - 1)})  # fmt: skip
    assert "chosen_floor is 0.5" in result.stopped and result.best_step == 1
    assert result.history[-1]["chosen_change"] < -0.5 <= result.history[-2]["chosen_change"]
    assert result.steps < 12
    endless = train_dpo(make_tiny_music(), near, wild.model_copy(update={"chosen_floor": 0.0}), tmp_path / "never")
    assert endless.steps == 12 and endless.stopped == ""


def test_reference_log_probabilities_are_scored_once_and_kept_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_music()
    examples = random_examples(model, PROMPTS)

    def kill(step: int, steps: int, metrics: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dpo(model, examples, QUICK, tmp_path, on_step=kill)
    kept = {name: found.tolist() for name, found in load_file(tmp_path / "reference.safetensors").items()}
    fresh = PairDataset.with_reference(PolicyModule(make_tiny_music()), examples, batch_size=4)
    assert kept["chosen"] == [item["ref_chosen"] for item in fresh.items]
    assert kept["rejected"] == [item["ref_rejected"] for item in fresh.items]
    scored = []
    score = PairDataset._score_reference
    monkeypatch.setattr(PairDataset, "_score_reference", lambda *a: scored.append(1) or score(*a))
    train_dpo(make_tiny_music(), examples, QUICK, tmp_path, resume=True)
    assert not scored
    (tmp_path / "reference.safetensors").write_bytes(b"cut off")
    again = PairDataset.with_reference(
        PolicyModule(make_tiny_music()), examples, batch_size=4, cache=tmp_path / "reference.safetensors"
    )
    assert scored == [1] and again.items[0]["ref_chosen"] == kept["chosen"][0]


def test_bfloat16_reaches_the_reference_and_stays_near_float32(tmp_path: Path) -> None:
    found = {}
    for bf16 in (False, True):
        model = make_tiny_music()
        result = train_dpo(model, random_examples(model, PROMPTS), settings(bf16=bf16), tmp_path / str(bf16))
        found[bf16] = result.history
        assert all(value.dtype == torch.float32 for value in model.trainable_parameters())
    assert found[True][0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "the start is the reference, exactly"
    assert found[True][0]["logps/chosen"] != found[False][0]["logps/chosen"], "products are in bfloat16"
    for rough, exact in zip(found[True], found[False], strict=True):
        assert rough["logps/chosen"] == pytest.approx(exact["logps/chosen"], rel=0.01)
        assert rough["loss"] == pytest.approx(exact["loss"], abs=0.05)


def test_metrics_reach_whatever_report_to_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    told = []

    class Diary(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            told.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "diary", Diary)
    model = make_tiny_music()
    run = settings(report_to="diary", eval_steps=2)
    train_dpo(model, random_examples(model, PROMPTS), run, tmp_path, watch=lambda step, policy: {"level": 0.25})
    steps = {step: logs for step, logs in told if "loss" in logs}
    assert sorted(steps) == [1, 2, 3, 4] and "rewards/margins" in steps[1]
    assert steps[2]["watch/level"] == 0.25 and "watch/level" not in steps[1]
    assert "report_to" not in json.loads((tmp_path / "run.json").read_text())["settings"], "a resumed run may change it"


def test_training_and_rewards_import_without_the_optional_packages() -> None:
    absent = ("trl", "sqlalchemy", "soundfile", "pyloudnorm")
    code = (
        "import sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        "import alignment.training.dpo, alignment.training.best_of_n, alignment.rewards.train\n"
        "import alignment.rewards.encoder"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_clips_wait_in_16_bits_and_are_scored_in_64() -> None:
    model = make_tiny_music()
    policy = PolicyModule(model)
    items = PairDataset(policy, random_examples(model, PROMPTS)).items
    assert {items[0][side].dtype for side in ("chosen", "rejected")} == {torch.int16}
    batch = _padded([items[0]["chosen"]], [items[0]["hidden"]])
    assert batch["codes"].dtype == torch.int64 and torch.equal(batch["codes"][0], items[0]["chosen"].long())
    assert _held(np.array([[40_000]])).dtype == torch.int64, "a codebook that 16 bits do not hold"
