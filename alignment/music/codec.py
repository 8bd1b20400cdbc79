"""Codes to audio and back, in batches, through the model's EnCodec."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignment.errors import ShapeError
from alignment.music.model import MusicModel


@torch.no_grad()
def decode(model: MusicModel, codes: Tensor | np.ndarray, *, batch_size: int = 16) -> np.ndarray:
    """Audio (B, samples) float32 of codes (B, K, T); samples = T * sample_rate_hz / frame_rate_hz.

    Decoding is deterministic. Batches keep memory flat: a 4 s clip needs some 10 MB while it is decoded.
    """
    codes = _codes(model, codes)
    samples = codes.shape[2] * model.samples_per_frame
    codec, pieces = model.hf.audio_encoder, []
    for start in range(0, len(codes), batch_size):
        part = codes[start : start + batch_size].to(model.device)
        audio = codec.decode(part[None], [None]).audio_values  # (b, 1, samples)
        pieces.append(audio[:, 0, :samples].float().cpu().numpy())
    return np.concatenate(pieces) if pieces else np.zeros((0, samples), np.float32)


@torch.no_grad()
def encode(model: MusicModel, audio: Tensor | np.ndarray, *, batch_size: int = 16) -> Tensor:
    """Codes (B, K, T) int64 of audio (B, samples) at the model's rate.

    Decoded audio encodes to other codes than it was decoded from: use this for outside recordings only."""
    audio = torch.as_tensor(np.asarray(audio) if not isinstance(audio, Tensor) else audio, dtype=torch.float32)
    if audio.ndim != 2 or audio.shape[1] < model.samples_per_frame:
        raise ShapeError(f"Found audio of shape {tuple(audio.shape)}; needs (B, samples) of at least one frame.")
    codec, pieces = model.hf.audio_encoder, []
    for start in range(0, len(audio), batch_size):
        part = audio[start : start + batch_size, None].to(model.device)
        codes = codec.encode(part, bandwidth=model.bandwidth_kbps).audio_codes[0]  # (b, K, T)
        pieces.append(codes[:, : model.codebooks].cpu())
    if not pieces:
        return torch.zeros(0, model.codebooks, 0, dtype=torch.int64)
    return torch.cat(pieces)


def _codes(model: MusicModel, codes: Tensor | np.ndarray) -> Tensor:
    codes = torch.as_tensor(codes)
    if codes.ndim != 3 or codes.shape[1] != model.codebooks or codes.shape[2] == 0:
        raise ShapeError(f"Found codes of shape {tuple(codes.shape)}; needs (B, {model.codebooks}, T).")
    codes = codes.to(torch.int64)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < model.codebook_size:
        raise ShapeError(f"Found codes outside 0..{model.codebook_size - 1}; they were not sampled by this model.")
    return codes
