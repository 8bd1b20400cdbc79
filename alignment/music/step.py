"""One decoder step with fixed buffers: the transformers decoder's arithmetic without its overhead.

Per rollout the adapter is merged once into weights packed for products of few rows, q, k and v become one product,
the K embeddings and the K heads become one table each, prompts' keys and values are computed once, and the
unconditional half of guidance skips cross-attention, whose contribution there is exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignment.music.cache import RowCache, self_attention
from alignment.music.distribution import guide
from alignment.music.linear import Product, pack_layers
from alignment.music.text import TextBatch

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

SHORTEST = 16  # tokens that a prompt is padded to


@dataclass
class _Layer:
    self_norm: Callable[[Tensor], Tensor]
    self_qkv: Product  # outputs ordered head by head: q, k and v of head 0, of head 1 ...
    self_out: Product
    final_norm: Callable[[Tensor], Tensor]
    fc1: Product
    fc2: Product
    activation: Callable[[Tensor], Tensor]
    cross_norm: Callable[[Tensor], Tensor] | None = None  # a melody checkpoint's decoder has no cross-attention
    cross_q: Product | None = None
    cross_kv: Product | None = None
    cross_out: Product | None = None


class DecoderStep:
    """Call ``start`` with a batch of text, then the object itself with what is read at steps 0, 1, 2 ..."""

    def __init__(self, model: MusicModel, steps: int) -> None:
        decoder = model.hf.decoder.model.decoder
        self.model = model
        self.steps, self.width, self.heads = steps, model.width, model.hf.config.decoder.num_attention_heads
        self.codebooks, self.codebook_size = model.codebooks, model.codebook_size
        self.scale = decoder.layers[0].self_attn.scaling
        by_head = torch.arange(3 * self.width, device=model.device).view(3, self.heads, -1).transpose(0, 1).flatten()
        self.layers = [_gather(model, layer, index, by_head) for index, layer in enumerate(decoder.layers)]
        self.norm = _norm(decoder.layer_norm)
        self.head = pack_layers(model.packed, "heads", list(model.hf.decoder.lm_heads))  # (rows, D) to (rows, K * V)
        self.table = torch.cat([embedding.weight for embedding in decoder.embed_tokens])  # (K * (V + 1), D)
        rows = [embedding.weight.shape[0] for embedding in decoder.embed_tokens]
        self.offsets = torch.tensor([sum(rows[:k]) for k in range(len(rows))], device=model.device)
        self.embed_positions = decoder.embed_positions
        self.before = 0  # places of attention ahead of the first step
        if not model.melody_frames:
            blank = torch.zeros(1, 1, steps, dtype=torch.int64, device=model.device)
            self.positions = self.embed_positions(blank).to(self.table)  # (S, D)

    def start(self, text: TextBatch, guidance: float = 1.0) -> None:
        """Begin a rollout of len(text) clips; guidance other than 1 doubles the rows, the unconditional half below."""
        self.clips, self.guidance = len(text), guidance
        rows, size = self.clips * (1 if guidance == 1.0 else 2), self.width // self.heads
        self.cache = self_attention(len(self.layers), rows * self.heads, self.steps, self.scale, self.table, size)
        self.cross, self.bias = self._heard(text, SHORTEST)

    def start_rows(self, clips: int, tokens: int, guidance: float = 1.0) -> RowCache:
        """Begin with room for ``clips`` clips of prompts up to ``tokens`` long, which ``place`` puts in their rows;
        each clip then stands at a step of its own, and no shape ever changes."""
        self.clips, self.guidance = clips, guidance
        rows, size = clips * (1 if guidance == 1.0 else 2), self.width // self.heads
        self.cache = RowCache(len(self.layers), rows, self.heads, self.steps, self.scale, self.table, size)
        self.tokens = max(tokens, SHORTEST)
        new = self.table.new_zeros
        self.cross = [
            (new(clips * self.heads, size, self.tokens), new(clips * self.heads, self.tokens, size))
            for _ in self.layers
        ]
        self.bias = new(clips * self.heads, 1, self.tokens)
        return self.cache

    def place(self, clips: Tensor, text: TextBatch) -> None:
        """Let the clips of these numbers (b,) hear the rows of ``text``, (b, L, D), from now on."""
        rows = (clips[:, None] * self.heads + torch.arange(self.heads, device=clips.device)).flatten()  # (b * H,)
        cross, bias = self._heard(text, self.tokens)
        for (keys, values), (own_keys, own_values) in zip(cross, self.cross, strict=True):
            own_keys[rows], own_values[rows] = keys, values
        self.bias[rows] = bias

    def _heard(self, text: TextBatch, tokens: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Every layer's keys (B * H, d, L) and values (B * H, L, d) of the prompts, padded to ``tokens`` at least, and
        what is added to their scores, (B * H, 1, L)."""
        # Torch multiplies matrices below some 400 products in a plain loop, twice as slow as somewhat larger ones.
        extra = (0, max(0, tokens - text.mask.shape[1]))
        prompt, mask = F.pad(text.hidden, (0, 0, *extra)), F.pad(text.mask, extra)  # (B, L, D), (B, L)
        cross = []
        for layer in self.layers:
            both = layer.cross_kv(prompt.flatten(0, 1)).view(len(text), -1, 2, self.heads, self.width // self.heads)
            keys, values = both.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind()  # (B * H, L, d) each
            cross.append((keys.transpose(1, 2), values))
        bias = torch.zeros_like(mask, dtype=self.table.dtype).masked_fill(mask == 0, float("-inf"))
        return cross, bias.repeat_interleave(self.heads, dim=0)[:, None]

    def __call__(self, read: Tensor, s: int | Tensor) -> Tensor:
        """Logits (B, K, V) of step ``s``, guided if the rollout is, from the codes read there, (B, K) int64; after
        ``start_rows`` of every clip's own step, (B,)."""
        hidden = self._read(read, s)
        heard = hidden[: self.clips]  # a view: only these rows hear the prompt
        self.cache.begin(s)
        for index, (layer, cross) in enumerate(zip(self.layers, self.cross, strict=True)):
            qkv = layer.self_qkv(layer.self_norm(hidden)).view(len(hidden) * self.heads, 3, -1)
            hidden += layer.self_out(self.cache.attend(index, qkv).view(-1, self.width))
            heard += self._cross_attention(layer, cross, layer.cross_norm(heard))
            hidden += layer.fc2(layer.activation(layer.fc1(layer.final_norm(hidden))))
        return self._say(hidden)

    def _read(self, read: Tensor, s: int | Tensor) -> Tensor:
        """(B, D), or of guided clips twice that many rows: the codes read, at their positions."""
        if read.device.type == "cpu":
            hidden = F.embedding_bag(read + self.offsets, self.table, mode="sum") + self.positions[s]  # (B, D)
        else:
            hidden = F.embedding(read + self.offsets, self.table).sum(dim=1) + self.positions[s]
        return hidden if self.guidance == 1.0 else torch.cat([hidden, hidden])

    def _say(self, hidden: Tensor) -> Tensor:
        """The logits (B, K, V) of what the last layer leaves, guided if the rollout is."""
        hidden = self.norm(hidden)
        if self.guidance != 1.0:
            # The heads are linear and have no bias: guiding what they read guides the logits, at half the cost.
            hidden = guide(hidden[: self.clips], hidden[self.clips :], self.guidance)
        return self.head(hidden).view(-1, self.codebooks, self.codebook_size)

    def _cross_attention(self, layer: _Layer, cross: tuple[Tensor, Tensor], hidden: Tensor) -> Tensor:
        keys, values = cross
        query = layer.cross_q(hidden).view(keys.shape[0], 1, -1)
        scores = torch.baddbmm(self.bias, query, keys, alpha=self.scale)
        return layer.cross_out(torch.bmm(scores.softmax(dim=-1), values).view(-1, self.width))


def _gather(model: MusicModel, layer: nn.Module, index: int, by_head: Tensor) -> _Layer:
    def packed(*parts: nn.Module, order: Tensor | None = None) -> Product:
        return pack_layers(model.packed, f"{index}.{names[parts[0]]}", parts, order)

    names = {module: name for name, module in layer.named_modules()}
    own, text = layer.self_attn, getattr(layer, "encoder_attn", None)
    gathered = _Layer(
        self_norm=_norm(layer.self_attn_layer_norm),
        self_qkv=packed(own.q_proj, own.k_proj, own.v_proj, order=by_head),
        self_out=packed(own.out_proj),
        final_norm=_norm(layer.final_layer_norm),
        fc1=packed(layer.fc1),
        fc2=packed(layer.fc2),
        activation=layer.activation_fn,
    )
    if text is not None:
        gathered.cross_norm = _norm(layer.encoder_attn_layer_norm)
        gathered.cross_q, gathered.cross_out = packed(text.q_proj), packed(text.out_proj)
        gathered.cross_kv = packed(text.k_proj, text.v_proj)
    return gathered


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The layer as a function: looking a module's parameters up costs as much as normalising a few rows."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda hidden: torch.layer_norm(hidden, shape, weight, bias, eps)
