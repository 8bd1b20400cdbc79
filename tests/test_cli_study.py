"""Studies and accounts from the command line."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from app_support import filled_folder
from circle_support import attune

from alignment.accounts import Accounts
from alignment.config import REPOSITORY, load_recipe
from alignment.db.engine import open_database
from alignment.invites import find_invite
from alignment.studies import StudyRecipe

PASSWORD = "four words easily kept"


@pytest.fixture
def home(tmp_path) -> Path:
    """A home with two versions, secret-base and secret-aligned, and clips of three prompts."""
    import shutil

    return Path(shutil.copytree(filled_folder(1.0, ("one", "two", "three")), tmp_path / "home"))


def _recipe(tmp_path: Path, **more: object) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({"name": "first", "versions": ["secret-base", "secret-aligned"], **more}))
    return path


def test_the_example_recipe_is_whole_and_says_how_to_use_it():
    path = REPOSITORY / "configs" / "study.yaml"
    recipe = load_recipe(path, StudyRecipe)
    assert path.read_text().startswith("# attune study create configs/study.yaml")
    assert recipe.access == "invited" and recipe.shares.repeats > 0


def test_a_study_is_created_opened_invited_to_shown_exported_and_closed(home, tmp_path, capsys):
    made = attune(capsys, "study", "create", _recipe(tmp_path), "--home", home, "--json").json
    assert (made["state"], made["pairs"]) == ("draft", 3)
    assert attune(capsys, "study", "open", "first", "--home", home).out.strip() == "first is open"
    listed = attune(capsys, "study", "list", "--home", home, "--json").json
    assert [(row["name"], row["state"], row["answers"]) for row in listed] == [("first", "open", 0)]
    invited = attune(
        capsys, "study", "invite", "first", "--count", 3, "--label", "class", "--address", "https://a.example/",
        "--home", home,
    )  # fmt: skip
    links = invited.out.split()
    assert len(links) == 3 and all(re.fullmatch(r"https://a\.example/\?invite=[\w-]{22}", link) for link in links)
    database = open_database(f"sqlite:///{home / 'attune.db'}")
    assert find_invite(database, links[2].partition("=")[2]).label == "class 3"
    database.close()
    shown = attune(capsys, "study", "show", "first", "--home", home)
    assert "0 of 9 wanted" in shown.out
    assert attune(capsys, "study", "show", "first", "--home", home, "--json").json["wanted"] == 9
    assert "too fast" in attune(capsys, "study", "flag", "first", "--home", home).out
    assert "0 votes" in attune(capsys, "study", "export", "first", tmp_path / "out", "--home", home).out
    assert (tmp_path / "out" / "SHA256SUMS").exists()
    again = attune(capsys, "study", "export", "first", tmp_path / "out", "--home", home)
    assert again.code == 1 and "exists already" in again.err
    for verb, state in (("pause", "paused"), ("close", "closed")):
        assert attune(capsys, "study", verb, "first", "--home", home, "--json").json["state"] == state


def test_a_rater_is_withdrawn_by_the_code_of_their_page(home, tmp_path, capsys):
    from alignment.db.figures import study_raters
    from alignment.db.studies import get_study
    from alignment.domain import RaterKind
    from alignment.votes import VoteService

    attune(capsys, "study", "create", _recipe(tmp_path), "--open", "--home", home)
    database = open_database(f"sqlite:///{home / 'attune.db'}")
    service = VoteService(database, secret="a secret for tests only")
    service.open_session(service.enrol_rater("somebody", kind=RaterKind.HUMAN), "first")
    with database.session(write=False) as s:
        study = get_study(s, "first")
        (rater,) = study_raters(s, study.id)
    code = "-".join(rater.code[i : i + 4] for i in range(0, 16, 4))
    assert attune(capsys, "study", "withdraw", "first", "0000-0000-0000-0000", "--yes", "--home", home).code == 1
    assert attune(capsys, "study", "withdraw", "first", code, "--yes", "--home", home, "--json").json["votes"] == 0
    with database.session(write=False) as s:
        assert study_raters(s, study.id)[0].status == "withdrawn"
    database.close()


def test_every_fault_of_a_recipe_is_told_at_once(home, tmp_path, capsys):
    path = _recipe(tmp_path, votes_per_pair=0, acess="open")
    told = attune(capsys, "study", "create", path, "--home", home)
    assert told.code == 1 and "did you mean access" in told.err and "votes_per_pair" in told.err
    assert attune(capsys, "study", "show", "nothing", "--home", home).err.startswith("attune: No study is called")


def test_an_account_gets_its_password_from_stdin_and_never_from_the_command_line(home, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))
    made = attune(capsys, "account", "add", "ada", "--role", "admin", "--home", home)
    assert made.code == 0 and "admin" in made.out
    database = open_database(f"sqlite:///{home / 'attune.db'}")
    assert Accounts(database).log_in("ada", PASSWORD, address="1").is_admin
    database.close()
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    refused = attune(capsys, "account", "password", "ada", "--home", home)
    assert refused.code == 1 and "10 to 200" in refused.err and "short" not in refused.err
    last = attune(capsys, "account", "disable", "ada", "--home", home)
    assert last.code == 1 and "last admin" in last.err
    attune(capsys, "account", "add", "olga", "--no-password", "--home", home)
    attune(capsys, "account", "disable", "olga", "--home", home)
    rows = attune(capsys, "account", "list", "--home", home, "--json").json
    assert [(row["name"], row["password"], row["standing"]) for row in rows] == [
        ("ada", "yes", "open"), ("olga", "no", "disabled"),
    ]  # fmt: skip
    for name in ("add", "password"):
        assert not re.search(r"--password\b", attune(capsys, "account", name, "--help").out)


def test_scores_of_a_reward_model_fill_the_dashboard_and_replace_older_ones(home, tmp_path, capsys, monkeypatch):
    from types import SimpleNamespace

    import numpy as np

    from alignment.circle import score_study
    from alignment.db import figures, runs, studies

    attune(capsys, "study", "create", _recipe(tmp_path), "--home", home)
    database = open_database(f"sqlite:///{home / 'attune.db'}")
    with database.session() as s:
        run_id = runs.add_train_run(s, kind="reward", snapshot_id=None, config={}, metrics={})
        runs.add_reward_model(
            s, name="judge", train_run_id=run_id, encoder="clap", heads=["preference"], calibration={},
            artefact_sha256="2" * 64, artefact_uri="rewards/1",
        )  # fmt: skip
    given = []

    def score_each(ws, reward, prompts, clips, progress):
        """The model's stand-in: a clip's score is its place among those it was given, plus the number of the run."""
        order = [clip.id for prompt in prompts for clip in clips[prompt.id]]
        given.append(order)
        preference = np.arange(len(order)) + 10.0 * len(given)
        return SimpleNamespace(preference=preference, uncertainty=np.full(len(order), 0.5))

    monkeypatch.setattr(score_study, "load_reward_model", lambda ws, name: name)
    monkeypatch.setattr(score_study, "score_each", score_each)
    for run in (1, 2):
        done = attune(capsys, "reward", "score", "judge", "--study", "first", "--home", home, "--json")
        assert done.code == 0 and done.json["clips"] == 6
        with database.session(write=False) as s:
            clips = figures.study_clip_ids(s, studies.get_study(s, "first").id)
            found = figures.clip_scores(s, clips)["judge"]
        assert found == {clip: (place + 10.0 * run, 0.5) for place, clip in enumerate(given[-1])}
    database.close()
    unknown = attune(capsys, "reward", "score", "nobody", "--study", "first", "--home", home)
    assert unknown.code == 1 and "known: judge" in unknown.err
