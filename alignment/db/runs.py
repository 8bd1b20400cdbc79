"""Queries about training runs and reward models."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.tables import RewardModelRow, SnapshotRow, TrainRunRewardModelRow, TrainRunRow
from alignment.errors import DataError, NotFoundError


@dataclass(frozen=True)
class TrainRun:
    """One training that finished, with everything needed to trace it. ``seconds`` is wall-clock time."""

    id: uuid.UUID
    kind: str
    snapshot_id: uuid.UUID | None
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    artefact_sha256: str | None
    artefact_uri: str | None
    seconds: float | None
    job_id: str | None
    commit: str | None
    created_at: datetime


@dataclass(frozen=True)
class RewardModelRecord:
    """A reward model's name, origin and where its files are. ``simulated``: simulated votes trained it."""

    id: uuid.UUID
    name: str
    train_run_id: uuid.UUID
    encoder: str
    heads: tuple[str, ...]
    calibration: Mapping[str, Any]
    artefact_sha256: str
    artefact_uri: str
    simulated: bool
    created_at: datetime


def add_train_run(
    s: Session,
    *,
    kind: str,
    snapshot_id: uuid.UUID | None,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    artefact_sha256: str | None = None,
    artefact_uri: str | None = None,
    seconds: float | None = None,
    commit: str | None = None,
    job_id: str | None = None,
    reward_models: Sequence[str] = (),
) -> uuid.UUID:
    """The id of the recorded run, which ``reward_models`` scored or watched. With a ``job_id``, recording the same job
    again gives the same id. Raises NotFoundError for an unknown reward model."""
    if job_id is not None:
        one_at_a_time(s, "train_run", job_id)
        known = s.scalar(sa.select(TrainRunRow.id).where(TrainRunRow.job_id == job_id))
        if known is not None:
            return known
    new = uuid7()
    s.execute(
        sa.insert(TrainRunRow).values(
            id=new,
            kind=kind,
            snapshot_id=snapshot_id,
            config=dict(config),
            metrics=dict(metrics),
            artefact_sha256=artefact_sha256,
            artefact_uri=artefact_uri,
            seconds=seconds,
            job_id=job_id,
            commit=commit,
            created_at=utcnow(),
        )
    )
    used = [get_reward_model(s, name).id for name in dict.fromkeys(reward_models)]
    if used:
        s.execute(sa.insert(TrainRunRewardModelRow), [{"train_run_id": new, "reward_model_id": one} for one in used])
    return new


def get_train_run(s: Session, run_id: uuid.UUID) -> TrainRun:
    """The run with this id. Raises NotFoundError."""
    row = s.get(TrainRunRow, run_id)
    if row is None:
        raise NotFoundError(f"No training run has the id {run_id}.")
    return _run(row)


def list_train_runs(s: Session, *, kind: str | None = None) -> list[TrainRun]:
    """The runs, of one kind or all, in the order in which they were recorded."""
    query = sa.select(TrainRunRow).order_by(TrainRunRow.id)
    if kind is not None:
        query = query.where(TrainRunRow.kind == kind)
    return [_run(row) for row in s.scalars(query)]


def _run(row: TrainRunRow) -> TrainRun:
    return TrainRun(
        id=row.id,
        kind=row.kind,
        snapshot_id=row.snapshot_id,
        config=row.config,
        metrics=row.metrics,
        artefact_sha256=row.artefact_sha256,
        artefact_uri=row.artefact_uri,
        seconds=row.seconds,
        job_id=row.job_id,
        commit=row.commit,
        created_at=row.created_at,
    )


def add_reward_model(
    s: Session,
    *,
    name: str,
    train_run_id: uuid.UUID,
    encoder: str,
    heads: Sequence[str],
    calibration: Mapping[str, Any],
    artefact_sha256: str,
    artefact_uri: str,
) -> uuid.UUID:
    """The id of the reward model of this name, recorded if it is new.

    Raises DataError when the name stands for another artefact."""
    one_at_a_time(s, "reward_model", name)
    known = s.scalar(sa.select(RewardModelRow).where(RewardModelRow.name == name))
    if known is not None:
        if known.artefact_sha256 != artefact_sha256:
            raise DataError(f"Reward model {name} exists with another artefact; choose another name.")
        return known.id
    new = uuid7()
    s.execute(
        sa.insert(RewardModelRow).values(
            id=new,
            name=name,
            train_run_id=train_run_id,
            encoder=encoder,
            heads=list(heads),
            calibration=dict(calibration),
            artefact_sha256=artefact_sha256,
            artefact_uri=artefact_uri,
            created_at=utcnow(),
        )
    )
    return new


def get_reward_model(s: Session, name: str) -> RewardModelRecord:
    """The reward model of this name. Raises NotFoundError that lists the known ones."""
    row = s.scalar(sa.select(RewardModelRow).where(RewardModelRow.name == name))
    if row is None:
        names = list(s.scalars(sa.select(RewardModelRow.name).order_by(RewardModelRow.id)))
        raise NotFoundError(f"No reward model is called {name}; known: {', '.join(names) or 'none yet'}.")
    return _reward_model(s, row)


def list_reward_models(s: Session) -> list[RewardModelRecord]:
    """All reward models, in the order in which they were recorded."""
    return [_reward_model(s, row) for row in s.scalars(sa.select(RewardModelRow).order_by(RewardModelRow.id))]


def reward_models_of_run(s: Session, run_id: uuid.UUID) -> list[RewardModelRecord]:
    """The reward models that scored or watched a run, in the order in which they were recorded."""
    query = (
        sa.select(RewardModelRow)
        .join(TrainRunRewardModelRow, TrainRunRewardModelRow.reward_model_id == RewardModelRow.id)
        .where(TrainRunRewardModelRow.train_run_id == run_id)
        .order_by(RewardModelRow.id)
    )
    return [_reward_model(s, row) for row in s.scalars(query)]


def _reward_model(s: Session, row: RewardModelRow) -> RewardModelRecord:
    return RewardModelRecord(
        id=row.id,
        name=row.name,
        train_run_id=row.train_run_id,
        encoder=row.encoder,
        heads=tuple(row.heads),
        calibration=row.calibration,
        artefact_sha256=row.artefact_sha256,
        artefact_uri=row.artefact_uri,
        simulated=trained_on_simulated_votes(s, row.train_run_id),
        created_at=row.created_at,
    )


def runs_taught_by(snapshots: sa.Select[tuple[uuid.UUID]]) -> sa.Select[tuple[uuid.UUID]]:
    """The ids of the runs on one of these snapshots, and of those that used a reward model trained on one."""
    direct = sa.select(TrainRunRow.id).where(TrainRunRow.snapshot_id.in_(snapshots))
    by_model = (
        sa.select(TrainRunRewardModelRow.train_run_id)
        .join(RewardModelRow, TrainRunRewardModelRow.reward_model_id == RewardModelRow.id)
        .where(RewardModelRow.train_run_id.in_(direct))
    )
    return sa.select(TrainRunRow.id).where(sa.or_(TrainRunRow.id.in_(direct), TrainRunRow.id.in_(by_model)))


def trained_on_simulated_votes(s: Session, train_run_id: uuid.UUID) -> bool:
    """Whether simulated votes are in the run's snapshot, or in those of the reward models that it used."""
    taught = runs_taught_by(sa.select(SnapshotRow.id).where(SnapshotRow.simulated))
    return s.scalar(taught.where(TrainRunRow.id == train_run_id)) is not None
