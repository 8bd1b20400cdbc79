"""From the database to a snapshot: which votes and ratings may train a reward model."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime

import sqlalchemy as sa

from alignment.db.base import uuid7
from alignment.db.rated import counted_ratings
from alignment.db.tables import ConsentRow, RaterRow, RatingItemRow
from alignment.db.votes import add_flag, counted_votes
from alignment.domain import Outcome, RaterKind, RatingDraft, VoteDraft
from alignment.preferences import freeze_snapshot
from alignment.votes import VoteService
from tests.database_support import fill, sqlite_database, sqlite_url  # noqa: F401


def service_of(database) -> VoteService:
    return VoteService(database, secret="a secret for tests only")


def test_only_ratings_that_may_train_are_counted_with_what_was_said(sqlite_database, monkeypatch):  # noqa: F811
    filled = fill(sqlite_database, battles=2)
    rng, service = random.Random(0), service_of(sqlite_database)
    with sqlite_database.session() as s:
        s.execute(sa.text("UPDATE study SET mode = 'rating'"))
        clips = s.execute(sa.text("SELECT id, prompt_id FROM clip ORDER BY id")).all()
        for number, (clip, prompt) in enumerate(clips):
            s.execute(sa.insert(RatingItemRow).values(
                id=uuid7(), study_id=filled.study_id, prompt_id=uuid.UUID(str(prompt)), clip_id=uuid.UUID(str(clip)),
                kind="reference" if number == 0 else "normal", created_at=datetime.now(UTC),
            ))  # fmt: skip
    raters = {}
    for name in ("ann", "bob", "cid"):
        raters[name] = service.enrol_rater(name, kind=RaterKind.SIMULATED, cohort=f"cohort of {name}")
        session = service.open_session(raters[name], "study")
        while (item := service.next_rating(session, rng=rng)) is not None:
            service.record_rating(session, RatingDraft(item.id, uuid.uuid4().hex, quality=70, relevance=40,
                                                       heard_seconds=9.0))  # fmt: skip
    with sqlite_database.session() as s:
        s.execute(sa.insert(ConsentRow).values(id=uuid7(), rater_id=raters["bob"], study_id=filled.study_id,
                                               text_version="1", training=False, publication=True,
                                               created_at=datetime.now(UTC)))  # fmt: skip
        s.execute(sa.update(RaterRow).where(RaterRow.id == raters["cid"]).values(status="withdrawn"))
    with sqlite_database.session(write=False) as s:
        found = counted_ratings(s, study_ids=[filled.study_id])
    assert len(found) == len(clips) - 1, "ann's alone, without the hidden reference"
    assert {(r.rater_id, r.cohort, r.quality, r.relevance, r.mos) for r in found} == {
        (str(raters["ann"]), "cohort of ann", 70, 40, None)
    }
    assert freeze_snapshot([], ratings=found).counts["ratings"] == len(found)


def test_a_vote_carries_its_raters_cohort_and_its_flags_into_the_snapshot(sqlite_database):  # noqa: F811
    filled = fill(sqlite_database, battles=3)
    service, rng = service_of(sqlite_database), random.Random(0)
    rater = service.enrol_rater("ann", kind=RaterKind.SIMULATED, cohort="pianists")
    session = service.open_session(rater, "study")
    while (served := service.next_assignment(session, rng=rng)) is not None:
        service.record_vote(session, VoteDraft(served.id, uuid.uuid4().hex, Outcome.A, heard_left_seconds=3.0,
                                               heard_right_seconds=3.0))  # fmt: skip
    with sqlite_database.session() as s:
        first = counted_votes(s, study_ids=[filled.study_id])[0]
        add_flag(s, uuid.UUID(first.vote_id), detector="failed gold", detector_version="1", verdict="invalid",
                 detail={}, now=datetime.now(UTC))  # fmt: skip
    with sqlite_database.session(write=False) as s:
        frozen = freeze_snapshot(counted_votes(s, study_ids=[filled.study_id], for_training=True))
    assert len(frozen.pairs) == 2 and first.vote_id not in {p.vote_id for p in frozen.pairs}
    assert {p.cohort for p in frozen.pairs} == {"pianists"} and frozen.counts["votes_excluded"] == 1
