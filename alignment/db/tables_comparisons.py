"""Tables of comparisons: which clips of which versions were measured side by side, and what was found."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, Name, Sha256, refers


class ComparisonRow(Base):
    """Versions measured on the same prompts, each with the same number of clips. Its figures are in metric_result."""

    __tablename__ = "comparison"
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    content_sha256: Mapped[Sha256]
    settings: Mapped[dict[str, Any]]
    about: Mapped[dict[str, Any]]
    differences: Mapped[list[Any]]
    job_id: Mapped[Name | None] = mapped_column(unique=True)
    commit: Mapped[str | None]
    created_at: Mapped[Created]


class ComparisonVersionRow(Base):
    __tablename__ = "comparison_version"
    comparison_id: Mapped[uuid.UUID] = refers("comparison.id", primary_key=True)
    version_id: Mapped[uuid.UUID] = refers("version.id", primary_key=True)
    position: Mapped[int]


class ComparisonClipRow(Base):
    """A clip that was measured; ``position`` orders them by prompt, version and take."""

    __tablename__ = "comparison_clip"
    comparison_id: Mapped[uuid.UUID] = refers("comparison.id", primary_key=True)
    clip_id: Mapped[uuid.UUID] = refers("clip.id", primary_key=True)
    position: Mapped[int]


class ComparisonMetricRow(Base):
    """A figure that the comparison found; it is a row of metric_result as any other."""

    __tablename__ = "comparison_metric"
    comparison_id: Mapped[uuid.UUID] = refers("comparison.id", primary_key=True)
    metric_result_id: Mapped[uuid.UUID] = refers("metric_result.id", primary_key=True)


class ComparisonStudyRow(Base):
    """A study in which listeners compared these versions."""

    __tablename__ = "comparison_study"
    comparison_id: Mapped[uuid.UUID] = refers("comparison.id", primary_key=True)
    study_id: Mapped[uuid.UUID] = refers("study.id", primary_key=True)
