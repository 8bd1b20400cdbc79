"""`attune reward card` on a circle turned by hand: from votes in a database to a page."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from circle_support import FIRST_STEPS, attune, leftovers, turn_by_hand


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("carded")
    turn_by_hand(home, FIRST_STEPS)
    return home


def test_a_card_is_made_of_a_recorded_model_and_written_as_one_page(home: Path, capsys) -> None:
    done = attune(capsys, "reward", "card", "likes-1", "--folds", "3", "--no-curve", "--home", home, "--json")
    assert done.code == 0, done.err
    told = done.json
    assert told["verdict"] in ("sound", "unproven", "exposed") and told["simulated"] is True
    assert [row["name"] for row in told["baselines"]] == ["clap_cosine", "loudness", "level", "length"]
    overall = told["rows"][0]["accuracy"]
    assert overall["low"] <= overall["value"] <= overall["high"] and told["asked"].startswith("cross-validation: 3")
    assert told["level"]["shift"]["n"] > 10 and "votes-1" in told["facts"]["Votes"]
    with sqlite3.connect(home / "attune.db") as database:
        decisive = database.execute("SELECT count(*) FROM vote WHERE outcome IN ('A', 'B')").fetchone()[0]
    assert overall["n"] == decisive  # every decisive vote is asked about once
    page = home / "cards" / "likes-1.html"
    assert told["page"] == str(page) and "likes-1" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 300_000 and not [p for p in leftovers(home) if p.parent == page.parent]


def test_votes_of_contests_are_not_asked_about_and_the_card_says_so(home: Path, capsys) -> None:
    turn_by_hand(
        home,
        (
            ("generate", "--captions", "3", "--split", "leaderboard", "--per-prompt", "4", "--seconds", "1.0"),
            ("simulate-votes", "--study", "contest", "--votes", "40", "--raters", "4"),
            ("snapshot", "votes-2", "--study", "first", "--study", "contest"),
        ),
    )
    with sqlite3.connect(home / "attune.db") as database:
        votes = database.execute(
            "SELECT prompt.split = 'leaderboard', count(*), sum(outcome IN ('A', 'B')) FROM vote "
            "JOIN assignment ON assignment.id = vote.assignment_id JOIN battle ON battle.id = assignment.battle_id "
            "JOIN prompt ON prompt.id = battle.prompt_id WHERE outcome NOT IN ('SKIP', 'FAULT') GROUP BY 1"
        ).fetchall()
    (_, others, decisive), (_, in_contests, _) = sorted(votes)
    assert in_contests > 0 and others > 48, "the second study has votes of both kinds"
    done = attune(capsys, "reward", "card", "likes-1", "--snapshot", "votes-2", "--folds", "3", "--no-curve",
                  "--home", home, "--json")  # fmt: skip
    told = done.json
    assert told["rows"][0]["accuracy"]["n"] == decisive and told["facts"]["Asked about"].startswith(f"{others} votes")
    note = f"{in_contests} votes of contests between versions are left out"
    assert any(one.startswith(note) for one in told["notes"])
    assert note in (home / "cards" / "likes-1.html").read_text(encoding="utf-8")


def test_what_cannot_be_carded_is_one_sentence(home: Path, capsys) -> None:
    done = attune(capsys, "reward", "card", "nobody", "--home", home)
    assert done.code == 1 and done.err.strip().splitlines()[-1].startswith(
        "attune: No reward model is called nobody; known: likes-1"
    )
    done = attune(capsys, "reward", "card", "likes-1", "--snapshot", "nothing", "--home", home)
    assert done.code == 1 and "nothing" in done.err.strip().splitlines()[-1]
    clip = next((home / "store").rglob("*.flac"))
    clip.rename(clip.with_suffix(".away"))
    done = attune(capsys, "reward", "card", "likes-1", "--home", home)
    assert done.code == 1 and done.err.strip().splitlines()[-1].startswith("attune: ") and "Traceback" not in done.err
    clip.with_suffix(".away").rename(clip)
