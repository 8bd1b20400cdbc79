"""The demo at a very small size: the circle closes, the result is traceable, the control shuffles only training."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from circle_support import attune, leftovers

from alignment.circle import online
from alignment.config import DemoSettings, load_recipe
from alignment.db.engine import open_database

RECIPE = """
train_prompts: 20
clips_per_prompt: 3
train_votes: 60
train_raters: 4
best_of: 3
test_prompts: 10
test_votes: 30
test_raters: 3
generation: {clip_seconds: 1.0}
reward: {epochs: 8}
align: {gate: false, gate_folds: 3}
dpo: {num_train_epochs: 1, lora: {r: 4, lora_alpha: 8}}
expert: {num_train_epochs: 1, lora: {r: 4, lora_alpha: 8}}
"""
NEEDED = {
    "aligned", "method", "methods", "gate_passed", "win_rate", "win_rate_low", "win_rate_high", "decisive_votes",
    "best_of_4_win_rate", "reward_accuracy", "kl_nats_per_clip", "diversity_base", "diversity_aligned", "verdict",
    "stages", "seconds", "peak_memory_mb", "database", "report", "simulated",
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


def test_the_circle_closes_and_every_figure_is_there(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    panels = watch_panels(monkeypatch)
    done = attune(capsys, "demo", "--config", recipe, "--home", tmp_path, "--seed", "3", "--json")
    assert done.code == 0, done.err
    summary = done.json
    assert set(summary) >= NEEDED
    assert summary["simulated"] is True
    assert 0 <= summary["win_rate_low"] <= summary["win_rate"] <= summary["win_rate_high"] <= 1
    assert summary["verdict"] == ("gain" if summary["win_rate_low"] > 0.5 else "no gain")
    assert sum(summary["stages"].values()) == pytest.approx(summary["seconds"], rel=0.5)
    folder = tmp_path / "001"
    assert f"attune serve --home {folder}" in done.out
    with sqlite3.connect(folder / "attune.db") as connection:
        one = connection.execute
        assert one("select count(*) from vote").fetchone()[0] == 60 + 3 * 30
        most = one("select max(n), count(*) from (select count(*) n from vote v join assignment a "
                   "on a.id = v.assignment_id group by a.battle_id)").fetchone()  # fmt: skip
        assert most == (3, 60 + 3 * 10), "at most three votes on one pair, and every held-out pair has three"
        assert {row[0] for row in one("select distinct kind from rater")} == {"simulated"}
        assert one("select count(*) from version").fetchone()[0] == 3
        voted = {r[0] for r in one("select p.text from snapshot_member m join vote v on v.id = m.vote_id "
                                   "join assignment a on a.id = v.assignment_id join battle b on b.id = a.battle_id "
                                   "join prompt p on p.id = b.prompt_id")}  # fmt: skip
        held_out = {r[0] for r in one("select text from prompt where split = 'leaderboard'")}
        assert voted and held_out and not voted & held_out
    trained, *compared = panels
    assert len(compared) >= 3 and len({frozenset(panel) for panel in compared}) == 1, "one panel for every contest"
    assert all(not trained & panel for panel in compared), "the comparison needs tastes that trained nothing"
    assert [m["label"] for m in summary["methods"]] == ["base", "best-of-2", "best-of-4", "expert iteration", "DPO"]
    met = {m["name"]: m for m in summary["methods"] if m["votes"]}
    assert set(met) == {"best-of-4", "tiny-expert", "tiny-dpo"} and all(m["votes"] == 30 for m in met.values())
    assert met["tiny-dpo"]["win_rate"] == summary["win_rate"] and summary["version"] == "tiny-dpo"
    page = Path(summary["report"]).read_text(encoding="utf-8")
    for label in ("best-of-2", "best-of-4", "expert iteration", "DPO"):
        assert f'<th scope="row">{label}<small>10 prompts</small></th>' in page
    methods = re.search(r'<section id="methods".*?</section>', page, re.S).group()
    assert 'class="badge">Simulated listeners<' in methods and "To the gold judge, DPO against the base" in page
    assert "imulated" in page and "data:audio/flac;base64," in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page), "the report must make no outside request"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert leftovers(folder) == []


def watch_panels(monkeypatch: pytest.MonkeyPatch) -> list[set]:
    """The hidden tastes of every panel of listeners that is drawn from now on."""
    from alignment.circle import listen

    panels: list[set] = []
    draw = listen.draw_population

    def watched(*arguments):
        drawn = draw(*arguments)
        panels.append({tuple(listener.taste.values()) for _, listener in drawn})
        return drawn

    monkeypatch.setattr(listen, "draw_population", watched)
    return panels


def test_compare_draws_listeners_and_prompts_that_trained_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    from circle_support import FIRST_STEPS, turn_by_hand

    panels = watch_panels(monkeypatch)
    turn_by_hand(tmp_path, FIRST_STEPS[:4])
    small = tmp_path / "dpo.yaml"
    small.write_text("num_train_epochs: 1\nlora: {r: 4, lora_alpha: 8}\n")
    assert (
        attune(capsys, "align", "dpo", "v1", "--snapshot", "votes-1", "--config", small, "--home", tmp_path).code == 0
    )
    arguments = ("compare", "v1", "--prompts", "6", "--votes", "12", "--raters", "3", "--home", tmp_path, "--json")
    done = attune(capsys, *arguments, "--report", tmp_path / "r.html")
    assert done.code == 0, done.err
    assert done.json["votes"] <= 12 and done.json["simulated"] is True
    assert (tmp_path / "r.html").exists()
    trained, compared = panels
    assert trained and compared and not trained & compared
    again = attune(capsys, *arguments)
    assert again.json["win_rate"] == done.json["win_rate"], "the same comparison again counts the same votes"


def test_a_second_demo_gets_a_folder_of_its_own_and_the_same_seed_the_same_result(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    runs = [attune(capsys, "demo", "--config", recipe, "--home", tmp_path, "--json").json for _ in range(2)]
    assert runs[0]["database"] != runs[1]["database"]
    changing = {"seconds", "stages", "peak_memory_mb", "database", "report"}
    for run in runs:
        for method in run["methods"]:
            method.pop("train_seconds")
    first, second = ({k: v for k, v in run.items() if k not in changing} for run in runs)
    assert first == second


def test_shuffled_votes_train_another_model_and_leave_the_votes_as_they_were(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    plain = attune(capsys, "demo", "--config", recipe, "--home", tmp_path, "--json").json
    control = attune(capsys, "demo", "--config", recipe, "--home", tmp_path, "--shuffle-votes", "--json").json
    assert control["shuffled"] is True and plain["shuffled"] is False
    outcomes = []
    adapters = set()
    for number in ("001", "002"):
        with sqlite3.connect(tmp_path / number / "attune.db") as connection:
            outcomes.append(connection.execute(
                "select outcome, count(*) from vote v join assignment a on a.id = v.assignment_id "
                "join listening_session s on s.id = v.session_id join study t on t.id = s.study_id "
                "where t.name = 'demo-votes' group by 1 order by 1").fetchall())  # fmt: skip
            adapters |= set(connection.execute("select adapter_sha256 from version where adapter_sha256 is not null"))
    assert outcomes[0] == outcomes[1]
    assert len(adapters) == 4, "two versions a run, none trained on the other run's votes"


def test_the_gate_stops_a_run_on_votes_without_a_signal_and_says_so(recipe: Path, tmp_path: Path, capsys) -> None:
    gated = tmp_path / "gated.yaml"
    gated.write_text(RECIPE.replace("gate: false", "gate: true"))
    done = attune(capsys, "demo", "--config", gated, "--home", tmp_path, "--shuffle-votes", "--json")
    assert done.code == 0, done.err
    summary = done.json
    assert summary["reward_accuracy_low"] <= 0.5, "sixty shuffled votes carry no signal"
    assert (summary["aligned"], summary["verdict"], summary["win_rate"]) == (False, "not trained", None)
    assert summary["version"] is None and summary["methods"] == [] and summary["gate_passed"] is False
    said = "Not trained: the votes carry no signal the reward model can find, so nothing was trained."
    assert said in done.out.splitlines()
    page = Path(summary["report"]).read_text(encoding="utf-8")
    assert "nothing was trained" in page and "Not trained" in page and 'id="win-rates"' not in page
    assert "nan" not in done.out
    with sqlite3.connect(tmp_path / "001" / "attune.db") as connection:
        assert connection.execute("select name from version").fetchall() == [("tiny-base",)]
        assert connection.execute("select count(*) from train_run").fetchone()[0] == 0
    forced = attune(capsys, "demo", "--config", gated, "--home", tmp_path, "--shuffle-votes", "--no-gate", "--json")
    assert forced.json["aligned"] is True and forced.json["verdict"] in ("gain", "no gain")
    assert "The trust gate was switched off" in Path(forced.json["report"]).read_text(encoding="utf-8")


def test_the_method_in_the_recipe_is_the_headline_and_the_newest_version(tmp_path: Path, capsys) -> None:
    path = tmp_path / "staged.yaml"
    chosen = "align: {gate: false, gate_folds: 3, method: dpo_after_expert, rounds: 2, use_voted_pairs: false}"
    path.write_text(RECIPE.replace("align: {gate: false, gate_folds: 3}", chosen).replace("lora_alpha: 8}}\nexpert",
                    "lora_alpha: 8}, eval_steps: 1}\nexpert"))  # fmt: skip
    done = attune(capsys, "demo", "--config", path, "--home", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["version"] == "tiny-expert-dpo" and done.json["method"] == "dpo_after_expert"
    labels = [m["label"] for m in done.json["methods"]]
    assert labels[3:] == ["DPO", "expert iteration", "DPO after expert iteration, 2 rounds"]
    with sqlite3.connect(tmp_path / "001" / "attune.db") as connection:
        rows = connection.execute("select v.name, p.name from version v left join version p on p.id = v.parent_id "
                                  "order by v.id").fetchall()  # fmt: skip
    # The expert stage is trained once, and every further stage starts from the one before it.
    assert rows == [
        ("tiny-base", None), ("tiny-dpo", "tiny-base"), ("tiny-expert", "tiny-base"),
        ("tiny-expert-dpo-2", "tiny-expert"), ("tiny-expert-dpo", "tiny-expert-dpo-2"),
    ]  # fmt: skip


def test_ppo_goes_on_with_dpos_adapter_on_captions_that_nobody_voted_on(tmp_path: Path, capsys) -> None:
    path = tmp_path / "online.yaml"
    chosen = (
        "align: {gate: false, gate_folds: 3, method: ppo_after_dpo, beside: [dpo], use_voted_pairs: false, "
        "online_reward: {preference: 1.0, caption_contrast: 0.5}, online_captions: 6}\n"
        "ppo: {max_steps: 2, rollout_prompts: 4, num_generations: 1, generation: {clip_seconds: 0.5}}"
    )
    path.write_text(RECIPE.replace("align: {gate: false, gate_folds: 3}", chosen))
    done = attune(capsys, "demo", "--config", path, "--home", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.json["version"] == "tiny-dpo-ppo"
    assert [m["label"] for m in done.json["methods"]][3:] == ["DPO", "DPO, then PPO"]
    with sqlite3.connect(tmp_path / "001" / "attune.db") as connection:
        rows = connection.execute("select v.name, p.name from version v left join version p on p.id = v.parent_id "
                                  "order by v.id").fetchall()  # fmt: skip
        metrics = json.loads(connection.execute("select metrics from train_run where kind = 'ppo'").fetchone()[0])
        texts = {text for (text,) in connection.execute("select text from prompt")}
    assert rows == [("tiny-base", None), ("tiny-dpo", "tiny-base"), ("tiny-dpo-ppo", "tiny-dpo")]
    assert len(metrics["history"]) == 2 and metrics["online_captions"] == 6
    for step in metrics["history"]:
        parts = step["rewards/preference"] + 0.5 * step["rewards/caption_contrast"]
        assert step["reward"] == pytest.approx(parts, abs=1e-6)
    page = Path(done.json["report"]).read_text(encoding="utf-8")
    assert "Reward of the clips sung" in page
    # What PPO sings beside the voted prompts is recorded nowhere else: least of all among the held-out ones.
    ws = SimpleNamespace(database=open_database(f"sqlite:///{tmp_path / '001' / 'attune.db'}"))
    more = online._more_captions(ws, load_recipe(path, DemoSettings), [])
    assert len(more) == len(set(more)) == 6 and not texts & set(more)


def test_a_demo_that_cannot_run_says_why_in_one_sentence(recipe: Path, tmp_path: Path, capsys) -> None:
    both = attune(capsys, "demo", "--quick", "--config", recipe, "--home", tmp_path)
    assert both.code == 1 and "give --quick or --config, not both" in both.err
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(RECIPE.replace("test_votes: 30", "test_votes: 31"))
    many = attune(capsys, "demo", "--config", wrong, "--home", tmp_path)
    assert many.code == 1 and "test_votes (31) cannot be above 3 for each of 10 test_prompts" in many.err
    for done in (both, many):
        assert len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
