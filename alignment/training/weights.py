"""An adapter's weights in a file of their own, as checkpoints and the best step keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignment.errors import StoreError, TrainingError


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training may move, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all. Raises StoreError when there is no room."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: it cannot be written ({error}); free space.") from None


def read_weights(parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    """Put the weights in a file onto these parameters. Raises TrainingError when they are others."""
    saved = load_file(path)
    if saved.keys() != parameters.keys():
        raise TrainingError(f"{path.parent}: its adapter has other weights; start again without resume.")
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(saved[name])
