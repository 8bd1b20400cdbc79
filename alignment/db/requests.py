"""Queries about wishes for clips: who typed what, whose turn it is, which worker sings it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import utcnow, uuid7
from alignment.db.tables import (
    ArenaRequestRow,
    AssignmentRow,
    GenerationRequestRow,
    ListeningSessionRow,
    PromptRow,
    StudyRow,
    StudyVersionRow,
    VersionRow,
)
from alignment.domain import GenerationConfig, Side, Split

_WAITS = ("waiting", "running")


@dataclass(frozen=True)
class ArenaSession:
    """A listening session with what its study lets it ask for."""

    rater_id: uuid.UUID
    study_id: uuid.UUID
    study_mode: str
    study_state: str
    rules: Mapping[str, Any]
    is_finished: bool


@dataclass(frozen=True)
class SingingRequest:
    """A request as a worker has it: what to sing, and under which attempt it holds it."""

    id: uuid.UUID
    prompt_id: uuid.UUID
    prompt_text: str
    versions: tuple[str, ...]
    generation: GenerationConfig
    seed: int
    attempts: int


@dataclass(frozen=True)
class RequestState:
    """Where a typed prompt stands. ``ahead`` counts those that wait before it."""

    id: uuid.UUID
    session_id: uuid.UUID
    text: str
    state: str
    progress: float
    ahead: int
    battle_id: uuid.UUID | None


def arena_session(s: Session, session_id: uuid.UUID) -> ArenaSession | None:
    """The session with its study's mode, state and rules; None when unknown."""
    row = s.execute(
        sa.select(
            ListeningSessionRow.rater_id, StudyRow.id, StudyRow.mode, StudyRow.state, StudyRow.rules,
            ListeningSessionRow.finished_at.is_not(None),
        )
        .join(StudyRow, ListeningSessionRow.study_id == StudyRow.id)
        .where(ListeningSessionRow.id == session_id)
    ).one_or_none()  # fmt: skip
    return None if row is None else ArenaSession(*row)


def typed_prompt(s: Session, text: str, *, split: Split, source: str) -> uuid.UUID:
    """The id of the prompt of this text. One that is on record stays in the split it is in."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    query = sa.select(PromptRow.id).where(PromptRow.sha256 == digest)
    known = s.scalar(query)
    if known is not None:
        return known
    values = {
        "id": uuid7(), "sha256": digest, "text": text, "source": source, "split": split, "tags": {},
        "created_at": utcnow(),
    }  # fmt: skip
    if s.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        # Two raters may type the same words at once; the second waits and then reads the first's row.
        s.execute(insert(PromptRow).values(values).on_conflict_do_nothing(index_elements=["sha256"]))
    else:
        s.execute(sa.insert(PromptRow).values(values))
    return s.scalars(query).one()


def add_request(
    s: Session,
    *,
    prompt_id: uuid.UUID,
    versions: Sequence[str],
    generation: GenerationConfig,
    seed: int,
    now: datetime,
) -> uuid.UUID:
    """The id of a new request that waits for a worker."""
    new = uuid7()
    s.execute(
        sa.insert(GenerationRequestRow).values(
            id=new,
            prompt_id=prompt_id,
            versions=list(versions),
            state="waiting",
            created_at=now,
            generation={
                "temperature": generation.temperature,
                "top_k": generation.top_k,
                "guidance": generation.guidance,
                "clip_seconds": generation.clip_seconds,
            },
            seed=seed,
        )
    )
    return new


def link_to_session(s: Session, request_id: uuid.UUID, *, study_id: uuid.UUID, session_id: uuid.UUID) -> None:
    """Notes that the request was typed in this session; its clips will become a battle for it."""
    s.execute(sa.insert(ArenaRequestRow).values(request_id=request_id, study_id=study_id, session_id=session_id))


def unfinished_of_session(s: Session, session_id: uuid.UUID) -> uuid.UUID | None:
    """The session's request that waits or is being sung; None when there is none."""
    return s.scalar(
        sa.select(GenerationRequestRow.id)
        .join(ArenaRequestRow, ArenaRequestRow.request_id == GenerationRequestRow.id)
        .where(ArenaRequestRow.session_id == session_id, GenerationRequestRow.state.in_(_WAITS))
        .order_by(GenerationRequestRow.id)
        .limit(1)
    )


def asked_since(s: Session, *, rater_id: uuid.UUID, study_id: uuid.UUID, since: datetime) -> int:
    """How many prompts the rater typed in the study since then, whatever session; failed ones do not count."""
    return s.scalars(
        sa.select(sa.func.count())
        .select_from(ArenaRequestRow)
        .join(GenerationRequestRow, ArenaRequestRow.request_id == GenerationRequestRow.id)
        .join(ListeningSessionRow, ArenaRequestRow.session_id == ListeningSessionRow.id)
        .where(
            ListeningSessionRow.rater_id == rater_id,
            ArenaRequestRow.study_id == study_id,
            GenerationRequestRow.created_at > since,
            GenerationRequestRow.state != "failed",
        )
    ).one()


def request_state(s: Session, request_id: uuid.UUID) -> RequestState | None:
    """A typed prompt's state; None when no session asked for it."""
    row = s.execute(
        sa.select(
            GenerationRequestRow.id, ArenaRequestRow.session_id, PromptRow.text, GenerationRequestRow.state,
            GenerationRequestRow.progress, ArenaRequestRow.battle_id,
        )
        .join(ArenaRequestRow, ArenaRequestRow.request_id == GenerationRequestRow.id)
        .join(PromptRow, GenerationRequestRow.prompt_id == PromptRow.id)
        .where(GenerationRequestRow.id == request_id)
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    ahead = s.scalars(
        sa.select(sa.func.count()).where(GenerationRequestRow.state == "waiting", GenerationRequestRow.id < request_id)
    ).one()
    return RequestState(row.id, row.session_id, row.text, row.state, row.progress, ahead, row.battle_id)


def assignment_of(s: Session, *, battle_id: uuid.UUID, session_id: uuid.UUID) -> uuid.UUID | None:
    """The id of the assignment of this battle in this session; None when there is none."""
    return s.scalar(
        sa.select(AssignmentRow.id).where(AssignmentRow.battle_id == battle_id, AssignmentRow.session_id == session_id)
    )


def waiting_count(s: Session) -> int:
    """How many requests wait for a worker."""
    return s.scalars(sa.select(sa.func.count()).where(GenerationRequestRow.state == "waiting")).one()


# What workers do ------------------------------------------------------------------------------------------------


def next_request(s: Session, *, silent_since: datetime) -> tuple[SingingRequest, str | None] | None:
    """The request whose turn it is, locked, with the worker that held it; None when nothing waits.

    Requests whose worker has not been heard of since ``silent_since`` count as waiting. On PostgreSQL one that
    another worker is just claiming is passed over; on SQLite the transaction has the whole file already."""
    row = s.execute(
        sa.select(GenerationRequestRow)
        .where(
            sa.or_(
                GenerationRequestRow.state == "waiting",
                sa.and_(GenerationRequestRow.state == "running", GenerationRequestRow.heartbeat_at < silent_since),
            )
        )
        .order_by(GenerationRequestRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar_one_or_none()
    if row is None:
        return None
    text = s.scalars(sa.select(PromptRow.text).where(PromptRow.id == row.prompt_id)).one()
    generation = GenerationConfig(**row.generation)
    request = SingingRequest(row.id, row.prompt_id, text, tuple(row.versions), generation, row.seed, row.attempts)
    return request, row.worker


def held_request(s: Session, request_id: uuid.UUID, *, worker: str, attempts: int) -> bool:
    """Whether this worker still holds the request under this attempt; locks the row if so."""
    return (
        s.scalar(
            sa.select(GenerationRequestRow.id)
            .where(
                GenerationRequestRow.id == request_id,
                GenerationRequestRow.state == "running",
                GenerationRequestRow.worker == worker,
                GenerationRequestRow.attempts == attempts,
            )
            .with_for_update()
        )
        is not None
    )


def set_request(s: Session, request_id: uuid.UUID, **values: Any) -> None:
    """Writes these columns of the request."""
    s.execute(sa.update(GenerationRequestRow).where(GenerationRequestRow.id == request_id).values(**values))


def session_asking(s: Session, request_id: uuid.UUID) -> tuple[uuid.UUID, uuid.UUID, uuid.UUID | None] | None:
    """(study, session, battle) of a typed prompt, locked; None for a request that nobody typed."""
    row = s.execute(
        sa.select(ArenaRequestRow.study_id, ArenaRequestRow.session_id, ArenaRequestRow.battle_id)
        .where(ArenaRequestRow.request_id == request_id)
        .with_for_update()
    ).one_or_none()
    return None if row is None else (row.study_id, row.session_id, row.battle_id)


def set_battle(s: Session, request_id: uuid.UUID, battle_id: uuid.UUID) -> None:
    """Notes which battle the typed prompt became."""
    s.execute(sa.update(ArenaRequestRow).where(ArenaRequestRow.request_id == request_id).values(battle_id=battle_id))


def assign(
    s: Session,
    *,
    battle_id: uuid.UUID,
    session_id: uuid.UUID,
    left_is_clip_1: bool,
    first_side: Side,
    nonce: str,
    policy: str,
    now: datetime,
    expires_at: datetime,
) -> uuid.UUID:
    """The id of a new assignment of a battle that only this session can have got: its propensity is 1."""
    new = uuid7()
    s.execute(
        sa.insert(AssignmentRow).values(
            id=new, battle_id=battle_id, session_id=session_id, left_is_clip_1=left_is_clip_1, first_side=first_side,
            nonce=nonce, served_at=now, expires_at=expires_at, policy=policy, propensity=1.0,
        )
    )  # fmt: skip
    return new


def describe_study(s: Session, study_id: uuid.UUID, *, mode: str, rules: Mapping[str, Any]) -> None:
    """Gives a study its mode and the rules that it was made from."""
    s.execute(sa.update(StudyRow).where(StudyRow.id == study_id).values(mode=mode, rules=dict(rules)))


def arena_versions(s: Session) -> tuple[str, ...]:
    """The versions that open arena studies compare, each once."""
    rows = s.execute(
        sa.select(VersionRow.name)
        .join(StudyVersionRow, StudyVersionRow.version_id == VersionRow.id)
        .join(StudyRow, StudyVersionRow.study_id == StudyRow.id)
        .where(StudyRow.mode == "arena", StudyRow.state == "open")
        .distinct()
        .order_by(VersionRow.name)
    )
    return tuple(rows.scalars())
