"""The value head: what a clip's reward is expected to be, read from the decoder's state before each step.

A module of its own beside the model. The decoder's states enter it as they are and no gradient flows back, so the
adapter is moved by the policy's loss alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


class ValueHead(nn.Module):
    """Expected returns (B, S) of decoder states (B, S, D); 0 everywhere until it is trained."""

    def __init__(self, width: int, hidden: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner, self.out = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(nn.functional.gelu(self.inner(states.detach().float()))).squeeze(-1)


@contextmanager
def decoder_states(model: MusicModel) -> Iterator[list[Tensor]]:
    """Inside this block, what the heads read in each forward pass is appended to the list: (B, S, D), detached.

    The state at a delayed step has read every earlier step's codes and none of its own."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0].detach())

    handle = model.hf.decoder.lm_heads[0].register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
