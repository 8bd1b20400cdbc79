"""Tables of what became of versions: who was promoted, rolled back or retired, and what trained them."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, Name, one_of, refers

VERSION_CHANGES = ("promote", "rollback", "retire")


class VersionChangeRow(Base):
    """[append-only] A version that became champion, by promotion or by rollback, or was retired. ``replaced_id`` is the
    champion before it."""

    __tablename__ = "version_change"
    __table_args__ = (one_of("action", VERSION_CHANGES),)
    id: Mapped[Id]
    version_id: Mapped[uuid.UUID] = refers("version.id", index=True)
    action: Mapped[str] = mapped_column(sa.String(20))
    replaced_id: Mapped[uuid.UUID | None] = refers("version.id")
    decision_id: Mapped[uuid.UUID | None] = refers("gate_decision.id")
    forced: Mapped[bool]
    actor: Mapped[Name]
    reason: Mapped[str | None]
    created_at: Mapped[Created]


class TrainRunRewardModelRow(Base):
    """A reward model that scored, or watched, a training."""

    __tablename__ = "train_run_reward_model"
    train_run_id: Mapped[uuid.UUID] = refers("train_run.id", primary_key=True)
    reward_model_id: Mapped[uuid.UUID] = refers("reward_model.id", primary_key=True)
