"""A run of PPO in a process of its own, which may be one of several: python -m tests.ppo_run DIR SETTINGS [STEP].

After STEP it is killed at a moment drawn by chance, and does not come further than two steps."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch

from alignment.training.ppo import train_ppo
from tests.music_support import make_tiny_music
from tests.ppo_support import PROMPTS, low_codes, settings


def main(folder: str, changes: str, killed_after: str = "") -> None:
    torch.set_num_threads(1)

    def on_step(step: int, *_: object) -> None:
        if killed_after and step == int(killed_after):
            threading.Timer(random.uniform(0, 0.1), os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif killed_after and step == int(killed_after) + 2:
            signal.pause()

    run = settings(**json.loads(changes))
    result = train_ppo(make_tiny_music(), PROMPTS, low_codes, run, Path(folder), resume=True, on_step=on_step)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        (Path(folder) / "history.json").write_text(json.dumps(result.history))


if __name__ == "__main__":
    main(*sys.argv[1:])
