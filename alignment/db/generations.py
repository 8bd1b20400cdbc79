"""Queries about the settings that clips are sampled with."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import utcnow, uuid7
from alignment.db.tables import GenerationConfigRow
from alignment.domain import GenerationConfig


def generation_of(row: GenerationConfigRow) -> GenerationConfig:
    """The setting of a row."""
    return GenerationConfig(row.temperature, row.top_k, row.guidance, row.clip_seconds)


def add_generation_config(s: Session, generation: GenerationConfig) -> uuid.UUID:
    """The id of this setting, stored once."""
    digest = generation.sha256
    known = s.scalar(sa.select(GenerationConfigRow.id).where(GenerationConfigRow.sha256 == digest))
    if known is not None:
        return known
    new = uuid7()
    s.execute(
        sa.insert(GenerationConfigRow).values(
            id=new,
            sha256=digest,
            temperature=generation.temperature,
            top_k=generation.top_k,
            guidance=generation.guidance,
            clip_seconds=generation.clip_seconds,
            created_at=utcnow(),
        )
    )
    return new
