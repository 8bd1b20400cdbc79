"""A training process killed with SIGKILL at random steps ends, restarted, exactly where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import training_program

ROOT = Path(__file__).resolve().parent.parent


def until(method: str, run_dir: Path, step: int | None, pause: float) -> bool:
    """Run the program until it has said ``step``, then kill it; True when it was at its end before."""
    command = [sys.executable, "-m", "tests.training_program", method, str(run_dir), "{}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("done"):
                return True
            if step is not None and int(line.split()[1]) >= step:
                time.sleep(pause)  # somewhere within the step that follows, its checkpoint or its evaluation
                return False
        raise AssertionError(process.stderr.read()[-2000:])
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("method", ["dpo", "expert"])
def test_a_run_killed_at_random_steps_ends_bit_for_bit_where_an_undisturbed_one_ends(
    tmp_path: Path, method: str
) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    whole = training_program.train(method, tmp_path / "whole", {})
    assert whole.steps == 12
    first = draw.randint(1, 10)
    until(method, tmp_path / "killed", first, draw.random() * 0.05)
    assert until(method, tmp_path / "killed", None, 0), "it ends"
    one = load_file(whole.adapter_dir / "adapter_model.safetensors")
    other = load_file(tmp_path / "killed" / "adapter" / "adapter_model.safetensors")
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert same, f"killed at step {first} (seed {seed})"
    lines = [
        [{k: v for k, v in json.loads(x).items() if k != "time"} for x in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "killed")
    ]
    assert lines[0] == lines[1] and [x["step"] for x in lines[0]] == list(range(13))
