"""MusicGen's delay pattern: how K codebooks of T frames become S = T + K - 1 decoder steps.

Codebook k runs k steps behind codebook 0 (arXiv:2306.05284, section 2.2). The decoder reads step s and
predicts, for every k at once, ``codes[k, s - k]``; what it reads at step s is what it predicted at s - 1.
Worked for K = 3, T = 4, ``a b c d`` the codes of book 0, ``e f g h`` of book 1, ``i j k l`` of book 2, P the pad:

    step s        0 1 2 3 4 5
    read, k=0     P a b c d P         predicted, k=0     a b c d . .
    read, k=1     P P e f g h         predicted, k=1     . e f g h .
    read, k=2     P P P i j k         predicted, k=2     . . i j k l

The last code of the last book (``l``) is predicted but never read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.errors import ShapeError


def delayed_steps(frames: int, codebooks: int) -> int:
    """Decoder steps S for T frames: T + K - 1."""
    return frames + codebooks - 1


def prediction_mask(frames: int, codebooks: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(K, S) bool, True where step s predicts a code of book k, that is 0 <= s - k < T."""
    frame = _frame_index(frames, codebooks, device)
    return (frame >= 0) & (frame < frames)


def apply_delay(codes: Tensor, pad: int) -> Tensor:
    """What the decoder reads, (B, K, S) int64, for codes (B, K, T); ``pad`` is MusicGen's extra token V."""
    batch, codebooks, frames = _shape(codes)
    read = codes.new_full((batch, codebooks, delayed_steps(frames, codebooks)), pad)
    for k in range(codebooks):
        count = min(frames, read.shape[2] - k - 1)  # the last book's last code is never read
        read[:, k, k + 1 : k + 1 + count] = codes[:, k, :count]
    return read


def delay_labels(codes: Tensor, ignore: int = -100) -> Tensor:
    """What each step predicts, (B, S, K), ``ignore`` where nothing counts: the labels transformers expects."""
    batch, codebooks, frames = _shape(codes)
    labels = codes.new_full((batch, delayed_steps(frames, codebooks), codebooks), ignore)
    for k in range(codebooks):
        labels[:, k : k + frames, k] = codes[:, k]
    return labels


def undo_delay(predicted: Tensor) -> Tensor:
    """Align predictions (B, K, S, ...) with the codes they predict: (B, K, T, ...), [k, t] from step t + k."""
    if predicted.ndim < 3 or predicted.shape[2] < predicted.shape[1]:
        found = tuple(predicted.shape)
        raise ShapeError(f"Found predictions of shape {found}; needs (B, K, S, ...) with S at least K.")
    codebooks = predicted.shape[1]
    frames = predicted.shape[2] - codebooks + 1
    return torch.stack([predicted[:, k, k : k + frames] for k in range(codebooks)], dim=1)


def delay_values(values: Tensor, fill: float) -> Tensor:
    """The inverse of ``undo_delay``: (B, K, T) to (B, K, S), [k, t] at step t + k, ``fill`` elsewhere."""
    batch, codebooks, frames = _shape(values)
    delayed = values.new_full((batch, codebooks, delayed_steps(frames, codebooks)), fill)
    for k in range(codebooks):
        delayed[:, k, k : k + frames] = values[:, k]
    return delayed


def _frame_index(frames: int, codebooks: int, device: torch.device | str) -> Tensor:
    steps = torch.arange(delayed_steps(frames, codebooks), device=device)
    return steps[None, :] - torch.arange(codebooks, device=device)[:, None]  # (K, S)


def _shape(codes: Tensor) -> tuple[int, int, int]:
    if codes.ndim != 3 or 0 in codes.shape[1:]:
        raise ShapeError(f"Found codes of shape {tuple(codes.shape)}; needs (B, K, T) with K and T at least 1.")
    return codes.shape[0], codes.shape[1], codes.shape[2]
