"""Tables of what was made of the votes: snapshots, training runs, leaderboards, gates, the audit log."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, Name, Sha256, enum_text, one_of, refers
from alignment.domain import Split


class SnapshotRow(Base):
    """An immutable set of votes, named by its content."""

    __tablename__ = "snapshot"
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    policy: Mapped[dict[str, Any]]
    high_water_mark: Mapped[str | None]
    content_sha256: Mapped[Sha256] = mapped_column(index=True)
    uri: Mapped[str]
    licence: Mapped[str | None]
    simulated: Mapped[bool]
    created_at: Mapped[Created]


class SnapshotMemberRow(Base):
    __tablename__ = "snapshot_member"
    __table_args__ = (one_of("split", Split),)
    snapshot_id: Mapped[uuid.UUID] = refers("snapshot.id", primary_key=True)
    vote_id: Mapped[uuid.UUID] = refers("vote.id", primary_key=True, index=True)
    split: Mapped[Split] = mapped_column(enum_text(Split))


class TrainRunRow(Base):
    """One training that finished, with everything needed to trace it."""

    __tablename__ = "train_run"
    id: Mapped[Id]
    kind: Mapped[str] = mapped_column(sa.String(40), index=True)
    snapshot_id: Mapped[uuid.UUID | None] = refers("snapshot.id")
    config: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    artefact_sha256: Mapped[Sha256 | None]
    artefact_uri: Mapped[str | None]
    seconds: Mapped[float | None]
    job_id: Mapped[Name | None] = mapped_column(unique=True)
    commit: Mapped[str | None]
    created_at: Mapped[Created]


class RewardModelRow(Base):
    __tablename__ = "reward_model"
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    train_run_id: Mapped[uuid.UUID] = refers("train_run.id")
    encoder: Mapped[str]
    heads: Mapped[list[Any]]
    calibration: Mapped[dict[str, Any]]
    artefact_sha256: Mapped[Sha256]
    artefact_uri: Mapped[str]
    created_at: Mapped[Created]


class LeaderboardRunRow(Base):
    """One fit of ratings: the method and the rules it was made under."""

    __tablename__ = "leaderboard_run"
    id: Mapped[Id]
    method: Mapped[str] = mapped_column(sa.String(40))
    method_version: Mapped[str] = mapped_column(sa.String(40))
    slice: Mapped[dict[str, Any]]
    tie_rule: Mapped[str] = mapped_column(sa.String(40))
    both_bad_rule: Mapped[str] = mapped_column(sa.String(40))
    side_coefficient: Mapped[float | None]
    simulated: Mapped[bool]
    created_at: Mapped[Created]


class LeaderboardEntryRow(Base):
    __tablename__ = "leaderboard_row"
    leaderboard_run_id: Mapped[uuid.UUID] = refers("leaderboard_run.id", primary_key=True)
    version_id: Mapped[uuid.UUID] = refers("version.id", primary_key=True)
    rating: Mapped[float]
    rating_low: Mapped[float]
    rating_high: Mapped[float]
    rank_low: Mapped[int]
    rank_high: Mapped[int]
    votes: Mapped[int]
    wins: Mapped[int]
    losses: Mapped[int]
    ties: Mapped[int]
    provisional: Mapped[bool]


class MetricResultRow(Base):
    """One measured figure of a version, with its n and interval."""

    __tablename__ = "metric_result"
    id: Mapped[Id]
    version_id: Mapped[uuid.UUID] = refers("version.id", index=True)
    metric: Mapped[str] = mapped_column(sa.String(80))
    model: Mapped[str | None]
    n: Mapped[int]
    value: Mapped[float]
    value_low: Mapped[float | None]
    value_high: Mapped[float | None]
    created_at: Mapped[Created]


class GateDecisionRow(Base):
    """Whether a candidate was promoted, and on what evidence."""

    __tablename__ = "gate_decision"
    __table_args__ = (
        one_of("outcome", ("promoted", "rejected", "undecided")),
        sa.CheckConstraint("alpha_spent >= 0 AND alpha_spent <= 1", name="alpha_spent"),
    )
    id: Mapped[Id]
    candidate_id: Mapped[uuid.UUID] = refers("version.id", index=True)
    champion_id: Mapped[uuid.UUID | None] = refers("version.id")
    evidence: Mapped[dict[str, Any]]
    outcome: Mapped[str] = mapped_column(sa.String(20))
    alpha_spent: Mapped[float]
    created_at: Mapped[Created]


class ExternalRecordRow(Base):
    """A record taken from elsewhere, as it came."""

    __tablename__ = "external_record"
    __table_args__ = (sa.UniqueConstraint("source", "source_id"),)
    id: Mapped[Id]
    source: Mapped[Name]
    source_id: Mapped[Name]
    payload: Mapped[dict[str, Any]]
    licence: Mapped[str | None]
    created_at: Mapped[Created]


class AuditLogRow(Base):
    """[append-only] Who did what."""

    __tablename__ = "audit_log"
    id: Mapped[Id]
    actor: Mapped[Name]
    action: Mapped[Name]
    subject: Mapped[str | None]
    before_sha256: Mapped[Sha256 | None]
    after_sha256: Mapped[Sha256 | None]
    reason: Mapped[str | None]
    created_at: Mapped[Created]
