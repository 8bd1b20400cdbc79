"""`attune` under torchrun: two processes of this machine's CPU that run one command together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from alignment.config import REPOSITORY

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ATTUNE_DEVICE": "cpu", "ACCELERATE_USE_CPU": "1"
}  # fmt: skip
PPO = {
    "max_steps": 2, "rollout_prompts": 3, "num_generations": 2, "num_ppo_epochs": 1, "num_mini_batches": 1,
    "per_device_train_batch_size": 4, "save_steps": 1, "generation": {"clip_seconds": 0.5},
    "lora": {"r": 2, "lora_alpha": 4}, "value": {"hidden": 8, "warmup_steps": 0, "epochs": 1},
}  # fmt: skip


def command(home: Path, *arguments: str | Path, program: tuple[str, ...] = ("-m", "alignment.cli")) -> list[str]:
    return [*TORCHRUN, *program, *map(str, arguments), "--home", str(home)]


def attune_together(
    home: Path, *arguments: str | Path, program: tuple[str, ...] = ("-m", "alignment.cli")
) -> subprocess.CompletedProcess[str]:
    """What two processes say that run the command together."""
    asked = command(home, *arguments, program=program)
    return subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT, cwd=REPOSITORY)


def sentences(said: str) -> list[str]:
    """What `attune` itself said of why it ended; torchrun adds a report of its own."""
    return [line.removeprefix("attune: ") for line in said.splitlines() if line.startswith("attune: ")]
