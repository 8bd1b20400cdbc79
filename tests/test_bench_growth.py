"""The benchmark of growth: slopes worked by hand, every phase at small sizes, the queue beside batches that wait."""

from __future__ import annotations

import json

import pytest

from alignment.preferences import freeze_snapshot
from scripts.bench_growth import PHASES, growth, main, vote_rows


def test_a_growth_is_the_steepest_slope_on_a_log_scale() -> None:
    assert growth([1, 2, 4], [1.0, 2.0, 4.0]) == 1.0
    assert growth([1, 2, 4], [1.0, 2.0, 8.0]) == 2.0  # the second doubling quadruples
    assert growth([1, 10], [1.0, 1.0]) == 0.0
    assert growth([1, 2, 4], [0.01, 0.2, 0.4]) == 1.0  # what comes of 10 ms says nothing
    assert growth([1, 2], [0.01, 0.02]) is None


def test_every_phase_is_timed_at_every_size_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    main("--shape nano --lengths 0.3,0.1 --batch 1,3 --votes 60,30 --clips 2 --short 0.1 --json".split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    sizes = {phase: [size for size, _ in found["seconds"]] for phase, found in report["phases"].items()}
    assert sizes == dict.fromkeys(PHASES[:4], [0.1, 0.3]) | {
        "batch": [1, 3],
        "snapshot": [30, 60],
        "leaderboard": [30, 60],
    }
    assert all(seconds >= 0 for found in report["phases"].values() for _, seconds in found["seconds"])
    # 8 clips, four of each length, 2 at a time: 4 * (15 + 5) frames.
    assert (report["queue"]["clips"], report["queue"]["frames"]) == (8, 80) and report["queue"]["speedup"] > 0
    assert report["machine"] and report["clock"] == "wall"


def test_the_votes_drawn_are_ones_that_a_snapshot_keeps() -> None:
    frozen = freeze_snapshot(vote_rows(120))
    assert len(frozen.pairs) == 120 and frozen.counts["prompts"] == 20


def test_a_phase_nobody_knows_is_one_sentence_and_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--phases", "singing"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "'singing' is none of rollout, codec" in said and len(said.splitlines()) == 1
