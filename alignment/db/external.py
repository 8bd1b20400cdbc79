"""Queries about records taken from elsewhere: what is known of them, what they brought, under which licence."""

from __future__ import annotations

import secrets
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.batches import batches
from alignment.db.tables import (
    AssignmentRow,
    BattleRow,
    BattleTallyRow,
    ClipRow,
    ExternalClipRow,
    ExternalRecordRow,
    ExternalVoteRow,
    ListeningSessionRow,
    StudyVersionRow,
    VersionRow,
    VoteAxisRow,
    VoteCommentRow,
    VoteTable,
)
from alignment.db.versions import get_version
from alignment.db.votes import chain_seed, row_hash
from alignment.domain import Axis, Outcome, Side, canonical_sha256
from alignment.licences import is_non_commercial

SAMPLER = "import-1"  # of battles that came from elsewhere


@dataclass(frozen=True)
class NewRecord:
    """A record as it came, with the clips it brought and its vote, if it has one."""

    source_id: str
    payload: Mapping[str, Any]
    licence: str | None
    clip_ids: tuple[uuid.UUID, ...]
    vote_id: uuid.UUID | None = None


@dataclass(frozen=True)
class ImportedVote:
    """A vote that was cast elsewhere, on a battle whose clip 1 was shown left."""

    battle_id: uuid.UUID
    session_id: uuid.UUID
    key: str  # idempotency key
    outcome: Outcome
    at: datetime
    heard_left_seconds: float = 0.0
    heard_right_seconds: float = 0.0
    first_side: Side = Side.LEFT
    confidence: int | None = None
    comment: str | None = None
    axes: Mapping[Axis, int] = field(default_factory=dict)


def known_records(s: Session, source: str, source_ids: Iterable[str]) -> dict[str, str]:
    """Source id -> sha256 of the payload, of those records of the source that came before."""
    found = {}
    for part in batches(source_ids):
        query = sa.select(ExternalRecordRow.source_id, ExternalRecordRow.payload).where(
            ExternalRecordRow.source == source, ExternalRecordRow.source_id.in_(part)
        )
        found.update({source_id: canonical_sha256(payload) for source_id, payload in s.execute(query)})
    return found


def add_records(s: Session, source: str, records: Sequence[NewRecord]) -> None:
    """Keeps the records with what they brought. The database refuses one that came before."""
    now = utcnow()
    ids = [uuid7() for _ in records]
    if not records:
        return
    connection = s.connection()  # not through the mapper, which takes as long again
    connection.execute(
        sa.insert(ExternalRecordRow.__table__),
        [
            {"id": new, "source": source, "source_id": one.source_id, "payload": dict(one.payload),
             "licence": one.licence, "created_at": now}
            for new, one in zip(ids, records, strict=True)
        ],
    )  # fmt: skip
    pairs = zip(ids, records, strict=True)
    clips, votes = [], []
    for new, one in pairs:
        clips += [{"record_id": new, "clip_id": clip} for clip in dict.fromkeys(one.clip_ids)]
        votes += [{"record_id": new, "vote_id": one.vote_id}] if one.vote_id else []
    if clips:
        connection.execute(sa.insert(ExternalClipRow.__table__), clips)
    if votes:
        connection.execute(sa.insert(ExternalVoteRow.__table__), votes)


def bases_of(s: Session, names: Iterable[str]) -> dict[str, str]:
    """Name -> base of those of the names that stand for versions."""
    found = {}
    for part in batches(names):
        found.update(s.execute(sa.select(VersionRow.name, VersionRow.base).where(VersionRow.name.in_(part))).all())
    return found


def session_of(s: Session, rater_id: uuid.UUID, study_id: uuid.UUID) -> uuid.UUID | None:
    """The rater's first session in the study, if any."""
    return s.scalar(
        sa.select(ListeningSessionRow.id)
        .where(ListeningSessionRow.rater_id == rater_id, ListeningSessionRow.study_id == study_id)
        .order_by(ListeningSessionRow.id)
        .limit(1)
    )


def add_votes(s: Session, votes: Sequence[ImportedVote]) -> list[uuid.UUID]:
    """The ids of the votes, in the order given, each with its assignment, axes, comment and link in its session's
    chain. Their battles must be new: each is counted once."""
    last = _ends(s, {vote.session_id for vote in votes})
    assignments, rows, axes, comments = [], [], [], []
    for vote in votes:
        assignment = uuid7()
        position, previous = last[vote.session_id]
        assignments.append(
            {"id": assignment, "battle_id": vote.battle_id, "session_id": vote.session_id, "left_is_clip_1": True,
             "first_side": vote.first_side, "nonce": secrets.token_urlsafe(24), "served_at": vote.at,
             "expires_at": vote.at, "policy": SAMPLER, "propensity": 1.0}
        )  # fmt: skip
        values: dict[str, Any] = {
            "id": uuid7(), "assignment_id": assignment, "revision": 1, "session_id": vote.session_id,
            "position": position + 1, "outcome": vote.outcome, "confidence": vote.confidence,
            "heard_left_seconds": vote.heard_left_seconds, "heard_right_seconds": vote.heard_right_seconds,
            "switches": 0, "decision_ms": None, "idempotency_key": vote.key, "created_at": vote.at,
        }  # fmt: skip
        digest = row_hash(values, vote.axes, previous)
        last[vote.session_id] = (position + 1, digest)
        rows.append({**values, "previous_hash": previous, "row_hash": digest})
        axes += [{"vote_id": values["id"], "axis": axis, "value": value} for axis, value in vote.axes.items()]
        if vote.comment:
            comments.append({"id": uuid7(), "vote_id": values["id"], "text": vote.comment, "after_reveal": False,
                             "created_at": vote.at})  # fmt: skip
    for table, made in ((AssignmentRow, assignments), (VoteTable, rows), (VoteAxisRow, axes),
                        (VoteCommentRow, comments)):  # fmt: skip
        if made:
            s.connection().execute(sa.insert(table.__table__), made)
    for part in batches([vote.battle_id for vote in votes]):
        s.execute(sa.update(BattleTallyRow).where(BattleTallyRow.battle_id.in_(part)).values(votes=1))
    return [row["id"] for row in rows]


def _ends(s: Session, session_ids: set[uuid.UUID]) -> dict[uuid.UUID, tuple[int, str]]:
    """(position, row hash) of each session's last vote; before the first: (0, the chain's seed)."""
    ends = {session: (0, chain_seed(session)) for session in session_ids}
    for part in batches(session_ids):
        newest = (
            sa.select(VoteTable.session_id, sa.func.max(VoteTable.position).label("position"))
            .where(VoteTable.session_id.in_(part))
            .group_by(VoteTable.session_id)
            .subquery()
        )
        query = sa.select(VoteTable.session_id, VoteTable.position, VoteTable.row_hash).join(
            newest, sa.and_(VoteTable.session_id == newest.c.session_id, VoteTable.position == newest.c.position)
        )
        ends.update({session: (position, digest) for session, position, digest in s.execute(query)})
    return ends


def add_study_versions(s: Session, study_id: uuid.UUID, names: Iterable[str]) -> None:
    """Adds versions to those that the study compares."""
    one_at_a_time(s, "study_version", study_id)
    had = set(s.scalars(sa.select(StudyVersionRow.version_id).where(StudyVersionRow.study_id == study_id)))
    new = {get_version(s, name).id for name in names} - had
    if new:
        s.execute(sa.insert(StudyVersionRow), [{"study_id": study_id, "version_id": one} for one in sorted(new)])


def has_own_battles(s: Session, study_id: uuid.UUID) -> bool:
    """Whether the study holds a battle that did not come from elsewhere."""
    own = sa.exists().where(BattleRow.study_id == study_id, BattleRow.sampler_version != SAMPLER)
    return bool(s.scalar(sa.select(own)))


def licences_of_votes(s: Session, vote_ids: Iterable[uuid.UUID | str]) -> dict[uuid.UUID, frozenset[str | None]]:
    """The licences of the records that the votes, or the clips they are about, came with, and of models that sang them
    under a non-commercial one; votes of our own on our own clips are left out. None is a licence nobody stated."""
    found: dict[uuid.UUID, set[str | None]] = defaultdict(set)
    for part in batches(uuid.UUID(str(vote)) for vote in vote_ids):
        came = (
            sa.select(ExternalVoteRow.vote_id, ExternalRecordRow.licence)
            .join(ExternalRecordRow, ExternalVoteRow.record_id == ExternalRecordRow.id)
            .where(ExternalVoteRow.vote_id.in_(part))
        )
        queries = [came]
        for clip in (BattleRow.clip_1_id, BattleRow.clip_2_id):
            queries.append(
                sa.select(VoteTable.id, ExternalRecordRow.licence)
                .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
                .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
                .join(ExternalClipRow, ExternalClipRow.clip_id == clip)
                .join(ExternalRecordRow, ExternalClipRow.record_id == ExternalRecordRow.id)
                .where(VoteTable.id.in_(part))
            )
        for query in queries:
            for vote, licence in s.execute(query):
                found[vote].add(licence)
        for clip in (BattleRow.clip_1_id, BattleRow.clip_2_id):
            sang = (
                sa.select(VoteTable.id, VersionRow.licence)
                .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
                .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
                .join(ClipRow, ClipRow.id == clip)
                .join(VersionRow, ClipRow.version_id == VersionRow.id)
                .where(VoteTable.id.in_(part), VersionRow.licence.is_not(None))
            )
            _add_restrictive(found, s.execute(sang))
    return {vote: frozenset(licences) for vote, licences in found.items()}


def licences_of_clips(s: Session, clip_ids: Iterable[uuid.UUID | str]) -> dict[uuid.UUID, frozenset[str | None]]:
    """The licences of the records that the clips came with, and of models that sang them under a non-commercial one;
    other clips of our own are left out."""
    found: dict[uuid.UUID, set[str | None]] = defaultdict(set)
    for part in batches(uuid.UUID(str(clip)) for clip in clip_ids):
        query = (
            sa.select(ExternalClipRow.clip_id, ExternalRecordRow.licence)
            .join(ExternalRecordRow, ExternalClipRow.record_id == ExternalRecordRow.id)
            .where(ExternalClipRow.clip_id.in_(part))
        )
        for clip, licence in s.execute(query):
            found[clip].add(licence)
        sang = (
            sa.select(ClipRow.id, VersionRow.licence)
            .join(VersionRow, ClipRow.version_id == VersionRow.id)
            .where(ClipRow.id.in_(part), VersionRow.licence.is_not(None))
        )
        _add_restrictive(found, s.execute(sang))
    return {clip: frozenset(licences) for clip, licences in found.items()}


def _add_restrictive(found: dict[uuid.UUID, set[str | None]], rows: Iterable[Any]) -> None:
    """What a non-commercial model sings is taken to be non-commercial too; other models' licences bind no clip."""
    for which, licence in rows:
        if is_non_commercial(licence):
            found[which].add(licence)
