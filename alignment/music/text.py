"""Prompts as the decoder hears them: T5 states in the decoder's width, cached by text.

Equal lengths are encoded together and nothing is padded inside the encoder, so a prompt's states do not
depend on the prompts beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignment.errors import ShapeError

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

ENCODE_BATCH = 32


@dataclass(frozen=True)
class TextBatch:
    """``hidden`` (B, L, D) in the decoder's width, zero where padded; ``mask`` (B, L) int64, 1 = counted."""

    hidden: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.hidden.ndim != 3 or self.mask.shape != self.hidden.shape[:2]:
            found = f"hidden {tuple(self.hidden.shape)} and mask {tuple(self.mask.shape)}"
            raise ShapeError(f"Found text of {found}; needs (B, L, D) and (B, L).")

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def rows(self, index: slice | Sequence[int] | Tensor) -> TextBatch:
        """The chosen rows, in that order."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.hidden.device)
        return TextBatch(self.hidden[index], self.mask[index])

    def to(self, device: torch.device | str) -> TextBatch:
        return TextBatch(self.hidden.to(device), self.mask.to(device))


def null_text(model: MusicModel, batch: int) -> TextBatch:
    """The unconditional text for guidance: one counted zero vector a row.

    Keys and values have no bias, so attending to it adds exactly nothing, which is what MusicGen was trained
    on when a caption was dropped; a fully masked row would be undefined.
    """
    hidden = torch.zeros(batch, 1, model.width, dtype=model.dtype, device=model.device)
    return TextBatch(hidden, torch.ones(batch, 1, dtype=torch.int64, device=model.device))


def without_prompts(model: MusicModel, text: TextBatch) -> TextBatch:
    """What the unconditional half of guidance hears beside ``text``: nothing. A melody checkpoint, whose prompts take
    places of their own, hears zeros in as many, which is what it was trained on."""
    return TextBatch(torch.zeros_like(text.hidden), text.mask) if model.melody_frames else null_text(model, len(text))


@torch.no_grad()
def encode_prompts(model: MusicModel, prompts: Sequence[str]) -> TextBatch:
    """The prompts' TextBatch, padded on the right to the longest. An empty prompt is the unconditional text."""
    fresh = [text for text in dict.fromkeys(prompts) if text not in model.text_cache]
    for states, text in _encode(model, fresh):
        model.text_cache[text] = states
    found = [model.text_cache[text] for text in prompts]  # (L_i, D) each
    longest = max((len(states) for states in found), default=1)
    hidden = torch.zeros(len(found), longest, model.width, dtype=model.dtype, device=model.device)
    mask = torch.zeros(len(found), longest, dtype=torch.int64, device=model.device)
    for row, states in enumerate(found):
        hidden[row, : len(states)] = states
        mask[row, : len(states)] = 1
    return TextBatch(hidden, mask)


def _encode(model: MusicModel, texts: list[str]) -> list[tuple[Tensor, str]]:
    encoder, projection = model.hf.text_encoder, getattr(model.hf, "enc_to_dec_proj", None)
    limit = min(int(getattr(model.tokenizer, "model_max_length", 512)), 512)
    by_length: dict[int, list[tuple[list[int], str]]] = {}
    done: list[tuple[Tensor, str]] = []
    for text in texts:
        if not text.strip():
            done.append((torch.zeros(1, model.width, dtype=model.dtype, device=model.device), text))
            continue
        ids = model.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        by_length.setdefault(len(ids), []).append((ids, text))
    was_training = encoder.training
    encoder.eval()  # a trainer may have switched its dropout on
    try:
        for group in by_length.values():
            for start in range(0, len(group), ENCODE_BATCH):
                part = group[start : start + ENCODE_BATCH]
                ids = torch.tensor([ids for ids, _ in part], device=model.device)
                states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0]  # (b, L, D_text)
                states = states if projection is None else projection(states)
                done += [(row.clone(), text) for row, (_, text) in zip(states, part, strict=True)]
    finally:
        encoder.train(was_training)
    return done
