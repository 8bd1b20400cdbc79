"""Queries about votes: writing one, reading those that count, checking a session's chain."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import uuid7
from alignment.db.batches import batches
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    BattleTallyRow,
    ClipRow,
    ConsentRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    VersionRow,
    VoteAxisRow,
    VoteCommentRow,
    VoteFlagRow,
    VoteTable,
)
from alignment.domain import (
    ANCHOR_BASE,
    Axis,
    BattleKind,
    ClipRef,
    Outcome,
    RaterKind,
    Side,
    Split,
    VoteDraft,
    canonical_sha256,
)


@dataclass(frozen=True)
class VoteRow:
    """The latest revision of one vote with everything a snapshot or a comparison needs; ids are text.

    ``outcome`` and ``axes`` are as shown: A is ``left``; axes are in [-2, 2], positive when ``right`` is better.
    ``flags`` are (detector, verdict), oldest first: of one detector the last counts."""

    vote_id: str
    study_id: str
    outcome: Outcome
    axes: Mapping[Axis, int]
    left: ClipRef
    right: ClipRef
    prompt_id: str
    prompt_text: str
    split: Split
    rater_id: str
    rater_kind: RaterKind
    created_at: datetime
    flags: tuple[tuple[str, str], ...] = field(default=())
    kind: BattleKind = BattleKind.NORMAL
    cohort: str | None = None


@dataclass(frozen=True)
class SavedVote:
    """A vote as stored, with its answer."""

    id: uuid.UUID
    assignment_id: uuid.UUID
    revision: int
    outcome: Outcome
    axes: Mapping[Axis, int]
    row_hash: str
    created_at: datetime


def _axes(s: Session, vote_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[Axis, int]]:
    found: dict[uuid.UUID, dict[Axis, int]] = defaultdict(dict)
    for part in batches(vote_ids):
        query = sa.select(VoteAxisRow.vote_id, VoteAxisRow.axis, VoteAxisRow.value).where(VoteAxisRow.vote_id.in_(part))
        for vote_id, axis, value in s.execute(query):
            found[vote_id][axis] = value
    return found


def _saved(s: Session, condition: sa.ColumnElement[bool]) -> SavedVote | None:
    row = s.scalar(sa.select(VoteTable).where(condition).order_by(VoteTable.revision.desc()).limit(1))
    if row is None:
        return None
    return SavedVote(
        row.id, row.assignment_id, row.revision, row.outcome, _axes(s, [row.id])[row.id], row.row_hash, row.created_at
    )


def vote_by_key(s: Session, idempotency_key: str) -> SavedVote | None:
    """The vote saved under this key, if any."""
    return _saved(s, VoteTable.idempotency_key == idempotency_key)


def latest_vote(s: Session, assignment_id: uuid.UUID) -> SavedVote | None:
    """The latest revision of an assignment's vote, if any."""
    return _saved(s, VoteTable.assignment_id == assignment_id)


_V = VoteTable.__table__.c
_LAST = (
    sa.select(_V.position, _V.row_hash, _V.created_at)
    .where(_V.session_id == sa.bindparam("session"))
    .order_by(_V.position.desc())
    .limit(1)
)


def last_in_session(s: Session, session_id: uuid.UUID) -> tuple[int, str, datetime | None]:
    """(position, row hash, time) of the session's last vote; before the first: (0, the chain's seed, None)."""
    row = s.connection().execute(_LAST, {"session": session_id}).one_or_none()
    return (0, chain_seed(session_id), None) if row is None else (row[0], row[1], row[2])


_FIND = (
    sa.select(_V.id, _V.assignment_id, _V.revision, _V.outcome, _V.row_hash, _V.created_at, _V.idempotency_key)
    .where(sa.or_(_V.idempotency_key == sa.bindparam("key"), _V.assignment_id == sa.bindparam("assignment")))
    .order_by(_V.revision.desc())
)


def find_votes(s: Session, idempotency_key: str, assignment_id: uuid.UUID) -> tuple[SavedVote | None, SavedVote | None]:
    """(the vote under this key with its axes, the latest revision of the assignment's vote without them), if any."""
    under_key = latest = None
    for row in s.connection().execute(_FIND, {"key": idempotency_key, "assignment": assignment_id}).all():
        if row.idempotency_key == idempotency_key:
            axes = _axes(s, [row.id])[row.id]
            under_key = SavedVote(
                row.id, row.assignment_id, row.revision, row.outcome, axes, row.row_hash, row.created_at
            )
        if latest is None and row.assignment_id == assignment_id:
            latest = SavedVote(row.id, row.assignment_id, row.revision, row.outcome, {}, row.row_hash, row.created_at)
    return under_key, latest


def chain_seed(session_id: uuid.UUID) -> str:
    """What the first vote of a session has as its previous hash."""
    return canonical_sha256({"session": str(session_id)})


def row_hash(values: Mapping[str, Any], axes: Mapping[Axis, int], previous_hash: str) -> str:
    """sha256 of a vote's columns, its axes and the hash before it. Comments are left out: withdrawal deletes them."""
    content = {
        "id": str(values["id"]),
        "assignment": str(values["assignment_id"]),
        "revision": values["revision"],
        "session": str(values["session_id"]),
        "position": values["position"],
        "outcome": Outcome(values["outcome"]).value,
        "confidence": values["confidence"],
        "heard": [float(values["heard_left_seconds"]), float(values["heard_right_seconds"])],
        "switches": values["switches"],
        "decision_ms": values["decision_ms"],
        "key": values["idempotency_key"],
        "created_at": values["created_at"].astimezone(UTC).isoformat(timespec="microseconds"),
        "axes": {Axis(axis).value: value for axis, value in axes.items()},
        "previous": previous_hash,
    }
    return canonical_sha256(content)


_INSERT_VOTE = sa.insert(VoteTable.__table__)
_INSERT_AXES = sa.insert(VoteAxisRow.__table__)
_INSERT_COMMENT = sa.insert(VoteCommentRow.__table__)
_TALLY = BattleTallyRow.__table__
_COUNT_VOTE = sa.update(_TALLY).where(_TALLY.c.battle_id == sa.bindparam("battle")).values(votes=_TALLY.c.votes + 1)


def add_flag(
    s: Session,
    vote_id: uuid.UUID,
    *,
    detector: str,
    detector_version: str,
    verdict: str,
    detail: Mapping[str, Any],
    now: datetime,
) -> None:
    """Writes down what a detector thinks of a vote: ok, suspect, invalid or unknown. It deletes nothing."""
    s.execute(
        sa.insert(VoteFlagRow).values(
            id=uuid7(),
            vote_id=vote_id,
            detector=detector,
            detector_version=detector_version,
            verdict=verdict,
            detail=dict(detail),
            created_at=now,
        )
    )


def insert_vote(
    s: Session, draft: VoteDraft, *, session_id: uuid.UUID, battle_id: uuid.UUID, revision: int, now: datetime
) -> SavedVote:
    """The vote as written: its row, axes, comment, link in the session's chain and the battle's tally."""
    position, previous, _ = last_in_session(s, session_id)
    axes = {Axis(axis): value for axis, value in draft.axes.items()}
    values: dict[str, Any] = {
        "id": uuid7(),
        "assignment_id": draft.assignment_id,
        "revision": revision,
        "session_id": session_id,
        "position": position + 1,
        "outcome": Outcome(draft.outcome),
        "confidence": draft.confidence,
        "heard_left_seconds": float(draft.heard_left_seconds),
        "heard_right_seconds": float(draft.heard_right_seconds),
        "switches": draft.switches,
        "decision_ms": draft.decision_ms,
        "idempotency_key": draft.idempotency_key,
        "created_at": now,
    }
    digest = row_hash(values, axes, previous)
    connection = s.connection()
    connection.execute(_INSERT_VOTE, {**values, "previous_hash": previous, "row_hash": digest})
    if axes:
        connection.execute(
            _INSERT_AXES, [{"vote_id": values["id"], "axis": axis, "value": value} for axis, value in axes.items()]
        )
    if draft.comment and draft.comment.strip():
        start, end = draft.comment_start_seconds, draft.comment_end_seconds
        connection.execute(
            _INSERT_COMMENT,
            {
                "id": uuid7(),
                "vote_id": values["id"],
                "text": draft.comment.strip(),
                "after_reveal": False,
                "side": None if draft.comment_side is None else Side(draft.comment_side),
                "start_seconds": start,
                "end_seconds": end if end is not None else start,
                "created_at": now,
            },
        )
    if draft.broken is not None:
        add_flag(
            s, values["id"], detector="rater", detector_version="1", verdict="ok",
            detail={"broken": Side(draft.broken).value}, now=now,
        )  # fmt: skip
    if revision == 1:
        connection.execute(_COUNT_VOTE, {"battle": battle_id})
    return SavedVote(values["id"], draft.assignment_id, revision, values["outcome"], axes, digest, now)


def may_train(rater_id: Any, study_id: Any) -> sa.ScalarSelect[bool]:
    """What the rater's newest consent in the study says of training; NULL when nothing was recorded."""
    return (
        sa.select(ConsentRow.training)
        .where(ConsentRow.rater_id == rater_id, ConsentRow.study_id == study_id)
        .order_by(ConsentRow.created_at.desc(), ConsentRow.id.desc())
        .limit(1)
        .correlate_except(ConsentRow)
        .scalar_subquery()
    )


def counted_votes(
    s: Session,
    *,
    study_ids: Sequence[uuid.UUID],
    kinds: Collection[BattleKind] = (BattleKind.NORMAL,),
    for_training: bool = False,
) -> list[VoteRow]:
    """The latest revision of each vote of the studies on battles of ``kinds``, in the order of their saving.

    SKIP and FAULT are included (``outcome.trains`` tells); votes of raters who withdrew are not. Checks of the rater
    (gold, repeats, anchors) count in no comparison and are left out unless asked for. ``for_training`` leaves out what
    may train nothing: votes of raters whose last consent in the study refuses training, and whatever was heard of an
    anchor."""
    clip_1, clip_2 = aliased(ClipRow), aliased(ClipRow)
    version_1, version_2 = aliased(VersionRow), aliased(VersionRow)
    later = aliased(VoteTable)
    query = (
        sa.select(
            VoteTable.id,
            VoteTable.outcome,
            VoteTable.created_at,
            AssignmentRow.left_is_clip_1,
            BattleRow.study_id,
            BattleRow.kind.label("battle_kind"),
            PromptRow.id.label("prompt_id"),
            PromptRow.text,
            PromptRow.split,
            RaterRow.id.label("rater_id"),
            RaterRow.kind,
            RaterRow.cohort,
            clip_1.id.label("clip_1_id"),
            version_1.name.label("version_1"),
            clip_1.audio_sha256.label("audio_1"),
            clip_1.codes_sha256.label("codes_1"),
            clip_2.id.label("clip_2_id"),
            version_2.name.label("version_2"),
            clip_2.audio_sha256.label("audio_2"),
            clip_2.codes_sha256.label("codes_2"),
        )
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .join(PromptRow, BattleRow.prompt_id == PromptRow.id)
        .join(ListeningSessionRow, AssignmentRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .join(clip_1, BattleRow.clip_1_id == clip_1.id)
        .join(clip_2, BattleRow.clip_2_id == clip_2.id)
        .join(version_1, clip_1.version_id == version_1.id)
        .join(version_2, clip_2.version_id == version_2.id)
        .where(
            BattleRow.study_id.in_(list(study_ids)),
            BattleRow.kind.in_(list(kinds)),
            RaterRow.status != "withdrawn",
            ~sa.exists().where(later.assignment_id == VoteTable.assignment_id, later.revision > VoteTable.revision),
        )
        .order_by(VoteTable.id)
    )
    if for_training:
        query = query.where(
            sa.func.coalesce(may_train(RaterRow.id, BattleRow.study_id), sa.true()),
            version_1.base != ANCHOR_BASE,
            version_2.base != ANCHOR_BASE,
        )
    rows = s.execute(query).all()
    ids = [row.id for row in rows]
    axes = _axes(s, ids)
    flags: dict[uuid.UUID, list[tuple[str, str]]] = defaultdict(list)
    for part in batches(ids):
        flagged = sa.select(VoteFlagRow.vote_id, VoteFlagRow.detector, VoteFlagRow.verdict)
        for vote_id, detector, verdict in s.execute(
            flagged.where(VoteFlagRow.vote_id.in_(part)).order_by(VoteFlagRow.id)
        ):
            flags[vote_id].append((detector, verdict))
    counted = []
    for row in rows:
        one = ClipRef(str(row.clip_1_id), row.version_1, row.audio_1, row.codes_1)
        two = ClipRef(str(row.clip_2_id), row.version_2, row.audio_2, row.codes_2)
        left, right = (one, two) if row.left_is_clip_1 else (two, one)
        counted.append(
            VoteRow(
                vote_id=str(row.id),
                study_id=str(row.study_id),
                outcome=row.outcome,
                axes=axes.get(row.id, {}),
                left=left,
                right=right,
                prompt_id=str(row.prompt_id),
                prompt_text=row.text,
                split=row.split,
                rater_id=str(row.rater_id),
                rater_kind=row.kind,
                created_at=row.created_at,
                flags=tuple(flags.get(row.id, ())),
                kind=row.battle_kind,
                cohort=row.cohort,
            )
        )
    return counted


def chain_faults(s: Session, session_id: uuid.UUID) -> list[str]:
    """What is wrong with a session's chain of votes, one sentence a fault; empty when it is whole.

    A changed, inserted or missing vote shows, except that the last ones of a session may be missing unseen."""
    rows = list(s.scalars(sa.select(VoteTable).where(VoteTable.session_id == session_id).order_by(VoteTable.position)))
    axes = _axes(s, [row.id for row in rows])
    faults = []
    previous = chain_seed(session_id)
    for expected, row in enumerate(rows, start=1):
        if row.position != expected:
            faults.append(f"Vote {expected} of session {session_id} is missing.")
            break
        if row.previous_hash != previous:
            faults.append(f"Vote {row.id} does not follow the vote before it.")
        values = {column.key: getattr(row, column.key) for column in sa.inspect(VoteTable).column_attrs}
        if row_hash(values, axes.get(row.id, {}), row.previous_hash) != row.row_hash:
            faults.append(f"Vote {row.id} was altered after it was saved.")
        previous = row.row_hash
    return faults
