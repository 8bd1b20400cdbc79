"""MusicGen's delay pattern: how K codebooks of T frames become S = T + K - 1 decoder steps.

Codebook k runs k steps behind codebook 0 (arXiv:2306.05284, section 2.2). The decoder reads step s and
predicts, for every k at once, ``codes[k, s - k]``; what it reads at step s is what it predicted at s - 1.
Worked for K = 3, T = 4, ``a b c d`` the codes of book 0, ``e f g h`` of book 1, ``i j k l`` of book 2, P the pad:

    step s        0 1 2 3 4 5
    read, k=0     P a b c d P         predicted, k=0     a b c d . .
    read, k=1     P P e f g h         predicted, k=1     . e f g h .
    read, k=2     P P P i j k         predicted, k=2     . . i j k l

The last code of the last book (``l``) is predicted but never read.

A stereo MusicGen has 2 * K books, left and right of each book beside each other, and both run equally late: with
``channels`` 2, book k runs k // 2 steps behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.errors import ShapeError


def delayed_steps(frames: int, codebooks: int, channels: int = 1) -> int:
    """Decoder steps S for T frames: T + K - 1, of stereo T + K / 2 - 1."""
    return frames + (codebooks - 1) // channels


def prediction_mask(frames: int, codebooks: int, *, channels: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """(K, S) bool, True where step s predicts a code of book k, that is 0 <= s - k // channels < T."""
    frame = _frame_index(frames, codebooks, channels, device)
    return (frame >= 0) & (frame < frames)


def apply_delay(codes: Tensor, pad: int, *, channels: int = 1) -> Tensor:
    """What the decoder reads, (B, K, S) int64, for codes (B, K, T); ``pad`` is MusicGen's extra token V."""
    batch, codebooks, frames = _shape(codes)
    read = codes.new_full((batch, codebooks, delayed_steps(frames, codebooks, channels)), pad)
    for k in range(codebooks):
        first = k // channels + 1
        count = min(frames, read.shape[2] - first)  # the last book's last code is never read
        read[:, k, first : first + count] = codes[:, k, :count]
    return read


def delay_labels(codes: Tensor, ignore: int = -100, *, channels: int = 1) -> Tensor:
    """What each step predicts, (B, S, K), ``ignore`` where nothing counts: the labels transformers expects."""
    batch, codebooks, frames = _shape(codes)
    labels = codes.new_full((batch, delayed_steps(frames, codebooks, channels), codebooks), ignore)
    for k in range(codebooks):
        labels[:, k // channels : k // channels + frames, k] = codes[:, k]
    return labels


def undo_delay(predicted: Tensor, *, channels: int = 1) -> Tensor:
    """Align predictions (B, K, S, ...) with the codes they predict: (B, K, T, ...), [k, t] from t + k // channels."""
    late = (predicted.shape[1] - 1) // channels if predicted.ndim > 2 else 0
    if predicted.ndim < 3 or predicted.shape[2] <= late:
        found = tuple(predicted.shape)
        raise ShapeError(f"Found predictions of shape {found}; needs (B, K, S, ...) with S at least K / channels.")
    firsts = [k // channels for k in range(predicted.shape[1])]
    frames = predicted.shape[2] - late
    return torch.stack([predicted[:, k, first : first + frames] for k, first in enumerate(firsts)], dim=1)


def delay_values(values: Tensor, fill: float, *, channels: int = 1) -> Tensor:
    """The inverse of ``undo_delay``: (B, K, T) to (B, K, S), [k, t] at step t + k // channels, ``fill`` elsewhere."""
    batch, codebooks, frames = _shape(values)
    delayed = values.new_full((batch, codebooks, delayed_steps(frames, codebooks, channels)), fill)
    for k in range(codebooks):
        delayed[:, k, k // channels : k // channels + frames] = values[:, k]
    return delayed


def _frame_index(frames: int, codebooks: int, channels: int, device: torch.device | str) -> Tensor:
    steps = torch.arange(delayed_steps(frames, codebooks, channels), device=device)
    return steps[None, :] - torch.arange(codebooks, device=device)[:, None] // channels  # (K, S)


def _shape(codes: Tensor) -> tuple[int, int, int]:
    if codes.ndim != 3 or 0 in codes.shape[1:]:
        raise ShapeError(f"Found codes of shape {tuple(codes.shape)}; needs (B, K, T) with K and T at least 1.")
    return codes.shape[0], codes.shape[1], codes.shape[2]
