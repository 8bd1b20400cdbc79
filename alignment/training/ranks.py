"""The processes of one training run under torchrun: which part is whose, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from alignment.training.advantages import explained_variance
from alignment.training.processes import process_count, process_number

# One process trains reward models, listens or writes the page while the others wait for it; one that dies is noticed at
# once, by its connections and by torchrun.
PATIENCE = timedelta(days=7)


def meet(device: torch.device | str) -> None:
    """Under torchrun, return when all its processes have found each other; alone nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)


class Ranks:
    """One process alone, or as many as torchrun started; every method is called by all of them alike."""

    def __init__(self, device: torch.device) -> None:
        meet(device)
        self.index, self.count, self.device = process_number(), process_count(), device

    def share(self, items: int) -> range:
        """This process's part of ``items`` things: parts are contiguous and differ by one at most."""
        bounds = [items * rank // self.count for rank in range(self.count + 1)]
        return range(bounds[self.index], bounds[self.index + 1])

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, of one shape everywhere."""
        if self.count > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def explained_variance(self, returns: Tensor, values: Tensor) -> float:
        """``explained_variance`` of all processes' entries together."""
        found = [self.join(x.detach().double().cpu().numpy()) for x in (returns, values)]
        return explained_variance(*(torch.from_numpy(x) for x in found))

    def join(self, values: np.ndarray) -> np.ndarray:
        """Every process's rows, in their order."""
        return values if self.count == 1 else np.concatenate(gather_object([values]))

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients; a parameter without one counts as zero."""
        if self.count == 1:
            return
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
