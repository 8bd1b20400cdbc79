"""The scripts that run the demo over seeds, controls and recipes: whole at a tiny size, and resumed."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from scripts import check_demo, demo_run, sweep_demo
from scripts.sweep_plot import write_curves

RECIPE = """
train_prompts: 16
clips_per_prompt: 3
train_votes: 48
train_raters: 4
best_of: 4
test_prompts: 8
test_votes: 24
test_raters: 3
generation: {clip_seconds: 0.5}
reward: {epochs: 4, ensemble: 2}
align: {gate_folds: 3, use_voted_pairs: false}
dpo: {num_train_epochs: 1, lora: {r: 4, lora_alpha: 8}}
expert: {num_train_epochs: 1, lora: {r: 4, lora_alpha: 8}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run the scripts' subprocesses inside this one, which saves their imports; the calls made are returned."""
    calls: list[list[str]] = []
    modules = {"scripts.demo_run": demo_run.main, "scripts.sweep_demo": sweep_demo.main}

    def call(module, arguments, *, threads, log):
        calls.append([str(a) for a in arguments])
        if modules[module](calls[-1]):
            raise RuntimeError("the worker failed")

    monkeypatch.setattr(check_demo, "call", call)
    monkeypatch.setattr(sweep_demo, "call", call)
    return calls


def test_controls_share_their_seeds_clips_and_votes_and_a_second_call_runs_nothing(
    recipe: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    calls, out = here(monkeypatch), tmp_path / "check"
    arguments = ["--seeds", "3", "--shuffles", "1", "--ungated", "--config", str(recipe), "--out", str(out),
                 "--jobs", "1", "--json"]  # fmt: skip
    assert check_demo.main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert [run["run"] for run in result["runs"]] == ["as-cast", "shuffled-1", "shuffled-1-no-gate"]
    assert result["shuffled"]["runs"] == result["shuffled_no_gate"]["runs"] == 1 and result["simulated"] is True
    assert result["shuffled_no_gate"]["not_trained"] == 0 and "| 3 | shuffled-1-no-gate |" in printed
    folder, shas, votes = out / "seed-3", [], []
    for name in ("as-cast", "shuffled-1", "shuffled-1-no-gate"):
        summary = json.loads((folder / name / "summary.json").read_text())
        assert summary["shuffled"] is (name != "as-cast") and summary["wall_seconds"] > summary["seconds"]
        with sqlite3.connect(folder / name / "attune.db") as connection:
            shas.append(
                connection.execute(
                    "select c.id, c.audio_sha256 from clip c join version v on "
                    "v.id = c.version_id where v.name = 'tiny-base' order by 1"
                ).fetchall()
            )
            votes.append(connection.execute("select v.id, v.outcome from vote v join listening_session l "
                                            "on l.id = v.session_id join study s on s.id = l.study_id where s.name = "
                                            "'demo-votes' order by 1").fetchall())  # fmt: skip
    assert shas[0] == shas[1] == shas[2] and len(shas[0]) == 16 * 4 + 8 * 5, "the same rows, sung once"
    assert votes[0] == votes[1] == votes[2] and len(votes[0]) == 48
    assert len(calls) == 3
    assert check_demo.main(arguments) == 0 and len(calls) == 3, "finished runs are not run again"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    (folder / "shuffled-1" / "summary.json").write_text("{")  # killed while it was written
    assert check_demo.main(arguments) == 0 and len(calls) == 4 and calls[-1][7] == "shuffled-1"
    recipe.write_text(RECIPE.replace("train_votes: 48", "train_votes: 47"))
    assert check_demo.main(arguments) == 1
    assert "holds runs of another recipe" in capsys.readouterr().err


def test_a_sweep_trains_every_point_on_one_pool_and_compares_on_prompts_of_its_own(
    recipe: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    calls, out = here(monkeypatch), tmp_path / "sweep"
    points = tmp_path / "points.yaml"
    points.write_text("- {align.method: expert, expert.learning_rate: 3e-3}\n")
    arguments = ["--out", str(out), "--config", str(recipe), "--prompts", "8", "--votes", "24", "--best-of", "4",
                 "--grid", "align.method=dpo dpo.beta=0.1,0.03", "--points", str(points), "--jobs", "1"]  # fmt: skip
    assert sweep_demo.main(arguments) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "sweep.json").read_text())
    assert [m["label"] for m in found["best_of"]["methods"]] == ["base", "best-of-2", "best-of-4"]
    assert {p["label"] for p in found["points"]} == {
        "method=dpo,dpo.beta=0.1", "method=dpo,dpo.beta=0.03", "method=expert,expert.learning_rate=0.003",
    }  # fmt: skip
    for point in found["points"]:
        assert point["votes"] == 24 and point["win_rate_low"] <= point["win_rate"] <= point["win_rate_high"]
        assert f"| {point['label']} |" in printed
        for key in ("judge_reward", "adherence", "cleanliness", "kl_nats_per_clip", "diversity", "seconds"):
            assert isinstance(point[key], float), key
    betas = {p["settings"]["dpo"]["beta"] for p in found["points"] if p["settings"]["align"]["method"] == "dpo"}
    assert betas == {0.1, 0.03}
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and rows[1]["kl_bound_nats"] and rows[1]["win_rate"]
    assert (out / "curves.svg").read_text().count("<circle") == 5 + 5 + 6  # key, win rates, judge rewards
    with sqlite3.connect(out / "prepared.db") as connection:
        demos = {text for s in range(20) for text, _ in sweep_demo_captions(16 + 8, 1000 + s)}
        sung = {r[0] for r in connection.execute("select distinct p.text from prompt p join clip c on c.prompt_id = "
                                                 "p.id where p.split = 'leaderboard'")}  # fmt: skip
    assert len(sung) == 8 and not sung & demos
    assert len(calls) == 4
    assert sweep_demo.main(arguments) == 0
    assert len(calls) == 5 and calls[-1][-1] == "", "only the preparation is looked at again"
    assert sweep_demo.main([*arguments, "--seed", "1"]) == 1
    assert "was prepared with another seed" in capsys.readouterr().err


def sweep_demo_captions(count: int, seed: int) -> list:
    from alignment.simulation.captions import draw_captions

    return draw_captions(count, seed, reserved=True)


def test_a_grid_is_the_product_of_its_values_and_its_faults_are_told_before_anything_runs(
    recipe: Path, tmp_path: Path, capsys
) -> None:
    made = sweep_demo.parse_grid("align.method=dpo dpo.beta=0.1,3e-2 align.use_voted_pairs=true")
    assert made == [
        {"align.method": "dpo", "dpo.beta": 0.1, "align.use_voted_pairs": True},
        {"align.method": "dpo", "dpo.beta": 0.03, "align.use_voted_pairs": True},
    ]
    assert sweep_demo.name_of(made[1]) == "method=dpo,dpo.beta=0.03,use_voted_pairs=True"
    with pytest.raises(ConfigError, match="'beta' is not key=value"):
        sweep_demo.parse_grid("align.method=dpo beta")
    out = tmp_path / "none"
    for grid, said in (("dpo.bta=0.1", "did you mean beta?"), ("align.method=ppo", "align.method is 'ppo'")):
        assert sweep_demo.main(["--out", str(out), "--config", str(recipe), "--grid", grid]) == 1
        assert said in capsys.readouterr().err and not out.exists()


def test_the_shipped_points_are_recipes_each_of_its_own() -> None:
    import yaml

    points = yaml.safe_load((demo_run.ROOT / "scripts" / "sweep_points.yaml").read_text())
    made = [sweep_demo.settings_of(demo_run.ROOT / "configs" / "tiny.yaml", 0, point) for point in points]
    assert len(points) >= 15 and len({sweep_demo.name_of(point) for point in points}) == len(points)
    assert {settings.align.method for settings in made} == {"dpo", "expert", "dpo_after_expert"}


def test_a_failed_run_is_named_and_the_others_still_run(recipe: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(check_demo, "call", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no room left")))
    arguments = ["--seeds", "1", "2", "--config", str(recipe), "--out", str(tmp_path / "x"), "--json"]
    assert check_demo.main(arguments) == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["failed"] == ["seed 1 as-cast", "seed 2 as-cast"]
    assert said.err.count("no room left") == 2, "controls of a seed that failed are not started"


def test_the_mean_over_runs_has_students_interval() -> None:
    # Mean 0.6, deviation 0.1, n = 4: t(0.975, 3) = 3.1824, so 0.6 -/+ 3.1824 * 0.05.
    values = [0.6 + 0.1 * x for x in (-1.0, -0.7071067811865476, 0.7071067811865476, 1.0)]
    found = check_demo.mean_with_interval(values)
    assert found["mean"] == pytest.approx(0.6) and found["n"] == 4
    assert found["high"] - 0.6 == pytest.approx(3.182446 * 0.05, abs=1e-6)
    assert check_demo.mean_with_interval([0.5])["low"] is None and check_demo.mean_with_interval([])["n"] == 0


def test_a_curve_without_any_point_still_draws(tmp_path: Path) -> None:
    base = {"label": "base", "kl_nats_per_clip": None, "kl_bound_nats": None, "win_rate": None,
            "judge_reward": 1.0, "judge_reward_low": 0.9, "judge_reward_high": 1.1}  # fmt: skip
    write_curves(tmp_path / "curves.svg", [base])
    assert (tmp_path / "curves.svg").read_text().startswith("<svg")
