"""Two processes under torchrun train as one with twice the batch; what a run's processes know of each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.training.batches import EpochOrder
from tests import training_program

ROOT = Path(__file__).resolve().parent.parent


def torchrun(method: str, run_dir: Path, changes: dict[str, Any]) -> str:
    """What two processes say, trained together on this machine's CPU."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "tests.training_program",
        method, str(run_dir), json.dumps(changes),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").open()]


@pytest.mark.parametrize(("method", "accumulation"), [("dpo", 1), pytest.param("expert", 2, marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, method: str, accumulation: int) -> None:
    # Seven examples: the last round of an epoch has three, so one process gets a whole batch and one half a batch.
    shared = {"gradient_accumulation_steps": accumulation, "eval_steps": 2}
    one = training_program.train(method, tmp_path / "one", shared | {"per_device_train_batch_size": 4})
    said = torchrun(method, tmp_path / "two", shared | {"per_device_train_batch_size": 2})
    assert said.count("step 1 ") == 1, "one process reports for all"
    assert said.count(f"done {one.steps} {one.best_step}") == 2, "all agree on the step whose adapter is kept"
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5)  # steps are 5e-3
    lines = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert [x["step"] for x in lines[0]] == list(range(one.steps + 1))
    for two, single in zip(*lines, strict=True):
        assert two.keys() == single.keys()
        for name in two.keys() - {"time"}:
            assert two[name] == pytest.approx(single[name], rel=1e-4, abs=1e-4), name


@pytest.mark.slow
def test_two_processes_resume_exactly_within_a_later_epoch(tmp_path: Path) -> None:
    torchrun("dpo", tmp_path, {"per_device_train_batch_size": 1})
    whole = weights(tmp_path)
    last = max(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    assert last.name == "checkpoint-12"
    shutil.rmtree(last)
    shutil.rmtree(tmp_path / "adapter")
    said = torchrun("dpo", tmp_path, {"per_device_train_batch_size": 1})
    assert "step 11 " in said and "step 10 " not in said
    again = weights(tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_an_epochs_order_is_its_own_and_blanks_come_last() -> None:
    order = EpochOrder(7, seed=3, fill=4)
    first = list(order)
    assert sorted(first[:7]) == list(range(7)) and first[7:] == [7] and len(order) == 8
    order.set_epoch(1)
    second = list(order)
    assert second[:7] != first[:7] and sorted(second[:7]) == list(range(7))
    assert list(EpochOrder(7, seed=3)) == first[:7], "the same for one process"
