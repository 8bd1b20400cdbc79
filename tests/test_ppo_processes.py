"""PPO in two processes under torchrun against one process with twice the batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignment.training.ppo import train_ppo
from tests.music_support import make_tiny_music
from tests.ppo_support import PROMPTS, REPOSITORY, adapter_weights, environment, low_codes, settings, without_times


@pytest.mark.parametrize("advantage", ["gae", pytest.param("rloo", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path, advantage: str) -> None:
    changes = {"max_steps": 3, "advantage": advantage, "per_device_train_batch_size": 8, "save_steps": 2}
    changes["rollout_prompts"] = 3  # one process sings one prompt, the other two
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    two = tmp_path / "two"
    ran = subprocess.run(
        [*torchrun, "-m", "tests.ppo_run", str(two), json.dumps(changes)], cwd=REPOSITORY, env=environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    one = train_ppo(
        make_tiny_music(),
        PROMPTS,
        low_codes,
        settings(**changes | {"per_device_train_batch_size": 16}),
        tmp_path / "one",
    )
    ours, theirs = adapter_weights(one.adapter_dir), adapter_weights(two / "adapter")
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-4)  # steps are 1e-2
    history = json.loads((two / "history.json").read_text())
    for here, there in zip(without_times(one.history), without_times(history), strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)
