"""A small training run as a program of its own, so that it can be killed, or started in several processes at once.

python -m tests.training_program METHOD RUN_DIR SETTINGS_AS_JSON; it prints a line a step and ends with its result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROMPTS = [
    "calm slow piano", "fast violin with drums and bright strings", "dark organ", "lively guitar in major",
    "calm piano", "slow flute", "bright trumpet",
]  # fmt: skip
RUN: dict[str, Any] = {
    "learning_rate": 5e-3, "num_train_epochs": 3, "per_device_train_batch_size": 2, "warmup_ratio": 0.3,
    "save_steps": 2, "eval_steps": 3, "patience": 9, "lora": {"r": 4},
}  # fmt: skip


def examples(model: Any) -> list:
    """Seven pairs of uneven length, weight and label: no batch of two, four or eight holds all that is left."""
    from alignment.training.examples import DpoExample
    from tests.training_support import random_examples

    return [
        DpoExample(e.prompt, e.chosen[:, : 6 - n % 2], e.rejected, 1.0 + n, 0.5 if n == 3 else 1.0)
        for n, e in enumerate(random_examples(model, PROMPTS))
    ]


def train(method: str, run_dir: Path, changes: dict[str, Any], *, on_step: Any = None) -> Any:
    """The run from its beginning, or on from the last checkpoint in ``run_dir``."""
    from alignment.config import DpoSettings, ExpertSettings
    from alignment.training.dpo import train_dpo
    from alignment.training.examples import ClipExample
    from alignment.training.expert_iteration import train_expert
    from alignment.training.processes import process_number
    from tests.music_support import make_tiny_music

    def watch(step: int, policy: Any) -> dict[str, float]:
        assert process_number() == 0, "one process watches for all"
        return {"held_out_reward": -sum(float(value.abs().sum()) for value in policy.trainable_parameters())}

    model = make_tiny_music()
    more = {"watch": watch, "resume": True, "on_step": on_step}
    if method == "dpo":
        return train_dpo(model, examples(model), DpoSettings.model_validate(RUN | changes), run_dir, **more)
    clips = [ClipExample(e.prompt, e.chosen, e.weight) for e in examples(model)]
    return train_expert(model, clips, ExpertSettings.model_validate(RUN | changes), run_dir, **more)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    method, run_dir, changes = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    result = train(method, run_dir, changes, on_step=lambda step, steps, _: print(f"step {step} {steps}", flush=True))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    print("done", result.steps, result.best_step, flush=True)


if __name__ == "__main__":
    main()
