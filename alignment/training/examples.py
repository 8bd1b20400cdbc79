"""Training examples: what sampled clips become before they reach a trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.domain import Pair
from alignment.errors import DataError
from alignment.preferences import chosen_and_rejected


@dataclass(frozen=True)
class DpoExample:
    """Two clips for one prompt as the codes that were sampled, (K, T) each; T may differ between clips.

    ``label`` is the probability that the chosen clip is the better one, from 0.5 (a tie) to 1."""

    prompt: str
    chosen: np.ndarray
    rejected: np.ndarray
    weight: float = 1.0
    label: float = 1.0


@dataclass(frozen=True)
class ClipExample:
    """One clip to imitate, as the codes that were sampled, (K, T)."""

    prompt: str
    codes: np.ndarray
    weight: float = 1.0


def examples_from_pairs(
    pairs: Iterable[Pair], codes: Callable[[str], np.ndarray], *, weight: float = 1.0, tie_weight: float = 0.0
) -> list[DpoExample]:
    """One example per vote, in the pairs' order; ties are left out, or with ``tie_weight`` kept at ``weight`` times
    that, as pairs that pull both clips' log-ratios together.

    Votes that contradict each other on one pair of clips are examples each, and sum to a tie. ``codes`` gives the
    (K, T) codes of a codes sha256 (a clip store's ``get_codes``). Raises DataError when a clip has no sampled codes:
    re-encoded audio gives other codes than those that were sampled."""
    examples, loaded = [], {}
    for pair in pairs:
        decided = chosen_and_rejected(pair)
        if decided is None and not tie_weight:
            continue
        for clip in decided or (pair.a, pair.b):
            if clip.codes_sha256 is None:
                raise DataError(f"Clip {clip.clip_id} has no sampled codes (external audio); DPO cannot score it.")
            if clip.codes_sha256 not in loaded:
                loaded[clip.codes_sha256] = np.asarray(codes(clip.codes_sha256))
        chosen, rejected = (loaded[clip.codes_sha256] for clip in decided or (pair.a, pair.b))
        tied = {"weight": weight * tie_weight, "label": 0.5} if decided is None else {"weight": weight}
        examples.append(DpoExample(pair.prompt_text, chosen, rejected, **tied))
    return examples


def check_examples(
    examples: Sequence[DpoExample] | Sequence[ClipExample], *, codebooks: int, codebook_size: int
) -> None:
    """Raise DataError, naming the first example at fault, unless every one can be scored by the model."""
    if not examples:
        raise DataError("There are no pairs to train on: every vote was a tie or was dropped. Collect decisive votes.")
    for number, example in enumerate(examples):
        for name, codes in _sides(example):
            found = np.shape(codes)
            if len(found) != 2 or found[0] != codebooks or found[1] < 1:
                raise DataError(f"Example {number}: {name} codes are {found}; ({codebooks}, T) is needed.")
            if np.min(codes) < 0 or np.max(codes) >= codebook_size:
                raise DataError(
                    f"Example {number}: {name} codes lie in [{np.min(codes)}, {np.max(codes)}]; this model's lie in "
                    f"[0, {codebook_size - 1}]. Were they sampled by another model?"
                )
        if not (np.isfinite(example.weight) and example.weight > 0):
            raise DataError(f"Example {number}: weight is {example.weight}; it must be above 0.")
        if not 0.5 <= _label(example) <= 1:
            raise DataError(f"Example {number}: label is {example.label}; from 0.5 (a tie) to 1 is needed.")
    if all(_label(example) == 0.5 for example in examples):
        raise DataError(f"All {len(examples)} pairs are ties, which say nothing of what is better; collect more votes.")


def most_frames(examples: Sequence[DpoExample] | Sequence[ClipExample]) -> int:
    """T of the longest clip."""
    return max(np.shape(codes)[1] for example in examples for _, codes in _sides(example))


def examples_sha256(examples: Sequence[DpoExample] | Sequence[ClipExample]) -> str:
    """sha256, hex, of the examples in their order: what ties a run folder to its data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.prompt}\0{float(example.weight)!r}\0{float(_label(example))!r}\0".encode())
        for _, codes in _sides(example):
            values = np.ascontiguousarray(codes, dtype=np.int64)
            digest.update(f"{values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _label(example: DpoExample | ClipExample) -> float:
    return example.label if isinstance(example, DpoExample) else 1.0


def _sides(example: DpoExample | ClipExample) -> tuple[tuple[str, np.ndarray], ...]:
    if isinstance(example, DpoExample):
        return (("chosen", example.chosen), ("rejected", example.rejected))
    return (("its", example.codes),)
