"""Queries about the prompts that one rater typed: where else they are in use, and deleting their words."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.base import utcnow
from alignment.db.runs import runs_taught_by
from alignment.db.tables import (
    ArenaRequestRow,
    AssignmentRow,
    BattleRow,
    GenerationRequestRow,
    ListeningSessionRow,
    PromptRow,
    PromptSetMemberRow,
    RaterRow,
    RatingItemRow,
    SnapshotMemberRow,
    VersionRow,
    VoteTable,
)

TYPED = "arena"  # the source of a prompt whose words came from a rater
DELETED = "withdrawn"  # the source of one whose words are gone


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt that a rater typed. ``versions`` were trained on votes about clips sung from it; ``is_shared``: somebody
    else typed the same words, or the organisers use them."""

    id: uuid.UUID
    versions: tuple[str, ...]
    is_shared: bool


def typed_by(s: Session, rater_id: uuid.UUID) -> list[TypedPrompt]:
    """The prompts that came on record because the rater typed them and whose words are still there, oldest first."""
    asked = (
        sa.select(GenerationRequestRow.prompt_id, ArenaRequestRow.battle_id, ListeningSessionRow.rater_id)
        .join(ArenaRequestRow, ArenaRequestRow.request_id == GenerationRequestRow.id)
        .join(ListeningSessionRow, ArenaRequestRow.session_id == ListeningSessionRow.id)
        .subquery()
    )
    mine = sa.select(asked.c.prompt_id).where(asked.c.rater_id == rater_id)
    own_battles = sa.select(asked.c.battle_id).where(asked.c.rater_id == rater_id, asked.c.battle_id.is_not(None))
    by_others = (
        sa.exists()
        .where(asked.c.prompt_id == PromptRow.id, asked.c.rater_id == RaterRow.id)
        .where(asked.c.rater_id != rater_id, RaterRow.status != "withdrawn")
    )
    by_organisers = sa.or_(
        sa.exists().where(PromptSetMemberRow.prompt_id == PromptRow.id),
        sa.exists().where(RatingItemRow.prompt_id == PromptRow.id),
        sa.exists().where(
            BattleRow.prompt_id == PromptRow.id,
            BattleRow.id.not_in(own_battles),
            # A battle that another rater's request became is counted above, unless they have withdrawn.
            BattleRow.id.not_in(sa.select(asked.c.battle_id).where(asked.c.battle_id.is_not(None))),
        ),
    )
    query = (
        sa.select(PromptRow.id, sa.or_(by_others, by_organisers))
        .where(PromptRow.source == TYPED, PromptRow.id.in_(mine))
        .order_by(PromptRow.id)
    )
    return [TypedPrompt(prompt, _versions(s, prompt), bool(shared)) for prompt, shared in s.execute(query)]


def _versions(s: Session, prompt_id: uuid.UUID) -> tuple[str, ...]:
    heard = (
        sa.select(SnapshotMemberRow.snapshot_id)
        .join(VoteTable, VoteTable.id == SnapshotMemberRow.vote_id)
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .where(BattleRow.prompt_id == prompt_id)
    )
    query = (
        sa.select(VersionRow.id, VersionRow.name)
        .where(VersionRow.train_run_id.in_(runs_taught_by(heard)))
        .order_by(VersionRow.id)
    )
    return tuple(name for _, name in s.execute(query))


def delete_words(s: Session, prompt_id: uuid.UUID) -> None:
    """Empties the prompt. Its row stays, for clips and votes hang on it; its hash no longer gives words away."""
    nothing = hashlib.sha256(f"withdrawn:{prompt_id}".encode()).hexdigest()
    s.execute(
        sa.update(PromptRow)
        .where(PromptRow.id == prompt_id)
        .values(text="", sha256=nothing, source=DELETED, tags={})
        .execution_options(synchronize_session=False)
    )


def cancel_requests(s: Session, rater_id: uuid.UUID) -> int:
    """How many wishes of the rater still waited for a worker, or were being sung, and are not sung to the end now."""
    mine = (
        sa.select(ArenaRequestRow.request_id)
        .join(ListeningSessionRow, ArenaRequestRow.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.rater_id == rater_id)
    )
    done = s.execute(
        sa.update(GenerationRequestRow)
        .where(GenerationRequestRow.id.in_(mine), GenerationRequestRow.state.in_(("waiting", "running")))
        .values(state="failed", finished_at=utcnow(), error="the rater has left the study")
        .execution_options(synchronize_session=False)
    )
    return done.rowcount
