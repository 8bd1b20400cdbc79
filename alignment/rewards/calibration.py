"""Calibration of a head: one temperature from the validation split, and how far confidence is from the truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from alignment.rewards.losses import soft_bradley_terry


def best_temperature(difference: Tensor, credit: Tensor) -> float:
    """The divisor, from 0.1 to 10, under which sigmoid(difference / t) predicts the decisive votes best.

    difference (N,) in logits; credit (N,) of the first clip, where 0.5 and NaN are no decision and do not count; with
    none left 1. Temperature scaling: Guo et al., arXiv:1706.04599."""
    decisive = ~credit.isnan() & (credit != 0.5)
    if not bool(decisive.any()):
        return 1.0
    chosen, target = difference[decisive], credit[decisive]
    grid = torch.logspace(-1, 1, 201)  # steps of 2.3%, far finer than any validation split can tell apart
    losses = torch.stack([soft_bradley_terry(chosen / t, torch.zeros_like(chosen), target).mean() for t in grid])
    return float(grid[losses.argmin()])


def calibration_bins(probability: np.ndarray, won: np.ndarray, *, bins: int = 10) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, n) of each bin that is not empty, from 0.5 to 1 in equal steps.

    probability (N,) that the first clip wins; won (N,) 1 or 0. Which clip is first does not matter: confidence is that
    of the likelier one."""
    confidence = np.maximum(probability, 1 - probability)
    right = np.where(probability >= 0.5, won, 1 - np.asarray(won, dtype=np.float64))
    place = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            found.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
    return found


def calibration_error(probability: np.ndarray, won: np.ndarray, *, bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: the mean distance of confidence from the share right, by votes a bin
    (Guo et al., arXiv:1706.04599). NaN of no votes. On few votes chance alone makes it several hundredths."""
    parts = calibration_bins(probability, won, bins=bins)
    total = sum(n for _, _, n in parts)
    return sum(n * abs(confidence - right) for confidence, right, n in parts) / total if total else float("nan")
