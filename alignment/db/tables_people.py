"""Tables that studies with people need: invites used, consent, repeats, ratings asked for, typed prompts, scores."""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, one_of, refers

RATING_KINDS = ("normal", "reference", "anchor")


class ConsentRow(Base):
    """[append-only] What a rater agreed to in a study; the newest row counts."""

    __tablename__ = "consent"
    id: Mapped[Id]
    rater_id: Mapped[uuid.UUID] = refers("rater.id", index=True)
    study_id: Mapped[uuid.UUID] = refers("study.id")
    text_version: Mapped[str] = mapped_column(sa.String(40))
    training: Mapped[bool]  # votes may train models
    publication: Mapped[bool]  # votes may be published under the pseudonym
    created_at: Mapped[Created]


class InviteUseRow(Base):
    """[append-only] A session that an invite opened."""

    __tablename__ = "invite_use"
    session_id: Mapped[uuid.UUID] = refers("listening_session.id", primary_key=True)
    invite_id: Mapped[uuid.UUID] = refers("invite.id", index=True)
    created_at: Mapped[Created]


class BattleRepeatRow(Base):
    """A battle of kind repeat: the same two clips as an assignment's, asked of the same rater once more."""

    __tablename__ = "battle_repeat"
    battle_id: Mapped[uuid.UUID] = refers("battle.id", primary_key=True)
    assignment_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("assignment.id"), unique=True)


class RatingItemRow(Base):
    """[append-only] A clip that a study asks absolute ratings of; the page does not tell its kind."""

    __tablename__ = "rating_item"
    __table_args__ = (sa.UniqueConstraint("study_id", "clip_id"), one_of("kind", RATING_KINDS))
    id: Mapped[Id]
    study_id: Mapped[uuid.UUID] = refers("study.id")
    prompt_id: Mapped[uuid.UUID] = refers("prompt.id")
    clip_id: Mapped[uuid.UUID] = refers("clip.id")
    kind: Mapped[str] = mapped_column(sa.String(20))
    created_at: Mapped[Created]


class RatingAssignmentRow(Base):
    """One clip served to one session for absolute rating."""

    __tablename__ = "rating_assignment"
    __table_args__ = (sa.UniqueConstraint("item_id", "session_id"),)
    id: Mapped[Id]
    item_id: Mapped[uuid.UUID] = refers("rating_item.id")
    session_id: Mapped[uuid.UUID] = refers("listening_session.id", index=True)
    served_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    fetched_at: Mapped[datetime | None]


class ArenaRequestRow(Base):
    """A prompt that a rater typed, and the battle it became."""

    __tablename__ = "arena_request"
    request_id: Mapped[uuid.UUID] = refers("generation_request.id", primary_key=True)
    study_id: Mapped[uuid.UUID] = refers("study.id")
    session_id: Mapped[uuid.UUID] = refers("listening_session.id", index=True)
    battle_id: Mapped[uuid.UUID | None] = refers("battle.id")


class ClipScoreRow(Base):
    """What a reward model makes of a clip, so that a page can show it without loading the model."""

    __tablename__ = "clip_score"
    reward_model_id: Mapped[uuid.UUID] = refers("reward_model.id", primary_key=True)
    clip_id: Mapped[uuid.UUID] = refers("clip.id", primary_key=True)
    preference: Mapped[float]
    uncertainty: Mapped[float]
    created_at: Mapped[Created]
