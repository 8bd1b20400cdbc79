"""A run of PPO in a process of its own, to be killed or to be one of several: python -m tests.ppo_run DIR SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from alignment.training.ppo import train_ppo
from tests.music_support import make_tiny_music
from tests.ppo_support import PROMPTS, low_codes, settings


def main(folder: str, changes: str) -> None:
    torch.set_num_threads(1)
    run = settings(**json.loads(changes))
    result = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, Path(folder), resume=True)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (Path(folder) / "history.json").write_text(json.dumps(result.history))


if __name__ == "__main__":
    main(*sys.argv[1:])
