"""The gate: each check by hand, the outcome they make together, the recipe, and the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from alignment.cli import app
from alignment.config import load_recipe, parse_recipe
from alignment.db import runs, versions
from alignment.db.base import utcnow
from alignment.db.engine import open_database
from alignment.db.figures import set_clip_scores
from alignment.db.gates import list_decisions, record_decision, spent_alphas
from alignment.db.tables import ClipRow, VersionRow
from alignment.domain import RaterKind
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.evaluation.gate import Evidence, GateRecipe, decide
from alignment.evaluation.intervals import Interval
from alignment.evaluation.sequential import Unit, sequential_test
from alignment.evaluation.vote_arrays import VoteArrays
from scripts.vote_rows import filled_database
from tests.database_support import any_database, any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401

RECIPE = GateRecipe(metrics={"silence": (None, 0.2), "diversity": (0.1, None)})


def a_test(wins, losses, **options):
    """Wins and losses spread evenly, each on a prompt of its own."""
    at = np.floor(np.arange(1, wins + losses + 1) * wins / (wins + losses) + 1e-9)
    where = np.arange(wins + losses)
    return sequential_test(np.diff(at, prepend=0), where, where, unit=Unit.VOTE, **options)


def interval(value, low, high, n=100):
    return Interval(value, low, high, n=n)


GOOD = Evidence(
    candidate="new", champion="old", base="base", over_champion=a_test(70, 30), over_base=a_test(70, 30),
    axes={"text_adherence": interval(0.1, -0.1, 0.3), "quality": interval(0.4, 0.2, 0.6)},
    metrics={"silence": interval(0.05, 0.04, 0.06), "diversity": interval(0.3, 0.25, 0.35)},
    reward=interval(0.5, 0.3, 0.7),
)  # fmt: skip


def state(evidence, check, recipe=RECIPE):
    """(outcome, state of the one check)."""
    decision = decide(evidence, recipe)
    (found,) = [reason for reason in decision.reasons if reason.check == check]
    return decision.outcome, found.state


def test_a_candidate_that_passes_every_check_is_promoted_with_the_figures_of_each():
    decision = decide(GOOD, RECIPE)
    assert decision.outcome == "promoted" and decision.alpha_spent == 0.05
    assert [reason.check for reason in decision.reasons] == [
        "voters", "champion", "base", "axis text_adherence", "axis quality", "metric silence", "metric diversity",
        "reward hacking",
    ]  # fmt: skip
    assert "win rate 70.0% [" in decision.sentence and "e-value" in decision.sentence and "n 100" in decision.sentence


def test_the_sequential_test_decides_over_the_champion():
    assert state(replace(GOOD, over_champion=a_test(30, 70)), "champion") == ("rejected", "fail")
    assert state(replace(GOOD, over_champion=a_test(52, 48)), "champion") == ("undecided", "open")
    assert state(replace(GOOD, over_champion=None), "champion") == ("undecided", "open")
    # The same 52 to 48 when 100 votes are all there will be.
    tight = RECIPE.model_copy(update={"most_votes": 100})
    assert state(replace(GOOD, over_champion=a_test(52, 48)), "champion", tight) == ("rejected", "fail")
    # 70 to 30 has an e-value of some hundreds: enough for alpha 0.05 and not for 0.0001.
    strict = replace(GOOD, over_champion=a_test(70, 30, alpha=0.0001))
    assert state(strict, "champion") == ("undecided", "open")


def test_winning_over_the_champion_is_not_enough_when_the_base_is_better():
    assert state(replace(GOOD, over_base=a_test(60, 140)), "base") == ("rejected", "fail")
    assert state(replace(GOOD, over_base=a_test(11, 9)), "base") == ("undecided", "open")
    assert state(replace(GOOD, over_base=None), "base") == ("undecided", "open")
    # Where the champion is the base, one test does for both; and a recipe may not ask.
    assert state(replace(GOOD, base="old", over_base=None), "base") == ("promoted", "pass")
    without = RECIPE.model_copy(update={"base_margin": None})
    assert decide(replace(GOOD, over_base=None), without).outcome == "promoted"


@pytest.mark.parametrize(
    ("change", "expected"),
    [((-0.2, -0.25, -0.1), "pass"), ((-0.5, -0.7, -0.26), "fail"), ((0.0, -0.3, 0.3), "open"), (None, "open")],
)
def test_no_axis_may_be_worse_by_more_than_a_quarter_step(change, expected):
    axes = dict(GOOD.axes)
    if change is None:
        del axes["quality"]
    else:
        axes["quality"] = interval(*change)
    assert state(replace(GOOD, axes=axes), "axis quality")[1] == expected


def test_an_axis_that_may_be_worse_rejects_when_no_votes_are_left():
    axes = {**GOOD.axes, "quality": interval(0.0, -0.3, 0.3)}
    assert state(replace(GOOD, axes=axes), "axis quality") == ("undecided", "open")
    tight = RECIPE.model_copy(update={"most_votes": 100})
    assert state(replace(GOOD, axes=axes), "axis quality", tight) == ("rejected", "fail")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("silence", 0.2, "pass"), ("silence", 0.21, "fail"), ("diversity", 0.1, "pass"), ("diversity", 0.09, "fail"),
     ("silence", float("nan"), "open")],
)  # fmt: skip
def test_a_metric_must_lie_within_its_bounds(name, value, expected):
    metrics = {**GOOD.metrics, name: interval(value, value, value)}
    assert state(replace(GOOD, metrics=metrics), f"metric {name}")[1] == expected


def test_the_sentinel_rings_when_the_reward_rises_and_listeners_hear_nothing():
    flat = a_test(990, 1010)
    assert flat.high < 0.55
    assert state(replace(GOOD, over_champion=flat), "reward hacking") == ("rejected", "fail")
    # Not when the reward did not rise, nor before listeners are sure either way.
    still = replace(GOOD, over_champion=flat, reward=interval(0.1, -0.1, 0.3))
    assert state(still, "reward hacking")[1] == "pass"
    assert state(replace(GOOD, over_champion=a_test(6, 5)), "reward hacking") == ("undecided", "open")
    assert state(replace(GOOD, reward=None), "reward hacking") == ("undecided", "open")


def test_simulated_votes_promote_nothing_unless_the_recipe_is_for_simulations():
    assert state(replace(GOOD, simulated=True), "voters") == ("rejected", "fail")
    allowed = RECIPE.model_copy(update={"simulated": True})
    assert state(replace(GOOD, simulated=True), "voters", allowed) == ("promoted", "pass")


def test_evidence_of_another_test_than_the_recipes_is_refused():
    rater = RECIPE.model_copy(update={"unit": Unit.RATER, "votes_per_bet": 8})
    with pytest.raises(DataError, match="bet on each vote with 1 votes and the recipe asks for each rater with 8"):
        decide(GOOD, rater)
    with pytest.raises(DataError, match="alpha 0.2, more than the recipe's whole budget of 0.05"):
        decide(replace(GOOD, over_champion=a_test(70, 30, alpha=0.2)), RECIPE)


def test_the_recipe_that_ships_loads_and_bad_bounds_are_named():
    shipped = load_recipe(Path(__file__).resolve().parent.parent / "configs" / "gate.yaml", GateRecipe)
    assert shipped.unit is Unit.VOTE and shipped.metrics["silence"] == (None, 0.2)
    with pytest.raises(ConfigError, match="put the lower bound first"):
        parse_recipe({"metrics": {"silence": [0.5, 0.2]}}, GateRecipe, origin="here")
    with pytest.raises(ConfigError, match="no bound"):
        parse_recipe({"metrics": {"silence": [None, None]}}, GateRecipe, origin="here")


def test_decisions_are_recorded_with_their_evidence_and_alpha_counts_once_a_candidate(any_database):  # noqa: F811
    with any_database.session() as s:
        for name in ("base", "old", "new", "newer"):
            versions.add_version(s, name=name, base="tiny", base_sha256="0" * 64)
        for candidate, outcome in (("new", "undecided"), ("new", "rejected"), ("newer", "undecided")):
            record_decision(
                s, candidate=candidate, champion="old", outcome=outcome, evidence=GOOD.to_json(),
                alpha_spent=0.005 if candidate == "new" else 0.0045,
            )  # fmt: skip
        for wrong, error, message in (
            ({"candidate": "v9"}, NotFoundError, "No version is called v9"),
            ({"outcome": "maybe"}, DataError, "'maybe'; it must be one of promoted, rejected, undecided"),
            ({"alpha_spent": 1.5}, DataError, "from 0 to 1"),
        ):
            good = {"candidate": "new", "champion": None, "outcome": "rejected", "evidence": {}, "alpha_spent": 0.0}
            with pytest.raises(error, match=message):
                record_decision(s, **{**good, **wrong})
    with any_database.session(write=False) as s:
        made = list_decisions(s)
        assert [(one.candidate, one.champion, one.outcome) for one in made] == [
            ("new", "old", "undecided"), ("new", "old", "rejected"), ("newer", "old", "undecided"),
        ]  # fmt: skip
        assert made[0].evidence["over_champion"]["n"] == 100 and json.dumps(dict(made[0].evidence))
        assert len(list_decisions(s, candidate="newer")) == 1
        assert spent_alphas(s) == [0.005, 0.0045] and spent_alphas(s, besides="newer") == [0.005]
        assert spent_alphas(s, since=made[2].created_at) == [0.0045]


def test_the_command_decides_from_a_study_and_a_candidate_keeps_its_alpha(sqlite_url, tmp_path):  # noqa: F811
    # "new" wins 70 of 100 over "old", each pair heard once; the champion is the base, and nothing else is asked.
    rows = [(i % 2, 1 - i % 2, 0 if (i % 10 < 7) == (i % 2 == 0) else 1, i % 12, i) for i in range(100)]
    left, right, outcome, rater, prompt = (np.array(column) for column in zip(*rows, strict=True))
    filled_database(
        sqlite_url, VoteArrays(("new", "old"), left, right, outcome, rater, prompt), kind=RaterKind.HUMAN, study="blind"
    )
    recipe = tmp_path / "gate.yaml"
    recipe.write_text("alpha_share: 1.0\naxes: []\nflat_win_rate: 0.55\n")
    words = ["gate", "check", "new", "--champion", "old", "--base", "old", "--study", "blind", "--recipe", str(recipe)]
    words += ["--database", sqlite_url, "--json"]
    first, second = (json.loads(CliRunner().invoke(app, words).stdout.strip().splitlines()[-1]) for _ in range(2))
    assert first["outcome"] == "undecided"  # nobody has scored the clips yet
    states = {row["check"]: row["state"] for row in first["checks"]}
    assert states == {"voters": "pass", "champion": "pass", "base": "pass", "reward hacking": "open"}
    assert first["alpha"] == second["alpha"] == 0.05 and first["decision"] != second["decision"]
    database = open_database(sqlite_url)
    with database.session() as s:
        (win,) = {one.evidence["over_champion"]["value"] for one in list_decisions(s)}
        assert win == pytest.approx(0.7) and spent_alphas(s) == [0.05]
        run = runs.add_train_run(s, kind="reward", snapshot_id=None, config={}, metrics={})
        model = runs.add_reward_model(
            s, name="r", train_run_id=run, encoder="e", heads=["user"], calibration={}, artefact_sha256="0" * 64,
            artefact_uri="none",
        )  # fmt: skip
        sung = s.execute(sa.select(ClipRow.id, VersionRow.name).join(VersionRow, ClipRow.version_id == VersionRow.id))
        scores = {clip: (2.0 if name == "new" else 1.0, 0.1) for clip, name in sung}
        set_clip_scores(s, model, scores, utcnow())
    database.close()
    done = json.loads(CliRunner().invoke(app, words).stdout.strip().splitlines()[-1])
    assert done["outcome"] == "promoted"
    assert "reward +1 [+1, +1]" in done["checks"][-1]["why"]
    refused = CliRunner().invoke(app, [*words[:3], "--champion", "v9", *words[5:]])
    assert isinstance(refused.exception, NotFoundError)
