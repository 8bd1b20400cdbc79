"""One decoder step with fixed buffers: the transformers decoder's arithmetic without its overhead.

Per rollout the adapter is merged once into copies of the weights, q, k and v become one product, the K
embeddings and the K heads become one table each, prompts' keys and values are computed once, and the
unconditional half of guidance skips cross-attention, whose contribution there is exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignment.music.adapter import effective_weight
from alignment.music.text import TextBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignment.music.model import MusicModel


@dataclass
class _Layer:
    self_norm: nn.LayerNorm
    self_qkv: Tensor  # (3D, D), q already scaled
    self_out: Tensor
    cross_norm: nn.LayerNorm
    cross_q: Tensor  # already scaled
    cross_kv: Tensor  # (2D, D)
    cross_out: Tensor
    final_norm: nn.LayerNorm
    fc1: Tensor
    fc2: Tensor
    activation: Callable[[Tensor], Tensor]


class DecoderStep:
    """Call ``start`` with a batch of text, then the object itself with what is read at steps 0, 1, 2 ..."""

    def __init__(self, model: MusicModel, steps: int) -> None:
        decoder = model.hf.decoder.model.decoder
        self.steps, self.width, self.heads = steps, model.width, model.hf.config.decoder.num_attention_heads
        self.codebooks, self.codebook_size = model.codebooks, model.codebook_size
        self.layers = [_gather(layer) for layer in decoder.layers]
        self.norm = decoder.layer_norm
        self.table = torch.cat([embedding.weight for embedding in decoder.embed_tokens])  # (K * (V + 1), D)
        rows = [embedding.weight.shape[0] for embedding in decoder.embed_tokens]
        self.offsets = torch.tensor([sum(rows[:k]) for k in range(len(rows))], device=model.device)
        self.head = torch.cat([head.weight for head in model.hf.decoder.lm_heads])  # (K * V, D)
        blank = torch.zeros(1, 1, steps, dtype=torch.int64, device=model.device)
        self.positions = decoder.embed_positions(blank).to(self.table)  # (S, D)

    def start(self, text: TextBatch, *, guided: bool) -> None:
        """Begin a rollout of len(text) clips; ``guided`` doubles the rows with an unconditional half below."""
        self.conditional = len(text)
        rows = self.conditional * (2 if guided else 1)
        size = self.width // self.heads
        self.row_shape, self.guided = (rows, self.heads, size), guided
        new = self.table.new_empty
        self.keys = [new(rows, self.heads, self.steps, size) for _ in self.layers]
        self.values = [new(rows, self.heads, self.steps, size) for _ in self.layers]
        self.bias = torch.zeros(text.mask.shape, dtype=self.table.dtype, device=self.table.device)
        self.bias = self.bias.masked_fill(text.mask == 0, float("-inf"))[:, None, None]  # (B, 1, 1, L)
        self.cross = []
        for layer in self.layers:
            keys, values = F.linear(text.hidden, layer.cross_kv).chunk(2, dim=-1)  # (B, L, D) each
            split = [part.unflatten(-1, (self.heads, size)).transpose(1, 2).contiguous() for part in (keys, values)]
            self.cross.append((split[0].transpose(2, 3), split[1]))  # (B, H, d, L), (B, H, L, d)

    def __call__(self, read: Tensor, s: int) -> Tensor:
        """Logits (rows, K, V) of step ``s`` from the codes read there, (B, K) int64."""
        hidden = F.embedding_bag(read + self.offsets, self.table, mode="sum") + self.positions[s]  # (B, D)
        if self.guided:
            hidden = torch.cat([hidden, hidden])
        for index, layer in enumerate(self.layers):
            hidden = hidden + self._self_attention(layer, index, _norm(layer.self_norm, hidden), s)
            asking = hidden[: self.conditional]
            heard = self._cross_attention(layer, index, _norm(layer.cross_norm, asking))
            if self.guided:
                hidden = torch.cat([asking + heard, hidden[self.conditional :]])
            else:
                hidden = asking + heard
            inner = layer.activation(F.linear(_norm(layer.final_norm, hidden), layer.fc1))
            hidden = hidden + F.linear(inner, layer.fc2)
        logits = F.linear(_norm(self.norm, hidden), self.head)
        return logits.view(-1, self.codebooks, self.codebook_size)

    def _self_attention(self, layer: _Layer, index: int, hidden: Tensor, s: int) -> Tensor:
        query, key, value = F.linear(hidden, layer.self_qkv).chunk(3, dim=-1)
        keys, values = self.keys[index], self.values[index]
        keys[:, :, s] = key.view(self.row_shape)
        values[:, :, s] = value.view(self.row_shape)
        scores = torch.matmul(query.view(self.row_shape)[:, :, None], keys[:, :, : s + 1].transpose(2, 3))
        mixed = torch.matmul(scores.softmax(dim=-1), values[:, :, : s + 1])  # (rows, H, 1, d)
        return F.linear(mixed.reshape(-1, self.width), layer.self_out)

    def _cross_attention(self, layer: _Layer, index: int, hidden: Tensor) -> Tensor:
        keys, values = self.cross[index]
        query = F.linear(hidden, layer.cross_q).view(-1, *self.row_shape[1:])[:, :, None]
        scores = torch.matmul(query, keys) + self.bias
        return F.linear(torch.matmul(scores.softmax(dim=-1), values).reshape(-1, self.width), layer.cross_out)


def _gather(layer: nn.Module) -> _Layer:
    own, text = layer.self_attn, layer.encoder_attn
    return _Layer(
        self_norm=layer.self_attn_layer_norm,
        self_qkv=torch.cat(
            [effective_weight(own.q_proj) * own.scaling, effective_weight(own.k_proj), effective_weight(own.v_proj)]
        ),
        self_out=effective_weight(own.out_proj),
        cross_norm=layer.encoder_attn_layer_norm,
        cross_q=effective_weight(text.q_proj) * text.scaling,
        cross_kv=torch.cat([effective_weight(text.k_proj), effective_weight(text.v_proj)]),
        cross_out=effective_weight(text.out_proj),
        final_norm=layer.final_layer_norm,
        fc1=effective_weight(layer.fc1),
        fc2=effective_weight(layer.fc2),
        activation=layer.activation_fn,
    )


def _norm(norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
