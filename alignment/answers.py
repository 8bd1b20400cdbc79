"""What a player tells and a rater answers: its shape, and the checks that refuse what makes no sense."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.db import vote_path, votes
from alignment.db.tables import EVENT_TYPES
from alignment.domain import Axis, Outcome, Side, VoteDraft, VoteReceipt
from alignment.errors import ListeningTooShort, VoteRejected
from alignment.listening_credit import TICK_SECONDS, Event, needed_seconds

BROKEN_SECONDS = 0.5  # of a clip that is clearly broken, to be heard before saying so
MOST_EVENTS = 1_000_000
LONGEST_SECONDS = 3600.0


@dataclass(frozen=True)
class ListenEvent:
    """One thing a player did. ``seq`` counts up from 0 in an assignment; ``type`` is one of EVENT_TYPES."""

    seq: int
    type: str
    side: Side | None = None
    media_seconds: float | None = None
    client_ms: int | None = None


def check_active(status: str) -> None:
    if status != "active":
        raise VoteRejected(f"This rater is {status}; nothing more is recorded.")


def check_events(events: Sequence[ListenEvent]) -> None:
    for event in events:
        if event.type not in EVENT_TYPES:
            raise VoteRejected(f"{event.type!r} is not a player event; known: {', '.join(EVENT_TYPES)}.")
        at = event.media_seconds
        if not 0 <= event.seq < MOST_EVENTS or (at is not None and not 0 <= at <= LONGEST_SECONDS):
            raise VoteRejected("A player event has an impossible number in it.")


def event_rows(assignment_id: uuid.UUID, events: Sequence[ListenEvent], now: datetime) -> list[dict[str, Any]]:
    """Rows by seq; of two with one seq the first that was told."""
    rows = {
        event.seq: {
            "assignment_id": assignment_id,
            "seq": event.seq,
            "side": None if event.side is None else Side(event.side),
            "type": event.type,
            "media_seconds": event.media_seconds,
            "client_ms": event.client_ms,
            "received_at": now,
        }
        for event in reversed(events)
    }
    return [rows[seq] for seq in sorted(rows)]


def plain(one: ListenEvent) -> Event:
    return (one.seq, one.type, one.side, one.media_seconds, one.client_ms)


def check_answer(draft: VoteDraft, pair: vote_path.VoteContext) -> None:
    """Words tied to a stretch lie inside the clip. Confidence is optional, also where the study asks for it."""
    if draft.comment_side is not None:
        length = pair.seconds[Side(draft.comment_side) is Side.RIGHT]
        for at in (draft.comment_start_seconds, draft.comment_end_seconds):
            if at is not None and at > length + TICK_SECONDS:
                raise VoteRejected(f"The comment is tied to {at:.1f} s; the clip has {length:.1f} s.")


def check_listening(pair: vote_path.VoteContext, draft: VoteDraft) -> None:
    if Outcome(draft.outcome) in (Outcome.SKIP, Outcome.FAULT) or pair.minimum_listening_seconds <= 0:
        return
    heard = (draft.heard_left_seconds, draft.heard_right_seconds)
    if draft.broken is not None:
        side = Side(draft.broken)
        index = side is Side.RIGHT
        needed = min(BROKEN_SECONDS, pair.minimum_listening_seconds, pair.seconds[index])
        if heard[index] + TICK_SECONDS < needed:
            raise ListeningTooShort(f"Please hear at least {needed:g} s of the {side.value} clip that is broken.")
        return
    for side, seconds, length in zip(Side, heard, pair.seconds, strict=True):
        needed = needed_seconds(pair.minimum_listening_seconds, length)
        if seconds + TICK_SECONDS < needed:
            raise ListeningTooShort(
                f"You heard {seconds:.1f} s of the {side.value} clip; please hear at least {needed:g} s of both."
            )


def check_draft(draft: VoteDraft) -> None:
    if not 8 <= len(draft.idempotency_key) <= 200:
        raise VoteRejected("The vote's idempotency key must have 8 to 200 characters.")
    for axis, value in draft.axes.items():
        if axis not in set(Axis) or isinstance(value, bool) or not isinstance(value, int) or not -2 <= value <= 2:
            raise VoteRejected(f"{axis} is {value!r}; an axis is a whole number from -2 to 2.")
    if draft.confidence is not None and draft.confidence not in (1, 2, 3):
        raise VoteRejected(f"The confidence is {draft.confidence!r}; it must be 1, 2 or 3.")
    for seconds in (draft.heard_left_seconds, draft.heard_right_seconds):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise VoteRejected("The seconds heard must be 0 or more.")
    if draft.switches < 0 or (draft.decision_ms is not None and draft.decision_ms < 0):
        raise VoteRejected("The number of switches and the decision time must be 0 or more.")
    if draft.comment is not None and len(draft.comment) > 5000:
        raise VoteRejected(f"The comment has {len(draft.comment)} characters; at most 5000 fit.")
    start, end = draft.comment_start_seconds, draft.comment_end_seconds
    if (start is None and end is not None) or (start is not None and draft.comment_side is None):
        raise VoteRejected("A stretch of a comment needs the clip that it is about, and where it begins.")
    for at in (start, end):
        if at is not None and not (math.isfinite(at) and at >= 0):
            raise VoteRejected("A stretch of a comment begins and ends at 0 s or later.")
    if start is not None and end is not None and end < start:
        raise VoteRejected(f"The comment's stretch ends at {end:g} s, before it begins at {start:g} s.")
    if draft.broken is not None:
        other = Outcome.B if Side(draft.broken) is Side.LEFT else Outcome.A
        if draft.outcome != other:
            raise VoteRejected(f"With the {Side(draft.broken).value} clip broken the vote is {other.value}.")


def repeated(saved: votes.SavedVote, draft: VoteDraft) -> VoteReceipt:
    answer = (draft.assignment_id, Outcome(draft.outcome), {Axis(axis): value for axis, value in draft.axes.items()})
    if (saved.assignment_id, saved.outcome, dict(saved.axes)) != answer:
        raise VoteRejected("Another answer was saved under this key already; that one stands.")
    return receipt_of(saved, repeated=True)


def receipt_of(saved: votes.SavedVote, *, repeated: bool) -> VoteReceipt:
    return VoteReceipt(
        vote_id=saved.id,
        assignment_id=saved.assignment_id,
        revision=saved.revision,
        row_hash=saved.row_hash,
        saved_at=saved.created_at,
        repeated=repeated,
    )
