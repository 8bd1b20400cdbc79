"""Queries about prompts."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import insert_new
from alignment.db.base import utcnow, uuid7
from alignment.db.batches import batches
from alignment.db.tables import PromptRow
from alignment.db.typed_prompts import DELETED
from alignment.domain import Prompt, Split
from alignment.errors import DataError, NotFoundError


def _prompt(row: PromptRow) -> Prompt:
    return Prompt(row.id, row.text, row.source, row.split, dict(row.tags))


def add_prompts(s: Session, items: Sequence[tuple[str, str, Split, Mapping[str, str]]]) -> list[Prompt]:
    """The prompts for (text, source, split, tags), in the order given; a text that is known already is returned
    as it is stored. Raises DataError for an empty text and for a known text in another split, because a prompt's
    split is fixed before any voting."""
    digests = []
    for text, _, _, _ in items:
        if not text.strip():
            raise DataError("A prompt is empty; give some words.")
        digests.append(hashlib.sha256(text.encode()).hexdigest())
    known = _by_digest(s, digests)
    fresh = []
    for digest, (text, source, split, tags) in zip(digests, items, strict=True):
        if digest in known:
            _require_split(known[digest], split)
        else:
            prompt = Prompt(uuid7(), text, source, Split(split), dict(tags))
            known[digest] = prompt
            fresh.append(
                {
                    "id": prompt.id,
                    "sha256": digest,
                    "text": text,
                    "source": source,
                    "split": prompt.split,
                    "tags": dict(tags),
                    "created_at": utcnow(),
                }
            )
    if fresh and insert_new(s, PromptRow, fresh, key=["sha256"]):
        known |= _by_digest(s, [row["sha256"] for row in fresh])
        for digest, (_, _, split, _) in zip(digests, items, strict=True):
            _require_split(known[digest], split)
    return [known[digest] for digest in digests]


def _require_split(known: Prompt, split: Split) -> None:
    if known.split != split:
        raise DataError(
            f"The prompt {known.text!r} is in split {known.split.value}, not {Split(split).value}; "
            "a prompt's split never changes."
        )


def _by_digest(s: Session, digests: Iterable[str]) -> dict[str, Prompt]:
    found = {}
    for part in batches(digests):
        for row in s.scalars(sa.select(PromptRow).where(PromptRow.sha256.in_(part))):
            found[row.sha256] = _prompt(row)
    return found


def known_prompts(s: Session, texts: Iterable[str]) -> dict[str, Prompt]:
    """Those of the texts that are prompts on record."""
    found = {}
    for part in batches(hashlib.sha256(text.encode()).hexdigest() for text in texts):
        found.update(
            {row.text: _prompt(row) for row in s.scalars(sa.select(PromptRow).where(PromptRow.sha256.in_(part)))}
        )
    return found


def list_prompts(s: Session, *, split: Split | None = None, source: str | None = None) -> list[Prompt]:
    """The prompts of a split and a source, in the order in which they were added; none whose words were taken back."""
    query = sa.select(PromptRow).where(PromptRow.source != DELETED).order_by(PromptRow.id)
    if split is not None:
        query = query.where(PromptRow.split == split)
    if source is not None:
        query = query.where(PromptRow.source == source)
    return [_prompt(row) for row in s.scalars(query)]


def get_prompts(s: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Prompt]:
    """The prompts by id. Raises NotFoundError when one is missing."""
    found: dict[uuid.UUID, Prompt] = {}
    for part in batches(ids):
        for row in s.scalars(sa.select(PromptRow).where(PromptRow.id.in_(part))):
            found[row.id] = _prompt(row)
    missing = [str(i) for i in ids if i not in found]
    if missing:
        raise NotFoundError(f"No prompt has the id {missing[0]} ({len(missing)} of {len(ids)} are missing).")
    return found
