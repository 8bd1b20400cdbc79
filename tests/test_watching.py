"""The watch: when it is called, that it changes nothing, and that the adapter it likes best is the one kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.config import DpoSettings, ExpertSettings, LoraSettings
from alignment.errors import ConfigError, TrainingError
from alignment.training.dpo import train_dpo
from alignment.training.examples import ClipExample
from alignment.training.expert_iteration import train_expert
from alignment.training.watching import MetricsFile, Watcher
from tests.music_support import make_tiny_music
from tests.training_support import random_examples

PROMPTS = ["calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major"]


def settings(**changes: Any) -> DpoSettings:
    quick = {
        "learning_rate": 5e-3, "num_train_epochs": 6, "per_device_train_batch_size": 4, "warmup_ratio": 0.0,
        "lora": LoraSettings(r=4),
    }  # fmt: skip
    return DpoSettings.model_validate({**quick, **changes})


def started(batch: int = 4) -> tuple:
    model = make_tiny_music()
    return model, random_examples(model, PROMPTS[:batch])


def saying(values: dict[int, float], seen: list | None = None) -> Callable:
    """A watch that says what it was told, wastes random numbers and remembers the weights it met."""

    def watch(step: int, model: Any) -> dict[str, float]:
        torch.rand(3), np.random.rand(3)
        assert not model.hf.training and not torch.is_grad_enabled()
        if seen is not None:
            seen.append((step, [value.detach().clone() for value in model.trainable_parameters()]))
        return {"held_out_reward": values[step], "level": 0.5}

    return watch


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_the_adapter_with_the_highest_held_out_reward_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    model, examples = started()
    seen: list = []
    rewards = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.2, 4: 0.9, 5: 7.0}  # 4 ties with 2, which is then the better one
    result = train_dpo(model, examples, settings(eval_steps=1, patience=2), tmp_path, watch=saying(rewards, seen))
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4] == [step for step, _ in result.watched]
    assert result.watched[2] == (2, {"held_out_reward": 0.9, "level": 0.5})
    assert (result.steps, result.best_step, result.stopped) == (4, 2, "no better adapter in 2 evaluations")
    kept = [value.detach() for value in model.trainable_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, seen[2][1], strict=True)), "the model is left with it"
    assert not all(torch.equal(a, b) for a, b in zip(kept, seen[4][1], strict=True))
    assert sorted(float(v.sum()) for v in adapter(tmp_path).values()) == pytest.approx(
        sorted(float(v.sum()) for v in kept)
    )


def test_a_start_that_nothing_beats_is_what_is_kept(tmp_path: Path) -> None:
    model, examples = started()
    watch = saying({0: 1.0, 1: 0.5, 2: 0.6})
    result = train_dpo(model, examples, settings(eval_steps=1, patience=2), tmp_path, watch=watch)
    assert (result.best_step, result.steps) == (0, 2)
    assert all(not value.any() for name, value in adapter(tmp_path).items() if "lora_B" in name)


def test_a_watch_without_eval_steps_is_called_at_both_ends_and_chooses_nothing(tmp_path: Path) -> None:
    seen: list = []
    result = train_dpo(*started(), settings(), tmp_path, watch=saying({0: 1.0, 6: 0.0}, seen))
    assert [step for step, _ in seen] == [0, 6] and (result.steps, result.best_step, result.stopped) == (6, 6, "")
    seen.clear()
    last = train_dpo(*started(), settings(eval_steps=4), tmp_path / "4", watch=saying({0: 0, 4: 1, 6: 2}, seen))
    assert [step for step, _ in seen] == [0, 4, 6] and last.best_step == 6


def test_a_watched_run_trains_as_an_unwatched_one_and_resumes_exactly(tmp_path: Path) -> None:
    run = settings(per_device_train_batch_size=2, num_train_epochs=3, save_steps=2)
    plain = train_dpo(*started(), run, tmp_path / "plain")
    watched = run.model_copy(update={"eval_steps": 1, "patience": 9})
    rewards = {0: 0.0, 1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4, 6: 0.5}
    whole = train_dpo(*started(), watched, tmp_path / "whole", watch=saying(rewards))
    names = ("loss", "grad_norm", "logps/chosen")
    assert [[e[n] for n in names] for e in whole.history] == [[e[n] for n in names] for e in plain.history]

    def kill(step: int, steps: int, metrics: dict) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dpo(*started(), watched, tmp_path / "killed", watch=saying(rewards), on_step=kill)
    seen: list = []
    resumed = train_dpo(*started(), watched, tmp_path / "killed", watch=saying(rewards, seen), resume=True)
    assert [step for step, _ in seen] == [5, 6]
    assert resumed.watched == whole.watched and resumed.best_step == whole.best_step == 2
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [[json.loads(x) for x in (tmp_path / n / "metrics.jsonl").open()] for n in ("whole", "killed")]
    assert [x["step"] for x in lines[1]] == [0, 1, 2, 3, 4, 5, 6], "each step stands there once"
    assert [{k: v for k, v in x.items() if k != "time"} for x in lines[0]] == [
        {k: v for k, v in x.items() if k != "time"} for x in lines[1]
    ]
    assert lines[0][2]["watch/held_out_reward"] == 0.9 and "loss" in lines[0][2] and "loss" not in lines[0][0]


def test_the_watch_chooses_where_validation_pairs_would_choose_otherwise(tmp_path: Path) -> None:
    model, examples = started()
    # On the training pairs themselves the validation loss falls with every step; the watch likes the first.
    run = settings(eval_steps=1, patience=5, num_train_epochs=3)
    both = train_dpo(model, examples, run, tmp_path / "both", valid=examples, watch=saying({0: 0, 1: 3, 2: 2, 3: 1}))
    assert both.best_step == 1 and [step for step, _ in both.valid] == [1, 2, 3]
    silent = train_dpo(*started(), run, tmp_path / "silent", valid=examples, watch=lambda step, model: {"level": 1.0})
    assert silent.best_step == 3 and silent.valid == both.valid


def test_expert_iteration_is_watched_alike(tmp_path: Path) -> None:
    model, examples = started()
    run = ExpertSettings(**settings(eval_steps=2).model_dump(include=set(ExpertSettings.model_fields)))
    clips = [ClipExample(e.prompt, e.chosen) for e in examples]
    result = train_expert(model, clips, run, tmp_path, watch=saying({0: 0, 2: 5, 4: 1, 6: 2}))
    assert (result.best_step, result.steps, len(result.watched)) == (2, 6, 4)
    with pytest.raises(ConfigError, match="eval_steps is 2"):
        train_expert(make_tiny_music(), clips, run, tmp_path / "unwatched")


def test_a_watch_that_has_no_number_to_say_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="held_out_reward at step 0 is no finite number"):
        train_dpo(*started(), settings(eval_steps=1), tmp_path, watch=saying({0: float("nan")}))


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    MetricsFile(tmp_path, after=2).write(3, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    MetricsFile(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "", "a new run begins with an empty file"


def test_a_watch_that_draws_leaves_the_random_numbers_of_training_as_they_were(tmp_path: Path) -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(7)
    undisturbed = [draws(), draws()]
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(7)
    model = make_tiny_music()
    model.add_adapter(LoraSettings(r=2), seed=0)
    watcher = Watcher(lambda step, model: {"held_out_reward": sum(draws())}, model, tmp_path, every=1, patience=3)
    first = draws()
    watcher.look(1)
    assert [first, draws()] == undisturbed
