"""Queries about absolute ratings: the clips a study asks about, serving one, writing what was said."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.tables import (
    ClipRatingRow,
    ClipRow,
    ListeningSessionRow,
    PromptRow,
    RatingAssignmentRow,
    RatingItemRow,
)
from alignment.domain import RatingAssignment, RatingDraft, RatingOutcome
from alignment.errors import DataError


@dataclass(frozen=True)
class RatingItem:
    """A clip that a study asks absolute ratings of: ``kind`` is normal, reference or anchor."""

    id: uuid.UUID
    study_id: uuid.UUID
    prompt_id: uuid.UUID
    clip_id: uuid.UUID
    kind: str


@dataclass(frozen=True)
class ServedItem:
    """A rating assignment with what its listening is measured against."""

    assignment: RatingAssignment
    clip_seconds: float
    fetched_at: datetime | None


@dataclass(frozen=True)
class SavedRating:
    """A rating as stored."""

    id: uuid.UUID
    session_id: uuid.UUID
    clip_id: uuid.UUID
    answer: tuple[RatingOutcome, int | None, int | None, float | None]
    created_at: datetime


def add_items(s: Session, study_id: uuid.UUID, items: Sequence[tuple[uuid.UUID, uuid.UUID, str]]) -> int:
    """How many of the (prompt, clip, kind) were new to the study."""
    one_at_a_time(s, "rating_item", study_id)
    known = set(s.scalars(sa.select(RatingItemRow.clip_id).where(RatingItemRow.study_id == study_id)))
    now = utcnow()
    fresh = {
        clip: {
            "id": uuid7(),
            "study_id": study_id,
            "prompt_id": prompt,
            "clip_id": clip,
            "kind": kind,
            "created_at": now,
        }
        for prompt, clip, kind in items
        if clip not in known
    }
    if fresh:
        s.execute(sa.insert(RatingItemRow), list(fresh.values()))
    return len(fresh)


def list_items(s: Session, study_id: uuid.UUID) -> list[RatingItem]:
    """The study's items, in the order in which they were added."""
    rows = s.scalars(sa.select(RatingItemRow).where(RatingItemRow.study_id == study_id).order_by(RatingItemRow.id))
    return [RatingItem(row.id, row.study_id, row.prompt_id, row.clip_id, row.kind) for row in rows]


def rated_often(s: Session, study_id: uuid.UUID) -> dict[uuid.UUID, int]:
    """How often each of the study's items was answered, 0 included, by item. Passing over counts here as it does for
    pairs: otherwise a broken clip, which nobody rates, would be the least rated and come to everybody first."""
    mine = (
        sa.select(ClipRatingRow.id, ClipRatingRow.clip_id)
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.study_id == study_id)
        .subquery()
    )
    count = sa.func.count(mine.c.id)
    query = (
        sa.select(RatingItemRow.id, count)
        .outerjoin(mine, mine.c.clip_id == RatingItemRow.clip_id)
        .where(RatingItemRow.study_id == study_id)
        .group_by(RatingItemRow.id)
    )
    return {item: number for item, number in s.execute(query)}


def rated_by(s: Session, rater_id: uuid.UUID, study_id: uuid.UUID) -> set[uuid.UUID]:
    """The clips of the study that the rater has answered, in whichever session: rated, passed over or reported."""
    query = (
        sa.select(ClipRatingRow.clip_id)
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.rater_id == rater_id, ListeningSessionRow.study_id == study_id)
    )
    return set(s.scalars(query))


_SERVED = (
    sa.select(
        RatingAssignmentRow.id,
        RatingAssignmentRow.session_id,
        RatingAssignmentRow.item_id,
        PromptRow.text,
        RatingItemRow.clip_id,
        RatingAssignmentRow.served_at,
        RatingAssignmentRow.expires_at,
        ClipRow.seconds,
        RatingAssignmentRow.fetched_at,
    )
    .join(RatingItemRow, RatingAssignmentRow.item_id == RatingItemRow.id)
    .join(PromptRow, RatingItemRow.prompt_id == PromptRow.id)
    .join(ClipRow, RatingItemRow.clip_id == ClipRow.id)
)


def get_served(s: Session, assignment_id: uuid.UUID) -> ServedItem | None:
    """The rating assignment; None when unknown."""
    row = s.execute(_SERVED.where(RatingAssignmentRow.id == assignment_id)).one_or_none()
    return None if row is None else ServedItem(RatingAssignment(*row[:7]), row.seconds, row.fetched_at)


def served_in(s: Session, session_id: uuid.UUID) -> list[ServedItem]:
    """Everything the session was served to rate, earliest first."""
    query = _SERVED.where(RatingAssignmentRow.session_id == session_id).order_by(
        RatingAssignmentRow.served_at, RatingAssignmentRow.id
    )
    return [ServedItem(RatingAssignment(*row[:7]), row.seconds, row.fetched_at) for row in s.execute(query)]


def serve_item(
    s: Session, *, session_id: uuid.UUID, item_id: uuid.UUID, now: datetime, expires_at: datetime
) -> RatingAssignment:
    """A new assignment, or the session's expired one of this item served anew."""
    known = s.scalar(
        sa.select(RatingAssignmentRow.id).where(
            RatingAssignmentRow.item_id == item_id, RatingAssignmentRow.session_id == session_id
        )
    )
    times = {"served_at": now, "expires_at": expires_at}
    if known is not None:
        s.execute(sa.update(RatingAssignmentRow).where(RatingAssignmentRow.id == known).values(times))
    else:
        known = uuid7()
        s.execute(sa.insert(RatingAssignmentRow).values(id=known, item_id=item_id, session_id=session_id, **times))
    served = get_served(s, known)
    if served is None:
        raise DataError("The clip could not be served; try again.")
    return served.assignment


def note_item_fetched(s: Session, session_id: uuid.UUID, assignment_id: uuid.UUID, now: datetime) -> bool:
    """Whether this was the first time that the clip's bytes were sent for this assignment of the session."""
    done = s.execute(
        sa.update(RatingAssignmentRow)
        .where(
            RatingAssignmentRow.id == assignment_id,
            RatingAssignmentRow.session_id == session_id,
            RatingAssignmentRow.fetched_at.is_(None),
        )
        .values(fetched_at=now)
        .execution_options(synchronize_session=False)
    )
    return done.rowcount > 0


def rating_by_key(s: Session, idempotency_key: str) -> SavedRating | None:
    """The rating saved under this key, if any."""
    return _saved(s, ClipRatingRow.idempotency_key == idempotency_key)


def rating_of(s: Session, session_id: uuid.UUID, clip_id: uuid.UUID) -> SavedRating | None:
    """The session's rating of the clip, if any."""
    return _saved(s, sa.and_(ClipRatingRow.session_id == session_id, ClipRatingRow.clip_id == clip_id))


def _saved(s: Session, condition: sa.ColumnElement[bool]) -> SavedRating | None:
    row = s.scalar(sa.select(ClipRatingRow).where(condition))
    if row is None:
        return None
    answer = (row.outcome, row.quality, row.relevance, row.mos)
    return SavedRating(row.id, row.session_id, row.clip_id, answer, row.created_at)


def claims(s: Session, rater_id: uuid.UUID) -> list[tuple[uuid.UUID, float, datetime]]:
    """(rating assignment, seconds heard, since when the clip could be heard) of every rating of the rater."""
    query = (
        sa.select(
            RatingAssignmentRow.id,
            ClipRatingRow.heard_seconds,
            sa.func.coalesce(RatingAssignmentRow.fetched_at, RatingAssignmentRow.served_at),
        )
        .join(ListeningSessionRow, RatingAssignmentRow.session_id == ListeningSessionRow.id)
        .join(RatingItemRow, RatingAssignmentRow.item_id == RatingItemRow.id)
        .join(
            ClipRatingRow,
            sa.and_(
                ClipRatingRow.session_id == RatingAssignmentRow.session_id,
                ClipRatingRow.clip_id == RatingItemRow.clip_id,
            ),
        )
        .where(ListeningSessionRow.rater_id == rater_id)
    )
    return [tuple(row) for row in s.execute(query)]


def insert_rating(
    s: Session, draft: RatingDraft, *, session_id: uuid.UUID, clip_id: uuid.UUID, heard_seconds: float, now: datetime
) -> uuid.UUID:
    """The id of the rating as written."""
    new = uuid7()
    s.execute(
        sa.insert(ClipRatingRow).values(
            id=new,
            session_id=session_id,
            clip_id=clip_id,
            quality=draft.quality,
            relevance=draft.relevance,
            mos=draft.mos,
            idempotency_key=draft.idempotency_key,
            created_at=now,
            heard_seconds=heard_seconds,
            decision_ms=draft.decision_ms,
            outcome=RatingOutcome(draft.outcome),
        )
    )
    return new


def open_item(
    s: Session, session_id: uuid.UUID, rated: Collection[uuid.UUID], now: datetime, in_hand: Collection[uuid.UUID]
) -> RatingAssignment | None:
    """The session's earliest served and unexpired item that is neither rated nor in hand."""
    for served in served_in(s, session_id):
        one = served.assignment
        if one.expires_at > now and one.clip_id not in rated and one.id not in in_hand:
            return one
    return None
