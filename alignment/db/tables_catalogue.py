"""Tables of what can be heard: prompts, versions, clips."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, Name, Sha256, enum_text, one_of, refers
from alignment.domain import ClipSource, Split, VersionStatus


class VersionRow(Base):
    """A policy that can be listened to: a base checkpoint, perhaps with an adapter."""

    __tablename__ = "version"
    __table_args__ = (
        one_of("status", VersionStatus),
        # One champion at a time, whoever writes.
        sa.Index(
            "uq_version_champion",
            "status",
            unique=True,
            sqlite_where=sa.text("status = 'champion'"),
            postgresql_where=sa.text("status = 'champion'"),
        ),
    )
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    base: Mapped[str]
    base_sha256: Mapped[Sha256]
    adapter_sha256: Mapped[Sha256 | None]
    adapter_uri: Mapped[str | None]
    parent_id: Mapped[uuid.UUID | None] = refers("version.id")
    train_run_id: Mapped[uuid.UUID | None] = refers("train_run.id")
    listening_config_id: Mapped[uuid.UUID | None] = refers("generation_config.id")
    licence: Mapped[str | None]
    commit: Mapped[str | None]
    simulated: Mapped[bool]
    status: Mapped[VersionStatus] = mapped_column(enum_text(VersionStatus))
    created_at: Mapped[Created]


class GenerationConfigRow(Base):
    """How clips were sampled, once per distinct setting."""

    __tablename__ = "generation_config"
    id: Mapped[Id]
    sha256: Mapped[Sha256] = mapped_column(unique=True)
    temperature: Mapped[float]
    top_k: Mapped[int]
    guidance: Mapped[float]
    clip_seconds: Mapped[float]
    created_at: Mapped[Created]


class PromptRow(Base):
    """Text that asks for music; its split is fixed before any voting."""

    __tablename__ = "prompt"
    __table_args__ = (one_of("split", Split),)
    id: Mapped[Id]
    sha256: Mapped[Sha256] = mapped_column(unique=True)
    text: Mapped[str]
    source: Mapped[Name] = mapped_column(index=True)
    tags: Mapped[dict[str, Any]]
    split: Mapped[Split] = mapped_column(enum_text(Split), index=True)
    created_at: Mapped[Created]


class PromptSetRow(Base):
    """A named list of prompts that a study draws from."""

    __tablename__ = "prompt_set"
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    created_at: Mapped[Created]


class PromptSetMemberRow(Base):
    __tablename__ = "prompt_set_member"
    prompt_set_id: Mapped[uuid.UUID] = refers("prompt_set.id", primary_key=True)
    prompt_id: Mapped[uuid.UUID] = refers("prompt.id", primary_key=True)


class ClipRow(Base):
    """[append-only] Audio one version generated, with the codes that were sampled."""

    __tablename__ = "clip"
    __table_args__ = (
        sa.UniqueConstraint("prompt_id", "version_id", "generation_config_id", "seed"),
        one_of("source", ClipSource),
        sa.CheckConstraint("seconds > 0", name="seconds"),
    )
    id: Mapped[Id]
    prompt_id: Mapped[uuid.UUID] = refers("prompt.id")
    version_id: Mapped[uuid.UUID] = refers("version.id", index=True)
    generation_config_id: Mapped[uuid.UUID] = refers("generation_config.id")
    seed: Mapped[int] = mapped_column(sa.BigInteger())
    audio_sha256: Mapped[Sha256] = mapped_column(index=True)
    codes_sha256: Mapped[Sha256 | None]
    codes_reencoded: Mapped[bool] = mapped_column(default=False)
    source: Mapped[ClipSource] = mapped_column(enum_text(ClipSource))
    sample_rate_hz: Mapped[int]
    seconds: Mapped[float]
    lufs: Mapped[float | None]
    true_peak_dbtp: Mapped[float]
    silence_ratio: Mapped[float]
    clipping_ratio: Mapped[float]
    generation_seconds: Mapped[float | None]
    created_at: Mapped[Created]


class RenditionRow(Base):
    """What was heard of a clip: the file a browser was given."""

    __tablename__ = "rendition"
    __table_args__ = (sa.UniqueConstraint("clip_id", "codec", "gain_db"),)
    id: Mapped[Id]
    clip_id: Mapped[uuid.UUID] = refers("clip.id")
    codec: Mapped[str] = mapped_column(sa.String(20))
    gain_db: Mapped[float]
    sha256: Mapped[Sha256]
    token: Mapped[str] = mapped_column(sa.String(64), unique=True)
    created_at: Mapped[Created]
