"""Self-attention of one step over what the steps before it left: keys and values of fixed or growing buffers.

Heads stand row by row, head by head: H' = rows * heads of them, each of ``size`` d. ``begin(s)`` opens step s and
``attend`` answers for one layer; every layer answers once a step, and steps come in order from 0.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.music.linear import has_fbgemm

BLOCK = 16  # steps that a growing buffer gains at least
CHUNK = 64  # steps whose keys lie together, transposed
FEWEST = 48  # heads from which sums over table rows are faster than batched products


class Cache(Protocol):
    def begin(self, s: Any) -> None:
        """Open step ``s``: an int, or of a RowCache every clip's own, (B,)."""

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """What the step's heads hear, (H', d), from their queries, keys and values (H', 3, d)."""


def self_attention(layers: int, heads: int, steps: int, scale: float, like: Tensor, size: int) -> Cache:
    """The faster cache on this machine for ``heads`` heads over all rows, on the device of ``like``, in its dtype."""
    if heads >= FEWEST and like.dtype == torch.float32 and like.device.type == "cpu" and has_fbgemm():
        return TableCache(layers, heads, steps, scale, like, size)
    return GrownCache(layers, heads, steps, scale, like, size)


class GrownCache:
    """Batched products over buffers that grow with the steps.

    Attention reads whole buffers and masks what is not written yet: on a CPU, products of whole contiguous matrices
    take half the time of products of their first rows, more than the masked rows cost. Elsewhere there is room for
    all steps at once, so that shapes stay the same."""

    def __init__(self, layers: int, heads: int, steps: int, scale: float, like: Tensor, size: int) -> None:
        self.steps, self.scale, self.s = steps, scale, 0
        self.buffers = [like.new_zeros(2, heads, 0, size) for _ in range(layers)]  # keys, values
        self.unwritten = like.new_zeros(0)

    def begin(self, s: int) -> None:
        self.s = s
        if s == len(self.unwritten):
            self._grow(s)
        self.unwritten[s] = 0

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        buffer = self.buffers[layer]
        buffer[:, :, self.s] = qkv[:, 1:].transpose(0, 1)
        keys, values = buffer.unbind()  # (H', room, d) each
        scores = torch.baddbmm(self.unwritten, qkv[:, :1], keys.transpose(1, 2), alpha=self.scale)
        return torch.bmm(scores.softmax(dim=-1), values).squeeze(1)

    def _grow(self, s: int) -> None:
        on_cpu = self.unwritten.device.type == "cpu"
        room = min(s + max(BLOCK, s // 8), self.steps) if on_cpu else self.steps
        for index, buffer in enumerate(self.buffers):
            grown = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
            grown[:, :, :s], grown[:, :, s:] = buffer, 0  # what was there before might not be finite
            self.buffers[index] = grown
        self.unwritten = self.unwritten.new_full((room,), float("-inf"))
        self.unwritten[:s] = 0


class TableCache:
    """Both products as weighted sums of table rows, which torch computes at twice the speed from memory.

    A head's values are its steps' rows, summed by the attention's weights. Its scores are sums too: of the rows of its
    transposed keys, one a dimension, weighted by the query. A chunk of 64 steps is one such table, so that a new step
    is a new column and nothing is ever moved. The order of summing is fixed: neither room nor batch alters a bit."""

    def __init__(self, layers: int, heads: int, steps: int, scale: float, like: Tensor, size: int) -> None:
        self.heads, self.size, self.scale, self.s = heads, size, scale, 0
        most = -(-steps // CHUNK)
        self.keys = [like.new_empty(most, heads, size, CHUNK) for _ in range(layers)]
        self.values = [like.new_empty(heads, most * CHUNK, size) for _ in range(layers)]
        self.first_rows = torch.arange(heads, dtype=torch.int32)[:, None] * (most * CHUNK)
        self.dimensions = torch.arange(most * heads * size, dtype=torch.int32)
        self.starts = torch.arange(0, most * heads * size + 1, size, dtype=torch.int32)

    def begin(self, s: int) -> None:
        self.s, self.chunks = s, s // CHUNK + 1
        if s % BLOCK:
            return
        self.length = s + BLOCK
        self.rows = (self.first_rows + torch.arange(self.length, dtype=torch.int32)).flatten()
        self.row_starts = torch.arange(0, len(self.rows) + 1, self.length, dtype=torch.int32)
        for values in self.values:
            values[:, s : self.length] = 0  # a weight of 0 does not silence what is not finite

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        keys, values, (chunk, column) = self.keys[layer], self.values[layer], divmod(self.s, CHUNK)
        keys[chunk, :, :, column], values[:, self.s] = qkv[:, 1], qkv[:, 2]
        query = (qkv[:, 0] * self.scale).expand(self.chunks, -1, -1).flatten()  # every chunk sums with the same weights
        dimensions = self.dimensions[: len(query)]
        scores = _weighted_sums(
            keys.view(-1, CHUNK), dimensions, self.starts[: self.chunks * self.heads + 1], query
        ).view(self.chunks, self.heads, CHUNK)
        scores = scores.transpose(0, 1).flatten(1)[:, : self.length]  # (H', s + 1 and up to 15 more)
        scores[:, self.s + 1 :] = float("-inf")
        weights = scores.softmax(dim=-1).flatten()
        return _weighted_sums(values.view(-1, self.size), self.rows, self.row_starts, weights)


def _weighted_sums(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """(len(starts) - 1, width): each the sum of its rows of ``table``, weighted."""
    return torch.ops.aten._embedding_bag_forward_only(table, rows, starts, False, 0, False, weights, True, -1)[0]


class RowCache:
    """Rows that stand at steps of their own, in buffers that never move: what a CUDA graph may replay.

    ``room``, set from outside, is how many steps are looked at; what a row has not written itself is masked, so a row
    may begin anew at step 0 over what another left. ``begin`` takes the clips' steps (B,); of guided clips the cache
    has 2 B rows, the unconditional half below."""

    def __init__(self, layers: int, rows: int, heads: int, steps: int, scale: float, like: Tensor, size: int) -> None:
        self.scale, self.room, self.steps = scale, steps, torch.arange(steps, device=like.device)
        self.every, self.heads = torch.arange(rows, device=like.device), heads
        self.buffers = [like.new_zeros(2, rows, heads, steps, size) for _ in range(layers)]  # keys, values

    def begin(self, at: Tensor) -> None:
        self.at = at.repeat(len(self.every) // len(at))  # (rows,)
        self.heard = (self.steps[: self.room] <= self.at[:, None])[:, None, None]  # (rows, 1, 1, room)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        query, key, value = qkv.view(len(self.every), self.heads, 3, -1).unbind(2)  # (rows, H, d) each
        keys, values = self.buffers[layer]
        keys[self.every, :, self.at], values[self.every, :, self.at] = key, value
        keys, values = keys[:, :, : self.room], values[:, :, : self.room]
        heard = F.scaled_dot_product_attention(query[:, :, None], keys, values, self.heard, scale=self.scale)
        return heard.flatten(0, 2)  # (rows * H, d)
