"""Counted votes as columns: what a million of them are rated from, beside the few thousand of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.domain import Comparison, Outcome
from alignment.errors import DataError
from alignment.evaluation.intervals import label_codes
from alignment.evaluation.win_rate import counted

LEFT_WON, RIGHT_WON, TIED, BOTH_BAD = range(4)
OUTCOME_CODES = {Outcome.A: LEFT_WON, Outcome.B: RIGHT_WON, Outcome.TIE: TIED, Outcome.BOTH_BAD: BOTH_BAD}


@dataclass(frozen=True)
class VoteArrays:
    """Counted votes in the order of their saving, a row a vote; SKIP and FAULT are never among them.

    left, right (n,): positions in ``versions`` of what was shown on either side. outcome (n,): 0 the left one won,
    1 the right one, 2 a tie, 3 both bad. rater, prompt (n,): codes from 0; equal codes are the same rater or prompt.
    Raises DataError on columns of different lengths, positions outside ``versions`` or a version against itself.
    """

    versions: tuple[str, ...]
    left: np.ndarray
    right: np.ndarray
    outcome: np.ndarray
    rater: np.ndarray
    prompt: np.ndarray

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in ("left", "right", "outcome", "rater", "prompt")}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"The columns of votes differ in length ({lengths}); give one row for each vote.")
        if not len(self):
            return
        for name, limit in (("left", len(self.versions)), ("right", len(self.versions)), ("outcome", 4)):
            if columns[name].min() < 0 or columns[name].max() >= limit:
                raise DataError(f"The column {name} must hold codes from 0 to {limit - 1}; it holds others.")
        if columns["rater"].min() < 0 or columns["prompt"].min() < 0:
            raise DataError("The columns rater and prompt must hold codes from 0; they hold negative ones.")
        if (self.left == self.right).any():
            raise DataError(
                f"A vote compares {self.versions[int(self.left[self.left == self.right][0])]} with itself; leave such "
                "battles out of ratings."
            )

    def __len__(self) -> int:
        return len(self.left)

    def take(self, rows: np.ndarray) -> VoteArrays:
        """The votes of ``rows`` (a mask or positions), with only the versions that are left in them."""
        left, right = self.left[rows], self.right[rows]
        present, codes = np.unique(np.concatenate([left, right]), return_inverse=True)
        return VoteArrays(
            tuple(self.versions[i] for i in present), codes[: len(left)], codes[len(left) :],
            self.outcome[rows], self.rater[rows], self.prompt[rows],
        )  # fmt: skip

    @property
    def decisive(self) -> np.ndarray:
        """(n,) bool: True where one of the two clips was chosen."""
        return self.outcome <= RIGHT_WON

    @classmethod
    def from_comparisons(cls, comparisons: Sequence[Comparison]) -> VoteArrays:
        """The counted ones among the comparisons; versions in alphabetical order."""
        kept = counted(comparisons)
        versions = tuple(sorted({v for c in kept for v in (c.version_left, c.version_right)}))
        position = {version: i for i, version in enumerate(versions)}
        return cls(
            versions=versions,
            left=np.array([position[c.version_left] for c in kept], dtype=np.int64),
            right=np.array([position[c.version_right] for c in kept], dtype=np.int64),
            outcome=np.array([OUTCOME_CODES[c.outcome] for c in kept], dtype=np.int8),
            rater=label_codes([c.rater_id for c in kept]),
            prompt=label_codes([c.prompt_id for c in kept]),
        )

    @classmethod
    def from_labels(
        cls, left: Sequence[str], right: Sequence[str], outcome: Sequence[Outcome], rater: Sequence[str],
        prompt: Sequence[str], names: Mapping[str, str],
    ) -> VoteArrays:  # fmt: skip
        """The votes of columns that hold ids and outcomes that count; ``names`` has each version's name by its id.
        Versions are in alphabetical order."""
        by_name = sorted(names, key=lambda id_: names[id_])
        position = {id_: i for i, id_ in enumerate(by_name)}
        return cls(
            versions=tuple(names[id_] for id_ in by_name),
            left=np.fromiter((position[id_] for id_ in left), np.int64, len(left)),
            right=np.fromiter((position[id_] for id_ in right), np.int64, len(right)),
            outcome=np.fromiter((OUTCOME_CODES[o] for o in outcome), np.int8, len(outcome)),
            rater=label_codes(rater),
            prompt=label_codes(prompt),
        )
