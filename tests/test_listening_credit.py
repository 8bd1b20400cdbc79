"""Listening is counted honestly: whoever listens is never refused, and whoever only claims to is."""

from __future__ import annotations

import itertools
import random
import uuid
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from alignment.db import migrate
from alignment.db.engine import open_database
from alignment.db.tables import VoteTable
from alignment.domain import Outcome, RaterKind, Side, VoteDraft
from alignment.errors import ListeningTooShort, VoteRejected
from alignment.listening_credit import TICK_SECONDS, coverage, room
from alignment.votes import ListenEvent, VoteService
from tests.database_support import fill
from tests.listening_support import START, Clock, Listener

BATTLES = 30


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A database with human studies of three minimums, one longer than the clips (4 s)."""
    url = f"sqlite:///{tmp_path_factory.mktemp('credit') / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    for minimum in (1.0, 2.0, 60.0):
        fill(
            database,
            battles=BATTLES,
            kind=RaterKind.HUMAN,
            minimum_listening_seconds=minimum,
            study=f"at least {minimum:g}",
        )
    yield database
    database.close()


def _service(database, clock, **options) -> VoteService:
    return VoteService(
        database, secret="a secret for tests", clock=clock, assignment_seconds=86400, require_fetch=True, **options
    )


def _session(service: VoteService, study: str = "at least 2", rater: uuid.UUID | None = None) -> uuid.UUID:
    rater = rater or service.enrol_rater(uuid.uuid4().hex, kind=RaterKind.HUMAN)
    return service.open_session(rater, study)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    minimum=st.sampled_from([1.0, 2.0, 60.0]),
    lossy=st.sampled_from([0.0, 0.3, 0.9]),
    offline=st.sampled_from([0.0, 0.5, 0.9]),
    offset=st.sampled_from([0, 10**12]),
    pairs=st.integers(1, 6),
)
def test_whoever_listens_is_never_refused(studies, seed, minimum, lossy, offline, offset, pairs):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service, f"at least {minimum:g}")
    listener = Listener(service, clock, session, random.Random(seed), minimum, lossy, offline, offset)
    for _ in range(pairs):
        listener.rate()
    listener.wait(0, 3600)
    listener.deliver()
    assert listener.saved == pairs
    with studies.session(write=False) as s:
        stored = {
            row.idempotency_key: (row.heard_left_seconds, row.heard_right_seconds)
            for row in s.execute(sa.select(VoteTable.__table__).where(VoteTable.session_id == session))
        }
    # And what they heard is kept as they said it, to a tick.
    for draft, _ in listener.receipts:
        said = (draft.heard_left_seconds, draft.heard_right_seconds)
        assert stored[draft.idempotency_key] == pytest.approx(said, abs=2 * TICK_SECONDS)


def _earliest_deadline_first(jobs: list[tuple[int, int, int]]) -> bool:
    """Whether (release, length, deadline) jobs fit on one machine, simulated second by second."""
    left = [length for _, length, _ in jobs]
    for now in range(max((deadline for *_, deadline in jobs), default=0)):
        ready = [i for i, (release, _, deadline) in enumerate(jobs) if release <= now < deadline and left[i]]
        if ready:
            left[min(ready, key=lambda i: jobs[i][2])] -= 1
    return not any(left)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=5), st.integers(0, 20))
def test_the_room_left_is_what_one_pair_of_ears_can_still_have_heard(others, since):
    now = 21
    moment = [START + timedelta(seconds=second) for second in range(now + 1)]
    claims = [(heard + TICK_SECONDS if heard else 0.0, moment[release]) for release, heard in others]
    found = room(claims, since=moment[since], now=moment[now], slack_seconds=0.0)
    jobs = [(release, heard, now) for release, heard in others]
    assume(_earliest_deadline_first(jobs))  # as they were found to be when their votes came
    assert round(found, 6) == max(
        heard for heard in range(now + 1) if _earliest_deadline_first([*jobs, (since, heard, now)])
    )


def _hear(service, clock, session, *, seconds: float, in_hand=()):
    pair = service.next_assignment(session, rng=random.Random(1), in_hand=in_hand)
    for side in Side:
        service.note_fetched(session, pair.id, side)
    clock.seconds += seconds
    return pair


def _vote(service, session, pair, *, left=2.0, right=2.0, events=(), **more):
    more.setdefault("outcome", Outcome.A)
    draft = VoteDraft(pair.id, f"key-{uuid.uuid4()}", heard_left_seconds=left, heard_right_seconds=right, **more)
    return service.record_vote(session, draft, events=events)


@pytest.mark.parametrize("fetched", [(), (Side.LEFT,), (Side.RIGHT,)])
def test_a_clip_that_was_never_sent_was_not_heard(studies, fetched):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = service.next_assignment(session, rng=random.Random(1))
    for side in fetched:
        service.note_fetched(session, pair.id, side)
    clock.seconds += 60
    with pytest.raises(ListeningTooShort):
        _vote(service, session, pair)


def test_nobody_hears_faster_than_time(studies):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=3.2)
    with pytest.raises(ListeningTooShort):
        _vote(service, session, pair)
    clock.seconds += 0.3  # 4 s in 3.5 s and half a second of slack
    _vote(service, session, pair)


def test_many_pairs_fetched_at_once_are_not_heard_at_once(studies):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pairs = []
    for _ in range(8):
        pairs.append(_hear(service, clock, session, seconds=0, in_hand=[pair.id for pair in pairs]))
    clock.seconds += 9
    taken = 0
    for pair in pairs:
        try:
            _vote(service, session, pair)
            taken += 1
        except ListeningTooShort:
            pass
    assert taken == 2  # 9.5 s hold twice 4 s


def test_two_sessions_of_one_rater_share_one_pair_of_ears(studies):
    clock = Clock()
    service = _service(studies, clock)
    rater = service.enrol_rater(uuid.uuid4().hex, kind=RaterKind.HUMAN)
    sessions = [_session(service, study, rater) for study in ("at least 2", "at least 1")]
    pairs = [_hear(service, clock, session, seconds=0) for session in sessions]
    clock.seconds += 5
    _vote(service, sessions[0], pairs[0])
    with pytest.raises(ListeningTooShort):
        _vote(service, sessions[1], pairs[1])


def test_the_budget_holds_for_a_service_that_remembers_nothing(studies):
    clock = Clock()
    first = _service(studies, clock)
    session = _session(first)
    one = _hear(first, clock, session, seconds=0)
    two = _hear(first, clock, session, seconds=5, in_hand=[one.id])
    _vote(first, session, one)
    with pytest.raises(ListeningTooShort):
        _vote(_service(studies, clock), session, two)


def test_a_next_pair_that_was_fetched_late_is_heard_all_the_same(studies):
    # Twenty seconds on a pair, its successor fetched in the last one of them: whole claims subtracted would refuse it.
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    one = _hear(service, clock, session, seconds=19)
    two = _hear(service, clock, session, seconds=1, in_hand=[one.id])
    _vote(service, session, one, left=4, right=4)
    clock.seconds += 4
    _vote(service, session, two)


@pytest.mark.parametrize("lie", [1e9, 4.0])
def test_what_cannot_have_been_heard_is_not_stored(studies, lie):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=6.0)
    receipt = _vote(service, session, pair, left=lie, right=lie)
    with studies.session(write=False) as s:
        row = s.get(VoteTable, receipt.vote_id)
    assert row.heard_left_seconds == row.heard_right_seconds == pytest.approx(3.25)


def _played(side_seconds: dict[Side, float]) -> list[ListenEvent]:
    seq, now, out = itertools.count(), 0.0, []
    for side, seconds in side_seconds.items():
        out.append(ListenEvent(next(seq), "play", side, 0.0, round(1000 * now)))
        now += seconds
        out.append(ListenEvent(next(seq), "pause", side, seconds, round(1000 * now)))
    return out


def test_events_that_tell_of_less_than_the_claim_win_over_it_and_cannot_be_told_again(studies):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=60)
    short = _played({Side.LEFT: 3.0, Side.RIGHT: 1.0})
    with pytest.raises(ListeningTooShort, match="right clip"):
        _vote(service, session, pair, events=short)
    service.record_events(session, pair.id, short)
    with pytest.raises(ListeningTooShort, match="right clip"):
        _vote(service, session, pair, events=_played({Side.LEFT: 3.0, Side.RIGHT: 3.0}))
    more = [ListenEvent(4, "play", Side.RIGHT, 1.0, 5000), ListenEvent(5, "pause", Side.RIGHT, 2.0, 6000)]
    assert _vote(service, session, pair, events=more).revision == 1


@pytest.mark.parametrize(
    "events",
    [
        [ListenEvent(1, "pause", Side.LEFT, 1.0, 1000)],  # the first one is missing
        [ListenEvent(0, "play", Side.LEFT, 0.0, 5000), ListenEvent(1, "pause", Side.LEFT, 1.0, 1000)],  # clock set back
        [ListenEvent(0, "play", Side.LEFT, 0.0, None), ListenEvent(1, "pause", Side.LEFT, 1.0, None)],
        [],
    ],
)
def test_events_that_do_not_tell_everything_refuse_nobody(studies, events):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=10)
    assert _vote(service, session, pair, events=events).revision == 1


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -0.1, 1e6])
@pytest.mark.parametrize("with_vote", [True, False])
def test_impossible_positions_are_refused_whole(studies, at, with_vote):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=10)
    with pytest.raises(VoteRejected, match="impossible number"):
        events = [ListenEvent(0, "seek", Side.LEFT, at, 0)]
        _vote(service, session, pair, events=events) if with_vote else service.record_events(session, pair.id, events)


def test_a_loop_covers_a_clip_once_and_a_switch_shares_the_time():
    events = [
        (0, "play", Side.LEFT, 0.0, 0),
        (1, "switch", Side.RIGHT, 1.0, 1000),
        (2, "seek", Side.RIGHT, 3.5, 2000),
        (3, "pause", Side.RIGHT, 0.5, 3000),
    ]
    found = coverage(events, 4.0, last_seq=3)
    # Left 0-1; right 1-2 and, over the end, 3.5-4 and 0-0.5. A tick a stretch and one more are let pass.
    assert found[Side.LEFT] == pytest.approx(1.0, abs=4 * TICK_SECONDS)
    assert found[Side.RIGHT] == pytest.approx(2.0, abs=7 * TICK_SECONDS)
    looped = coverage([(0, "play", Side.LEFT, 2.0, 0), (1, "pause", Side.LEFT, 2.0, 20_000)], 4.0, last_seq=1)
    assert looped[Side.LEFT] == pytest.approx(4.0, abs=3 * TICK_SECONDS)
    assert coverage(events, 4.0, last_seq=4) is None


@pytest.mark.parametrize(("heard", "outcome", "taken"), [(0.5, Outcome.B, True), (0.3, Outcome.B, False)])
def test_a_broken_clip_can_be_named_as_soon_as_it_was_heard_to_be_broken(studies, heard, outcome, taken):
    clock = Clock()
    service = _service(studies, clock)
    session = _session(service)
    pair = _hear(service, clock, session, seconds=1)
    if taken:
        _vote(service, session, pair, left=heard, right=0, outcome=outcome, broken=Side.LEFT)
    else:
        with pytest.raises(ListeningTooShort, match="left clip that is broken"):
            _vote(service, session, pair, left=heard, right=0, outcome=outcome, broken=Side.LEFT)
    with pytest.raises(VoteRejected, match="the vote is B"):
        _vote(service, session, pair, outcome=Outcome.A, broken=Side.LEFT)
