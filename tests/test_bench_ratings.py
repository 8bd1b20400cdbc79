"""The benchmark of the ratings on few votes: its last line, and the peers' agreement."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts import bench_ratings


def test_the_last_line_has_the_times_and_agrees_with_evalica(capsys):
    small = ["--votes", "3000", "--versions", "6", "--raters", "40", "--prompts", "80", "--rounds", "100"]
    bench_ratings.main([*small, "--repeats", "1", "--sql-votes", "300", "--json"])
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (report["votes"], report["versions"], report["raters"], report["prompts"]) == (3000, 6, 40, 80)
    assert report["fit_seconds"] > 0 and report["bootstrap_seconds"] > 0 and report["fit_cpu_seconds"] > 0
    assert report["evalica"]["fit_seconds"] > 0 and report["largest_difference"] < 1e-3
    assert report["sql_load"]["votes"] == 300 and report["sql_load"]["seconds"] > 0
    assert report["machine"] and report["package_versions"]["evalica"]
    assert report["choix"] is None or report["choix"]["largest_difference"] < 1e-3


def test_the_votes_drawn_have_the_strengths_ties_and_side_that_they_claim():
    votes = bench_ratings.draw_votes(60_000, 5, raters=50, prompts=100, seed=2)
    drawn = np.random.default_rng(2).normal(0, 0.6, 5)
    assert bench_ratings.strengths_of(votes, side=True) == pytest.approx(drawn - drawn.mean(), abs=0.05)
    assert 0.15 < (~votes.decisive).mean() < 0.25
    assert (votes.outcome[votes.decisive] == 0).mean() > 0.5


def test_too_little_to_time_is_refused_in_a_sentence():
    with pytest.raises(SystemExit, match="bench_ratings: it takes 2 versions, 100 votes, 100 rounds"):
        bench_ratings.main(["--votes", "3"])
