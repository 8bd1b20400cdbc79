"""A night of the circle with people: every step twice, its decision, and what may come between."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment import versions
from alignment.circle import nightly_contest, nightly_decision, nightly_train
from alignment.circle.nightly import NIGHTLY
from alignment.circle.score_study import score_study
from alignment.circle.trust import Trust
from alignment.db.gates import list_decisions, record_decision
from alignment.db.new_votes import count_new_votes
from alignment.db.studies import get_study
from alignment.db.votes import counted_votes
from alignment.domain import Outcome
from alignment.errors import ConfigError, DataError, TrainingError
from alignment.evaluation import reward_card_page
from alignment.evaluation.intervals import Interval
from alignment.jobs import Command, Finish, Skip, Wait
from alignment.studies import set_study_state
from alignment.votes import VoteService
from tests.nightly_support import (
    PEOPLE,
    Drive,
    Killed,
    cast,
    changed,
    prefers,
    sing_otherwise,
    tables,
    vote,
    voted_home,
    workspace,
)  # fmt: skip

NAME = "tonight-026ab639"  # sha256("job-1") begins with 026ab639
STUDY = f"{NAME}-contest"
ROWS = ("version", "snapshot", "reward_model", "train_run", "prompt", "prompt_set", "clip", "comparison",
        "metric_result", "study", "battle", "gate_decision", "version_change", "vote")  # fmt: skip
LEARNT = Trust({"preference": Interval(0.7, 0.6, 0.8, n=88)}, 3)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Drive, dict[str, Any]]]:
    """A night whose study is open, each step of it run twice: what both returned, and the rows after each.

    The training itself is the tests' of align; here it is replaced by a random adapter, registered as it would be."""
    home = tmp_path_factory.mktemp("night")
    voted_home(home)
    drive, twice = Drive(home, PEOPLE), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nightly_train, "measure_trust", lambda *_: LEARNT)
        patch.setattr(nightly_train, "make_reward_card", lambda *_, **__: SimpleNamespace(
            verdict="sound", headline="It predicts votes"))  # fmt: skip
        patch.setattr(reward_card_page, "write_card", lambda _, path: path)
        for step in NIGHTLY.steps[:9]:
            if step.name == "study":
                shutil.copytree(home, home.parent / f"{home.name}-before")
            found, rows = [], []
            for _ in range(2):
                if step.name == "align":
                    found.append(step.run(drive.context("align")))
                    if not (home / "runs" / NAME).exists():
                        sing_otherwise(home, drive.job_id, NAME)
                else:
                    found.append(drive.step(step.name))
                rows.append(tables(home, ROWS))
            twice[step.name] = SimpleNamespace(found=found, rows=rows)
            drive.record(step.name, {"versions": [NAME]} if step.name == "align" else found[1])
    yield drive, twice


@pytest.fixture
def before(night: tuple[Drive, dict[str, Any]], tmp_path: Path) -> Drive:
    """A copy of that night as it was before its study was opened."""
    first, home = night[0], tmp_path / "home"
    shutil.copytree(first.home.parent / f"{first.home.name}-before", home)
    results = {name: value for name, value in first.results.items() if name != "study"}
    return replace(first, home=home, results=results, said=dict(first.said), done=[*results, "gather"], lines=[],
                   waits=[])  # fmt: skip


@pytest.fixture
def again(night: tuple[Drive, dict[str, Any]], tmp_path: Path) -> Drive:
    """A copy of that night."""
    first, home = night[0], tmp_path / "home"
    shutil.copytree(first.home, home)
    return replace(first, home=home, results=dict(first.results), said=dict(first.said), done=list(first.done),
                   lines=[], waits=[])  # fmt: skip


def decisions(drive: Drive) -> list[Any]:
    with workspace(drive.home).database.session(write=False) as s:
        return list_decisions(s)


def state_of(drive: Drive) -> str:
    with workspace(drive.home).database.session(write=False) as s:
        return get_study(s, STUDY).state


def champion(drive: Drive) -> str | None:
    found = versions.champion(workspace(drive.home).database)
    return found and found.name


def say(drive: Drive, name: str, **more: Any) -> None:
    """Two people vote on every pair of the contest, for this version."""
    vote(workspace(drive.home), STUDY, prefers(name), raters=2, **more)


def test_every_step_run_twice_returns_the_same_and_leaves_no_second_effect(night) -> None:
    for name, ran in night[1].items():
        if name != "align":
            assert ran.found[0] == ran.found[1], name
        assert ran.rows[0] == ran.rows[1], name
    after = night[1]["study"].rows[1]
    # One version a training, a snapshot with its two halves, two reward models, one study beside the people's first.
    assert (after["version"], after["snapshot"], after["reward_model"], after["study"]) == (2, 3, 2, 2)
    assert (after["comparison"], after["battle"], after["gate_decision"]) == (1, 12 + 8, 1)


def test_the_steps_say_what_they_rest_on(night) -> None:
    found = night[0].results
    assert night[0].said == {"gather": "People vote here; nothing is simulated."}
    # Twelve pairs, four people.
    assert found["votes"] | {"studies": ["people"], "new_votes": 48, "champion": "tiny-base"} == found["votes"]
    assert found["snapshot"]["counts"]["votes"] == 48 and len(found["snapshot"]["content_sha256"]) == 64
    assert found["reward"]["models"] == [f"{NAME}-reward", f"{NAME}-watch"]
    assert found["candidate"]["parent"] == "tiny-base" and found["candidate"]["simulated"] is False
    assert found["sing"]["clips"] == {NAME: 16, "tiny-base": 16}
    # The first candidate's share of the budget: 0.5 of 0.4.
    assert found["study"]["alpha"] == pytest.approx(0.2) and found["study"]["pairs"] == {"tiny-base": 8}


def test_training_is_a_command_that_goes_on_and_names_no_database(night) -> None:
    command = NIGHTLY.steps[4].run(night[0].context("align"))
    assert isinstance(command, Command) and "--resume" in command.argv and command.argv[3:5] == ("align", "run")
    assert command.argv[command.argv.index("--job") + 1] == "job-1"
    assert not any("attune.db" in part for part in command.argv)  # it may hold a password
    assert command.environment["ATTUNE_DATABASE"].endswith("attune.db")
    assert command.argv[5].endswith("jobs/job-1/align.yaml")
    stages = (night[0].home / "jobs" / "job-1" / "align.yaml").read_text(encoding="utf-8")
    assert stages.count("method: dpo") == 1


def test_a_night_that_begins_anew_counts_the_same_votes_and_opens_no_second_study(again: Drive) -> None:
    found, rows = again.results, tables(again.home, ROWS)
    again.results = {name: value for name, value in found.items() if name != "votes"}
    # Its own snapshot is none that came before; its study is there by now, and its votes are on prompts held out.
    assert again.step("votes") == {**found["votes"], "studies": ["people", STUDY]}
    again.results = found
    assert again.step("study") == found["study"] and tables(again.home, ROWS) == rows


def test_the_contest_is_blind_and_its_prompts_train_nothing(night) -> None:
    ws = workspace(night[0].home)
    with ws.database.session(write=False) as s:
        study = get_study(s, STUDY)
        kinds = {row[0] for row in s.connection().exec_driver_sql(
            "SELECT split FROM prompt JOIN prompt_set_member ON prompt.id = prompt_id")}  # fmt: skip
    assert study.rules["title"] == "Which clip do you prefer?" and not study.reveal and study.state == "open"
    assert set(study.versions) == {NAME, "tiny-base"} and study.rater_kind == "human" and kinds == {"leaderboard"}


def test_people_who_like_the_candidate_make_it_champion_once(again: Drive) -> None:
    again.run()
    assert again.waits[0].seconds == 60 and "No bet is settled" in again.waits[0].reason
    say(again, NAME)
    again.run(times=2)
    assert again.results["decide"]["outcome"] == "promoted" and champion(again) == NAME and state_of(again) == "closed"
    # Eight wins in eight bets: the mean over f of (1 + f) ** 8 at f = 1/80, 3/80 ... 79/80 is 56.74; 5 was needed.
    made = decisions(again)[-1]
    assert made.evidence["over_champion"]["e_value"] == pytest.approx(56.74, abs=0.05)
    assert len(decisions(again)) == 2 and tables(again.home, ["version_change"]) == {"version_change": 1}
    assert again.results["promote"] == {"promoted": NAME, "former": "tiny-base", "decision": str(made.id)}


def test_the_page_shows_the_outcome_and_what_every_number_rests_on(again: Drive) -> None:
    say(again, NAME)
    again.run()
    page = Path(again.results["report"]["page"]).read_text(encoding="utf-8")
    found = again.results
    assert f"{NAME} is the new champion: listeners prefer it to tiny-base" in page and ">Promoted<" in page
    for stands in (found["snapshot"]["content_sha256"], found["candidate"]["adapter_sha256"], "job-1", STUDY,
                   found["decide"]["decision"], found["candidate"]["base_sha256"], f"{NAME}-reward"):  # fmt: skip
        assert stands in page, stands
    data = json.loads(page.split('id="attune-report">')[1].split("</script>")[0])
    assert data["simulated"] is False and data["tests"][0][1]["n"] == 8 and data["alpha"] == pytest.approx(0.2)
    assert all(row["aligned"]["n"] == row["base"]["n"] for row in data["metrics"] if row["base"] and row["aligned"])
    assert {trace["figure"]: trace["votes"] for trace in data["traces"]}["Win rate over the champion"] == 16
    assert "http" not in page.split("<main>")[1].split("</main>")[0]


def test_people_who_like_the_champion_keep_it(again: Drive) -> None:
    say(again, "tiny-base")
    again.run()
    assert again.results["decide"]["outcome"] == "rejected" and champion(again) is None
    assert "It lost" in again.said["promote"] and again.results["report"]["said"].startswith(
        f"{NAME} is rejected: It lost"
    )


def test_votes_that_run_out_without_a_winner_reject_the_candidate(again: Drive) -> None:
    vote(workspace(again.home), STUDY, lambda *_: Outcome.TIE, raters=2)
    again.run()
    # Eight pairs settle eight bets at the most, however many more votes the recipe would take.
    assert again.results["decide"]["outcome"] == "rejected"
    assert "It did not win in the 8 votes it had: win rate 50.0%" in again.results["decide"]["said"]


def test_a_later_candidate_is_heard_against_champion_and_base(before: Drive) -> None:
    sing_otherwise(before.home, "by hand", "other", seed=2)
    versions.promote(workspace(before.home).database, "other", actor="x", force=True, reason="the first champion")
    before.results["votes"] = before.results["votes"] | {"champion": "other"}
    before.run(until="decide")
    assert before.results["study"]["pairs"] == {"other": 8, "tiny-base": 8}
    # The night's own measurement was of the champion before; the reward beside this one's is asked for here.
    score_study(workspace(before.home), f"{NAME}-reward", STUDY)
    say(before, NAME)
    before.run()
    evidence = decisions(before)[-1].evidence
    assert (evidence["over_champion"]["n"], evidence["over_base"]["n"]) == (8, 8) and champion(before) == NAME
    page = Path(before.results["report"]["page"]).read_text(encoding="utf-8")
    assert "over other" in page and "over tiny-base" in page


def test_simulated_listeners_decide_a_contest_look_by_look_and_are_marked(before: Drive) -> None:
    panel = {"raters": 3, "prompts": 16, "clips_per_prompt": 3, "look_votes": 5}
    before.recipe = PEOPLE | {"simulated": True, "listeners": panel}
    before.run(until="promote", times=2)
    found = before.results["decide"]
    assert found["simulated"] and found["outcome"] in ("promoted", "rejected") and state_of(before) == "closed"
    with workspace(before.home).database.session(write=False) as s:
        votes = counted_votes(s, study_ids=[get_study(s, STUDY).id])
    # Five a look, and no pair twice: eight bets at the most.
    assert len(votes) in (5, 8) and {vote.rater_kind.value for vote in votes} == {"simulated"}
    assert len({vote.prompt_id for vote in votes}) == len(votes)
    with pytest.raises(ConfigError, match="People listen in this home"):  # whoever won
        before.results["decide"] = found | {"outcome": "promoted"}
        before.step("promote")


def test_looks_that_are_killed_anywhere_are_made_whole_and_decide_as_they_would_have(before: Drive) -> None:
    panel = {"raters": 3, "prompts": 16, "clips_per_prompt": 3, "look_votes": 3}
    before.recipe = changed(PEOPLE, simulated=True, listeners=panel, gate={"alpha_budget": 0.001})
    before.run(until="decide")
    whole = replace(before, home=before.home.parent / "whole", results=dict(before.results), done=list(before.done))
    shutil.copytree(before.home, whole.home)

    def left(drive: Drive) -> tuple[Any, ...]:
        found = decisions(drive)[-1]
        rows = tables(drive.home, ("rater", "listening_session", "assignment", "vote", "gate_decision"))
        return cast(workspace(drive.home), STUDY), found.outcome, found.evidence, rows

    whole.record("decide", whole.step("decide"))
    wanted = left(whole)
    assert len(wanted[0]) == 8 and wanted[3]["rater"] == 4 + 3 * 3  # three looks, a panel each
    kills, plain = 0, VoteService.record_vote

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    def votes_and_dies(*told: Any, **more: Any) -> None:
        plain(*told, **more)
        raise Killed

    while "decide" not in before.results:
        with pytest.MonkeyPatch.context() as patch:
            # One life dies with its first vote, the next one makes the look whole and dies before it is judged.
            if kills % 2:
                patch.setattr(nightly_decision, "gather_evidence", dies)
            else:
                patch.setattr(VoteService, "record_vote", votes_and_dies)
            try:
                before.record("decide", before.step("decide"))
            except Killed:
                kills += 1
    assert kills == 6 and left(before) == wanted


def test_a_study_closed_by_hand_promotes_nothing_and_is_decided_once(again: Drive) -> None:
    say(again, NAME, votes=2)
    set_study_state(workspace(again.home).database, STUDY, "closed", actor="an organiser")
    again.run(times=2)
    assert again.results["decide"]["outcome"] == "undecided" and champion(again) is None
    assert again.results["decide"]["said"].startswith("The study was closed by hand after 2 votes")
    assert len(decisions(again)) == 2


def test_a_paused_study_is_waited_for(again: Drive) -> None:
    set_study_state(workspace(again.home).database, STUDY, "paused", actor="an organiser")
    assert isinstance(again.step("decide"), Wait)


def test_a_study_that_decides_nothing_ends_after_the_recipes_days(again: Drive) -> None:
    again.results["study"] = again.results["study"] | {"opened": "2026-01-01T00:00:00+00:00"}
    again.run()
    assert again.results["decide"]["said"].startswith("Nothing was decided in 3 days") and state_of(again) == "closed"


def test_another_champion_meanwhile_ends_the_comparison_with_the_former_one(again: Drive) -> None:
    sing_otherwise(again.home, "by hand", "other", seed=2)
    database = workspace(again.home).database
    versions.promote(database, "other", actor="somebody", force=True, reason="I like it")
    say(again, NAME)
    again.run()
    assert again.results["decide"]["said"].startswith(f"other became champion while {NAME} was compared")
    assert champion(again) == "other" and state_of(again) == "closed"


def test_another_champion_between_decision_and_promotion_stays(again: Drive) -> None:
    say(again, NAME)
    again.run(until="promote")
    assert again.results["decide"]["outcome"] == "promoted"
    sing_otherwise(again.home, "by hand", "other", seed=2)
    versions.promote(workspace(again.home).database, "other", actor="x", force=True, reason="I like it")
    again.run()
    assert "other became champion" in again.said["promote"] and champion(again) == "other"
    assert "won over tiny-base and was not promoted" in again.results["report"]["said"]


def test_a_later_decision_that_contradicts_keeps_the_candidate_from_being_promoted(again: Drive) -> None:
    say(again, NAME)
    again.run(until="promote")
    with workspace(again.home).database.session() as s:
        record_decision(s, candidate=NAME, champion="tiny-base", outcome="rejected", evidence={}, alpha_spent=0.2)
    again.run()
    assert "says rejected; nothing is promoted while decisions contradict" in again.said["promote"]
    assert champion(again) is None


def test_a_candidate_that_was_retired_meanwhile_is_not_promoted(again: Drive) -> None:
    say(again, NAME)
    again.run(until="promote")
    versions.retire(workspace(again.home).database, NAME, actor="somebody", reason="it hums")
    again.run()
    assert "retired" in again.said["promote"] and champion(again) is None


@pytest.mark.parametrize("step", ["decide", "promote"])
def test_a_kill_between_an_effect_and_its_record_leaves_one_effect(
    again: Drive, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    say(again, NAME)
    again.run(until=step)
    # The decision is recorded and its study not yet closed; the version is champion and the step not yet recorded.
    where, name = {
        "decide": (nightly_decision, "set_study_state"), "promote": (nightly_decision.versions, "promote"),
    }[step]  # fmt: skip
    true = getattr(where, name)

    def killed(*given: Any, **named: Any) -> Any:
        if step == "promote":
            true(*given, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            again.step(step)
    assert len(decisions(again)) == 2
    again.run()
    assert champion(again) == NAME and state_of(again) == "closed"
    assert len(decisions(again)) == 2 and tables(again.home, ["version_change"]) == {"version_change": 1}


def test_a_kill_inside_the_opening_of_a_study_leaves_none_and_spends_no_alpha(
    before: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(nightly_contest.people, "add_audit", killed)  # the last thing that its transaction does
        with pytest.raises(Killed):
            before.step("study")
    assert tables(before.home, ["study", "gate_decision"]) == {"study": 1, "gate_decision": 0}
    before.run(until="decide")
    assert tables(before.home, ["study", "gate_decision"]) == {"study": 2, "gate_decision": 1}


def test_the_next_night_waits_until_the_candidate_before_it_was_heard(again: Drive) -> None:
    ended = Drive(again.home, PEOPLE, "job-2").run(until="reward").ended
    assert ended == (
        f"{NAME} is still being heard in study {STUDY}; the next night starts when that is decided, "
        "or the study closed with attune study close."
    )  # fmt: skip


def test_two_nights_at_once_open_one_study_after_the_other_and_share_the_alpha(again: Drive) -> None:
    second = Drive(again.home, changed(PEOPLE, contest={"captions": 6}), "job-2")
    second.results = again.results | {"check": {"passed": True}}
    del second.results["study"]
    name = f"tonight-{hashlib.sha256(b'job-2').hexdigest()[:8]}"
    sing_otherwise(again.home, "job-2", name, seed=3)
    waiting = second.step("study")
    assert isinstance(waiting, Wait) and waiting.reason == f"{NAME} is still being heard; one candidate at a time."
    say(again, "tiny-base")
    again.run()
    # 0.2 of 0.4 are spent: half of what is left.
    assert second.step("study")["alpha"] == pytest.approx(0.1)


def test_a_candidate_trained_for_a_former_champion_is_not_heard(before: Drive) -> None:
    sing_otherwise(before.home, "by hand", "other", seed=2)
    versions.promote(workspace(before.home).database, "other", actor="x", force=True, reason="I like it")
    before.run()
    assert before.said["study"].startswith(f"other became champion while {NAME} was trained")
    assert set(before.said) >= {"study", "decide", "promote"} and tables(before.home, ["study"]) == {"study": 1}
    assert before.results["report"]["outcome"] == "undecided" and champion(before) == "other"


def test_a_candidate_that_fails_the_automatic_checks_is_heard_by_nobody(before: Drive) -> None:
    before.recipe = changed(PEOPLE, gate={"metrics": {"diversity": [1.9, None], "silence": [None, 1.0]}})
    del before.results["check"]
    before.done.remove("check")
    before.run(times=2)
    assert before.results["check"]["passed"] is False and tables(before.home, ["study"]) == {"study": 1}
    assert "nobody is asked to listen" in before.said["study"] and "diversity" in before.said["promote"]
    assert [(made.outcome, made.alpha_spent) for made in decisions(before)] == [("rejected", 0.0)]
    assert "Rejected" in Path(before.results["report"]["page"]).read_text(encoding="utf-8")


def test_a_candidate_that_sings_just_as_the_champion_is_rejected_without_a_study(before: Drive) -> None:
    # The champion is one that sings as the candidate does: itself.
    before.results["votes"] = before.results["votes"] | {"champion": NAME}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignment.circle.night.Night.champion", lambda _: NAME)
        assert before.step("study") == Skip(f"{NAME} is rejected: it sings every clip just as {NAME} does.")
    assert decisions(before)[0].outcome == "rejected"


def test_too_few_new_votes_end_the_night_and_say_how_many_there_are(again: Drive) -> None:
    set_study_state(workspace(again.home).database, STUDY, "closed", actor="x")
    next_night = Drive(again.home, PEOPLE, "job-2").run()
    assert next_night.done == ["gather", "votes"]
    assert next_night.ended == f"0 new votes since snapshot {NAME}; 40 are wanted for a night's training."


def test_votes_on_the_contest_are_no_new_votes_to_train_on(again: Drive) -> None:
    say(again, NAME)
    ws = workspace(again.home)
    with ws.database.session(write=False) as s:
        both = [get_study(s, name).id for name in ("people", STUDY)]
        assert count_new_votes(s, both) == 48  # and 16 on prompts of the leaderboard split


def test_votes_that_teach_nothing_end_the_night_with_a_page(before: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    (before.home / "jobs" / "job-1" / "reward.json").unlink()
    weak = Trust({"preference": Interval(0.53, 0.44, 0.62, n=48)}, 3)
    monkeypatch.setattr(nightly_train, "measure_trust", lambda *_: weak)
    found = before.step("reward")
    assert isinstance(found, Finish) and "53.0% [44.0%, 62.0%] on 48 votes" in found.reason
    page = (before.home / "jobs" / "job-1" / "report.html").read_text(encoding="utf-8")
    assert "Ended early" in page and "no signal" in page and before.results["snapshot"]["content_sha256"] in page


@pytest.mark.parametrize(
    ("wanted", "verdict", "goes_on"),
    [("sound", "unproven", False), ("not exposed", "exposed", False), ("not exposed", "unproven", True),
     ("any", "exposed", True)],
)  # fmt: skip
def test_a_reward_model_whose_card_is_not_what_the_recipe_wants_trains_nothing(
    before: Drive, monkeypatch: pytest.MonkeyPatch, wanted: str, verdict: str, goes_on: bool
) -> None:
    (before.home / "jobs" / "job-1" / "reward.json").unlink()
    before.recipe = changed(PEOPLE, reward={"card": wanted})
    card = SimpleNamespace(verdict=verdict, headline="It hears loudness")
    monkeypatch.setattr(nightly_train, "measure_trust", lambda *_: LEARNT)
    monkeypatch.setattr(nightly_train, "make_reward_card", lambda *_, **__: card)
    monkeypatch.setattr(reward_card_page, "write_card", lambda _, path: path)
    found = before.step("reward")
    assert isinstance(found, Finish) is not goes_on
    assert goes_on or found.reason == (
        f"The reward model's card is {verdict} and the recipe wants it {wanted}: It hears loudness. Nothing was "
        "trained on it."
    )


def test_a_version_of_the_nights_name_that_another_job_made_is_refused(before: Drive) -> None:
    with workspace(before.home).database.session() as s:
        s.connection().exec_driver_sql(f"UPDATE train_run SET job_id = 'another job' WHERE job_id = 'job-1/{NAME}'")
    with pytest.raises(DataError, match="was made by another job, not by job job-1"):
        before.step("candidate")


def test_a_training_that_left_no_version_fails_with_where_to_look(again: Drive) -> None:
    again.job_id = "job-9"
    with pytest.raises(TrainingError, match="ended without a version tonight-.*its log says why"):
        again.step("candidate")


def test_prompts_that_train_are_refused_in_a_contest(before: Drive) -> None:
    from alignment.db.prompts import list_prompts
    from alignment.db.studies import add_prompt_set

    with workspace(before.home).database.session() as s:
        add_prompt_set(s, "all", [prompt.id for prompt in list_prompts(s)])
    before.recipe, before.job_id = changed(PEOPLE, contest={"captions": 0, "prompt_set": "all"}), "job-5"
    with pytest.raises(DataError, match="12 of 20 prompts in the set all train models"):
        before.step("sing")


def test_simulated_votes_are_refused_where_people_listen(again: Drive) -> None:
    programs = Drive(again.home, PEOPLE | {"simulated": True, "listeners": "default"}, "job-7")
    for step in ("gather", "votes"):
        with pytest.raises(ConfigError, match=r"People listen in this home \(study people\).*Use another --home"):
            programs.step(step)
