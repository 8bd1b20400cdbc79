"""Flags are opinions: worked out by hand here, written once, never in place of a vote."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from study_support import a_vote, an_id, swapped, voted_study

from alignment import flags
from alignment.db.figures import latest_flags, study_votes
from alignment.db.tables import VoteFlagRow, VoteTable
from alignment.domain import Axis, BattleKind, Outcome, RaterKind, Side
from alignment.errors import DatabaseError
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)

RULES = flags.Rules(minimum_listening_seconds=3.0)


def _verdicts(findings, votes) -> list[str | None]:
    return [findings[v.vote_id].verdict if v.vote_id in findings else None for v in votes]


def test_a_vote_is_too_fast_when_both_clips_cannot_have_been_heard_in_the_time():
    # Two clips of 3 s, half a second of slack: 5.5 s.
    votes = [
        a_vote(0, decision_ms=5499), a_vote(1, decision_ms=5500), a_vote(2, decision_ms=None),
        a_vote(3, "SKIP", decision_ms=10), a_vote(4, decision_ms=700),
    ]  # fmt: skip
    rules = flags.Rules(3.0, frozenset({votes[4].vote_id}))
    assert _verdicts(flags.too_fast(votes, rules), votes) == ["suspect", "ok", "unknown", "ok", "ok"]
    # Without a minimum nobody decides on two clips within a second and a half.
    assert flags.too_fast([votes[4]], flags.Rules(0.0))[votes[4].vote_id].verdict == "suspect"


def test_eleven_of_eleven_on_one_side_is_suspect_and_ten_is_not_at_one_in_a_thousand():
    # Two-sided exact binomial: 2 / 2^11 = 0.00098, 2 / 2^10 = 0.00195.
    eleven = [a_vote(i, Outcome.A, rater="bob", pair=i) for i in range(11)] + [a_vote(90, "TIE", rater="bob", pair=90)]
    ten = [a_vote(20 + i, Outcome.B, rater="cat", pair=i) for i in range(10)]
    nine = [a_vote(40 + i, Outcome.B, rater="dan", pair=i) for i in range(9)]
    findings = flags.one_sided([*eleven, *ten, *nine], RULES)
    assert set(_verdicts(findings, eleven)) == {"suspect"}
    assert set(_verdicts(findings, ten)) == {"ok"} and set(_verdicts(findings, nine)) == {None}
    assert findings[eleven[0].vote_id].detail == {"left": 11, "decisive": 11, "p": 0.000977}


def test_voting_on_the_same_clips_twice_is_suspect_unless_the_study_asked_again():
    first = a_vote(0)
    again = a_vote(1, battle_id=an_id("other battle"))
    asked = a_vote(2, kind=BattleKind.REPEAT, repeats=first.assignment_id)
    findings = flags.duplicate([first, again, asked], RULES)
    assert _verdicts(findings, [first, again, asked]) == ["ok", "suspect", "ok"]


def test_many_identical_decision_times_are_suspect():
    machine = [a_vote(i, pair=i, decision_ms=4000) for i in range(5)] + [a_vote(10 + i, pair=10 + i) for i in range(5)]
    person = [a_vote(30 + i, rater="bob", pair=100 + i) for i in range(10)]
    findings = flags.duplicate([*machine, *person], RULES)
    assert _verdicts(findings, machine) == ["suspect"] * 5 + ["ok"] * 5
    assert set(_verdicts(findings, person)) == {"ok"}


def test_two_raters_with_one_answer_sheet_are_suspect_even_with_the_sides_swapped():
    axes = {Axis.QUALITY: -1}
    said = [Outcome.A, Outcome.B, Outcome.TIE] * 4
    ann = [a_vote(i, said[i], pair=i, axes=axes) for i in range(12)]
    turn = {Outcome.A: Outcome.B, Outcome.B: Outcome.A, Outcome.TIE: Outcome.TIE}
    bob = [
        swapped(a_vote(100 + i, turn[said[i]], rater="bob", pair=i, axes={Axis.QUALITY: 1})) for i in range(12)
    ]  # the same clips preferred by the same steps
    cat = [a_vote(200 + i, said[i] if i else Outcome.B, rater="cat", pair=i, axes=axes) for i in range(12)]
    findings = flags.duplicate([*ann, *bob, *cat], RULES)
    assert set(_verdicts(findings, [*ann, *bob])) == {"suspect"} and set(_verdicts(findings, cat)) == {"ok"}


def test_a_missed_gold_pair_is_suspect_and_a_rater_who_misses_most_is_invalid():
    def gold(number, outcome, **more):
        return a_vote(number, outcome, pair=number, kind=BattleKind.GOLD, expected=Side.LEFT, **more)

    ann = [gold(0, Outcome.A), gold(1, Outcome.B), gold(2, Outcome.TIE), gold(3, Outcome.A), a_vote(4, pair=4)]
    bob = [gold(10 + i, Outcome.B, rater="bob") for i in range(3)] + [gold(13, Outcome.A, rater="bob")]
    bob += [a_vote(14, rater="bob", pair=14)]
    lost = [a_vote(20, rater="cat", pair=20, kind=BattleKind.GOLD)]
    findings = flags.failed_gold([*ann, *bob, *lost], RULES)
    assert _verdicts(findings, ann) == ["ok", "suspect", "suspect", "ok", None]
    assert set(_verdicts(findings, bob)) == {"invalid"} and _verdicts(findings, lost) == ["unknown"]


def test_a_repeat_that_picks_the_other_clip_is_suspect_both_times():
    def asked(number, first, outcome, again, rater="ann"):
        before = a_vote(number, first, rater=rater, pair=number)
        # Sides swapped: A is the other clip now.
        return before, swapped(
            a_vote(500 + number, outcome, rater=rater, pair=number, kind=BattleKind.REPEAT, repeats=again and
                   before.assignment_id)
        )  # fmt: skip

    same, other = asked(0, "A", "B", True), asked(1, "A", "A", True)
    tie, lost = asked(2, "A", "TIE", True), asked(3, "A", "A", an_id("nowhere"))
    lost = (lost[0], swapped(a_vote(503, "A", pair=3, kind=BattleKind.REPEAT, repeats=an_id("nowhere"))))
    votes = [*same, *other, *tie, *lost]
    assert _verdicts(flags.inconsistent(votes, RULES), votes) == [
        "ok", "ok", "suspect", "suspect", None, None, None, "unknown",
    ]  # fmt: skip
    bob = [v for i in range(5) for v in asked(20 + i, "A", "A" if i < 3 else "B", True, rater="bob")]
    assert set(_verdicts(flags.inconsistent(bob, RULES), bob)) == {"suspect"}


def test_flags_are_written_once_and_change_no_vote(any_database):  # noqa: F811
    filled, _ = voted_study(any_database, battles=12, raters=2)
    before = _votes(any_database)
    counts = flags.flag_study(any_database, "study", actor="olga")
    # Everybody said A: 12 of 12 on one side; all decision times of a rater are one.
    assert counts["one-sided"]["suspect"] == 24 and counts["too fast"]["ok"] == 24
    assert counts["duplicate"]["suspect"] == 24
    rows = _count(any_database)
    assert flags.flag_study(any_database, "study", actor="olga") == counts
    assert _count(any_database) == rows and _votes(any_database) == before
    with pytest.raises(DatabaseError, match="append-only"), any_database.session() as s:
        s.execute(sa.delete(VoteFlagRow))


def test_an_outage_is_unknown_until_the_detector_works_again(any_database):  # noqa: F811
    filled, _ = voted_study(any_database, battles=2, raters=1)
    works = [False]

    def look(votes, rules):
        if not works[0]:
            raise RuntimeError("no model")
        return {vote.vote_id: flags.Finding("ok") for vote in votes}

    detectors = [flags.Detector("ear", "1", look), flags.Detector("too fast", "1", flags.too_fast)]
    counts = flags.flag_study(any_database, "study", actor="olga", detectors=detectors)
    assert counts["ear"]["unknown"] == 2 and counts["too fast"]["ok"] == 2
    flags.flag_study(any_database, "study", actor="olga", detectors=detectors)
    assert _newest(any_database, filled.study_id, "ear") == ["unknown", "unknown"] and _count(any_database) == 4
    works[0] = True
    flags.flag_study(any_database, "study", actor="olga", detectors=detectors)
    assert _newest(any_database, filled.study_id, "ear") == ["ok", "ok"] and _count(any_database) == 6


def test_a_new_version_of_a_detector_adds_its_own_opinion(sqlite_database):  # noqa: F811
    filled, _ = voted_study(sqlite_database, battles=2, raters=1, kind=RaterKind.SIMULATED)
    for version in ("1", "2"):
        flags.flag_study(
            sqlite_database, "study", actor="o", detectors=[flags.Detector("too fast", version, flags.too_fast)]
        )
    with sqlite_database.session(write=False) as s:
        rows = list(s.execute(sa.select(VoteFlagRow.detector_version).order_by(VoteFlagRow.detector_version)).scalars())
        newest = latest_flags(s, [v.vote_id for v in study_votes(s, filled.study_id)])
    assert rows == ["1", "1", "2", "2"] and {flag.version for flag in newest} == {"2"}


def _count(database) -> int:
    with database.session(write=False) as s:
        return s.scalar(sa.select(sa.func.count()).select_from(VoteFlagRow))


def _votes(database) -> list[tuple]:
    with database.session(write=False) as s:
        return [tuple(row) for row in s.execute(sa.select(VoteTable.__table__).order_by(VoteTable.id))]


def _newest(database, study_id, detector) -> list[str]:
    with database.session(write=False) as s:
        found = latest_flags(s, [v.vote_id for v in study_votes(s, study_id)])
    return [flag.verdict for flag in found if flag.detector == detector]
