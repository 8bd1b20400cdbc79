"""Queries behind a study's figures, flags and exports: its votes and ratings with all that is known around them."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.at_once import one_at_a_time
from alignment.db.base import uuid7
from alignment.db.batches import batches
from alignment.db.tables import (
    AssignmentRow,
    BattleRepeatRow,
    BattleRow,
    ClipRatingRow,
    ClipRow,
    ClipScoreRow,
    ConsentRow,
    ListeningSessionRow,
    PromptRow,
    RaterRow,
    RatingItemRow,
    RewardModelRow,
    StudyVersionRow,
    VersionRow,
    VoteAxisRow,
    VoteCommentRow,
    VoteFlagRow,
    VoteTable,
)
from alignment.domain import Axis, BattleKind, Outcome, RatingOutcome, Side


@dataclass(frozen=True)
class StudyVote:
    """The latest revision of one vote, as shown: A is ``left``. Ids are those of the database.

    ``expected`` is the side that should have won (gold and anchor battles); ``repeats`` is the assignment whose pair
    this one asked again."""

    vote_id: uuid.UUID
    assignment_id: uuid.UUID
    session_id: uuid.UUID
    position: int
    rater_id: uuid.UUID
    cohort: str | None
    background: Mapping[str, Any]
    withdrawn: bool
    battle_id: uuid.UUID
    kind: BattleKind
    prompt_id: uuid.UUID
    prompt_text: str
    left_clip_id: uuid.UUID
    right_clip_id: uuid.UUID
    left_audio: str
    right_audio: str
    left_version: str
    right_version: str
    outcome: Outcome
    confidence: int | None
    heard_left_seconds: float
    heard_right_seconds: float
    switches: int
    decision_ms: int | None
    created_at: datetime
    expected: Side | None = None
    repeats: uuid.UUID | None = None
    axes: Mapping[Axis, int] = field(default_factory=dict)

    @property
    def chosen_clip_id(self) -> uuid.UUID | None:
        """The clip that won; None when the vote was not decisive."""
        return {Outcome.A: self.left_clip_id, Outcome.B: self.right_clip_id}.get(self.outcome)

    @property
    def chosen_side(self) -> Side | None:
        return {Outcome.A: Side.LEFT, Outcome.B: Side.RIGHT}.get(self.outcome)


@dataclass(frozen=True)
class StudyRating:
    """Absolute ratings of one clip by one rater, or that they gave none. ``kind``: normal, reference or anchor."""

    rating_id: uuid.UUID
    session_id: uuid.UUID
    rater_id: uuid.UUID
    cohort: str | None
    background: Mapping[str, Any]
    withdrawn: bool
    clip_id: uuid.UUID
    audio: str
    version: str
    kind: str
    prompt_id: uuid.UUID
    prompt_text: str
    quality: int | None
    relevance: int | None
    mos: float | None
    heard_seconds: float
    decision_ms: int | None
    created_at: datetime
    outcome: RatingOutcome = RatingOutcome.RATED


@dataclass(frozen=True)
class FlagRow:
    """A detector's newest opinion of a vote."""

    vote_id: uuid.UUID
    detector: str
    version: str
    verdict: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class StudyComment:
    """A rater's words about a vote, with what they were said about."""

    vote_id: uuid.UUID
    text: str
    after_reveal: bool
    side: Side | None
    start_seconds: float | None
    end_seconds: float | None


def study_votes(s: Session, study_id: uuid.UUID) -> list[StudyVote]:
    """The latest revision of every vote of the study, in the order in which they were saved; withdrawn ones marked."""
    clip_1, clip_2, version_1, version_2 = aliased(ClipRow), aliased(ClipRow), aliased(VersionRow), aliased(VersionRow)
    later = aliased(VoteTable)
    query = (
        sa.select(
            VoteTable, AssignmentRow.left_is_clip_1, ListeningSessionRow.rater_id, RaterRow.cohort, RaterRow.background,
            RaterRow.status, BattleRow.id, BattleRow.kind, BattleRow.expected_winner, BattleRepeatRow.assignment_id,
            PromptRow.id, PromptRow.text, clip_1.id, clip_1.audio_sha256, version_1.name, clip_2.id,
            clip_2.audio_sha256, version_2.name,
        )
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .outerjoin(BattleRepeatRow, BattleRepeatRow.battle_id == BattleRow.id)
        .join(PromptRow, BattleRow.prompt_id == PromptRow.id)
        .join(ListeningSessionRow, AssignmentRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .join(clip_1, BattleRow.clip_1_id == clip_1.id)
        .join(clip_2, BattleRow.clip_2_id == clip_2.id)
        .join(version_1, clip_1.version_id == version_1.id)
        .join(version_2, clip_2.version_id == version_2.id)
        .where(
            BattleRow.study_id == study_id,
            ~sa.exists().where(later.assignment_id == VoteTable.assignment_id, later.revision > VoteTable.revision),
        )
        .order_by(VoteTable.id)
    )  # fmt: skip
    rows = s.execute(query).all()
    axes: dict[uuid.UUID, dict[Axis, int]] = defaultdict(dict)
    for part in batches([row[0].id for row in rows]):
        told = sa.select(VoteAxisRow.vote_id, VoteAxisRow.axis, VoteAxisRow.value).where(VoteAxisRow.vote_id.in_(part))
        for vote_id, axis, value in s.execute(told):
            axes[vote_id][axis] = value
    found = []
    for (vote, left_is_1, rater, cohort, background, status, battle, kind, expected, repeats, prompt, text,
         id_1, audio_1, name_1, id_2, audio_2, name_2) in rows:  # fmt: skip
        one, two = (id_1, audio_1, name_1), (id_2, audio_2, name_2)
        left, right = (one, two) if left_is_1 else (two, one)
        side = None if expected is None else Side.LEFT if (expected == 1) == left_is_1 else Side.RIGHT
        found.append(
            StudyVote(
                vote_id=vote.id, assignment_id=vote.assignment_id, session_id=vote.session_id, position=vote.position,
                rater_id=rater, cohort=cohort, background=background or {}, withdrawn=status == "withdrawn",
                battle_id=battle, kind=BattleKind(kind), prompt_id=prompt, prompt_text=text,
                left_clip_id=left[0], right_clip_id=right[0], left_audio=left[1], right_audio=right[1],
                left_version=left[2], right_version=right[2], outcome=Outcome(vote.outcome),
                confidence=vote.confidence, heard_left_seconds=vote.heard_left_seconds,
                heard_right_seconds=vote.heard_right_seconds, switches=vote.switches, decision_ms=vote.decision_ms,
                created_at=vote.created_at, expected=side, repeats=repeats, axes=axes.get(vote.id, {}),
            )
        )  # fmt: skip
    return found


def study_ratings(s: Session, study_id: uuid.UUID) -> list[StudyRating]:
    """Every clip answered in the study, in the order of saving: withdrawn ones marked, and those without a rating."""
    query = (
        sa.select(
            ClipRatingRow, ListeningSessionRow.rater_id, RaterRow.cohort, RaterRow.background, RaterRow.status,
            ClipRow.audio_sha256, VersionRow.name, RatingItemRow.kind, PromptRow.id, PromptRow.text,
        )
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .join(ClipRow, ClipRatingRow.clip_id == ClipRow.id)
        .join(VersionRow, ClipRow.version_id == VersionRow.id)
        .join(PromptRow, ClipRow.prompt_id == PromptRow.id)
        .outerjoin(
            RatingItemRow,
            sa.and_(RatingItemRow.clip_id == ClipRow.id, RatingItemRow.study_id == ListeningSessionRow.study_id),
        )
        .where(ListeningSessionRow.study_id == study_id)
        .order_by(ClipRatingRow.id)
    )  # fmt: skip
    return [
        StudyRating(
            rating_id=row.id, session_id=row.session_id, rater_id=rater, cohort=cohort, background=background or {},
            withdrawn=status == "withdrawn", clip_id=row.clip_id, audio=audio, version=version, kind=kind or "normal",
            prompt_id=prompt, prompt_text=text, quality=row.quality, relevance=row.relevance, mos=row.mos,
            heard_seconds=row.heard_seconds, decision_ms=row.decision_ms, created_at=row.created_at,
            outcome=row.outcome,
        )
        for row, rater, cohort, background, status, audio, version, kind, prompt, text in s.execute(query)
    ]  # fmt: skip


def latest_flags(s: Session, vote_ids: Sequence[uuid.UUID]) -> list[FlagRow]:
    """Each detector's newest opinion of each vote, of its newest version."""
    newest: dict[tuple[uuid.UUID, str], FlagRow] = {}
    for part in batches(vote_ids):
        query = sa.select(VoteFlagRow).where(VoteFlagRow.vote_id.in_(part)).order_by(VoteFlagRow.id)
        for row in s.scalars(query):
            newest[row.vote_id, row.detector] = FlagRow(
                row.vote_id, row.detector, row.detector_version, row.verdict, row.detail or {}
            )
    return list(newest.values())


def add_flags(s: Session, flags: Sequence[FlagRow], now: datetime) -> None:
    """Append opinions; nothing is ever taken back."""
    for part in batches(flags):
        s.execute(
            sa.insert(VoteFlagRow),
            [
                {"id": uuid7(), "vote_id": flag.vote_id, "detector": flag.detector, "detector_version": flag.version,
                 "verdict": flag.verdict, "detail": dict(flag.detail), "created_at": now}
                for flag in part
            ],
        )  # fmt: skip


def count_sessions(s: Session, study_id: uuid.UUID) -> tuple[int, int, int]:
    """(sessions of the study, those that were finished, raters behind them)."""
    query = sa.select(
        sa.func.count(), sa.func.count(ListeningSessionRow.finished_at),
        sa.func.count(sa.distinct(ListeningSessionRow.rater_id)),
    ).where(ListeningSessionRow.study_id == study_id)  # fmt: skip
    return tuple(s.execute(query).one())  # type: ignore[return-value]


def count_battles_by_kind(s: Session, study_id: uuid.UUID) -> dict[BattleKind, int]:
    """How many battles of each kind the study has."""
    query = sa.select(BattleRow.kind, sa.func.count()).where(BattleRow.study_id == study_id).group_by(BattleRow.kind)
    return {BattleKind(kind): count for kind, count in s.execute(query)}


def count_rating_items(s: Session, study_id: uuid.UUID) -> int:
    """How many clips the study wants rated, references and anchors among them."""
    query = sa.select(sa.func.count()).select_from(RatingItemRow).where(RatingItemRow.study_id == study_id)
    return s.scalar(query) or 0


def simulated_versions(s: Session, study_id: uuid.UUID) -> list[str]:
    """Versions of the study that simulated votes trained."""
    query = (
        sa.select(VersionRow.name)
        .join(StudyVersionRow, StudyVersionRow.version_id == VersionRow.id)
        .where(StudyVersionRow.study_id == study_id, VersionRow.simulated)
        .order_by(VersionRow.name)
    )
    return list(s.scalars(query))


def newest_mark(s: Session, study_id: uuid.UUID) -> tuple[Any, ...]:
    """Changes whenever a vote, rating, flag, session, withdrawal or score of the study may have: what a cache asks."""
    votes = (
        sa.select(sa.func.count())
        .select_from(VoteTable)
        .join(AssignmentRow, VoteTable.assignment_id == AssignmentRow.id)
        .join(BattleRow, AssignmentRow.battle_id == BattleRow.id)
        .where(BattleRow.study_id == study_id)
    )
    ratings = (
        sa.select(sa.func.count())
        .select_from(ClipRatingRow)
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .where(ListeningSessionRow.study_id == study_id)
    )
    withdrawn = sa.select(sa.func.count()).select_from(RaterRow).where(RaterRow.status == "withdrawn")
    flags = sa.select(sa.func.count()).select_from(VoteFlagRow)
    scores = sa.select(sa.func.max(ClipScoreRow.created_at))
    counted = [s.scalar(query) for query in (votes, ratings, withdrawn, flags, scores)]
    return (*counted, *count_sessions(s, study_id))


def study_clip_ids(s: Session, study_id: uuid.UUID) -> list[uuid.UUID]:
    """Every clip that the study plays, each once."""
    parts = [
        sa.select(BattleRow.clip_1_id).where(BattleRow.study_id == study_id),
        sa.select(BattleRow.clip_2_id).where(BattleRow.study_id == study_id),
        sa.select(RatingItemRow.clip_id).where(RatingItemRow.study_id == study_id),
    ]
    return sorted(set(s.scalars(sa.union(*parts))))


def clip_scores(s: Session, clip_ids: Sequence[uuid.UUID]) -> dict[str, dict[uuid.UUID, tuple[float, float]]]:
    """Reward model's name -> clip -> (preference, uncertainty), newest model first."""
    found: dict[str, dict[uuid.UUID, tuple[float, float]]] = {}
    names = list(s.execute(sa.select(RewardModelRow.id, RewardModelRow.name).order_by(RewardModelRow.id.desc())))
    for model_id, name in names:
        scores: dict[uuid.UUID, tuple[float, float]] = {}
        for part in batches(clip_ids):
            query = sa.select(ClipScoreRow.clip_id, ClipScoreRow.preference, ClipScoreRow.uncertainty).where(
                ClipScoreRow.reward_model_id == model_id, ClipScoreRow.clip_id.in_(part)
            )
            scores |= {clip: (preference, uncertainty) for clip, preference, uncertainty in s.execute(query)}
        if scores:
            found[name] = scores
    return found


def set_clip_scores(
    s: Session, reward_model_id: uuid.UUID, scores: Mapping[uuid.UUID, tuple[float, float]], now: datetime
) -> None:
    """Record (preference, uncertainty) of each clip, in place of what the same model said before."""
    one_at_a_time(s, "clip_score", reward_model_id)
    for part in batches(list(scores)):
        s.execute(
            sa.delete(ClipScoreRow).where(
                ClipScoreRow.reward_model_id == reward_model_id, ClipScoreRow.clip_id.in_(part)
            )
        )
        s.execute(
            sa.insert(ClipScoreRow),
            [
                {"reward_model_id": reward_model_id, "clip_id": clip, "preference": scores[clip][0],
                 "uncertainty": scores[clip][1], "created_at": now}
                for clip in part
            ],
        )  # fmt: skip


def publication_consents(s: Session, study_id: uuid.UUID) -> dict[uuid.UUID, bool]:
    """Rater -> whether their newest consent in this study allows publication; raters without one are absent."""
    query = (
        sa.select(ConsentRow.rater_id, ConsentRow.publication)
        .where(ConsentRow.study_id == study_id)
        .order_by(ConsentRow.created_at, ConsentRow.id)
    )
    return {rater: publication for rater, publication in s.execute(query)}


def comments_of(s: Session, vote_ids: Sequence[uuid.UUID]) -> list[StudyComment]:
    """The comments on these votes."""
    found = []
    for part in batches(vote_ids):
        query = sa.select(VoteCommentRow).where(VoteCommentRow.vote_id.in_(part)).order_by(VoteCommentRow.id)
        for row in s.scalars(query):
            found.append(
                StudyComment(row.vote_id, row.text, row.after_reveal, row.side, row.start_seconds, row.end_seconds)
            )
    return found


@dataclass(frozen=True)
class StudyCount:
    """A study at a glance."""

    answers: int
    raters: int
    newest: datetime | None


def study_counts(s: Session) -> dict[uuid.UUID, StudyCount]:
    """Votes and ratings of each study without those withdrawn, corrections counted once; studies without any are
    absent."""
    votes = (
        sa.select(
            ListeningSessionRow.study_id.label("study_id"), ListeningSessionRow.rater_id.label("rater_id"),
            VoteTable.created_at.label("at"),
        )
        .join(ListeningSessionRow, VoteTable.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(VoteTable.revision == 1, RaterRow.status != "withdrawn")
    )  # fmt: skip
    ratings = (
        sa.select(ListeningSessionRow.study_id, ListeningSessionRow.rater_id, ClipRatingRow.created_at)
        .join(ListeningSessionRow, ClipRatingRow.session_id == ListeningSessionRow.id)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(RaterRow.status != "withdrawn")
    )
    both = sa.union_all(votes, ratings).subquery()
    query = sa.select(
        both.c.study_id, sa.func.count(), sa.func.count(sa.distinct(both.c.rater_id)), sa.func.max(both.c.at)
    ).group_by(both.c.study_id)
    return {study: StudyCount(answers, raters, newest) for study, answers, raters, newest in s.execute(query)}


@dataclass(frozen=True)
class StudyRater:
    """A rater of a study as an organiser may see one, without a name. ``code`` is the start of the pseudonym, 16 hex
    digits, which the rater's own page shows; None after a withdrawal."""

    id: uuid.UUID
    status: str
    cohort: str | None
    background: Mapping[str, Any]
    sessions: int
    answers: int
    first_seen: datetime
    training: bool | None
    publication: bool | None
    code: str | None = None

    def is_called(self, told: str) -> bool:
        """Whether ``told`` is this rater's withdrawal code (dashes, spaces, case aside), id, or its last 8 digits."""
        plain = "".join(told.lower().replace("-", " ").split())
        known = {self.id.hex, self.id.hex[-8:], *([self.code] if self.code else [])}
        return len(plain) >= 8 and plain in known


def study_raters(s: Session, study_id: uuid.UUID) -> list[StudyRater]:
    """Who opened a session of the study, in order of their first; consents are the newest, None when never asked."""
    answers: dict[uuid.UUID, int] = defaultdict(int)
    votes = sa.select(VoteTable.session_id, sa.func.count()).where(VoteTable.revision == 1)
    votes = votes.group_by(VoteTable.session_id)
    ratings = sa.select(ClipRatingRow.session_id, sa.func.count()).group_by(ClipRatingRow.session_id)
    of_study = sa.select(ListeningSessionRow.id).where(ListeningSessionRow.study_id == study_id)
    votes = votes.where(VoteTable.session_id.in_(of_study))
    ratings = ratings.where(ClipRatingRow.session_id.in_(of_study))
    for query in (votes, ratings):
        for session, count in s.execute(query):
            answers[session] += count
    consent = {
        row.rater_id: (row.training, row.publication)
        for row in s.execute(
            sa.select(ConsentRow.rater_id, ConsentRow.training, ConsentRow.publication)
            .where(ConsentRow.study_id == study_id)
            .order_by(ConsentRow.created_at, ConsentRow.id)
        )
    }
    found: dict[uuid.UUID, StudyRater] = {}
    query = (
        sa.select(ListeningSessionRow, RaterRow)
        .join(RaterRow, ListeningSessionRow.rater_id == RaterRow.id)
        .where(ListeningSessionRow.study_id == study_id)
        .order_by(ListeningSessionRow.id)
    )
    for session, rater in s.execute(query):
        old = found.get(rater.id)
        training, publication = consent.get(rater.id, (None, None))
        found[rater.id] = StudyRater(
            rater.id, rater.status, rater.cohort, rater.background or {}, (old.sessions if old else 0) + 1,
            (old.answers if old else 0) + answers[session.id], old.first_seen if old else session.started_at,
            training, publication, rater.pseudonym[:16] if rater.pseudonym else None,
        )  # fmt: skip
    return list(found.values())
