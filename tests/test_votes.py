"""A vote is never lost, doubled or altered, whoever sends it and however often."""

from __future__ import annotations

import random
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from alignment.db import snapshots, votes
from alignment.db.tables import AssignmentRow, BattleTallyRow, VoteCommentRow, VoteTable
from alignment.domain import Axis, Outcome, RaterKind, Split, VoteDraft
from alignment.errors import AssignmentExpired, DataError, ListeningTooShort, NotFoundError, VoteRejected
from alignment.votes import ListenEvent, VoteService
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    fill,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def _service(database, clock=None, **options) -> VoteService:
    return VoteService(database, secret="a secret for tests", clock=clock or Clock(), **options)


def _session(service: VoteService, study: str = "study", who: str = "ann", kind=RaterKind.SIMULATED) -> uuid.UUID:
    return service.open_session(service.enrol_rater(who, kind=kind), study)


def _draft(assignment, outcome=Outcome.A, **more) -> VoteDraft:
    more.setdefault("idempotency_key", f"key-{uuid.uuid4()}")
    return VoteDraft(assignment_id=assignment.id, outcome=outcome, **more)


def _count(database, table=VoteTable) -> int:
    with database.session(write=False) as s:
        return s.scalar(sa.select(sa.func.count()).select_from(table))


def test_a_vote_comes_back_as_it_was_given_with_the_side_that_was_heard(any_database):  # noqa: F811
    filled = fill(any_database, battles=1)
    service = _service(any_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    assert assignment.prompt_text == "study 0"
    axes = {Axis.QUALITY: -2, Axis.TEXT_ADHERENCE: 1}
    receipt = service.record_vote(session, _draft(assignment, Outcome.A, axes=axes, comment=" nice drums "))
    assert (receipt.revision, receipt.repeated) == (1, False)
    with any_database.session(write=False) as s:
        (row,) = votes.counted_votes(s, study_ids=[filled.study_id])
        assert s.scalar(sa.select(VoteCommentRow.text)) == "nice drums"
    assert row.vote_id == str(receipt.vote_id)
    assert (row.outcome, row.axes) == (Outcome.A, axes)
    assert (row.left.clip_id, row.right.clip_id) == (str(assignment.left_clip_id), str(assignment.right_clip_id))
    by_id = {str(clip.id): clip for clip in filled.clips}
    assert row.left.version == by_id[row.left.clip_id].version != row.right.version
    assert row.left.audio_sha256 == by_id[row.left.clip_id].audio_sha256
    assert (row.split, row.rater_kind, row.prompt_text) == (Split.TRAIN, RaterKind.SIMULATED, "study 0")
    assert row.created_at == datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("same_key", [True, False])
def test_three_submissions_at_once_are_one_vote_or_one_vote_with_corrections(any_database, same_key):  # noqa: F811
    filled = fill(any_database, battles=2)
    service = _service(any_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    together = threading.Barrier(3)
    receipts, failures = [], []

    def submit(number: int) -> None:
        key = "one-and-the-same" if same_key else f"click-number-{number}"
        together.wait()
        try:
            receipts.append(service.record_vote(session, _draft(assignment, idempotency_key=key)))
        except Exception as error:  # a thread's failure would otherwise pass unseen
            failures.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    if same_key:
        assert _count(any_database) == 1
        assert len({receipt.vote_id for receipt in receipts}) == 1
        assert sorted(receipt.repeated for receipt in receipts) == [False, True, True]
    else:
        assert sorted(receipt.revision for receipt in receipts) == [1, 2, 3]
    with any_database.session(write=False) as s:
        assert len(votes.counted_votes(s, study_ids=[filled.study_id])) == 1
        assert votes.chain_faults(s, session) == []
        assert sorted(s.scalars(sa.select(BattleTallyRow.votes))) == [0, 1]


def test_one_key_cannot_carry_two_answers(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    service.record_vote(session, _draft(assignment, Outcome.A, idempotency_key="the-same-key"))
    with pytest.raises(VoteRejected, match="Another answer was saved"):
        service.record_vote(session, _draft(assignment, Outcome.B, idempotency_key="the-same-key"))


def test_the_schema_refuses_a_second_row_for_a_revision_and_for_a_key(any_database):  # noqa: F811
    fill(any_database)
    service = _service(any_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    service.record_vote(session, _draft(assignment, idempotency_key="the-first-key"))
    with any_database.session(write=False) as s:
        row = s.execute(sa.select(VoteTable.__table__)).mappings().one()
    other = {"id": uuid.uuid4(), "row_hash": "f" * 64, "position": 2, "revision": 2, "idempotency_key": "another-key"}
    for again in ("revision", "idempotency_key", "position", "row_hash"):
        values = {**row, **other, again: row[again]}
        with pytest.raises(sa.exc.IntegrityError), any_database.engine.begin() as connection:
            connection.execute(sa.insert(VoteTable).values(values))
    assert _count(any_database) == 1


def test_a_correction_is_a_new_revision_and_only_it_counts(sqlite_database):  # noqa: F811
    filled = fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    service.record_vote(session, _draft(assignment, Outcome.A))
    assert service.record_vote(session, _draft(assignment, Outcome.B)).revision == 2
    assert _count(sqlite_database) == 2
    with sqlite_database.session(write=False) as s:
        assert [row.outcome for row in votes.counted_votes(s, study_ids=[filled.study_id])] == [Outcome.B]


def test_nothing_can_be_corrected_once_the_versions_were_shown(sqlite_database):  # noqa: F811
    fill(sqlite_database, reveal=True)
    service = _service(sqlite_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    service.record_vote(session, _draft(assignment, Outcome.A))
    with pytest.raises(VoteRejected, match="cannot change now"):
        service.record_vote(session, _draft(assignment, Outcome.B))


def test_the_chain_tells_which_vote_was_altered_behind_the_triggers(any_database):  # noqa: F811
    fill(any_database, battles=3)
    service = _service(any_database)
    session = _session(service)
    rng = random.Random(1)
    receipts = []
    while (assignment := service.next_assignment(session, rng=rng)) is not None:
        receipts.append(service.record_vote(session, _draft(assignment, Outcome.A, axes={Axis.QUALITY: 1})))
    with any_database.session(write=False) as s:
        assert votes.chain_faults(s, session) == []
    _without_triggers(any_database, "vote", "UPDATE vote SET outcome = 'B' WHERE position = 2")
    with any_database.session(write=False) as s:
        assert votes.chain_faults(s, session) == [f"Vote {receipts[1].vote_id} was altered after it was saved."]
    _without_triggers(any_database, "vote", "UPDATE vote SET outcome = 'A' WHERE position = 2")
    _without_triggers(any_database, "vote_axis", "UPDATE vote_axis SET value = -1")
    with any_database.session(write=False) as s:
        assert len(votes.chain_faults(s, session)) == 3
    _without_triggers(any_database, "vote_axis", "DELETE FROM vote_axis")
    _without_triggers(any_database, "vote", "DELETE FROM vote WHERE position = 1")
    with any_database.session(write=False) as s:
        assert votes.chain_faults(s, session)[-1] == f"Vote 1 of session {session} is missing."


def _without_triggers(database, table: str, statement: str) -> None:
    with database.engine.begin() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_refuses_update")
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_refuses_delete")
        else:
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        connection.exec_driver_sql(statement)


def test_an_expired_assignment_takes_no_vote_and_can_be_served_again(sqlite_database):  # noqa: F811
    fill(sqlite_database, battles=1)
    clock = Clock()
    service = _service(sqlite_database, clock, assignment_seconds=600)
    session = _session(service)
    first = service.next_assignment(session, rng=random.Random(1))
    clock.pass_seconds(600)
    with pytest.raises(AssignmentExpired):
        service.record_vote(session, _draft(first))
    assert _count(sqlite_database) == 0
    again = service.next_assignment(session, rng=random.Random(2))
    assert (again.id, again.left_clip_id) == (first.id, first.left_clip_id)
    assert again.nonce != first.nonce
    assert service.record_vote(session, _draft(again)).revision == 1


def test_a_saved_vote_is_confirmed_again_even_after_the_assignment_expired(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    clock = Clock()
    service = _service(sqlite_database, clock, assignment_seconds=600)
    session = _session(service)
    draft = _draft(service.next_assignment(session, rng=random.Random(1)))
    saved = service.record_vote(session, draft)
    clock.pass_seconds(9999)
    again = service.record_vote(session, draft)
    assert (again.vote_id, again.saved_at, again.repeated) == (saved.vote_id, saved.saved_at, True)


def test_nobody_votes_on_an_assignment_of_someone_else(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    service = _service(sqlite_database)
    anns, bobs = _session(service, who="ann"), _session(service, who="bob")
    assignment = service.next_assignment(anns, rng=random.Random(1))
    with pytest.raises(VoteRejected, match="not served to this session"):
        service.record_vote(bobs, _draft(assignment))
    with pytest.raises(VoteRejected, match="not served to this session"):
        service.record_events(bobs, assignment.id, [ListenEvent(0, "play")])
    with pytest.raises(NotFoundError):
        service.record_vote(uuid.uuid4(), _draft(assignment))
    assert _count(sqlite_database) == 0


def test_a_rater_with_two_sessions_has_one_vote_on_a_battle(sqlite_database):  # noqa: F811
    fill(sqlite_database, battles=1)
    service = _service(sqlite_database)
    one, two = _session(service), _session(service)
    first, second = (service.next_assignment(session, rng=random.Random(1)) for session in (one, two))
    assert first.battle_id == second.battle_id
    service.record_vote(one, _draft(first))
    with pytest.raises(VoteRejected, match="in another session"):
        service.record_vote(two, _draft(second))
    assert service.next_assignment(two, rng=random.Random(1)) is None


@pytest.mark.parametrize(
    ("outcome", "passed", "left", "right", "accepted"),
    [
        (Outcome.A, 10, 3.0, 3.0, True),
        (Outcome.A, 10, 3.0, 2.9, False),
        (Outcome.BOTH_BAD, 10, 0.0, 0.0, False),
        (Outcome.FAULT, 10, 0.0, 0.0, True),
        (Outcome.SKIP, 10, 0.0, 0.0, True),
        (Outcome.A, 5.5, 3.0, 3.0, True),  # 6 s heard in 5.5 s and half a second of slack
        (Outcome.A, 5.0, 3.0, 3.0, False),  # two clips cannot be heard at the same time
    ],
)
def test_a_human_hears_both_clips_for_the_minimum_before_judging(
    sqlite_database,  # noqa: F811
    outcome,
    passed,
    left,
    right,
    accepted,
):
    fill(sqlite_database, kind=RaterKind.HUMAN, minimum_listening_seconds=3.0)
    clock = Clock()
    service = _service(sqlite_database, clock)
    session = _session(service, kind=RaterKind.HUMAN)
    assignment = service.next_assignment(session, rng=random.Random(1))
    clock.pass_seconds(passed)
    draft = _draft(assignment, outcome, heard_left_seconds=left, heard_right_seconds=right)
    if accepted:
        service.record_vote(session, draft)
    else:
        with pytest.raises(ListeningTooShort, match="at least 3 s of both"):
            service.record_vote(session, draft)
    assert _count(sqlite_database) == (1 if accepted else 0)


def test_a_simulated_rater_needs_no_listening_time(sqlite_database):  # noqa: F811
    fill(sqlite_database, minimum_listening_seconds=3.0)
    service = _service(sqlite_database)
    session = _session(service)
    service.record_vote(session, _draft(service.next_assignment(session, rng=random.Random(1))))
    assert _count(sqlite_database) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"axes": {Axis.QUALITY: 3}},
        {"axes": {"loudness": 1}},
        {"confidence": 4},
        {"heard_left_seconds": float("nan")},
        {"switches": -1},
        {"idempotency_key": "short"},
        {"comment": "x" * 5001},
    ],
)
def test_a_vote_that_makes_no_sense_is_refused_whole(sqlite_database, fault):  # noqa: F811
    fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    with pytest.raises(VoteRejected):
        service.record_vote(session, _draft(assignment, **fault))
    assert _count(sqlite_database) == 0


def test_every_battle_gets_its_second_vote_only_after_all_have_one(sqlite_database):  # noqa: F811
    fill(sqlite_database, battles=6)
    service = _service(sqlite_database)
    rng = random.Random(3)
    served: list[uuid.UUID] = []
    for who in ("ann", "bob"):
        session = _session(service, who=who)
        for _ in range(3 if who == "ann" else 6):
            assignment = service.next_assignment(session, rng=rng)
            served.append(assignment.battle_id)
            service.record_vote(session, _draft(assignment))
    # Ann voted on three; Bob gets the other three first, then Ann's.
    assert len(set(served[:6])) == 6
    assert set(served[6:]) == set(served[:3])
    assert service.next_assignment(session, rng=rng) is None
    assert (service.progress(session).done, service.progress(session).available) == (6, 0)


def test_an_unanswered_assignment_is_served_again_unchanged(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    first = service.next_assignment(session, rng=random.Random(1))
    assert service.next_assignment(session, rng=random.Random(2)) == first
    assert service.progress(session).total == 4


def test_sides_and_first_sound_are_drawn_fairly_for_each_assignment(sqlite_database):  # noqa: F811
    filled = fill(sqlite_database, battles=40)
    service = _service(sqlite_database)
    session = _session(service)
    rng = random.Random(5)
    while (assignment := service.next_assignment(session, rng=rng)) is not None:
        service.record_vote(session, _draft(assignment))
    with sqlite_database.session(write=False) as s:
        left = sum(s.scalars(sa.select(AssignmentRow.left_is_clip_1)))
        first = sum(side == "left" for side in s.scalars(sa.select(AssignmentRow.first_side)))
    # 40 fair draws leave [10, 30] once in 900 runs; the seed is fixed.
    assert 10 <= left <= 30 and 10 <= first <= 30 and left != len(filled.battles)


def test_player_events_are_stored_once_however_often_they_are_told(sqlite_database):  # noqa: F811
    fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    assignment = service.next_assignment(session, rng=random.Random(1))
    events = [ListenEvent(0, "play", media_seconds=0.0), ListenEvent(1, "pause", media_seconds=2.5)]
    assert service.record_events(session, assignment.id, events) == 2
    assert service.record_events(session, assignment.id, [*events, ListenEvent(2, "ended")]) == 1
    with pytest.raises(VoteRejected, match="not a player event"):
        service.record_events(session, assignment.id, [ListenEvent(3, "dance")])


def test_a_pseudonym_is_the_same_for_the_same_person_and_hides_the_name(any_database):  # noqa: F811
    service = _service(any_database)
    first = service.enrol_rater("ann@example.org", kind=RaterKind.HUMAN)
    assert service.enrol_rater("ann@example.org", kind=RaterKind.HUMAN) == first
    assert service.enrol_rater("ann@example.org", kind=RaterKind.SIMULATED) != first
    other = VoteService(any_database, secret="another secret")
    assert other.enrol_rater("ann@example.org", kind=RaterKind.HUMAN) != first
    with any_database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM rater").all()
    assert "ann" not in repr(rows)


def test_human_and_simulated_raters_never_share_a_study_or_a_snapshot(sqlite_database):  # noqa: F811
    fill(sqlite_database, kind=RaterKind.HUMAN)
    service = _service(sqlite_database)
    with pytest.raises(DataError, match="is for human raters"):
        _session(service, kind=RaterKind.SIMULATED)
    session = _session(service, kind=RaterKind.HUMAN)
    receipt = service.record_vote(session, _draft(service.next_assignment(session, rng=random.Random(1))))
    about = {"name": "mixed", "policy": {}, "high_water_mark": None, "content_sha256": "0" * 64, "uri": "x"}
    with pytest.raises(DataError, match="never share"), sqlite_database.session() as s:
        snapshots.add_snapshot(s, **about, simulated=True, members=[(receipt.vote_id, Split.TRAIN)])
    with sqlite_database.session() as s:
        snapshots.add_snapshot(s, **about, simulated=False, members=[(str(receipt.vote_id), Split.TRAIN)])
        assert snapshots.get_snapshot(s, "mixed").members == 1


def test_a_withdrawn_raters_votes_are_not_counted(sqlite_database):  # noqa: F811
    filled = fill(sqlite_database)
    service = _service(sqlite_database)
    session = _session(service)
    service.record_vote(session, _draft(service.next_assignment(session, rng=random.Random(1))))
    with sqlite_database.session() as s:
        s.execute(sa.text("UPDATE rater SET status = 'withdrawn'"))
    with sqlite_database.session(write=False) as s:
        assert votes.counted_votes(s, study_ids=[filled.study_id]) == []
    with pytest.raises(VoteRejected, match="withdrawn"):
        service.next_assignment(session, rng=random.Random(1))


def test_the_same_seed_serves_the_same_battles_and_sides(tmp_path):
    from alignment.db import migrate
    from alignment.db.engine import open_database

    served = []
    for name in ("one", "two"):
        url = f"sqlite:///{tmp_path / name}.db"
        migrate.upgrade(url)
        database = open_database(url)
        fill(database, battles=8)
        service = _service(database)
        session = _session(service)
        rng = random.Random(11)
        run = []
        while (assignment := service.next_assignment(session, rng=rng)) is not None:
            service.record_vote(session, _draft(assignment))
            with database.session(write=False) as s:
                run.append((assignment.prompt_text, s.get(AssignmentRow, assignment.id).left_is_clip_1))
        served.append(run)
        database.close()
    assert served[0] == served[1] and len(served[0]) == 8
