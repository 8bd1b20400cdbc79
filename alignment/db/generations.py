"""Queries about the settings that clips are sampled with."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import insert_new
from alignment.db.base import utcnow, uuid7
from alignment.db.tables import GenerationConfigRow
from alignment.domain import GenerationConfig


def generation_of(row: GenerationConfigRow) -> GenerationConfig:
    """The setting of a row."""
    return GenerationConfig(row.temperature, row.top_k, row.guidance, row.clip_seconds)


def add_generation_config(s: Session, generation: GenerationConfig) -> uuid.UUID:
    """The id of this setting, stored once."""
    query = sa.select(GenerationConfigRow.id).where(GenerationConfigRow.sha256 == generation.sha256)
    known = s.scalar(query)
    if known is not None:
        return known
    new = {
        "id": uuid7(),
        "sha256": generation.sha256,
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "guidance": generation.guidance,
        "clip_seconds": generation.clip_seconds,
        "created_at": utcnow(),
    }
    insert_new(s, GenerationConfigRow, [new], key=["sha256"])
    return s.scalars(query).one()
