"""The leaderboard: ranks, what first place hangs on, power, slices, its record, its command and its page."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from scipy import special
from typer.testing import CliRunner

from alignment.cli import app
from alignment.db.engine import open_database
from alignment.db.leaderboards import (
    RecordedEntry,
    Slice,
    count_votes,
    list_leaderboards,
    load_columns,
    record_leaderboard,
)
from alignment.domain import RaterKind
from alignment.errors import DataError, NotFoundError
from alignment.evaluation.leaderboard import make_leaderboard
from alignment.evaluation.leaderboard_page import render_leaderboard
from alignment.evaluation.power import decisive_votes_needed, votes_to_part
from alignment.evaluation.ratings import rate_votes
from alignment.evaluation.robustness import leave_one_rater_out, votes_to_flip
from alignment.evaluation.vote_arrays import BOTH_BAD, LEFT_WON, RIGHT_WON, TIED, VoteArrays
from scripts.bench_ratings import draw_votes
from scripts.vote_rows import BEGAN, filled_database
from tests.database_support import any_database, any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401


def arrays(*rows, versions=None):
    """Votes (left, right, outcome, rater, prompt) with versions named by letters."""
    names = tuple(versions or sorted({name for row in rows for name in row[:2]}))
    columns = [np.array([names.index(row[i]) for row in rows]) for i in (0, 1)]
    rest = [np.array([row[i] for row in rows]) for i in (2, 3, 4)]
    return VoteArrays(names, *columns, *rest)


def duel(wins, losses, one="x", two="y", raters=10, start=0):
    """Votes that ``one`` won and lost against ``two``, sides in turn, each on a prompt of its own."""
    rows = []
    for i in range(wins + losses):
        left, right = (one, two) if i % 2 else (two, one)
        won = LEFT_WON if (left == one) == (i < wins) else RIGHT_WON
        rows.append((left, right, won, (start + i) % raters, start + i))
    return rows


def test_a_line_counts_wins_losses_ties_raters_and_says_why_it_is_provisional():
    board = make_leaderboard(
        arrays(
            *duel(25, 10),
            ("x", "z", LEFT_WON, 0, 100), ("z", "x", LEFT_WON, 1, 101), ("z", "y", TIED, 0, 102),
            ("y", "z", BOTH_BAD, 1, 103),
        ),
        simulated=False, rounds=100,
    )  # fmt: skip
    assert [e.version for e in board.entries] == ["x", "y", "z"]
    x, y, z = (board[name] for name in "xyz")
    assert (x.votes, x.wins, x.losses, x.ties, x.both_bad, x.raters) == (37, 26, 11, 0, 0, 10)
    assert (y.votes, y.wins, y.losses, y.ties, y.both_bad) == (37, 10, 25, 1, 1)
    assert (z.votes, z.wins, z.losses, z.ties, z.both_bad, z.raters) == (4, 1, 1, 1, 1, 2)
    assert z.provisional == ("4 votes, fewer than 30", "2 raters, fewer than 3") and x.provisional == ()
    assert (z.rank_low, z.rank_high) == (1, 3)
    dropped = make_leaderboard(arrays(*duel(25, 10), ("y", "x", BOTH_BAD, 1, 103)), simulated=False, both_bad="drop")
    assert dropped["x"].votes == 35


def test_a_provisional_version_stands_last_and_has_no_say_in_who_is_first():
    rows = [*duel(40, 20), ("new", "x", LEFT_WON, 0, 500), ("new", "x", LEFT_WON, 1, 501)]
    board = make_leaderboard(arrays(*rows), simulated=False, rounds=100)
    assert board.ratings.ratings[0].version == "new"  # by rating alone it would lead
    assert [(e.version, e.rank) for e in board.entries] == [("x", 1), ("y", 2), ("new", 3)]
    assert {(gap.better, gap.worse) for gap in board.gaps} == {("x", "y")}
    assert (board.flip.leader, board.flip.challenger) == ("x", "y")
    assert dict(board.left_out.leaders) == {"x": 10}
    assert (board["x"].rank_high, board["new"].rank_high) == (2, 3)
    assert "<h1>x and y share first place</h1>" in render_leaderboard(board)
    few = make_leaderboard(arrays(*duel(4, 2)), simulated=False, rounds=100)  # all are: then as they are rated
    assert [e.version for e in few.entries] == ["x", "y"] and few.entries[0].provisional and few.gaps


def test_a_version_that_never_lost_is_provisional_whatever_its_votes():
    board = make_leaderboard(arrays(*duel(40, 0), *duel(20, 20, "y", "z", start=40)), simulated=False, rounds=100)
    assert board["x"].provisional == ("never lost, or never won, against the rest: only the prior bounds it",)
    assert board["y"].provisional == ()


def test_versions_that_no_votes_connect_are_named_and_the_group_with_most_votes_is_rated():
    board = make_leaderboard(arrays(*duel(9, 6), *duel(20, 20, "a", "b", start=20)), simulated=False, rounds=100)
    assert {e.version for e in board.entries} == {"a", "b"} and board.apart == (("x", "y"),)
    assert board.sentences()[0].startswith("Not rated, because no chain of votes connects them with these: x, y.")
    with pytest.raises(DataError, match="x is not on this leaderboard"):
        board["x"]


def test_turning_six_of_thirty_wins_puts_the_loser_of_thirty_to_twenty_first():
    # 30 to 20: turning five makes 25 to 25, turning six makes 24 to 26.
    flip = votes_to_flip(arrays(*duel(30, 20)), side=False)
    assert (flip.leader, flip.challenger, flip.votes, flip.of) == ("x", "y", 6, 50)
    assert votes_to_flip(arrays(("x", "y", TIED, 0, 0))) is None


def test_the_votes_that_would_flip_first_place_are_verified_by_refits_and_the_nearest_challengers():
    votes = arrays(*duel(30, 20), *duel(34, 16, "x", "z", start=50), *duel(28, 22, "y", "z", start=100))
    flip = votes_to_flip(votes)
    assert flip.challenger == "y"
    # By brute force: so many of x's wins over y turned round, as the model without its prior has it, x first by less.
    rows = np.flatnonzero((votes.outcome == LEFT_WON) & (votes.left == 0) & (votes.right == 1))
    more = np.flatnonzero((votes.outcome == RIGHT_WON) & (votes.right == 0) & (votes.left == 1))
    order = np.concatenate([rows, more])

    def first(number):
        outcome = votes.outcome.copy()
        outcome[order[:number]] = 1 - outcome[order[:number]]
        turned = VoteArrays(votes.versions, votes.left, votes.right, outcome, votes.rater, votes.prompt)
        return rate_votes(turned, rounds=100).ratings[0].version

    assert first(flip.votes + 1) == "y" and first(flip.votes - 2) == "x"


def test_leaving_out_the_rater_who_decides_first_place_changes_it():
    # Rater 0 alone gives x its lead: without him y has won 12 of 20.
    rows = [("x", "y", LEFT_WON, 0, i) for i in range(10)]
    rows += [("x", "y", RIGHT_WON if i < 12 else LEFT_WON, 1 + i % 4, 10 + i) for i in range(20)]
    out = leave_one_rater_out(arrays(*rows), side=False)
    assert (out.tried, out.raters) == (5, 5)
    assert dict(out.leaders) == {"x": 4, "y": 1}
    without = rate_votes(arrays(*rows[10:]), side=False, rounds=100)["y"].elo.value
    everyone = rate_votes(arrays(*rows), side=False, rounds=100)["y"].elo.value
    assert out.shift_elo == pytest.approx(without - everyone, abs=0.01)
    board = make_leaderboard(arrays(*rows), simulated=False, rounds=100)
    assert any("hangs on single raters" in said and "y (1)" in said for said in board.sentences())
    assert leave_one_rater_out(arrays(("x", "y", LEFT_WON, 0, 0))) is None


def test_more_votes_are_those_of_one_comparison_less_the_votes_there():
    # 60 wins to 40, each vote by a rater of its own: 194 votes are needed at 60% (Fleiss), so 94 more.
    fitted = rate_votes(arrays(*duel(60, 40, raters=100)), ridge=0, side=False, rounds=400)
    gap = votes_to_part(fitted, "y", "x")
    assert (gap.better, gap.worse) == ("x", "y") and gap.share == pytest.approx(0.6, abs=1e-4)
    assert gap.more == pytest.approx(gap.design_effect * decisive_votes_needed(0.6) - 100, abs=1)
    assert 1 <= gap.design_effect < 1.3 and 90 < gap.more < 160
    assert gap.sentence == f"{gap.more} more decisive votes would separate x from y at 80% power."
    clear = votes_to_part(rate_votes(arrays(*duel(160, 40, raters=100)), rounds=100), "x", "y")
    assert clear.more == 0 and clear.sentence == "x is separated from y."
    even = votes_to_part(rate_votes(arrays(*duel(50, 50, raters=100)), rounds=100, side=False), "x", "y")
    assert even.more is None and "too close" in even.sentence


def test_indirect_votes_count_towards_what_is_there():
    direct = duel(30, 20, raters=50)
    through = duel(120, 80, "x", "z", raters=50, start=100) + duel(100, 100, "y", "z", raters=50, start=400)
    alone = votes_to_part(rate_votes(arrays(*direct), rounds=200), "x", "y")
    helped = votes_to_part(rate_votes(arrays(*direct, *through), rounds=200), "x", "y")
    known = special.expit(helped.difference.value)
    assert helped.more < helped.design_effect * decisive_votes_needed(known) - 50 - 40
    assert alone.more > 0


def people(url, **options):
    votes = draw_votes(240, 4, raters=8, prompts=12, seed=3)
    filled_database(url, votes, kind=RaterKind.HUMAN, study="people", **options)
    return votes


def test_the_votes_of_a_slice_are_those_of_its_studies_tags_cohorts_and_days(any_url):  # noqa: F811
    votes = people(
        any_url, cohort=lambda r: "musician: yes" if r % 2 else "musician: no, age: 30",
        tags=lambda p: {"genre": "jazz" if p % 3 else "rock"},
    )  # fmt: skip
    filled_database(any_url, draw_votes(50, 4, raters=3, prompts=5, seed=4), study="programs")
    database = open_database(any_url)
    day = BEGAN.replace(minute=30)  # a vote a minute from BEGAN on: the thirtieth is the first of these

    def rows(simulated=False, **asked):
        with database.session(write=False) as s:
            return load_columns(s, Slice(**asked), simulated=simulated)

    everything = rows()
    assert len(everything) == 240 and len(rows(simulated=True)) == 50
    back = VoteArrays.from_labels(
        everything.left, everything.right, everything.outcome, everything.rater, everything.prompt, everything.names
    )
    assert back.versions == votes.versions
    for name in ("left", "right", "outcome"):
        assert (getattr(back, name) == getattr(votes, name)).all(), name
    assert len(set(zip(back.rater.tolist(), votes.rater.tolist(), strict=True))) == len(set(votes.rater.tolist()))
    assert len(rows(tag="genre=jazz")) == len(rows(tag="jazz")) == int((votes.prompt % 3 > 0).sum())
    assert len(rows(cohort="age: 30")) == int((votes.rater % 2 == 0).sum())
    assert len(rows(cohort="musician: yes")) == int((votes.rater % 2).sum())
    assert len(rows(since=day)) == 210 and len(rows(until=day)) == 30
    assert len(rows(studies=("programs",))) == 0
    with database.session(write=False) as s:
        assert count_votes(s, Slice()) == {True: 50, False: 240}
        for asked, message in (
            (Slice(tag="mood"), "No prompt is tagged mood; tags are genre=jazz, genre=rock"),
            (Slice(cohort="x"), "No rater is of the cohort x; cohorts are musician: no, age: 30; musician: yes"),
            (Slice(studies=("nope",)), "No study is called nope"),
        ):
            with pytest.raises(NotFoundError, match=message):
                load_columns(s, asked, simulated=False)
    database.close()


def test_a_leaderboard_is_recorded_with_its_slice_and_read_back(any_database):  # noqa: F811
    people(any_database.url)
    line = RecordedEntry("v000", 1010.5, 990.0, 1031.0, 1, 2, 40, 20, 12, 8, False)
    with any_database.session() as s:
        record = dict(method="davidson", method_version="1", slice={"tag": "jazz"}, tie_rule="davidson",
                      both_bad_rule="tie", side_coefficient=0.1, simulated=False)  # fmt: skip
        new = record_leaderboard(s, entries=[line, RecordedEntry("v001", 1020, 1, 2, 1, 2, 3, 4, 5, 6, True)], **record)
        with pytest.raises(NotFoundError, match="No version is called v9"):
            record_leaderboard(s, entries=[RecordedEntry("v9", 1, 1, 1, 1, 1, 1, 1, 1, 1, True)], **record)
        with pytest.raises(DataError, match="without versions"):
            record_leaderboard(s, entries=[], **record)
    with any_database.session(write=False) as s:
        (found,) = list_leaderboards(s)
    assert found.id == new and found.slice == {"tag": "jazz"} and found.side_coefficient == 0.1
    assert [e.version for e in found.entries] == ["v001", "v000"] and found.entries[1] == line


def run(*words):
    return CliRunner().invoke(app, ["leaderboard", *map(str, words)])


def test_the_command_rates_people_records_it_and_never_mixes_in_simulated_votes(sqlite_url, tmp_path):  # noqa: F811
    filled_database(sqlite_url, draw_votes(60, 3, raters=3, prompts=5, seed=4), study="programs")
    told = run("--database", sqlite_url)
    assert told.exit_code == 0 and "60 votes of 3 raters, SIMULATED listeners" in told.stdout
    people(sqlite_url)
    page = tmp_path / "out" / "board.html"
    told = run("--database", sqlite_url, "--json", "--html", page)
    value = json.loads(told.stdout.strip().splitlines()[-1])
    assert (value["votes"], value["raters"], value["simulated"]) == (240, 8, False)
    assert [v["rank"] for v in value["versions"]] == [1, 2, 3, 4] and value["html"] == str(page)
    assert "Simulated listeners.</strong>" not in page.read_text(encoding="utf-8")
    simulated = json.loads(run("--database", sqlite_url, "--simulated", "--json").stdout.strip().splitlines()[-1])
    assert simulated["votes"] == 60 and simulated["simulated"] is True
    database = open_database(sqlite_url)
    with database.session(write=False) as s:
        kept = list_leaderboards(s)
    database.close()
    assert [(one.simulated, sum(e.votes for e in one.entries) // 2) for one in kept] == [
        (True, 60), (False, 240), (True, 60),
    ]  # fmt: skip
    assert str(kept[1].id) == value["run"]
    refused = run("--database", sqlite_url, "--since", "2030-01-01")
    assert isinstance(refused.exception, DataError) and "widen it" in str(refused.exception)


def test_the_page_escapes_names_marks_simulated_votes_and_asks_for_nothing():
    rows = duel(25, 15, "<b>x</b>", "y")
    page = render_leaderboard(make_leaderboard(arrays(*rows), simulated=True, rounds=100), simulated_versions={"y"})
    assert "<b>x</b>" not in page and "&lt;b&gt;x&lt;/b&gt;" in page
    assert page.count("Simulated listeners") > 3 and "trained on simulated votes" in page
    assert "<script" not in page and not re.search(r'(?:src|href)="', page)
    assert "default-src 'none'" in page
    one = render_leaderboard(make_leaderboard(arrays(*duel(3, 2)), simulated=False, rounds=100))
    assert "provisional" in one and "Simulated listeners.</strong>" not in one


def test_a_thousand_votes_of_a_page_are_in_its_figures():
    votes = draw_votes(1000, 5, raters=12, prompts=30, seed=9)
    board = make_leaderboard(votes, simulated=False, rounds=100, slice={"tag": "jazz"})
    page = render_leaderboard(board)
    for entry in board.entries:
        assert f"{entry.rating.elo.value:.0f}" in page and entry.version in page
    assert "Only prompts tagged jazz." in page and "1,000 blind votes by 12 raters" in page
    value = board.to_json()
    json.dumps(value)
    assert value["votes_to_flip_first_place"]["votes"] >= 1 and math.isfinite(value["versions"][0]["low"])
