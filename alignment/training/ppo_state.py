"""PPO's checkpoints: adapter and its mean, value head, both optimizers, the adapted price of KL, nothing of the base.

Everything that is drawn is a function of seed and step, so there is no random state to keep.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from alignment.errors import StoreError
from alignment.training.checkpoint import WEIGHTS, whole_checkpoints
from alignment.training.tail_average import TailAverage
from alignment.training.value import ValueHead
from alignment.training.watching import Watched
from alignment.training.weights import adapter_parameters, read_weights, write_tensors

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

VALUE, OPTIMIZER, STATE = "value.safetensors", "optimizer.pt", "trainer_state.json"
KEPT = 2  # checkpoints


@dataclass
class PpoState:
    """How far a run is. ``history`` has one entry a step, ``watched`` one a call of the watch."""

    kl_coef: float
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    watched: Watched = field(default_factory=list)
    stopped: str = ""


def write_checkpoint(
    run_dir: Path, state: PpoState, model: MusicModel, head: ValueHead, optimizers: Sequence[torch.optim.Optimizer],
    tail: TailAverage,
) -> None:  # fmt: skip
    """Write ``run_dir/checkpoint-STEP``, whole or not at all, and drop all but the newest two."""
    folder = run_dir / f"checkpoint-{state.step}"
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(adapter_parameters(model.hf), partial / WEIGHTS)
        write_tensors(head.state_dict(), partial / VALUE)
        tail.write(partial)
        torch.save([optimizer.state_dict() for optimizer in optimizers], partial / OPTIMIZER)
        values = asdict(state)
        values["global_step"] = values.pop("step")
        (partial / STATE).write_text(json.dumps(values), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(f"{folder}: the checkpoint cannot be written ({error}); free space.") from error
    for old in whole_checkpoints(run_dir)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(
    folder: Path, model: MusicModel, head: ValueHead, optimizers: Sequence[torch.optim.Optimizer], tail: TailAverage
) -> PpoState:
    """Put a checkpoint onto model, head, optimizers and tail; how far it was.

    Raises TrainingError when it does not fit."""
    read_weights(adapter_parameters(model.hf), folder / WEIGHTS)
    head.load_state_dict(load_file(folder / VALUE))
    tail.read(folder)
    states = torch.load(folder / OPTIMIZER, weights_only=True, map_location=model.device)
    for optimizer, values in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(values)
    values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    values["step"] = values.pop("global_step")
    values["watched"] = [(step, metrics) for step, metrics in values["watched"]]
    return PpoState(**values)
