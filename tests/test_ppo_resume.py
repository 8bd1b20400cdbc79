"""PPO killed at a random step and started again, and what its run folder holds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.errors import ConfigError
from alignment.training.ppo import train_ppo
from tests.music_support import make_tiny_music, randomise_adapter
from tests.ppo_support import (
    PROMPTS,
    QUICK,
    REPOSITORY,
    adapter_weights,
    environment,
    low_codes,
    settings,
    without_times,
)

LONG = {"max_steps": 12, "save_steps": 2, "kl_target": 0.5, "num_ppo_epochs": 1}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Falling:
    """A watch that likes the adapter best at one step and less on either side of it."""

    def __init__(self, best: int) -> None:
        self.best, self.steps = best, []

    def __call__(self, step: int, model: object) -> dict[str, float]:
        self.steps.append(step)
        return {"held_out_reward": -abs(step - self.best), "level": 2.0}


@pytest.mark.parametrize("torn", [False, True], ids=["last checkpoint whole", "last checkpoint torn by the kill"])
@pytest.mark.parametrize("reference", ["base", "start"])
def test_resuming_ends_bit_for_bit_where_an_undisturbed_run_ends(tmp_path: Path, torn: bool, reference: str) -> None:
    run = settings(max_steps=6, save_steps=2, kl_target=0.5)

    def started():
        model = make_tiny_music()
        model.add_adapter(run.lora, seed=0)
        randomise_adapter(model, seed=2, scale=0.05)
        return model

    def kill(step: int, steps: int, metrics: dict) -> None:
        if step == 5:
            raise KeyboardInterrupt

    watches = [Falling(100), Falling(100), Falling(100)]
    whole = train_ppo(
        started(), PROMPTS, low_codes, run, tmp_path / "whole", reference=reference, watch=watches[0]
    )  # fmt: skip
    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train_ppo(
            started(), PROMPTS, low_codes, run, killed, reference=reference, watch=watches[1], on_step=kill
        )  # fmt: skip
    assert not (killed / "adapter").exists()
    if torn:
        (killed / "checkpoint-4" / "trainer_state.json").unlink()
    torch.manual_seed(123)
    np.random.seed(4)
    seen: list[int] = []
    resumed = train_ppo(
        started(), PROMPTS, low_codes, run, killed, reference=reference, resume=True, watch=watches[2],
        on_step=lambda step, steps, metrics: seen.append(step),
    )  # fmt: skip
    assert seen == list(range(3 if torn else 5, 7))
    assert_same(adapter_weights(whole.adapter_dir), adapter_weights(resumed.adapter_dir))
    assert without_times(whole.history) == without_times(resumed.history) and len(whole.history) == 6
    assert whole.watched == resumed.watched == [(s, {"held_out_reward": s - 100, "level": 2.0}) for s in (0, 6)]
    for name in ("value.safetensors", "policy.safetensors"):
        assert_same(*(load_file(tmp_path / folder / "checkpoint-6" / name) for folder in ("whole", "killed")))
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6] and lines[3]["reward"] == whole.history[2][
        "reward"
    ]


def test_a_run_killed_at_a_random_step_ends_with_the_adapter_of_an_undisturbed_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ppo_run"]
    step = random.randrange(3, 10)
    killed = tmp_path / "killed"
    ended = subprocess.run(
        [*command, str(killed), json.dumps(LONG), str(step)], cwd=REPOSITORY, env=environment(), capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert not (killed / "adapter").exists()
    subprocess.run([*command, str(killed), json.dumps(LONG)], cwd=REPOSITORY, env=environment(), check=True)
    whole = train_ppo(make_tiny_music(), PROMPTS, low_codes, settings(**LONG), tmp_path / "whole")
    assert_same(adapter_weights(whole.adapter_dir), adapter_weights(killed / "adapter"))
    assert without_times(json.loads((killed / "history.json").read_text())) == without_times(whole.history)
    assert len({entry["kl_coef"] for entry in whole.history}) > 3, "the price of KL was adapted"


def test_a_run_folder_belongs_to_one_run(tmp_path: Path) -> None:
    one = settings(max_steps=1)
    train_ppo(make_tiny_music(), PROMPTS, low_codes, one, tmp_path, resume=True)  # nothing there yet: starts
    with pytest.raises(ConfigError, match="already holds a run"):
        train_ppo(make_tiny_music(), PROMPTS, low_codes, one, tmp_path)
    with pytest.raises(ConfigError, match="other settings;"):
        train_ppo(make_tiny_music(), PROMPTS, low_codes, settings(max_steps=2), tmp_path, resume=True)
    with pytest.raises(ConfigError, match="other prompts;"):
        train_ppo(make_tiny_music(), PROMPTS[:3], low_codes, one, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="base_sha256"):
        train_ppo(make_tiny_music(1), PROMPTS, low_codes, one, tmp_path, resume=True)


def test_checkpoints_hold_adapter_and_value_head_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    model = make_tiny_music()
    train_ppo(model, PROMPTS, low_codes, settings(save_steps=1), tmp_path)
    folders = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert folders == ["checkpoint-3", "checkpoint-4"]
    names = {path.name for path in (tmp_path / "checkpoint-4").iterdir()}
    assert names == {"policy.safetensors", "value.safetensors", "optimizer.pt", "trainer_state.json"}
    saved = load_file(tmp_path / "checkpoint-4" / "policy.safetensors")
    assert sum(v.numel() for v in saved.values()) == sum(v.numel() for v in model.trainable_parameters())
    assert all("lora_" in name for name in saved)


def test_the_adapter_that_the_watch_likes_best_is_kept_and_training_stops_when_none_is_better(tmp_path: Path) -> None:
    watch = Falling(2)
    kept: dict[str, torch.Tensor] = {}
    model = make_tiny_music()

    def keep(step: int, steps: int, metrics: dict) -> None:
        if step == 2:
            kept.update({n: v.detach().clone() for n, v in model.hf.named_parameters() if v.requires_grad})

    run = QUICK.model_copy(update={"max_steps": 9, "eval_steps": 1, "patience": 2})
    result = train_ppo(model, PROMPTS, low_codes, run, tmp_path, watch=watch, on_step=keep)
    assert watch.steps == [0, 1, 2, 3, 4] and result.steps == 4 and result.best_step == 2
    assert result.stopped == "no better adapter in 2 evaluations"
    assert result.history[2]["watch/held_out_reward"] == -1
    for name, value in model.hf.named_parameters():
        assert not value.requires_grad or torch.equal(value, kept[name]), "the model is left with the best"
    assert len(adapter_weights(result.adapter_dir)) == len(kept)


def test_a_run_resumed_inside_its_tail_ends_with_the_same_mean_as_an_undisturbed_one(tmp_path: Path) -> None:
    run = settings(max_steps=6, save_steps=1, tail_average=0.7)  # steps 3 to 6
    whole = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, tmp_path / "whole")
    last = train_ppo(make_tiny_music(), PROMPTS, low_codes, settings(max_steps=6), tmp_path / "last")

    def kill(step: int, steps: int, metrics: dict) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_ppo(make_tiny_music(), PROMPTS, low_codes, run, tmp_path / "killed", on_step=kill)
    resumed = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, tmp_path / "killed", resume=True)
    assert_same(adapter_weights(whole.adapter_dir), adapter_weights(resumed.adapter_dir))
    assert without_times(whole.history) == without_times(last.history)  # it changes what is kept, not the training
    mean, final = adapter_weights(whole.adapter_dir), adapter_weights(last.adapter_dir)
    assert not all(torch.equal(mean[name], final[name]) for name in mean)


def test_the_mean_of_a_tail_is_that_of_the_steps_own_adapters(tmp_path: Path) -> None:
    steps, model = [], make_tiny_music()

    def look(step: int, _: object) -> dict[str, float]:
        steps.append([value.detach().double().clone() for value in model.trainable_parameters()])
        return {"level": 0.0}  # chooses nothing

    run = settings(max_steps=5, eval_steps=1, tail_average=0.4)  # the last two
    train_ppo(model, PROMPTS, low_codes, run, tmp_path, watch=look)
    for number, value in enumerate(model.trainable_parameters()):
        wanted = (steps[-1][number] + steps[-2][number]) / 2
        torch.testing.assert_close(value.detach().double(), wanted, rtol=0, atol=1e-7)


def test_what_the_watch_likes_best_is_kept_and_not_the_mean(tmp_path: Path) -> None:
    kept = [
        train_ppo(
            make_tiny_music(), PROMPTS, low_codes, settings(max_steps=4, eval_steps=1, tail_average=share),
            tmp_path / str(share), watch=Falling(2),
        )
        for share in (0.0, 1.0)
    ]  # fmt: skip
    assert [result.kept_step for result in kept] == [2, 2]
    assert_same(*(adapter_weights(result.adapter_dir) for result in kept))
