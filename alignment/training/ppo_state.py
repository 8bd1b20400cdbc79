"""PPO's checkpoints: adapter, value head, both optimizers, the adapted price of KL, and nothing of the base.

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
from safetensors.torch import load_file, save_file

from alignment.errors import StoreError, TrainingError
from alignment.training.trainer import WEIGHTS, _save_adapter, _whole_checkpoints
from alignment.training.value import ValueHead

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

VALUE, OPTIMIZER, STATE = "value.safetensors", "optimizer.pt", "trainer_state.json"
KEPT = 2  # checkpoints

save_adapter, whole_checkpoints = _save_adapter, _whole_checkpoints


@dataclass
class PpoState:
    """How far a run is. ``history`` has one entry a step, ``watched`` (step, metrics) one a call of the watch."""

    kl_coef: float
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    watched: list[tuple[int, dict[str, float]]] = field(default_factory=list)


def last_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = whole_checkpoints(run_dir)
    return found[-1] if found else None


def write_checkpoint(
    run_dir: Path, state: PpoState, model: MusicModel, head: ValueHead, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Write ``run_dir/checkpoint-STEP``, whole or not at all, and drop all but the newest two."""
    folder = run_dir / f"checkpoint-{state.step}"
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_adapter(model), partial / WEIGHTS)
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, partial / VALUE)
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
    folder: Path, model: MusicModel, head: ValueHead, optimizers: Sequence[torch.optim.Optimizer]
) -> PpoState:
    """Put a checkpoint onto model, head and optimizers; how far it was. Raises TrainingError when it does not fit."""
    own, saved = _adapter(model), load_file(folder / WEIGHTS)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in saved.items()}:
        raise TrainingError(f"{folder}: its adapter has other weights; start again without resume.")
    for name, value in own.items():
        value.copy_(saved[name])
    head.load_state_dict(load_file(folder / VALUE))
    states = torch.load(folder / OPTIMIZER, weights_only=True, map_location=model.device)
    for optimizer, values in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(values)
    values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    watched = [(step, metrics) for step, metrics in values["watched"]]
    return PpoState(values["kl_coef"], values["global_step"], values["history"], watched)


def _adapter(model: MusicModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().contiguous() for name, value in model.hf.named_parameters() if value.requires_grad}
