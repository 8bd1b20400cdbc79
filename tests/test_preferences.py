"""Votes frozen into snapshots: rules, order, hash, file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from alignment.domain import Axis, ClipRef, Outcome, RaterKind, Split
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.preferences import chosen_and_rejected, freeze_snapshot, read_snapshot, write_snapshot
from tests.training_support import clip


@dataclass(frozen=True)
class Row:
    vote_id: str
    outcome: Outcome
    prompt_text: str = "calm piano"
    split: Split = Split.TRAIN
    left: ClipRef = field(default_factory=lambda: clip("1"))
    right: ClipRef = field(default_factory=lambda: clip("2"))
    axes: dict = field(default_factory=dict)
    prompt_id: str = "prompt-1"
    rater_id: str = "rater-1"
    rater_kind: RaterKind = RaterKind.SIMULATED
    cohort: str | None = None
    flags: tuple = ()


def rows_of(outcomes: list[Outcome], split: Split = Split.TRAIN, start: int = 0) -> list[Row]:
    return [
        Row(f"vote-{n}", outcome, f"prompt {n}", split, clip(f"{n}l"), clip(f"{n}r"), {Axis.QUALITY: n % 5 - 2})
        for n, outcome in enumerate(outcomes, start)
    ]


def test_each_outcome_becomes_the_credit_of_the_left_clip_and_skips_and_faults_train_nothing() -> None:
    frozen = freeze_snapshot(rows_of(list(Outcome)))
    assert {p.outcome: p.preference for p in frozen.pairs} == {
        Outcome.A: 1.0, Outcome.B: 0.0, Outcome.TIE: 0.5, Outcome.BOTH_BAD: 0.5,
    }  # fmt: skip
    assert frozen.counts["votes"] == 6 and frozen.counts["pairs"] == 4 and frozen.counts["decisive"] == 2
    assert frozen.counts["votes_skip"] == 1 and frozen.counts["pairs_train"] == 4
    won = {p.outcome: chosen_and_rejected(p) for p in frozen.pairs}
    assert won[Outcome.A] == (clip("0l"), clip("0r")) and won[Outcome.B] == (clip("1r"), clip("1l"))
    assert won[Outcome.TIE] is None and won[Outcome.BOTH_BAD] is None


def test_both_bad_can_be_dropped_and_the_rule_is_part_of_the_hash() -> None:
    rows = rows_of([Outcome.A, Outcome.BOTH_BAD])
    dropped = freeze_snapshot(rows, both_bad="drop")
    assert [p.outcome for p in dropped.pairs] == [Outcome.A]
    assert dropped.content_sha256 != freeze_snapshot(rows).content_sha256
    only_a = rows_of([Outcome.A])
    assert freeze_snapshot(only_a, both_bad="drop").content_sha256 != freeze_snapshot(only_a).content_sha256
    with pytest.raises(ConfigError, match="tie, drop"):
        freeze_snapshot(rows, both_bad="loss")


def test_the_snapshot_does_not_depend_on_the_order_of_the_votes_nor_its_order_on_their_ids() -> None:
    rows = rows_of([Outcome.A, Outcome.B, Outcome.TIE, Outcome.A])
    assert freeze_snapshot(rows) == freeze_snapshot(rows[::-1])
    renamed = [replace(row, vote_id=f"other-{9 - n}") for n, row in enumerate(rows)]
    assert [p.a for p in freeze_snapshot(renamed).pairs] == [p.a for p in freeze_snapshot(rows).pairs]


def test_a_shuffle_permutes_what_was_said_within_each_split_and_leaves_who_sang_what() -> None:
    rows = rows_of([Outcome.A, Outcome.B] * 20) + rows_of([Outcome.TIE] * 9 + [Outcome.B], Split.VALID, 40)
    plain, shuffled = freeze_snapshot(rows), freeze_snapshot(rows, shuffle_seed=1)
    assert [(p.vote_id, p.a, p.b, p.split) for p in shuffled.pairs] == [
        (p.vote_id, p.a, p.b, p.split) for p in plain.pairs
    ]
    for split in (Split.TRAIN, Split.VALID):
        said = [[(p.outcome, p.preference, p.axes["quality"]) for p in s.split(split)] for s in (plain, shuffled)]
        assert Counter(said[0]) == Counter(said[1]) and said[0] != said[1]
    assert shuffled == freeze_snapshot(rows, shuffle_seed=1)
    assert shuffled.content_sha256 != freeze_snapshot(rows, shuffle_seed=2).content_sha256


def test_votes_that_cannot_share_a_snapshot_are_refused() -> None:
    rows = rows_of([Outcome.A, Outcome.B])
    with pytest.raises(DataError, match="no votes"):
        freeze_snapshot([])
    with pytest.raises(DataError, match="None of 2 votes can train"):
        freeze_snapshot(rows_of([Outcome.SKIP, Outcome.FAULT]))
    with pytest.raises(DataError, match="never share"):
        freeze_snapshot([rows[0], replace(rows[1], rater_kind=RaterKind.HUMAN)])
    with pytest.raises(DataError, match="vote-0 appears twice"):
        freeze_snapshot([rows[0], rows[0]])
    with pytest.raises(DataError, match="two splits"):
        freeze_snapshot([rows[0], replace(rows[1], prompt_text="prompt 0", split=Split.TEST)])
    with pytest.raises(DataError, match="steps go from -2"):
        freeze_snapshot([replace(rows[0], axes={Axis.QUALITY: 3})])


def test_a_vote_between_a_clip_and_itself_is_counted_and_left_out() -> None:
    rows = rows_of([Outcome.A, Outcome.A])
    frozen = freeze_snapshot([rows[0], replace(rows[1], right=rows[1].left)])
    assert len(frozen.pairs) == 1 and frozen.counts["votes_same_clip"] == 1


def test_a_written_snapshot_reads_back_the_same_and_twice_written_is_the_same_bytes(tmp_path: Path) -> None:
    frozen = freeze_snapshot(rows_of([Outcome.A, Outcome.TIE, Outcome.B]), shuffle_seed=4)
    path = tmp_path / "new" / "votes.jsonl"
    write_snapshot(frozen, path)
    first = path.read_bytes()
    write_snapshot(frozen, path)
    assert read_snapshot(path) == frozen and path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["votes.jsonl"]


@pytest.mark.parametrize("field_name", ["preference", "counts", "policy"])
def test_an_altered_snapshot_is_refused(tmp_path: Path, field_name: str) -> None:
    path = tmp_path / "votes.jsonl"
    write_snapshot(freeze_snapshot(rows_of([Outcome.A, Outcome.B])), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if field_name == "preference":
        lines[1]["preference"] = 0.0
    else:
        lines[0][field_name]["pairs" if field_name == "counts" else "shuffle_seed"] = 7
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="altered"):
        read_snapshot(path)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"format": 9}'])
def test_a_file_that_is_no_snapshot_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="not a snapshot|format 9"):
        read_snapshot(path)
    with pytest.raises(NotFoundError, match="no such snapshot"):
        read_snapshot(tmp_path / "none.jsonl")


def test_a_snapshot_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    write_snapshot(freeze_snapshot(rows_of([Outcome.A, Outcome.B])), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="altered"):
        read_snapshot(path)


def test_freezing_needs_neither_torch_nor_sqlalchemy() -> None:
    code = "import sys, alignment.preferences; print([m for m in ('torch', 'sqlalchemy', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
