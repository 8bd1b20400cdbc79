"""The night's recipe, its automatic checks, and simulated listeners in place of people."""

from __future__ import annotations

import math
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from alignment.circle.captions import add_captions
from alignment.circle.checks import automatic_checks, failures
from alignment.circle.nightly import NIGHTLY
from alignment.circle.nightly_contest import one_at_a_time
from alignment.circle.nightly_recipe import NightlyRecipe
from alignment.circle.stages import _prompts, prompts_of
from alignment.circle.workspace import Workspace
from alignment.config import REPOSITORY, AlignRecipe, Settings, StageSettings, load_recipe, parse_recipe
from alignment.db.engine import Database, open_database
from alignment.db.migrate import upgrade
from alignment.db.new_votes import count_new_votes
from alignment.db.tables import VoteTable
from alignment.db.votes import counted_votes
from alignment.domain import Outcome, Prompt, Split, VoteDraft
from alignment.errors import ConfigError
from alignment.evaluation.gate import GateRecipe
from alignment.jobs import Skip
from alignment.jobs.kinds import KINDS
from alignment.votes import VoteService
from alignment.withdrawal import withdraw
from tests.database_support import any_database, any_url, postgres_server, postgres_url, sqlite_url  # noqa: F401
from tests.nightly_support import PROGRAMS, Drive, changed, tables, workspace
from tests.study_support import SECRET, voted_study


def parsed(**values: object) -> NightlyRecipe:
    return parse_recipe(values, NightlyRecipe)


def test_the_recipe_that_ships_is_simulated_and_says_so_in_its_gate() -> None:
    shipped = load_recipe(REPOSITORY / "configs" / "schedule.yaml", NightlyRecipe)
    assert shipped.simulated and shipped.rules.simulated and shipped.panel.population == "default"
    text = (REPOSITORY / "configs" / "schedule.yaml").read_text(encoding="utf-8")
    assert "attune jobs run nightly" in text.splitlines()[0] and "SIMULATED" in text
    # As many pairs as the test may ask for votes on would be the least that a contest needs for alpha 0.1.
    assert shipped.contest.captions >= 60 and set(shipped.gate.metrics) == {"silence", "duplicates", "diversity"}


def test_a_stage_sings_as_many_of_the_prompts_as_it_says_and_always_the_same() -> None:
    prompts = [Prompt(uuid.UUID(int=i), f"song {i}", "test", Split.TRAIN, {}) for i in range(20)]
    stages = [StageSettings(name=name, method="dpo", prompts=count) for name, count in (("a", 5), ("b", 0), ("c", 50))]
    ground = SimpleNamespace(prompts=prompts, recipe=AlignRecipe(stages=tuple(stages), seed=3))
    few, every, more = (prompts_of(ground, stage) for stage in stages)
    assert len(few) == 5 and few == [one for one in prompts if one in few] == prompts_of(ground, stages[0])
    assert every == more == prompts
    other = SimpleNamespace(prompts=prompts, recipe=AlignRecipe(stages=tuple(stages), seed=4))
    assert prompts_of(other, stages[0]) != few


def test_a_run_that_goes_on_sings_the_prompts_it_began_with(sqlite_url: str, tmp_path: Path) -> None:  # noqa: F811
    upgrade(sqlite_url)
    ws = Workspace.open(Settings.from_environment(database=sqlite_url, store=str(tmp_path / "store")))
    voted = add_captions(ws, 12, 5, lambda _: Split.TRAIN)
    add_captions(ws, 2, 900_003, lambda _: Split.TRAIN)  # two of those that come beside were voted on
    recipe = AlignRecipe(stages=(StageSettings(name="a", method="ppo"),), more_captions=6, train_prompts=4, seed=3)
    models = SimpleNamespace(watch_prompts=[prompt.text for prompt in voted[:5]])
    first, again = (_prompts(ws, recipe, models) for _ in range(2))
    assert first == again and len(first[0]) == 4 + 6 and len(first[1]) == 5
    beside = add_captions(ws, 6, 900_003, lambda _: Split.TRAIN)
    assert first[0][4:] == beside and {p.text for p in first[0][:4]} < {p.text for p in voted[5:]}
    ws.database.close()


def test_without_a_word_people_vote_and_programs_promote_nothing() -> None:
    plain = parsed()
    assert not plain.simulated and not plain.rules.simulated and plain.listeners is None
    assert plain.contest.access == "invited" and plain.start == "champion"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"simulated": True}, "simulated and listeners belong together"),
        ({"listeners": "default"}, "simulated and listeners belong together"),
        ({"gate": {"simulated": True}}, "people's votes alone promote here"),
        ({"contest": {"captions": 9, "prompt_set": "x"}}, "give one of them"),
        ({"gate": {"axes": ["loudness"]}}, "gate.axes names loudness; known: text_adherence, quality"),
        (
            {"simulated": True, "min_new_votes": 100, "listeners": {"prompts": 8, "clips_per_prompt": 2}},
            "min_new_votes (100) cannot be above 24: 3 votes on each of 8 pairs",
        ),
        ({"min_new_votes": 0}, "min_new_votes is 0"),
        ({"min_new_vote": 9}, "did you mean min_new_votes?"),
        ({"contest": {"caption": 9}}, "did you mean captions?"),
        ({"name": "a/b"}, "name is 'a/b'"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused_with_its_fault(values: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**values)
    assert said in str(caught.value)


def test_the_kind_is_known_and_every_step_that_may_need_a_gpu_says_so() -> None:
    assert KINDS["nightly"].load() is NIGHTLY and KINDS["nightly"].load_recipe() is NightlyRecipe
    assert [step.name for step in NIGHTLY.steps if step.gpu] == ["gather", "reward", "align", "sing", "check"]
    assert [step.name for step in NIGHTLY.steps][-3:] == ["decide", "promote", "report"]


GATE = GateRecipe(metrics={"silence": (None, 0.2), "diversity": (0.1, None)})
GOOD = {"silence": (0.05, 0.0, 0.1, 40), "diversity": (0.4, 0.3, 0.5, 20)}


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (GOOD, ""),
        (GOOD | {"silence": (0.5, 0.4, 0.6, 40)}, "silence 0.5 [0.4, 0.6], n 40; it must be at most 0.2."),
        (GOOD | {"silence": (float("nan"), 0, 0, 40)}, "silence is no number."),
        (GOOD | {"loudness": (float("inf"), 0, 0, 40)}, "loudness is no number."),
        ({"silence": GOOD["silence"]}, "diversity was not measured, and the gate asks for it."),
    ],
)
def test_a_figure_out_of_bounds_missing_or_no_number_fails_the_automatic_checks(measured: dict, said: str) -> None:
    assert failures(automatic_checks("v1", "v0", measured, GATE)) == said


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Drive:
    """A home without anything, in which simulated listeners voted until a snapshot could be taken."""
    home = tmp_path_factory.mktemp("programs")
    upgrade(f"sqlite:///{home / 'attune.db'}")
    return Drive(home, PROGRAMS).run(until="reward", times=2)


def test_simulated_listeners_vote_on_what_the_champion_sings_and_are_marked(programs: Drive) -> None:
    assert programs.results["gather"]["votes"] == 20 and programs.results["gather"]["singer"] == "tiny-base"
    assert programs.results["snapshot"]["simulated"] and programs.results["votes"]["new_votes"] == 20
    counted = tables(programs.home, ["vote", "clip", "study", "snapshot"])
    assert counted == {"vote": 20, "clip": 16, "study": 1, "snapshot": 1}


def test_a_second_night_sings_other_prompts_and_casts_only_the_votes_that_are_missing(programs: Drive) -> None:
    # It dies after eight votes; the twelve that are missing are cast when it goes on.
    Drive(programs.home, changed(programs.recipe, min_new_votes=8), "job-2").step("gather")
    second = Drive(programs.home, programs.recipe, "job-2").run(until="snapshot")
    assert second.results["gather"]["votes"] == 20 and tables(programs.home, ["vote"]) == {"vote": 40}
    other = Drive(programs.home, changed(programs.recipe, min_new_votes=5), "job-3")
    assert other.step("gather") == Skip("There are enough new votes already.")
    assert second.results["votes"]["seed"] == 1000
    assert second.results["votes"]["since"] == programs.results["snapshot"]["snapshot"]
    with workspace(Path(programs.home)).database.session(write=False) as s:
        seeds = s.connection().exec_driver_sql("SELECT count(DISTINCT seed) FROM clip").scalar_one()
    assert seeds == 32


def test_only_votes_that_may_train_count_as_new_and_a_correction_counts_again(any_database: Database) -> None:  # noqa: F811
    outcomes = {0: Outcome.A, 1: Outcome.SKIP, 2: Outcome.TIE}
    filled, raters = voted_study(any_database, battles=3, say=lambda _, number: outcomes[number])
    withdraw(any_database, raters[2], "rater")

    def count(**after: object) -> int:
        with any_database.session(write=False) as s:
            return count_new_votes(s, [filled.study_id], **after)

    assert count() == 3  # three votes of the first rater; skips and a withdrawn rater's votes train nothing
    with any_database.session(write=False) as s:
        votes = counted_votes(s, study_ids=[filled.study_id])
        assignment = s.execute(sa.select(VoteTable.assignment_id, VoteTable.session_id).limit(1)).one()
    newest = max(uuid.UUID(vote.vote_id) for vote in votes)
    assert count(after=newest) == 0
    draft = VoteDraft(assignment.assignment_id, "corrected", Outcome.B, heard_left_seconds=3, heard_right_seconds=3)
    VoteService(any_database, secret=SECRET, listening_slack_seconds=math.inf).record_vote(assignment.session_id, draft)
    assert count() == 3 and count(after=newest) == 1


def test_two_workers_on_postgresql_open_studies_one_after_the_other(postgres_url: str) -> None:  # noqa: F811
    upgrade(postgres_url)
    database, order = open_database(postgres_url), []

    def second() -> None:
        with database.session() as s:
            one_at_a_time(s)
            order.append("second")

    other = threading.Thread(target=second)
    with database.session() as s:
        one_at_a_time(s)
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(10)
    database.close()
    assert order == ["first", "second"]
