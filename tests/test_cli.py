"""The command line: the circle by hand, and one clear sentence with a non-zero exit for whatever goes wrong."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from circle_support import CLIP_SECONDS, FIRST_STEPS, attune, leftovers, turn_by_hand

from alignment.config import REPOSITORY


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with clips, simulated votes, a snapshot and a reward model; copied before use, never written to."""
    home = tmp_path_factory.mktemp("turned")
    turn_by_hand(home, FIRST_STEPS)
    return home


@pytest.fixture
def home(turned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(turned, tmp_path / "home"))


def count(home: Path, table: str) -> int:
    with sqlite3.connect(home / "attune.db") as connection:
        return connection.execute(f"select count(*) from {table}").fetchone()[0]


def is_sound(home: Path) -> bool:
    with sqlite3.connect(home / "attune.db") as connection:
        whole = connection.execute("pragma integrity_check").fetchone()[0] == "ok"
        return whole and not connection.execute("pragma foreign_key_check").fetchall()


def small_recipe(tmp_path: Path, **more: object) -> Path:
    path = tmp_path / "dpo.yaml"
    path.write_text(
        "\n".join(f"{k}: {v}" for k, v in {"num_train_epochs": 1, "lora": "{r: 4, lora_alpha: 8}", **more}.items())
    )
    return path


def test_the_circle_turns_by_hand_and_the_version_knows_its_lineage(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = attune(capsys, "align", "dpo", "tiny-v1", "--snapshot", "votes-1", "--config", small_recipe(tmp_path),
                  "--home", home, "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["simulated"] is True
    shown = attune(capsys, "versions", "show", "tiny-v1", "--home", home)
    assert "dpo on snapshot votes-1" in shown.out
    assert "trained on simulated votes" in shown.out
    listed = attune(capsys, "versions", "list", "--home", home, "--json").json
    assert [row["name"] for row in listed] == ["tiny-base", "tiny-v1"]
    assert listed[1]["parent"] == "tiny-base" and listed[1]["votes"] == "simulated"


def test_generating_again_sings_nothing_twice(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = count(home, "clip")
    again = attune(capsys, *FIRST_STEPS[1], "--home", home, "--json")
    assert again.code == 0
    assert len(again.json["clips"]) == before == count(home, "clip") == 48


def test_the_same_seed_gives_the_same_clips_votes_and_snapshot_in_another_home(
    turned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    turn_by_hand(other, FIRST_STEPS[:4])
    clips = []
    for where in (turned, other):
        with sqlite3.connect(where / "attune.db") as connection:
            clips.append(connection.execute("select audio_sha256 from clip order by audio_sha256").fetchall())
    assert clips[0] == clips[1]

    def said(where: Path) -> list[tuple]:
        """Every vote as prompt, the two sounds as shown, and outcome: no id, no time."""
        with sqlite3.connect(where / "attune.db") as connection:
            return connection.execute(
                "select p.text, l.audio_sha256, r.audio_sha256, v.outcome from vote v "
                "join assignment a on a.id = v.assignment_id join battle b on b.id = a.battle_id "
                "join prompt p on p.id = b.prompt_id "
                "join clip l on l.id = case when a.left_is_clip_1 then b.clip_1_id else b.clip_2_id end "
                "join clip r on r.id = case when a.left_is_clip_1 then b.clip_2_id else b.clip_1_id end "
                "order by 1, 2, 3, 4"
            ).fetchall()

    assert said(turned) == said(other)
    assert len(said(other)) == 48


def test_shuffling_permutes_winners_in_the_snapshot_and_leaves_the_votes_alone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes = count(home, "vote")
    plain = attune(capsys, "snapshot", "plain", "--study", "first", "--home", home, "--json").json
    shuffled = attune(capsys, "snapshot", "mixed", "--study", "first", "--shuffle-votes", "--home", home, "--json").json
    assert plain["content_sha256"] != shuffled["content_sha256"]
    assert plain["counts"]["decisive"] == shuffled["counts"]["decisive"]
    assert count(home, "vote") == votes


# One clear sentence ---------------------------------------------------------------------------------------


def refused(done, *words: str) -> None:
    """Exit 1, nothing on stdout, one sentence on stderr that says these words; no traceback."""
    assert done.code == 1, (done.out, done.err)
    assert done.out == ""
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("attune: ") and "Traceback" not in done.err
    for word in words:
        assert word in line, line


def test_a_wrong_key_in_a_recipe_is_named_with_the_right_one(home: Path, tmp_path: Path, capsys) -> None:
    done = attune(
        capsys,
        "align",
        "dpo",
        "v",
        "--snapshot",
        "votes-1",
        "--config",
        small_recipe(tmp_path, bata=0.1),
        "--home",
        home,
    )
    refused(done, "unknown key bata", "did you mean beta?")
    assert count(home, "version") == 1


def test_a_value_out_of_range_is_refused_before_anything_is_made(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "demo.yaml"
    recipe.write_text("train_prompts: 2\n")
    refused(
        attune(capsys, "demo", "--config", recipe, "--home", tmp_path / "demo"),
        "train_prompts is 2",
        "greater than or equal to 8",
    )
    assert not (tmp_path / "demo").exists()


def test_a_missing_recipe_is_refused(tmp_path: Path, capsys) -> None:
    refused(attune(capsys, "demo", "--config", tmp_path / "no.yaml", "--home", tmp_path / "d"), "no such file")


def test_a_missing_database_is_refused_and_not_created(tmp_path: Path, capsys) -> None:
    refused(attune(capsys, "versions", "list", "--home", tmp_path), "run `attune db upgrade`")
    assert not (tmp_path / "attune.db").exists()


def test_an_empty_database_has_nothing_to_vote_on(tmp_path: Path, capsys) -> None:
    assert attune(capsys, "db", "upgrade", "--home", tmp_path).code == 0
    refused(
        attune(capsys, "simulate-votes", "--study", "s", "--home", tmp_path), "no clips to vote on", "attune generate"
    )
    refused(attune(capsys, "generate", "--home", tmp_path), "nothing to sing")
    refused(attune(capsys, "serve", "--home", tmp_path, "--no-worker"), "generate")


def test_an_older_and_a_newer_database_are_refused_with_the_next_step(tmp_path: Path, capsys) -> None:
    from alignment.db import migrate

    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url, "0001")
    refused(attune(capsys, "versions", "list", "--home", tmp_path), "older", "attune db upgrade")
    migrate.upgrade(url)
    with sqlite3.connect(tmp_path / "attune.db") as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    refused(attune(capsys, "versions", "list", "--home", tmp_path), "newer")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "attune.db").write_text("not a database, but a text of some length\n" * 50)
    refused(attune(capsys, "versions", "list", "--home", tmp_path), "not a database")


def test_unknown_names_are_refused_with_the_known_ones(home: Path, capsys) -> None:
    refused(attune(capsys, "versions", "show", "nobody", "--home", home), "nobody", "tiny-base")
    refused(attune(capsys, "compare", "nobody", "--home", home), "nobody", "tiny-base")
    refused(attune(capsys, "snapshot", "s", "--study", "none", "--home", home), "none", "first")
    refused(attune(capsys, "generate", "--split", "trian", "--home", home), "trian", "train")


def test_a_damaged_clip_stops_the_reward_model_and_names_the_clip(home: Path, capsys) -> None:
    victim = next((home / "store").rglob("*.flac"))
    victim.chmod(0o644)
    victim.write_bytes(b"fLaC" + bytes(100))
    shutil.rmtree(home / "embeddings")  # what was heard already need not be heard again
    done = attune(capsys, "reward", "train", "likes-2", "--snapshot", "votes-1", "--home", home)
    refused(done, victim.stem[:12])
    assert count(home, "reward_model") == 1


def test_a_reward_training_that_was_stopped_goes_on_from_its_last_epoch(home: Path, capsys, monkeypatch) -> None:
    from alignment.rewards import fit

    trained, whole = [], fit._train_epoch

    def epoch(run, *rest):
        if len(trained) == 3:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(run.epoch)
        return whole(run, *rest)

    monkeypatch.setattr(fit, "_train_epoch", epoch)
    command = ("reward", "train", "likes-again", "--snapshot", "votes-1", "--home", home)
    assert attune(capsys, *command).code == 130
    assert attune(capsys, *command).code == 0
    assert trained[:5] == [0, 1, 2, "killed", 3]


def test_a_base_that_changed_since_it_was_registered_is_refused(home: Path, capsys) -> None:
    with sqlite3.connect(home / "attune.db") as connection:
        connection.execute("update version set base_sha256 = ?", ("0" * 64,))
    refused(
        attune(capsys, "generate", "--captions", "1", "--per-prompt", "1", "--version", "tiny-base", "--home", home),
        "tiny-base",
    )


def test_clips_of_different_length_are_never_paired(tmp_path: Path, capsys) -> None:
    for seconds in ("0.5", "1.0"):
        step = ("generate", "--captions", "4", "--per-prompt", "2", "--seconds", seconds)
        turn_by_hand(tmp_path, [("db", "upgrade"), step])
    done = attune(capsys, "simulate-votes", "--study", "s", "--votes", "20", "--raters", "3", "--home", tmp_path)
    assert done.code == 0, done.err
    with sqlite3.connect(tmp_path / "attune.db") as connection:
        lengths = connection.execute(
            "select x.seconds, y.seconds from battle b join clip x on x.id = b.clip_1_id "
            "join clip y on y.id = b.clip_2_id"
        ).fetchall()
    assert lengths and all(x == y for x, y in lengths)


def test_a_prompt_that_is_no_text_is_refused(home: Path, capsys) -> None:
    for prompt in ("\udcff", "  ", "a\nb"):
        refused(attune(capsys, "generate", "--prompt", prompt, "--home", home), "not printable text")


def test_the_same_prompt_twice_is_sung_once(home: Path, capsys) -> None:
    twice = ("--prompt", "slow piano") * 2
    done = attune(capsys, "generate", *twice, "--per-prompt", "1", "--seconds", "0.5", "--home", home, "--json")
    assert len(done.json["clips"]) == 1


def test_captions_on_record_in_another_split_are_passed_over(home: Path, capsys) -> None:
    step = ("generate", "--captions", "5", "--per-prompt", "1", "--seconds", "0.5", "--split", "test", "--home", home)
    done = attune(capsys, *step, "--json")
    assert done.code == 0, done.err
    assert len({row["prompt"] for row in done.json["clips"]}) == 5


def test_a_version_with_an_adapter_is_no_parent(home: Path, tmp_path: Path, capsys) -> None:
    recipe = ("--snapshot", "votes-1", "--config", small_recipe(tmp_path), "--home", home)
    made = attune(capsys, "align", "dpo", "v1", *recipe)
    assert made.code == 0 and made.out.strip().endswith("trained on simulated votes")
    refused(attune(capsys, "align", "dpo", "v2", "--parent", "v1", *recipe), "carries an adapter", "tiny-base")
    refused(attune(capsys, "align", "dpo", "v1", *recipe), "exists already")
    refused(attune(capsys, "align", "dpo", "../v3", *recipe), "is no name")
    refused(attune(capsys, "reward", "train", "likes-1", "--snapshot", "votes-1", "--home", home), "exists already")


def test_a_port_in_use_is_refused_before_a_study_is_made(home: Path, capsys) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(attune(capsys, "serve", "--home", home, "--port", port), port, "give another --port")
    assert count(home, "study") == 1


def test_a_home_that_cannot_hold_the_demo_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    refused(attune(capsys, "demo", "--home", tmp_path / "file"), "cannot hold the demo")


def test_a_password_is_never_printed(capsys) -> None:
    url = "postgresql+psycopg://someone:topsecret@127.0.0.1:1/attune"
    done = attune(capsys, "db", "current", "--database", url)
    assert "topsecret" not in done.out + done.err


# Ctrl-C and a full disk -----------------------------------------------------------------------------------

STAGES = {
    "generate": (
        ("generate", "--captions", "3", "--seed", "9", "--seconds", CLIP_SECONDS),
        "alignment.clips.ClipStore.put_codes",
        "clip",
    ),
    "vote": (
        ("simulate-votes", "--study", "second", "--votes", "20", "--raters", "2"),
        "alignment.votes.VoteService.record_vote",
        "vote",
    ),
    "snapshot": (("snapshot", "votes-2", "--study", "first"), "alignment.db.snapshots.add_snapshot", "snapshot"),
    "reward": (
        ("reward", "train", "likes-2", "--snapshot", "votes-1"),
        "alignment.rewards.model.RewardModel.save",
        "reward_model",
    ),
    "dpo": (("align", "dpo", "v2", "--snapshot", "votes-1"), "alignment.training.losses.sequence_logprobs", "version"),
}


def interrupting(after: int, error: BaseException, original):
    """``original``, until it has been called ``after`` times; then ``error`` in its place."""
    calls = {"n": 0}

    def call(*arguments, **named):
        calls["n"] += 1
        if calls["n"] > after:
            raise error
        return original(*arguments, **named)

    return call


def stop_inside(monkeypatch: pytest.MonkeyPatch, target: str, after: int, error: BaseException) -> None:
    """Replace ``target`` wherever modules have imported it."""
    import importlib
    import sys

    module_name, _, name = target.rpartition(".")
    try:
        owner = importlib.import_module(module_name)
    except ModuleNotFoundError:
        parent, _, cls = module_name.rpartition(".")
        owner = getattr(importlib.import_module(parent), cls)
    original = getattr(owner, name)
    replacement = interrupting(after, error, original)
    monkeypatch.setattr(owner, name, replacement)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("alignment") and getattr(module, name, None) is original:
            monkeypatch.setattr(module, name, replacement)


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_whole_things_only_and_the_same_command_goes_on(
    stage: str, home: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, target, table = STAGES[stage]
    if stage == "dpo":
        command = (*command, "--config", str(small_recipe(tmp_path)))
        import alignment.training.dpo  # noqa: F401  (so that the name it imported is replaced too)
    before = count(home, table)
    with monkeypatch.context() as patch:
        stop_inside(patch, target, {"generate": 2, "vote": 5, "dpo": 3}.get(stage, 0), KeyboardInterrupt())
        stopped = attune(capsys, *command, "--home", home)
    assert stopped.code == 130
    assert stopped.err.strip().splitlines()[-1].startswith("attune: Stopped.")
    assert is_sound(home)
    assert leftovers(home) == []
    assert count(home, table) == before + (5 if stage == "vote" else 0)  # each vote is its own transaction
    again = attune(capsys, *command, "--home", home)
    assert again.code == 0, again.err
    assert count(home, table) > before


@pytest.mark.parametrize("stage", ["generate", "snapshot", "reward"])
def test_a_full_disk_is_one_sentence_and_nothing_half_written(
    stage: str, home: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, _, table = STAGES[stage]
    if stage == "snapshot":  # other content than the store has: what is there already is not written again
        command = (*command, "--shuffle-votes")
    if stage == "reward":
        (tmp_path / "reward.yaml").write_text("hidden: 8\n")
        command = (*command, "--config", str(tmp_path / "reward.yaml"))
    before = count(home, table)
    files = {p for p in (home / "store").rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        stop_inside(patch, "alignment.clips._write", 0, OSError(errno.ENOSPC, "No space left on device"))
        refused(attune(capsys, *command, "--home", home), "No space left on device")
    assert count(home, table) == before and is_sound(home)
    assert {p for p in (home / "store").rglob("*") if p.is_file()} == files


def test_the_report_page_is_not_left_half_written(home: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    before = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupting(0, OSError(errno.ENOSPC, "No space left on device"), before))
        from alignment.circle.listen import CREDIT
        from alignment.domain import Comparison, Outcome
        from alignment.errors import StoreError
        from alignment.evaluation.report import Contest, ReportData, write_report
        from alignment.evaluation.win_rate import win_rate

        votes = [
            Comparison("a", "b", CREDIT[o], o, f"r{i % 3}", f"p{i}") for i, o in enumerate([Outcome.A, Outcome.B] * 5)
        ]
        data = ReportData("t", "2026-01-01", True, "a", "b", [Contest("a vs b", win_rate(votes, "a"))])
        with pytest.raises(StoreError, match="No space left on device"):
            write_report(data, home / "report.html")
    assert not (home / "report.html").exists() and leftovers(home) == []


def test_the_shipped_clips_of_one_prompt_differ(turned: Path) -> None:
    """attune-tiny sings something, and not always the same."""
    from alignment.clips import ClipStore

    store = ClipStore(str(turned / "store"))
    with sqlite3.connect(turned / "attune.db") as connection:
        rows = connection.execute("select prompt_id, audio_sha256, lufs from clip").fetchall()
    assert len({sha for _, sha, _ in rows}) == len(rows) == 48
    assert sum(lufs is not None and lufs > -45 for *_, lufs in rows) > 40
    audio, rate = store.get_audio(rows[0][1])
    assert rate == 16_000 and audio.shape == (16_000,) and np.abs(audio).max() > 0.01


def test_the_migrations_ship_with_the_checkout() -> None:
    assert (REPOSITORY / "migrations" / "env.py").exists()
