"""Queries about studies and their battles."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.clips import get_clips
from alignment.db.tables import (
    STUDY_STATES,
    BattleRow,
    BattleTallyRow,
    PromptSetMemberRow,
    PromptSetRow,
    StudyRow,
    StudyVersionRow,
    VersionRow,
)
from alignment.db.versions import get_version
from alignment.domain import Battle, BattleKind, RaterKind
from alignment.errors import DataError, NotFoundError


@dataclass(frozen=True)
class Study:
    """What raters are asked, and under which rules. ``reveal``: the versions are named after each vote.

    ``rules`` is the recipe the study was made from, as JSON; empty for a study that was made without one."""

    id: uuid.UUID
    name: str
    versions: tuple[str, ...]
    questions: tuple[str, ...]
    minimum_listening_seconds: float
    reveal: bool
    rater_kind: RaterKind
    mode: str = "ab"
    state: str = "open"
    rules: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewBattle:
    """A battle to add. ``expected_winner`` is 1 or 2 for gold battles, where the answer is known."""

    prompt_id: uuid.UUID
    clip_1_id: uuid.UUID
    clip_2_id: uuid.UUID
    kind: BattleKind = BattleKind.NORMAL
    propensity: float = 1.0
    expected_winner: int | None = None
    sampler_version: str = "1"


def create_study(
    s: Session,
    *,
    name: str,
    versions: Sequence[str],
    questions: Sequence[str],
    minimum_listening_seconds: float,
    reveal: bool = False,
    rater_kind: RaterKind,
    mode: str = "ab",
    state: str = "open",
    rules: Mapping[str, Any] | None = None,
    prompt_set_id: uuid.UUID | None = None,
    gold_share: float = 0.0,
    repeat_share: float = 0.0,
) -> uuid.UUID:
    """The id of the study of this name, created in ``state`` if it is new.

    Raises DataError when the name stands for a study with other rules, NotFoundError for an unknown version."""
    wanted = Study(
        id=uuid7(),
        name=name,
        versions=tuple(sorted(set(versions))),
        questions=tuple(questions),
        minimum_listening_seconds=float(minimum_listening_seconds),
        reveal=reveal,
        rater_kind=RaterKind(rater_kind),
        mode=mode,
        state=state,
        rules=dict(rules or {}),
    )
    if not wanted.minimum_listening_seconds >= 0:
        raise DataError(f"Study {name}: the minimum listening is {minimum_listening_seconds}; it must be 0 or more.")
    one_at_a_time(s, "study", name)
    row = s.scalar(sa.select(StudyRow).where(StudyRow.name == name))
    if row is not None:
        old = _study(s, row)
        other = [
            field
            for field in ("versions", "questions", "minimum_listening_seconds", "reveal", "rater_kind", "mode", "rules")
            if getattr(old, field) != getattr(wanted, field)
        ]
        if other:
            raise DataError(f"Study {name} exists with other {', '.join(other)}; choose another name.")
        return old.id
    members = [get_version(s, version).id for version in wanted.versions]
    s.execute(
        sa.insert(StudyRow).values(
            id=wanted.id,
            name=name,
            questions=list(wanted.questions),
            minimum_listening_seconds=wanted.minimum_listening_seconds,
            prompt_set_id=prompt_set_id,
            gold_share=gold_share,
            repeat_share=repeat_share,
            reveal=reveal,
            rater_kind=wanted.rater_kind,
            mode=mode,
            state=state,
            rules=dict(wanted.rules),
            created_at=utcnow(),
        )
    )
    if members:
        s.execute(sa.insert(StudyVersionRow), [{"study_id": wanted.id, "version_id": member} for member in members])
    return wanted.id


def get_study(s: Session, name: str) -> Study:
    """The study of this name. Raises NotFoundError that lists the known ones."""
    row = s.scalar(sa.select(StudyRow).where(StudyRow.name == name))
    if row is None:
        names = list(s.scalars(sa.select(StudyRow.name).order_by(StudyRow.id)))
        raise NotFoundError(f"No study is called {name}; known: {', '.join(names) or 'none yet'}.")
    return _study(s, row)


def get_study_by_id(s: Session, study_id: uuid.UUID) -> Study:
    """The study with this id. Raises NotFoundError."""
    row = s.get(StudyRow, study_id)
    if row is None:
        raise NotFoundError(f"No study has the id {study_id}.")
    return _study(s, row)


def set_state(s: Session, study_id: uuid.UUID, state: str) -> None:
    """Moves the study to one of STUDY_STATES. Raises DataError for another word."""
    if state not in STUDY_STATES:
        raise DataError(f"{state!r} is no state of a study; it must be one of {', '.join(STUDY_STATES)}.")
    s.execute(sa.update(StudyRow).where(StudyRow.id == study_id).values(state=state))


def add_prompt_set(s: Session, name: str, prompt_ids: Iterable[uuid.UUID]) -> uuid.UUID:
    """The id of the prompt set of this name, created if it is new. Raises DataError when it holds other prompts."""
    wanted = set(prompt_ids)
    one_at_a_time(s, "prompt_set", name)
    known = s.scalar(sa.select(PromptSetRow.id).where(PromptSetRow.name == name))
    if known is not None:
        if set(prompts_of_set(s, name)) != wanted:
            raise DataError(f"Prompt set {name} exists with other prompts; choose another name.")
        return known
    new = uuid7()
    s.execute(sa.insert(PromptSetRow).values(id=new, name=name, created_at=utcnow()))
    if wanted:
        s.execute(
            sa.insert(PromptSetMemberRow), [{"prompt_set_id": new, "prompt_id": prompt} for prompt in sorted(wanted)]
        )
    return new


def get_prompt_set(s: Session, name: str) -> uuid.UUID:
    """The id of the prompt set of this name. Raises NotFoundError that lists the known ones."""
    known = s.scalar(sa.select(PromptSetRow.id).where(PromptSetRow.name == name))
    if known is None:
        names = list(s.scalars(sa.select(PromptSetRow.name).order_by(PromptSetRow.id)))
        raise NotFoundError(f"No prompt set is called {name}; known: {', '.join(names) or 'none yet'}.")
    return known


def prompts_of_set(s: Session, name: str) -> list[uuid.UUID]:
    """The ids of the set's prompts, in order. Raises NotFoundError for an unknown set."""
    return list(
        s.scalars(
            sa.select(PromptSetMemberRow.prompt_id)
            .where(PromptSetMemberRow.prompt_set_id == get_prompt_set(s, name))
            .order_by(PromptSetMemberRow.prompt_id)
        )
    )


def list_studies(s: Session) -> list[Study]:
    """All studies, in the order in which they were created."""
    return [_study(s, row) for row in s.scalars(sa.select(StudyRow).order_by(StudyRow.id))]


def _study(s: Session, row: StudyRow) -> Study:
    versions = s.scalars(
        sa.select(VersionRow.name)
        .join(StudyVersionRow, StudyVersionRow.version_id == VersionRow.id)
        .where(StudyVersionRow.study_id == row.id)
    )
    return Study(
        id=row.id,
        name=row.name,
        versions=tuple(sorted(versions)),
        questions=tuple(row.questions),
        minimum_listening_seconds=row.minimum_listening_seconds,
        reveal=row.reveal,
        rater_kind=row.rater_kind,
        mode=row.mode,
        state=row.state,
        rules=dict(row.rules or {}),
    )


def add_battles(s: Session, study_id: uuid.UUID, battles: Sequence[NewBattle]) -> list[Battle]:
    """The new battles, in the order given. Every call adds; nothing is merged.

    Raises DataError when a battle's clips are one and the same, are not of its prompt, or its propensity is not in
    (0, 1]; NotFoundError for an unknown clip."""
    clips = get_clips(s, {clip for new in battles for clip in (new.clip_1_id, new.clip_2_id)})
    for new in battles:
        if new.clip_1_id == new.clip_2_id:
            raise DataError(f"A battle names clip {new.clip_1_id} twice; it needs two clips.")
        if not 0 < new.propensity <= 1:
            raise DataError(f"A battle's propensity is {new.propensity}; it must be above 0 and at most 1.")
        for clip in (clips[new.clip_1_id], clips[new.clip_2_id]):
            if clip.prompt_id != new.prompt_id:
                raise DataError(f"Clip {clip.id} is not of prompt {new.prompt_id}; both clips must be.")
    made = [
        Battle(
            id=uuid7(),
            study_id=study_id,
            prompt_id=new.prompt_id,
            clip_1_id=new.clip_1_id,
            clip_2_id=new.clip_2_id,
            kind=BattleKind(new.kind),
            propensity=new.propensity,
        )
        for new in battles
    ]
    if not made:
        return made
    now = utcnow()
    s.execute(
        sa.insert(BattleRow),
        [
            {
                "id": battle.id,
                "study_id": study_id,
                "prompt_id": battle.prompt_id,
                "clip_1_id": battle.clip_1_id,
                "clip_2_id": battle.clip_2_id,
                "kind": battle.kind,
                "expected_winner": new.expected_winner,
                "sampler_version": new.sampler_version,
                "propensity": battle.propensity,
                "created_at": now,
            }
            for battle, new in zip(made, battles, strict=True)
        ],
    )
    s.execute(
        sa.insert(BattleTallyRow), [{"battle_id": battle.id, "study_id": study_id, "votes": 0} for battle in made]
    )
    return made


def list_battles(s: Session, study_id: uuid.UUID) -> list[Battle]:
    """The battles of a study, in the order in which they were added."""
    return [
        Battle(
            id=row.id,
            study_id=row.study_id,
            prompt_id=row.prompt_id,
            clip_1_id=row.clip_1_id,
            clip_2_id=row.clip_2_id,
            kind=row.kind,
            propensity=row.propensity,
        )
        for row in s.scalars(sa.select(BattleRow).where(BattleRow.study_id == study_id).order_by(BattleRow.id))
    ]
