"""Best-of-N: the clip a reward model likes best, and pairs of its best and worst."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignment.errors import DataError
from alignment.training.examples import DpoExample


def choose_best(scores: np.ndarray) -> np.ndarray:
    """Index of the best of N clips for each prompt, (P,) int64; the first one among equals.

    scores (P, N). Raises DataError when there is nothing to choose from or a score is not a finite number."""
    return _checked(scores).argmax(axis=1)


def best_worst_pairs(
    prompts: Sequence[str],
    codes: np.ndarray,
    scores: np.ndarray,
    *,
    min_margin: float = 0.0,
    weight: float = 1.0,
) -> list[DpoExample]:
    """One example a prompt: its best clip chosen, its worst rejected, in the order of the prompts.

    codes (P, N, K, T); scores (P, N). A prompt is left out when its best and worst differ by no more than
    ``min_margin`` (equal scores say nothing). Raises DataError on mismatched shapes or scores that are not finite."""
    scores = _checked(scores)
    codes = np.asarray(codes)
    if codes.ndim != 4 or codes.shape[:2] != scores.shape or len(prompts) != len(scores):
        raise DataError(
            f"{len(prompts)} prompts, codes {codes.shape} and scores {scores.shape} do not fit; "
            "(P), (P, N, K, T) and (P, N) are needed."
        )
    best, worst = scores.argmax(axis=1), scores.argmin(axis=1)
    return [
        DpoExample(prompt, codes[p, best[p]], codes[p, worst[p]], weight)
        for p, prompt in enumerate(prompts)
        if scores[p, best[p]] - scores[p, worst[p]] > min_margin
    ]


def best_of_n_kl(n: int) -> float:
    """Upper bound on KL(best-of-n || policy) in nats per clip: log n - (n - 1) / n.

    Exact when no two clips share a score and no clip is likely to be sampled twice (arXiv:2401.01879)."""
    if n < 1:
        raise DataError(f"n is {n}; best-of-n needs at least one clip.")
    return math.log(n) - (n - 1) / n


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise DataError(f"scores have shape {scores.shape}; (P, N) with at least one clip a prompt is needed.")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite numbers.")
    return scores
