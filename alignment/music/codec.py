"""Codes to audio and back, in batches, through the model's EnCodec.

A stereo MusicGen has one mono codec and sings left and right as books of their own, interleaved: book 2 * i is the
left channel's book i, book 2 * i + 1 the right one's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignment.errors import ShapeError
from alignment.music.memory import CODEC_BATCH, codec_batch
from alignment.music.model import MusicModel


def decode(model: MusicModel, codes: Tensor | np.ndarray, *, batch_size: int = CODEC_BATCH) -> np.ndarray:
    """Audio (B, samples) float32 of codes (B, K, T) as scorers and metrics hear it: stereo mixed to one channel.

    samples = T * sample_rate_hz / frame_rate_hz. Decoding is deterministic. Batches keep memory flat, smaller ones
    for longer clips."""
    audio = render(model, codes, batch_size=batch_size)
    return audio if audio.ndim == 2 else audio.mean(axis=2)


@torch.no_grad()
def render(model: MusicModel, codes: Tensor | np.ndarray, *, batch_size: int = CODEC_BATCH) -> np.ndarray:
    """Audio of codes (B, K, T) as it is stored and listened to: (B, samples) float32, or of a stereo model
    (B, samples, 2), left first."""
    codes = _codes(model, codes)
    samples = codes.shape[2] * model.samples_per_frame
    codec, pieces = model.hf.audio_encoder, []
    batch_size = _at_once(model, batch_size, samples)
    for start in range(0, len(codes), batch_size):
        part = _split(model, codes[start : start + batch_size].to(model.device))  # (b * channels, K / channels, T)
        audio = codec.decode(part[None], [None]).audio_values  # (b * channels, 1, samples)
        pieces.append(audio[:, 0, :samples].float().cpu().numpy())
    mono = np.concatenate(pieces) if pieces else np.zeros((0, samples), np.float32)
    if model.channels == 1:
        return mono
    return np.ascontiguousarray(mono.reshape(-1, model.channels, samples).transpose(0, 2, 1))


@torch.no_grad()
def encode(model: MusicModel, audio: Tensor | np.ndarray, *, batch_size: int = CODEC_BATCH) -> Tensor:
    """Codes (B, K, T) int64 of audio (B, samples), or (B, samples, 2) for a stereo model, at the model's rate. A stereo
    model hears one channel as both.

    Decoded audio encodes to other codes than it was decoded from: use this for outside recordings only."""
    audio = torch.as_tensor(np.asarray(audio) if not isinstance(audio, Tensor) else audio, dtype=torch.float32)
    if audio.ndim == 2:
        audio = audio[..., None].expand(-1, -1, model.channels)
    if audio.ndim != 3 or audio.shape[1] < model.samples_per_frame or audio.shape[2] != model.channels:
        channels = "" if model.channels == 1 else f" or (B, samples, {model.channels})"
        raise ShapeError(
            f"Found audio of shape {tuple(audio.shape)}; needs (B, samples){channels}, at least one frame."
        )
    codec, pieces = model.hf.audio_encoder, []
    batch_size = _at_once(model, batch_size, audio.shape[1])
    for start in range(0, len(audio), batch_size):
        part = audio[start : start + batch_size].transpose(1, 2).flatten(0, 1)[:, None]  # (b * channels, 1, samples)
        codes = codec.encode(part.to(model.device), bandwidth=model.bandwidth_kbps).audio_codes[0]
        pieces.append(_join(model, codes[:, : model.codebooks // model.channels]).cpu())
    if not pieces:
        return torch.zeros(0, model.codebooks, 0, dtype=torch.int64)
    return torch.cat(pieces)


def _at_once(model: MusicModel, batch_size: int, samples: int) -> int:
    return max(1, min(batch_size, codec_batch(samples) // model.channels))


def _split(model: MusicModel, codes: Tensor) -> Tensor:
    """(B, K, T) to (B * channels, K / channels, T): each channel a row, left before right."""
    return codes.unflatten(1, (-1, model.channels)).transpose(1, 2).flatten(0, 1)


def _join(model: MusicModel, codes: Tensor) -> Tensor:
    """The inverse of ``_split``."""
    return codes.unflatten(0, (-1, model.channels)).transpose(1, 2).flatten(1, 2)


def _codes(model: MusicModel, codes: Tensor | np.ndarray) -> Tensor:
    codes = torch.as_tensor(codes)
    if codes.ndim != 3 or codes.shape[1] != model.codebooks or codes.shape[2] == 0:
        raise ShapeError(f"Found codes of shape {tuple(codes.shape)}; needs (B, {model.codebooks}, T).")
    codes = codes.to(torch.int64)
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < model.codebook_size:
        raise ShapeError(f"Found codes outside 0..{model.codebook_size - 1}; they were not sampled by this model.")
    return codes
