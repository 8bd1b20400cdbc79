"""Melody checkpoints sung from text alone: no melody and then the prompt stand ahead of the codes, in one sequence.

Their decoders have no cross-attention. Each clip's sequence is C places of "no melody" (the chroma of silence, whose
first pitch class is the largest), its prompt's L tokens, and its S delayed steps; position and attention simply count
on (arXiv:2306.05284, section 2.3; audiocraft's conditioner/chroma2music; transformers' MusicgenMelody). Codes therefore
begin at a place that depends on the prompt's own length, and each row of a batch has its own: shorter prompts are
padded behind the codes, where nothing that counts looks, so a clip does not depend on the prompts beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.music.cache import RowCache
from alignment.music.step import DecoderStep
from alignment.music.text import TextBatch

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


def decoder_step(model: MusicModel, steps: int) -> DecoderStep:
    """The step of the model's kind; of a melody checkpoint one that knows ``start_rows`` only."""
    return PrefixedStep(model, steps) if model.melody_frames else DecoderStep(model, steps)


def null_melody(model: MusicModel) -> Tensor:
    """(C, D): what a melody checkpoint hears ahead of a prompt without a melody."""
    first = torch.zeros(model.melody_frames, model.hf.config.num_chroma, dtype=model.dtype, device=model.device)
    first[:, 0] = 1
    return model.hf.audio_enc_to_dec_proj(first).detach()


def forced_logits(model: MusicModel, read: Tensor, text: TextBatch) -> Tensor:
    """Logits (B, K, S, V) of a melody checkpoint that reads the codes (B, K, S) behind its prompts."""
    decoder = model.hf.decoder
    codes = sum(embed(read[:, k]) for k, embed in enumerate(decoder.model.decoder.embed_tokens))  # (B, S, D)
    melody = null_melody(model).to(codes).expand(len(text), -1, -1)
    ahead = torch.cat([melody, text.hidden.to(codes)], dim=1)  # (B, C + L, D)
    first = model.melody_frames + text.mask.sum(dim=1, keepdim=True)  # (B, 1)
    places = first + torch.arange(read.shape[2], device=read.device)  # (B, S)
    places = places[..., None].expand_as(codes)
    sequence = F.pad(ahead, (0, 0, 0, read.shape[2])).scatter(1, places, codes)  # (B, C + L + S, D)
    states = decoder.model(inputs_embeds=sequence, use_cache=False).last_hidden_state.gather(1, places)
    return torch.stack([head(states) for head in decoder.lm_heads], dim=1)


class PrefixedStep(DecoderStep):
    """A step of a melody checkpoint: each clip stands behind a prompt of its own length, in one cache with it.

    The keys and values of the melody that is not there are computed once a rollout, for they are every clip's, and so
    are those of the zeros that the unconditional half hears in a prompt's place."""

    def start(self, text: TextBatch, guidance: float = 1.0) -> None:
        raise NotImplementedError("Prompts ahead of the codes need rows at places of their own: call start_rows.")

    def start_rows(self, clips: int, tokens: int, guidance: float = 1.0) -> RowCache:
        melody = null_melody(self.model)  # (C, D)
        self.clips, self.guidance, self.frames = clips, guidance, len(melody)
        self.before, rows = self.frames + tokens, clips * (1 if guidance == 1.0 else 2)
        size, room = self.width // self.heads, self.before + self.steps
        self.positions = self.embed_positions(self.table.new_zeros(1, room, self.width)).to(self.table)
        self.cache = RowCache(len(self.layers), rows, self.heads, room, self.scale, self.table, size)
        self.first = torch.zeros(clips, dtype=torch.int64, device=self.table.device)  # where each clip's codes begin
        self.melody = self._keys_and_values(melody[None] + self.positions[: self.frames])
        for buffer, kept in zip(self.cache.buffers, self.melody, strict=True):
            buffer[:, :, :, : self.frames] = kept
        if guidance != 1.0:
            self.silence = self._keys_and_values(self.positions[None, self.frames : self.before], self.melody)
        return self.cache

    def place(self, clips: Tensor, text: TextBatch) -> None:
        end = self.frames + text.mask.shape[1]
        kept = self._keys_and_values(text.hidden + self.positions[self.frames : end], self.melody)
        for index, (buffer, own) in enumerate(zip(self.cache.buffers, kept, strict=True)):
            buffer[:, clips, :, self.frames : end] = own
            if self.guidance != 1.0:
                silence = self.silence[index][:, :, :, : text.mask.shape[1]]
                buffer[:, clips + self.clips, :, self.frames : end] = silence
        self.first[clips] = self.frames + text.mask.sum(dim=1)

    def __call__(self, read: Tensor, s: int | Tensor) -> Tensor:
        at = self.first + s
        hidden = self._read(read, at)
        self.cache.begin(at)
        for index, layer in enumerate(self.layers):
            qkv = layer.self_qkv(layer.self_norm(hidden)).view(len(hidden) * self.heads, 3, -1)
            hidden += layer.self_out(self.cache.attend(index, qkv).view(-1, self.width))
            hidden += layer.fc2(layer.activation(layer.fc1(layer.final_norm(hidden))))
        return self._say(hidden)

    def _keys_and_values(self, hidden: Tensor, past: list[Tensor] | None = None) -> list[Tensor]:
        """Every layer's keys and values (2, b, H, T, d) of ``hidden`` (b, T, D), which hears the ``past`` of all rows,
        (2, 1, H, C, d) a layer, and of itself what comes before."""
        rows, length, _ = hidden.shape
        heard_before = 0 if past is None else past[0].shape[3]
        sees = torch.ones(length, heard_before + length, dtype=torch.bool, device=hidden.device).tril(heard_before)
        hidden, kept = hidden.flatten(0, 1), []
        for index, layer in enumerate(self.layers):
            qkv = layer.self_qkv(layer.self_norm(hidden)).view(rows, length, self.heads, 3, -1)
            query, *own = qkv.permute(3, 0, 2, 1, 4)  # (b, H, T, d) each
            kept.append(torch.stack(own))
            if past is not None:
                own = [torch.cat([p.expand(rows, -1, -1, -1), o], dim=2) for p, o in zip(past[index], own, strict=True)]
            heard = F.scaled_dot_product_attention(query, *own, sees, scale=self.scale)
            hidden = hidden + layer.self_out(heard.transpose(1, 2).reshape(-1, self.width))
            hidden = hidden + layer.fc2(layer.activation(layer.fc1(layer.final_norm(hidden))))
        return kept
