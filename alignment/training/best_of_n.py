"""Best-of-N: the clip a reward model likes best, and pairs of its best and worst."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignment.errors import DataError
from alignment.training.examples import ClipExample, DpoExample


def choose_best(scores: np.ndarray) -> np.ndarray:
    """Index of the best of N clips for each prompt, (P,) int64; the first one among equals.

    scores (P, N). Raises DataError when there is nothing to choose from or a score is not a finite number."""
    return _checked(scores).argmax(axis=1)


def best_worst_pairs(
    prompts: Sequence[str],
    codes: Sequence[np.ndarray],
    scores: np.ndarray,
    *,
    per_prompt: int = 1,
    min_margin: float = 0.0,
    members: np.ndarray | None = None,
    weight: float = 1.0,
) -> list[DpoExample]:
    """The best ``per_prompt`` clips of each prompt against its worst (best with worst, second with last but one, ...),
    in the order of the prompts.

    codes (P, N, K, T); scores (P, N). A pair is left out when its scores differ by no more than ``min_margin`` (equal
    scores say nothing). With ``members`` (M, P, N), the scores of an ensemble's M members, the margin counts
    deviations of the members' own differences: a pair on which they disagree is left out. Raises DataError on
    mismatched shapes, scores that are not finite or the same for every clip, and more pairs than N clips make."""
    scores = _checked(scores)
    codes = np.asarray(codes)
    if codes.ndim != 4 or codes.shape[:2] != scores.shape or len(prompts) != len(scores):
        raise DataError(
            f"{len(prompts)} prompts, codes {codes.shape} and scores {scores.shape} do not fit; "
            "(P), (P, N, K, T) and (P, N) are needed."
        )
    if members is not None and members.shape[1:] != scores.shape:
        raise DataError(f"Members' scores are {members.shape}; (M, {scores.shape[0]}, {scores.shape[1]}) is needed.")
    if not 1 <= per_prompt <= scores.shape[1] // 2:
        raise DataError(f"{per_prompt} pairs of {scores.shape[1]} clips; each clip can be in one pair only.")
    _require_a_choice(scores)
    order = np.argsort(-scores, axis=1, kind="stable")  # best first; the first among equals
    made = []
    for p, prompt in enumerate(prompts):
        for rank in range(per_prompt):
            best, worst = order[p, rank], order[p, -1 - rank]
            difference, unit = scores[p, best] - scores[p, worst], 1.0
            if members is not None:
                unit = float((members[:, p, best] - members[:, p, worst]).std())
            if difference > min_margin * unit and difference > 0:
                made.append(DpoExample(prompt, codes[p, best], codes[p, worst], weight))
    return made


def kept_clips(
    prompts: Sequence[str], codes: Sequence[np.ndarray], scores: np.ndarray, *, keep: int
) -> list[ClipExample]:
    """The best ``keep`` of each prompt's N clips, best first, in the order of the prompts: what expert iteration
    imitates. A prompt whose clips all score alike chooses nothing and is left out. codes (P, N, K, T); scores (P, N).
    Raises DataError when as many are kept as there are, and when no prompt chooses."""
    scores = _checked(scores)
    if not 1 <= keep < scores.shape[1]:
        raise DataError(f"{keep} of {scores.shape[1]} clips kept; to keep all of them chooses nothing.")
    _require_a_choice(scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return [
        ClipExample(prompt, codes[p][best])
        for p, prompt in enumerate(prompts)
        if np.ptp(scores[p]) > 0
        for best in order[p]
    ]


def best_of_n_kl(n: int) -> float:
    """Upper bound on KL(best-of-n || policy) in nats per clip: log n - (n - 1) / n.

    Exact when no two clips share a score and no clip is likely to be sampled twice (arXiv:2401.01879)."""
    if n < 1:
        raise DataError(f"n is {n}; best-of-n needs at least one clip.")
    return math.log(n) - (n - 1) / n


def _require_a_choice(scores: np.ndarray) -> None:
    if not np.ptp(scores, axis=1).any():
        raise DataError(
            f"The reward is the same for all clips of each of {len(scores)} prompts; a constant reward chooses "
            "nothing. Look at what it scores, or sample more clips a prompt."
        )


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise DataError(f"scores have shape {scores.shape}; (P, N) with at least one clip a prompt is needed.")
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite numbers.")
    return scores
