"""The mean of an adapter over the last steps of a run, whose gradients are mostly noise.

Suffix averaging (Rakhlin, Shamir and Sridharan, arXiv:1109.5647): what the steps have in common stays, what each adds
by chance cancels. Ramé et al. (WARP, arXiv:2406.16768) average policies trained on a reward for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alignment.training.weights import write_tensors

FILE = "tail.safetensors"


class TailAverage:
    """Collects parameters after each of the last ``share`` of ``steps`` steps (0: collects nothing)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, share: float, steps: int) -> None:
        self.parameters = dict(parameters)
        self.first = steps - round(share * steps) + 1  # the first step that counts; steps are counted from 1
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """The parameters as they are after this step; steps come in order, each once."""
        if step < self.first:
            return
        for name, now in self.parameters.items():
            before = self.mean.get(name)
            if before is None:
                self.mean[name] = now.detach().clone()
            else:
                before += (now.detach() - before) / (step - self.first + 1)

    @torch.no_grad()
    def put(self) -> None:
        """Put the mean onto the parameters; where nothing was collected nothing happens."""
        for name, mean in self.mean.items():
            self.parameters[name].copy_(mean)

    def write(self, folder: Path) -> None:
        """Beside a checkpoint's other weights. Raises StoreError when there is no room."""
        if self.mean:
            write_tensors(self.mean, folder / FILE)

    def read(self, folder: Path) -> None:
        """Go on from what a checkpoint knew."""
        path = folder / FILE
        self.mean = {}
        if path.exists():
            saved = load_file(path)
            self.mean = {name: saved[name].to(now.device) for name, now in self.parameters.items()}
