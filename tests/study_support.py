"""Votes made by hand, and studies filled through the vote service, for figures, flags and exports."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from database_support import Filled, fill

from alignment.db.base import uuid7
from alignment.db.engine import Database
from alignment.db.figures import StudyVote
from alignment.db.tables import ConsentRow
from alignment.domain import Assignment, BattleKind, Outcome, RaterKind, VoteDraft
from alignment.votes import VoteService

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECRET = "a secret for tests only"


def an_id(*parts: object) -> uuid.UUID:
    """The same id for the same words."""
    return uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, parts)))


def a_vote(number: int, outcome: Outcome | str = Outcome.A, *, rater: object = "ann", pair: object = 0, **changes):
    """A vote between ``base`` (left, clip ``l``) and ``tuned`` (right, clip ``r``) on the pair's prompt."""
    vote = StudyVote(
        vote_id=an_id("vote", number), assignment_id=an_id("assignment", number), session_id=an_id("session", rater),
        position=number, rater_id=an_id("rater", rater), cohort=None, background={}, withdrawn=False,
        battle_id=an_id("battle", pair), kind=BattleKind.NORMAL, prompt_id=an_id("prompt", pair),
        prompt_text=f"prompt {pair}", left_clip_id=an_id("clip", pair, "l"), right_clip_id=an_id("clip", pair, "r"),
        left_audio="0" * 64, right_audio="1" * 64, left_version="base", right_version="tuned",
        outcome=Outcome(outcome), confidence=None, heard_left_seconds=3.0, heard_right_seconds=3.0, switches=2,
        decision_ms=8000 + 7 * number, created_at=NOON + timedelta(minutes=number),
    )  # fmt: skip
    return replace(vote, **changes)


def swapped(vote: StudyVote) -> StudyVote:
    """The same pair shown the other way round, with the answer as it was given (A stays A)."""
    return replace(
        vote, left_clip_id=vote.right_clip_id, right_clip_id=vote.left_clip_id, left_version=vote.right_version,
        right_version=vote.left_version,
    )  # fmt: skip


def voted_study(
    database: Database,
    *,
    battles: int = 4,
    raters: int = 3,
    kind: RaterKind = RaterKind.HUMAN,
    say: Callable[[Assignment, int], Outcome] = lambda assignment, number: Outcome.A,
    comment: str | None = None,
    study: str = "study",
    consent: Callable[[int], bool | None] = lambda number: True,
) -> tuple[Filled, list[uuid.UUID]]:
    """A study in which every rater voted on every pair, through the vote service; and the raters' ids."""
    filled = fill(database, battles=battles, kind=kind, study=study)
    service = VoteService(database, secret=SECRET)
    rng, ids = random.Random(1), []
    for number in range(raters):
        rater = service.enrol_rater(f"rater {number}", kind=kind)
        ids.append(rater)
        agreed = consent(number)
        if agreed is not None:
            give_consent(database, rater, filled.study_id, publication=agreed)
        session = service.open_session(rater, study)
        while (assignment := service.next_assignment(session, rng=rng)) is not None:
            draft = VoteDraft(
                assignment_id=assignment.id, idempotency_key=uuid.uuid4().hex, outcome=say(assignment, number),
                heard_left_seconds=3.0, heard_right_seconds=2.0, decision_ms=9000 + number, comment=comment,
            )  # fmt: skip
            service.record_vote(session, draft)
    return filled, ids


def give_consent(database: Database, rater: uuid.UUID, study: uuid.UUID, *, publication: bool) -> None:
    """A consent row; the newest counts."""
    with database.session() as s:
        s.execute(
            sa.insert(ConsentRow).values(
                id=uuid7(), rater_id=rater, study_id=study, text_version="1", training=True, publication=publication,
                created_at=datetime.now(UTC),
            )
        )  # fmt: skip
