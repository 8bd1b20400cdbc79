"""Tables of what people are asked and what they say: studies, sessions, battles, votes."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from alignment.db.base import Base, Created, Id, Name, Sha256, enum_text, one_of, refers
from alignment.domain import Axis, BattleKind, Outcome, RaterKind, RatingOutcome, Side

RATER_STATUSES = ("active", "withdrawn", "blocked")
STUDY_MODES = ("ab", "rating", "arena")
STUDY_STATES = ("draft", "open", "paused", "closed")
EVENT_TYPES = ("play", "pause", "seek", "switch", "loop", "ended", "blur", "stall")


class StudyRow(Base):
    """What raters are asked, and under which rules."""

    __tablename__ = "study"
    __table_args__ = (
        one_of("rater_kind", RaterKind),
        sa.CheckConstraint("minimum_listening_seconds >= 0", name="minimum_listening_seconds"),
        sa.CheckConstraint("gold_share >= 0 AND repeat_share >= 0 AND gold_share + repeat_share <= 1", name="shares"),
    )
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    prompt_set_id: Mapped[uuid.UUID | None] = refers("prompt_set.id")
    questions: Mapped[list[Any]]
    minimum_listening_seconds: Mapped[float]
    gold_share: Mapped[float] = mapped_column(default=0.0)
    repeat_share: Mapped[float] = mapped_column(default=0.0)
    reveal: Mapped[bool]
    rater_kind: Mapped[RaterKind] = mapped_column(enum_text(RaterKind))
    created_at: Mapped[Created]
    mode: Mapped[str] = mapped_column(sa.String(20), server_default="ab")  # one of STUDY_MODES
    state: Mapped[str] = mapped_column(sa.String(20), server_default="open")  # one of STUDY_STATES
    rules: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # the resolved recipe it was made from


class StudyVersionRow(Base):
    """A version that a study compares."""

    __tablename__ = "study_version"
    study_id: Mapped[uuid.UUID] = refers("study.id", primary_key=True)
    version_id: Mapped[uuid.UUID] = refers("version.id", primary_key=True)


class InviteRow(Base):
    """An invitation to a study; only the token's hash is kept."""

    __tablename__ = "invite"
    id: Mapped[Id]
    study_id: Mapped[uuid.UUID] = refers("study.id", index=True)
    token_sha256: Mapped[Sha256] = mapped_column(unique=True)
    expires_at: Mapped[datetime | None]
    created_at: Mapped[Created]
    label: Mapped[str | None] = mapped_column(sa.String(200))
    most_uses: Mapped[int | None]  # sessions it may open; None = any number
    revoked_at: Mapped[datetime | None]


class AccountRow(Base):
    """Someone who may organise or look after studies."""

    __tablename__ = "account"
    __table_args__ = (one_of("role", ("organiser", "admin")),)
    id: Mapped[Id]
    name: Mapped[Name] = mapped_column(unique=True)
    role: Mapped[str] = mapped_column(sa.String(20))
    password_hash: Mapped[str | None]
    created_at: Mapped[Created]
    password_changed_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class GenerationRequestRow(Base):
    """A wish for clips; a worker sings, the app only asks."""

    __tablename__ = "generation_request"
    __table_args__ = (one_of("state", ("waiting", "running", "done", "failed")),)
    id: Mapped[Id]
    prompt_id: Mapped[uuid.UUID] = refers("prompt.id")
    versions: Mapped[list[Any]]
    state: Mapped[str] = mapped_column(sa.String(20), index=True)
    created_at: Mapped[Created]
    finished_at: Mapped[datetime | None]
    generation: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # temperature, top_k, guidance, seconds
    seed: Mapped[int] = mapped_column(sa.BigInteger(), server_default="0")
    progress: Mapped[float] = mapped_column(server_default="0.0")  # share sung, 0 to 1
    attempts: Mapped[int] = mapped_column(server_default="0")
    worker: Mapped[str | None] = mapped_column(sa.String(200))
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    error: Mapped[str | None]


class RaterRow(Base):
    """A pseudonym. ``pseudonym`` is a keyed HMAC of who it is outside; withdrawal empties it."""

    __tablename__ = "rater"
    __table_args__ = (one_of("kind", RaterKind), one_of("status", RATER_STATUSES))
    id: Mapped[Id]
    pseudonym: Mapped[Sha256 | None] = mapped_column(unique=True)
    cohort: Mapped[str | None]
    consent_version: Mapped[str]
    kind: Mapped[RaterKind] = mapped_column(enum_text(RaterKind))
    status: Mapped[str] = mapped_column(sa.String(20), default="active")
    created_at: Mapped[Created]
    background: Mapped[dict[str, Any]] = mapped_column(server_default="{}")  # what the rater chose to tell


class ListeningSessionRow(Base):
    __tablename__ = "listening_session"
    id: Mapped[Id]
    rater_id: Mapped[uuid.UUID] = refers("rater.id", index=True)
    study_id: Mapped[uuid.UUID] = refers("study.id", index=True)
    started_at: Mapped[datetime]
    user_agent_family: Mapped[str | None]
    audio_route: Mapped[str | None]
    headphone_check: Mapped[bool | None]
    app_commit: Mapped[str | None]
    finished_at: Mapped[datetime | None]


class BattleRow(Base):
    """[append-only] Two clips for one prompt."""

    __tablename__ = "battle"
    __table_args__ = (
        one_of("kind", BattleKind),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="propensity"),
        sa.CheckConstraint("clip_1_id <> clip_2_id", name="two_clips"),
        sa.CheckConstraint("expected_winner IN (1, 2)", name="expected_winner"),
    )
    id: Mapped[Id]
    study_id: Mapped[uuid.UUID] = refers("study.id", index=True)
    prompt_id: Mapped[uuid.UUID] = refers("prompt.id")
    clip_1_id: Mapped[uuid.UUID] = refers("clip.id")
    clip_2_id: Mapped[uuid.UUID] = refers("clip.id")
    kind: Mapped[BattleKind] = mapped_column(enum_text(BattleKind))
    expected_winner: Mapped[int | None]  # 1 or 2, for gold battles
    sampler_version: Mapped[str] = mapped_column(sa.String(40))
    propensity: Mapped[float]
    created_at: Mapped[Created]


class BattleTallyRow(Base):
    """How many answered assignments a battle has: derived from the votes, so that the least voted is found fast."""

    __tablename__ = "battle_tally"
    __table_args__ = (
        sa.Index("ix_battle_tally_study_id_votes_battle_id", "study_id", "votes", "battle_id"),
        sa.CheckConstraint("votes >= 0", name="votes"),
    )
    battle_id: Mapped[uuid.UUID] = refers("battle.id", primary_key=True)
    study_id: Mapped[uuid.UUID] = refers("study.id")
    votes: Mapped[int]


class AssignmentRow(Base):
    """One battle served to one session, with the sides drawn for this assignment alone."""

    __tablename__ = "assignment"
    __table_args__ = (sa.UniqueConstraint("battle_id", "session_id"), one_of("first_side", Side))
    id: Mapped[Id]
    battle_id: Mapped[uuid.UUID] = refers("battle.id")
    session_id: Mapped[uuid.UUID] = refers("listening_session.id", index=True)
    left_is_clip_1: Mapped[bool]
    first_side: Mapped[Side] = mapped_column(enum_text(Side))
    nonce: Mapped[str] = mapped_column(sa.String(64), unique=True)
    served_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    policy: Mapped[str] = mapped_column(sa.String(40), server_default="balanced-1")  # how the battle was chosen
    propensity: Mapped[float] = mapped_column(server_default="1.0")  # with which probability, given the session
    left_fetched_at: Mapped[datetime | None]  # when the clip's bytes were first sent
    right_fetched_at: Mapped[datetime | None]


class ListenEventRow(Base):
    """[append-only] One thing the player did."""

    __tablename__ = "listen_event"
    __table_args__ = (
        one_of("side", Side),
        one_of("type", EVENT_TYPES),
        sa.CheckConstraint("seq >= 0", name="seq"),
    )
    assignment_id: Mapped[uuid.UUID] = refers("assignment.id", primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    side: Mapped[Side | None] = mapped_column(enum_text(Side))
    type: Mapped[str] = mapped_column(sa.String(20))
    media_seconds: Mapped[float | None]
    client_ms: Mapped[int | None] = mapped_column(sa.BigInteger())
    received_at: Mapped[datetime]


class VoteTable(Base):
    """[append-only] What a rater said about one battle. A correction is a new revision."""

    __tablename__ = "vote"
    __table_args__ = (
        sa.UniqueConstraint("assignment_id", "revision"),
        sa.UniqueConstraint("session_id", "position"),
        one_of("outcome", Outcome),
        sa.CheckConstraint("revision >= 1", name="revision"),
        sa.CheckConstraint("confidence BETWEEN 1 AND 3", name="confidence"),
        sa.CheckConstraint("heard_left_seconds >= 0 AND heard_right_seconds >= 0", name="heard"),
    )
    id: Mapped[Id]
    assignment_id: Mapped[uuid.UUID] = refers("assignment.id")
    revision: Mapped[int]
    session_id: Mapped[uuid.UUID] = refers("listening_session.id")
    position: Mapped[int]  # 1, 2, 3 ... in the session's chain
    outcome: Mapped[Outcome] = mapped_column(enum_text(Outcome))
    confidence: Mapped[int | None]
    heard_left_seconds: Mapped[float]
    heard_right_seconds: Mapped[float]
    switches: Mapped[int]
    decision_ms: Mapped[int | None] = mapped_column(sa.BigInteger())
    idempotency_key: Mapped[Name] = mapped_column(unique=True)
    previous_hash: Mapped[Sha256]
    row_hash: Mapped[Sha256] = mapped_column(unique=True)
    created_at: Mapped[datetime]


class VoteAxisRow(Base):
    """[append-only] One axis of a vote, -2 (clearly A) to 2 (clearly B)."""

    __tablename__ = "vote_axis"
    __table_args__ = (one_of("axis", Axis), sa.CheckConstraint("value BETWEEN -2 AND 2", name="value"))
    vote_id: Mapped[uuid.UUID] = refers("vote.id", primary_key=True)
    axis: Mapped[Axis] = mapped_column(enum_text(Axis), primary_key=True)
    value: Mapped[int]


class ClipRatingRow(Base):
    """[append-only] Absolute ratings of one clip, or that it was passed over or reported as broken."""

    __tablename__ = "clip_rating"
    __table_args__ = (
        sa.Index("uq_clip_rating_session_id_clip_id", "session_id", "clip_id", unique=True),
        sa.CheckConstraint("quality BETWEEN 1 AND 100", name="quality"),
        sa.CheckConstraint("relevance BETWEEN 1 AND 100", name="relevance"),
        sa.CheckConstraint("mos BETWEEN 1 AND 5", name="mos"),
        sa.CheckConstraint(
            "outcome = 'RATED' OR "
            "(outcome IN ('SKIP', 'FAULT') AND quality IS NULL AND relevance IS NULL AND mos IS NULL)",
            name="outcome",
        ),
    )
    id: Mapped[Id]
    session_id: Mapped[uuid.UUID] = refers("listening_session.id")
    clip_id: Mapped[uuid.UUID] = refers("clip.id", index=True)
    quality: Mapped[int | None]
    relevance: Mapped[int | None]
    mos: Mapped[float | None]
    idempotency_key: Mapped[Name] = mapped_column(unique=True)
    created_at: Mapped[Created]
    heard_seconds: Mapped[float] = mapped_column(server_default="0.0")
    decision_ms: Mapped[int | None] = mapped_column(sa.BigInteger())
    outcome: Mapped[RatingOutcome] = mapped_column(enum_text(RatingOutcome), server_default="RATED")


class VoteCommentRow(Base):
    """A rater's words; deleted when the rater withdraws, so never part of the chain."""

    __tablename__ = "vote_comment"
    __table_args__ = (one_of("side", Side),)
    id: Mapped[Id]
    vote_id: Mapped[uuid.UUID] = refers("vote.id", index=True)
    text: Mapped[str]
    after_reveal: Mapped[bool] = mapped_column(default=False)
    side: Mapped[Side | None] = mapped_column(enum_text(Side))
    start_seconds: Mapped[float | None]
    end_seconds: Mapped[float | None]
    created_at: Mapped[Created]


class VoteFlagRow(Base):
    """[append-only] A detector's opinion of a vote; it never deletes one."""

    __tablename__ = "vote_flag"
    __table_args__ = (one_of("verdict", ("ok", "suspect", "invalid", "unknown")),)
    id: Mapped[Id]
    vote_id: Mapped[uuid.UUID] = refers("vote.id", index=True)
    detector: Mapped[Name]
    detector_version: Mapped[str] = mapped_column(sa.String(40))
    verdict: Mapped[str] = mapped_column(sa.String(20))
    created_at: Mapped[Created]
    detail: Mapped[dict[str, Any]] = mapped_column(server_default="{}")


class WithdrawalRow(Base):
    """A rater took back their part: votes stay out of every new snapshot."""

    __tablename__ = "withdrawal"
    id: Mapped[Id]
    rater_id: Mapped[uuid.UUID] = refers("rater.id", unique=True)
    versions_reached: Mapped[list[Any]]
    created_at: Mapped[Created]
