"""The processes of one training run under torchrun: which part is whose, and sums over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor


class Ranks:
    """One process alone, or as many as torchrun started; every method is called by all of them alike."""

    def __init__(self, device: torch.device) -> None:
        state = PartialState(cpu=device.type == "cpu")
        self.index, self.count, self.device = state.process_index, state.num_processes, device

    @property
    def is_first(self) -> bool:
        return self.index == 0

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

    def wait(self) -> None:
        """Go on when every process is here."""
        PartialState().wait_for_everyone()
