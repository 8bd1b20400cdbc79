"""The benchmark of votes: it runs, both contestants save the same votes, and its last line is what scripts may read."""

from __future__ import annotations

import json

import pytest

from scripts.bench_votes import headline, main, parse
from scripts.throwaway_postgres import throwaway_postgres

TINY = "--raters 3 --pace 0.2 --seconds 0.5 --clients 2 --rounds 1 --votes 4 --sessions 10 --bare --json".split()


def test_the_last_line_is_one_json_object_with_the_named_keys(capsys: pytest.CaptureFixture[str]):
    main([*TINY, "--databases", "sqlite"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    sqlite = report["sqlite"]
    assert (report["lost"], report["doubled"], sqlite["altered"]) == (0, 0, 0)
    assert 0 < report["p50_ms"] <= report["p99_ms"] and report["p99_ms"] == sqlite["p99_ms"]
    assert report["ratio"] == pytest.approx(
        report["votes_per_second"] / report["gradio_queue_votes_per_second"], rel=0.02
    )
    # 3 raters at study pace, 4 votes a contestant and 4 to warm up, and one vote for each of 10 sessions.
    assert sqlite["votes_counted"] == sqlite["study_pace_votes"] + 4 + 4 + 4 + 10
    assert sqlite["memory_sessions"] == [1, 10] and abs(report["memory_growth"]) < 1
    assert report["headline"] == "sqlite" and report["machine"] and report["gradio"] and report["python"]


def test_postgresql_stands_beside_sqlite_and_sqlite_on_top():
    one = {"p50_ms": 1, "p99_ms": 2, "votes_per_second": 3, "gradio_queue_votes_per_second": 1, "ratio": 3, "lost": 0,
           "doubled": 1, "memory_growth": 0.01}  # fmt: skip
    other = {**one, "p99_ms": 9, "lost": 2, "doubled": 0}
    report = headline({"sqlite": one, "postgresql": other}, parse([]))
    assert (report["p99_ms"], report["postgresql"]["p99_ms"], report["headline"]) == (2, 9, "sqlite")
    assert (report["lost"], report["doubled"]) == (2, 1)  # of both: a loss anywhere is a loss


def test_a_given_postgresql_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTUNE_TEST_POSTGRES_URL", "postgresql://someone@somewhere/attune")
    with throwaway_postgres() as url:
        assert url == "postgresql://someone@somewhere/attune"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--databases mysql", "'mysql' is none of sqlite, postgresql"),
        ("--raters 0", "'0' is not a whole number from 1"),
        ("--pace nan", "'nan' is not a number of seconds above 0"),
        ("--seconds 0", "'0' is not a number of seconds above 0"),
    ],
)
def test_a_bad_argument_is_one_sentence_and_a_failure(arguments: str, told: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and told in said and len(said.strip().splitlines()) == 1
