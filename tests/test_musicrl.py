"""MusicRL in simulation, with a stand-in for PPO: every stage once, and a stopped run goes on."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from circle_support import attune, leftovers

from alignment.circle import listen, musicrl_contests, musicrl_runs
from alignment.circle.kept import Kept
from alignment.circle.musicrl_contests import differing, meetings, rate_from
from alignment.circle.musicrl_curves import held_out_weights
from alignment.circle.musicrl_votes import SEEDS, agrees, ask, listener_seed
from alignment.circle.workspace import Workspace, no_progress
from alignment.clips import ClipStore
from alignment.config import REPOSITORY, MusicRlSettings, PpoSettings, load_recipe, parse_recipe
from alignment.domain import Split
from alignment.errors import ConfigError, StoreError
from alignment.simulation.listeners import draw_population, load_listeners
from tests.database_support import sqlite_database, sqlite_url  # noqa: F401
from tests.training_support import pair

RECIPE = """
voted_prompts: 12
held_out_prompts: 10
clips_per_prompt: 2
user_votes: 36
rater_votes: 30
listeners: 4
policy_prompts: 8
watch_prompts: 6
test_prompts: 8
test_votes: 24
test_listeners: 4
test_pool: 2
generation: {clip_seconds: 1.0}
reward: {epochs: 4}
runs:
  R: {weights: {caption_contrast: 1.0, quality: 1.0}, ppo: {generation: {clip_seconds: 0.5}}}
  U: {weights: {preference: 1.0}, ppo: {generation: {clip_seconds: 0.5}}}
  RU: {weights: {preference: 1.0}, ppo: {generation: {clip_seconds: 0.5}}}
  joint: {weights: {text_adherence: 1.0, quality: 1.0, preference: 1.0}, ppo: {generation: {clip_seconds: 0.5}}}
expert: {num_train_epochs: 1, lora: {r: 2, lora_alpha: 4}}
"""
CHANGING = {"seconds", "stages", "peak_memory_mb", "database", "report"}
Interrupt = Callable[[str], None]


class StandInPpo:
    """Trains nothing: pushes the adapter's weights by a step's number, asks the watch, and saves what it has."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, model, prompts, reward, settings: PpoSettings, run_dir: Path, *, reference="base", watch=None,
                 resume=False, on_step=None):  # fmt: skip
        import torch

        from alignment.music.sampler import sample
        from alignment.training.trainer import TrainResult

        rollout = sample(model, prompts[:4], generation=settings.generation.to_domain(), seeds=[1, 2, 3, 4])
        rewards = reward(prompts[:4], rollout.codes)
        assert rewards.total.shape == (4,) and np.isfinite(rewards.total).all()
        self.calls.append({"run": run_dir.name, "reference": reference, "started": model.has_adapter,
                           "parts": set(rewards.parts), "resume": resume})  # fmt: skip
        if not model.has_adapter:
            model.add_adapter(settings.lora, seed=settings.seed)
        watched = []
        for step in (0, 1, 2):
            if step:
                generator = torch.Generator().manual_seed(len(run_dir.name) * 10 + step + ord(run_dir.name[0]))
                with torch.no_grad():
                    for weight in model.trainable_parameters():
                        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
            watched.append((step, dict(watch(step, model))))
        model.save_adapter(run_dir / "adapter")
        history = [{"step": step, "reward": 0.0} for step in (1, 2)]
        return TrainResult(run_dir / "adapter", history, 8, 2, 0.1, watched=watched)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, StandInPpo, Path]:
    """(summary, what PPO was asked for, folder) of one undisturbed run."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        ppo = StandInPpo()
        summary = reproduce(recipe, home, patch, ppo)
    return summary, ppo, home / "seed-0"


def reproduce(recipe: Path, home: Path, patch: pytest.MonkeyPatch, ppo: Callable) -> dict:
    """The summary of `attune reproduce musicrl` with ``ppo`` in PPO's place."""
    from typer.testing import CliRunner

    from alignment.cli import app

    patch.setattr("alignment.training.ppo.train_ppo", ppo)
    done = CliRunner().invoke(
        app, ["reproduce", "musicrl", "--config", str(recipe), "--home", str(home), "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_run_meets_the_base_and_the_others_before_listeners_who_never_voted(whole) -> None:
    summary, _, folder = whole
    met = [(m["candidate"], m["opponent"]) for m in summary["meetings"] if m["judges"] == "expert"]
    assert met == [
        ("R", "base"), ("U", "base"), ("RU", "base"), ("joint", "base"), ("expert", "base"), ("best-of-2", "base"),
        ("U", "R"), ("RU", "R"), ("RU", "U"), ("RU", "joint"),
    ]  # fmt: skip
    users = [(m["candidate"], m["opponent"]) for m in summary["meetings"] if m["judges"] == "musicrl"]
    assert users == [(run, "base") for run in ("R", "U", "RU", "joint")]
    for meeting in summary["meetings"]:
        assert meeting["votes"] == meeting["wins"] + meeting["ties"] + meeting["both_bad"] + meeting["losses"] <= 24
        decisive = meeting["wins"] + meeting["losses"]
        assert meeting["win_rate"] == pytest.approx(meeting["wins"] / decisive)
        assert meeting["win_rate_low"] <= meeting["win_rate"] <= meeting["win_rate_high"]
    with sqlite3.connect(folder / "attune.db") as connection:
        one = connection.execute
        assert {row[0] for row in one("select distinct kind from rater")} == {"simulated"}
        asked = one("select t.name, p.text from vote v join assignment a on a.id = v.assignment_id join battle b on "
                    "b.id = a.battle_id join prompt p on p.id = b.prompt_id join listening_session s on "
                    "s.id = v.session_id join study t on t.id = s.study_id").fetchall()  # fmt: skip
        taught = {text for name, text in asked if name in ("musicrl-raters", "musicrl-users")}
        held = {text for name, text in asked if name.endswith("held-out")}
        compared = {text for name, text in asked if "-against-" in name}
        assert taught and held and compared and not (taught & held or taught & compared or held & compared)
        assert all(row[0] for row in one("select simulated from version where adapter_sha256 is not null"))
    assert leftovers(folder) == []


def test_each_run_has_its_own_rewards_and_only_ru_starts_from_r(whole) -> None:
    _, ppo, folder = whole
    assert [(call["run"], call["reference"], call["started"]) for call in ppo.calls] == [
        ("R", "base", False), ("U", "base", False), ("RU", "start", True), ("joint", "base", False),
    ]  # fmt: skip
    assert [call["parts"] for call in ppo.calls] == [
        {"caption_contrast", "quality"}, {"preference"}, {"preference"}, {"text_adherence", "quality", "preference"},
    ]  # fmt: skip
    with sqlite3.connect(folder / "attune.db") as connection:
        parents = dict(connection.execute(
            "select v.name, p.name from version v left join version p on p.id = v.parent_id").fetchall())  # fmt: skip
    assert parents["tiny-musicrl-ru"] == "tiny-musicrl-r" and parents["tiny-musicrl-u"] == "tiny-base"


def test_the_curves_hold_every_reward_and_the_judges_word_and_begin_at_the_base(whole) -> None:
    folder = whole[2]
    page = (folder / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="attune-report">(.*?)</script>', page, re.S).group(1))
    assert [curve["run"] for curve in data["curves"]] == ["R", "U", "RU", "joint"]
    for curve in data["curves"]:
        figures = curve["figures"]
        assert {"proxy", "held_out_reward", "kl", "gold", "gold_adherence", "score/clap_cosine"} <= set(figures)
        assert [step for step, _ in figures["gold"]] == [0, 1, 2]
        total = sum(weight * dict(figures[f"score/{name}"])[2] for name, weight in curve["weights"].items())
        assert dict(figures["proxy"])[2] == pytest.approx(total)
    first = {curve["run"]: curve["figures"] for curve in data["curves"]}
    assert first["R"]["kl"][0][1] == pytest.approx(0.0, abs=0.05), "before training a fresh adapter is the base"
    assert first["RU"]["kl"][0][1] > 1.0, "RU begins where R ended, and its KL is to the base"
    assert first["R"]["gold"][0] == first["U"]["gold"][0], "the same captions with the same random numbers"


def test_the_page_marks_simulated_listeners_and_fetches_nothing(whole) -> None:
    summary, _, folder = whole
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert (
        page.count("Simulated listeners") > 5
        and "83.0%<small>65 / 22.1 / 12.9</small>" in page
        and "expert iteration vs base" in page
    )
    rate = next(m for m in summary["meetings"] if m["candidate"] == "RU" and m["opponent"] == "R")
    row = re.search(r'<tr><th scope="row">RU vs R<.*?</tr>', page, re.S).group()
    assert f"{100 * rate['win_rate']:.1f}%" in row and "66.0%" in row
    assert all(f'run-{run}"' in page for run in ("r", "u", "ru", "joint"))
    assert json.loads((folder / "summary.json").read_text()) == summary


def stop_after(patch: pytest.MonkeyPatch, owner: object, name: str, count: int) -> None:
    """From now on the call number ``count`` of ``owner.name`` does its work, and then the run is stopped."""
    real, calls = getattr(owner, name), []

    def stopping(*arguments, **options):
        calls.append(name)
        done = real(*arguments, **options)
        if len(calls) == count:
            raise KeyboardInterrupt
        return done

    patch.setattr(owner, name, stopping)


@pytest.mark.slow
def test_a_run_stopped_anywhere_ends_as_an_undisturbed_one_and_makes_nothing_twice(whole, recipe, tmp_path) -> None:
    summary, _, folder = whole
    ppo = StandInPpo()
    stops = [
        (listen, "simulate_votes", 2),  # the second panel has voted, and nothing says so yet
        (musicrl_runs, "register_adapter", 1),  # R is registered, and nothing says so yet
        (musicrl_runs, "register_adapter", 2),  # after U's, RU's
        (musicrl_contests, "sing", 1),
        (listen, "simulate_votes", 3),
        (musicrl_contests, "judged", 1),
    ]
    for owner, name, count in stops:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, owner, name, count)
            with pytest.raises(KeyboardInterrupt):
                interrupted(recipe, tmp_path, patch, ppo)
    with pytest.MonkeyPatch.context() as patch:
        again = reproduce(recipe, tmp_path, patch, ppo)
    same = [{k: v for k, v in run.items() if k not in CHANGING} for run in (summary, again)]
    for run in same:
        for meeting in run["meetings"]:
            meeting.pop("study")
    assert same[0] == same[1]
    adapters = []
    for home in (folder, tmp_path / "seed-0"):
        with sqlite3.connect(home / "attune.db") as connection:
            rows = connection.execute("select name, adapter_sha256 from version order by name").fetchall()
            clips = connection.execute("select count(*), count(distinct audio_sha256 || seed) from clip").fetchone()
        adapters.append((rows, clips))
    assert adapters[0] == adapters[1]
    assert [call["run"] for call in ppo.calls] == ["R", "R", "U", "RU", "RU", "joint"], (
        "what was cut is asked again, no more"
    )
    assert all(call["resume"] for call in ppo.calls)


def interrupted(recipe: Path, home: Path, patch: pytest.MonkeyPatch, ppo: Callable) -> None:
    """The command's body without the command line, which would swallow the interrupt."""
    from alignment.cli.reproduce import musicrl

    patch.setattr("alignment.training.ppo.train_ppo", ppo)
    musicrl(home=home, config=recipe, quick=False, seed=None, listeners=None, as_json=False)


def test_another_recipe_in_the_same_folder_is_refused_by_the_keys_that_differ(whole, tmp_path, capsys) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("test_votes: 24", "test_votes: 23").replace("epochs: 4}", "epochs: 5}", 1))
    done = attune(capsys, "reproduce", "musicrl", "--config", other, "--home", whole[2].parent)
    assert done.code == 1 and "holds a run with other reward, test_votes;" in done.err and "--home" in done.err


def test_a_finished_stage_is_read_and_a_failed_one_leaves_nothing(tmp_path) -> None:
    kept = Kept(tmp_path, {"seed": 1})
    made = []
    for _ in range(2):
        assert kept.stage("a", lambda: made.append(1) or {"x": (1, 2)}) == {"x": [1, 2]}
    assert made == [1]
    with pytest.raises(ZeroDivisionError):
        kept.stage("b", lambda: 1 / 0)
    assert kept.stage("b", lambda: 3) == 3 and leftovers(tmp_path) == []
    (tmp_path / "stages" / "a.json").write_text('{"value":')
    with pytest.raises(StoreError, match="a.json cannot be read .*; remove it, and this stage is made again"):
        kept.stage("a", lambda: None)


def test_seconds_of_all_attempts_at_a_stage_add_up(tmp_path, monkeypatch) -> None:
    from contextlib import nullcontext

    times = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr("alignment.circle.kept.time.monotonic", lambda: next(times))
    for failing in (True, False):
        kept = Kept(tmp_path, {})
        try:
            with kept.timed("votes", lambda name: nullcontext(no_progress)):
                if failing:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert kept.seconds == {"votes": 5.0}


def small(**more) -> MusicRlSettings:
    return parse_recipe({"voted_prompts": 10, "held_out_prompts": 10, "watch_prompts": 4, "test_prompts": 8,
                         "policy_prompts": 5, "test_votes": 20, "user_votes": 20, "rater_votes": 20} | more,
                        MusicRlSettings)  # fmt: skip


def test_no_caption_serves_two_ends_and_the_same_seed_asks_the_same(sqlite_database, tmp_path) -> None:  # noqa: F811
    ws = Workspace(sqlite_database, ClipStore(str(tmp_path / "store")), "a secret for tests")
    asked = ask(ws, small())
    texts = [p.text for part in (asked.voted, asked.held_out, asked.watch, asked.test) for p in part] + asked.policy
    assert len(texts) == len(set(texts)) == 37
    assert [p.split for p in asked.voted] == [Split.TRAIN] * 8 + [Split.VALID] * 2 == [p.split for p in asked.held_out]
    assert {p.split for p in asked.watch} == {Split.TEST} and {p.split for p in asked.test} == {Split.LEADERBOARD}
    assert ask(ws, small()) == asked
    assert all(p.tags for p in asked.test), "the judge needs to know what a caption asks for"


def test_no_two_panels_share_a_listener_and_no_two_seeds_either() -> None:
    tastes = []
    for seed in (0, 1):
        for panel in SEEDS:
            drawn = draw_population(load_listeners(), "musicrl", 48, listener_seed(small(seed=seed), panel))
            tastes += [tuple(listener.taste.values()) for _, listener in drawn]
    assert len(tastes) == len(set(tastes)) == 2 * 6 * 48


def test_held_out_weights_stand_for_the_runs_own_and_those_that_share_a_head_add_up() -> None:
    assert held_out_weights({"preference": 2.0}) == {"preference": 2.0}
    assert held_out_weights({"clap_cosine": 0.5, "text_adherence": 1.0, "quality": 1.0}) == {
        "text_adherence": 1.5, "quality": 1.0,
    }  # fmt: skip


def test_meetings_are_those_of_the_entrants_there_are() -> None:
    assert meetings(["R", "expert"]) == [("base", "R"), ("base", "expert")]
    assert meetings(["R", "U", "RU"]) == [
        ("base", "R"), ("base", "U"), ("base", "RU"), ("R", "U"), ("R", "RU"), ("U", "RU"),
    ]  # fmt: skip


def test_the_same_codes_are_not_compared_however_their_audio_was_rounded() -> None:
    from types import SimpleNamespace

    def sung(**codes: str) -> dict:
        return {
            prompt: SimpleNamespace(codes_sha256=code, audio_sha256=f"{code}{id(codes)}")
            for prompt, code in codes.items()
        }

    first, rival = differing(sung(p1="a", p2="b"), sung(p1="a", p2="c"))
    assert list(first) == list(rival) == ["p2"] and rival["p2"].codes_sha256 == "c"
    assert differing(sung(p1="a"), sung(p1="a")) == ({}, {})


def test_agreement_counts_the_chosen_clip_and_halves_equal_scores() -> None:
    from alignment.domain import Outcome

    pairs = [pair(1, Outcome.A), pair(2, Outcome.B), pair(3, Outcome.A)]
    scores = np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert agrees(pairs, scores).tolist() == [1.0, 0.0, 0.5]


def test_recipes_that_do_not_fit_together_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="test_votes .* cannot be above 3 for each of 8"):
        small(test_votes=25)
    with pytest.raises(ConfigError, match="user_votes .* cannot be above 3 for each of 10 pairs"):
        small(clips_per_prompt=2, user_votes=31)
    with pytest.raises(ConfigError, match="R is the one that all others stand beside"):
        small(runs={"U": {"weights": {"preference": 1.0}}})
    with pytest.raises(ConfigError, match="unknown key runs.R.wieghts; did you mean weights"):
        small(runs={"R": {"wieghts": {"quality": 1.0}}})
    with pytest.raises(ConfigError, match="loudness"):
        small(runs={"R": {"weights": {"loudness": 1.0}}})


def test_the_shipped_recipes_keep_musicrls_order_and_size(capsys, tmp_path) -> None:
    full = load_recipe(REPOSITORY / "configs" / "musicrl.yaml", MusicRlSettings)
    quick = load_recipe(REPOSITORY / "configs" / "musicrl-quick.yaml", MusicRlSettings)
    assert set(full.runs) == {"R", "U", "RU", "joint"} and set(quick.runs) == {"R"} and quick.quick
    assert full.test_votes == 1200 and full.runs["RU"].weights == full.runs["U"].weights
    assert set(full.runs["joint"].weights) == set(full.runs["R"].weights) | set(full.runs["U"].weights)
    both = attune(capsys, "reproduce", "musicrl", "--quick", "--config", "x.yaml", "--home", tmp_path)
    assert both.code == 1 and "--quick or --config, not both" in both.err
    unknown = attune(capsys, "reproduce", "musicrl", "--quick", "--listeners", "nobody", "--home", tmp_path)
    assert unknown.code == 1 and "no population nobody" in unknown.err and not list(tmp_path.iterdir())


def test_a_win_rate_survives_being_kept_as_json(whole) -> None:
    stored = json.loads((whole[2] / "stages" / "meet-RU-R.json").read_text())["value"]
    rate = rate_from(stored["rate"])
    assert (rate.candidate, rate.opponents) == ("RU", ("R",)) and rate.left_share.n == rate.decisive
    shown = next(m for m in whole[0]["meetings"] if (m["candidate"], m["opponent"]) == ("RU", "R"))
    assert rate.decisive_value == shown["win_rate"] and rate.interval.low == shown["half_ties_low"]
