"""`attune align` from votes to watched versions: lineage, marks, resuming, and every refusal in one sentence."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from alignment.circle.workspace import Workspace
from alignment.config import Settings
from alignment.db import runs, snapshots
from alignment.db.versions import list_versions
from alignment.domain import Split
from alignment.versions import lineage
from tests.circle_support import attune, leftovers, turn_by_hand
from tests.together_support import PPO, attune_together

STEPS = (
    ("db", "upgrade"),
    ("generate", "--captions", "16", "--per-prompt", "3", "--seconds", "0.5"),
    ("simulate-votes", "--study", "first", "--votes", "140", "--raters", "6"),
    ("snapshot", "votes-1", "--study", "first"),
)
SMALL = {"per_device_train_batch_size": 4, "num_train_epochs": 1, "learning_rate": 4e-3, "lora": {"r": 2}}
RECIPE = {
    "generation": {"clip_seconds": 0.5},
    "reward": {"epochs": 8, "ensemble": 2},
    "watch": {"prompts": 4, "clips_per_prompt": 2, "best_of": [2, 4]},
    "train_prompts": 6,
    "stages": [
        {"name": "r", "method": "expert", "reward": {"text_adherence": 1, "quality": 1}, "clips_per_prompt": 2,
         "expert": SMALL},
        {"name": "u", "method": "dpo", "reward": {"preference": 1}, "reference": "start", "clips_per_prompt": 2,
         "dpo": SMALL | {"eval_steps": 1}},
    ],
    "beside": {"name": "expert", "method": "expert", "clips_per_prompt": 2, "expert": SMALL},
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Votes of six simulated listeners on sixteen captions, and one run of two stages."""
    folder = tmp_path_factory.mktemp("align")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    run = ("align", "run", str(folder / "recipe.yaml"), "v1", "--snapshot", "votes-1")
    turn_by_hand(folder, [*STEPS, run])
    return folder


def workspace(home: Path) -> Workspace:
    return Workspace.open(
        Settings.from_environment(database=f"sqlite:///{home / 'attune.db'}", store=str(home / "store"))
    )


def test_each_stage_is_a_version_with_its_lineage_its_reward_and_the_simulated_mark(home: Path) -> None:
    ws = workspace(home)
    with ws.database.session(write=False) as s:
        known = {version.name: version for version in list_versions(s)}
    assert set(known) == {"tiny-base", "v1-r", "v1", "v1-expert"}
    assert all(version.simulated for name, version in known.items() if name != "tiny-base")
    assert {name: known[name].parent for name in known} == {
        "tiny-base": None, "v1-r": "tiny-base", "v1": "v1-r", "v1-expert": "tiny-base",
    }  # fmt: skip
    last, first, base = lineage(ws.database, "v1")
    assert (last.run_kind, first.run_kind, base.run_kind) == ("dpo", "expert", None)
    assert last.snapshot == first.snapshot == "votes-1" and last.votes == 140
    assert last.config["stage"]["reward"] == {"preference": 1.0} and last.config["stage"]["reference"] == "start"
    assert last.config["reward_models"] == ["v1-reward", "v1-watch"]
    assert {part["name"]: part["weight"] for part in first.metrics["reward"]["parts"]} == {
        "text_adherence": 1.0, "quality": 1.0,
    }  # fmt: skip
    assert last.metrics["watched"][0][0] == 0 and last.metrics["kept_step"] <= last.metrics["steps"]


def test_what_watches_learnt_from_other_raters_and_prompts_and_its_prompts_are_never_trained_on(home: Path) -> None:
    ws = workspace(home)
    from alignment.circle.learn import load_snapshot

    sides = []
    for name in ("v1-reward", "v1-watch"):
        pairs = load_snapshot(ws, name).frozen.pairs
        with ws.database.session(write=False) as s:
            record = snapshots.get_snapshot(s, name)
            model = runs.get_train_run(s, runs.get_reward_model(s, name).train_run_id)
        assert record.policy["split_of"] == "votes-1" and model.snapshot_id == record.id
        sides.append(({pair.rater_id for pair in pairs}, {pair.prompt_text for pair in pairs}))
    assert not sides[0][0] & sides[1][0] and not sides[0][1] & sides[1][1]
    for stage in ("r", "u", "expert"):
        assert (home / "runs" / "v1" / stage / "metrics.jsonl").is_file()
    with ws.database.session(write=False) as s:
        from alignment.db.clips import list_clips
        from alignment.db.prompts import list_prompts

        texts = {prompt.id: prompt for prompt in list_prompts(s)}
        sung = {clip.prompt_id for clip in list_clips(s, version="v1-r")}
    assert sung and all(texts[one].split == Split.TRAIN and texts[one].text not in sides[1][1] for one in sung)


def test_the_page_shows_best_of_n_and_expert_iteration_and_its_figures_are_beside_it(home: Path) -> None:
    figures = json.loads((home / "runs" / "v1" / "run.json").read_text())
    names = [row["name"] for row in figures["comparison"]]
    assert names[:4] == ["start", "best-of-2", "best-of-4", "expert (beside)"] and {"v1-r", "v1"} <= set(names)
    assert figures["gold"] and figures["simulated"]
    assert all(row["gold_reward"]["n"] >= 4 for row in figures["comparison"])
    # The start is heard before any step: the first stage's first look, by the last stage's reward.
    assert figures["stages"][0]["looks"][0]["kl"]["value"] == 0
    text = (home / "runs" / "v1" / "report.html").read_text()
    assert "Simulated listeners" in text and "Stage r" in text and "Stage u" in text


def test_a_run_that_was_stopped_goes_on_and_trains_nothing_twice(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("align", "run", home / "recipe.yaml", "v1", "--snapshot", "votes-1", "--home", home)
    done = attune(capsys, *command)
    assert done.code == 1 and "exists already" in done.err and "--resume" in done.err
    before = json.loads((home / "runs" / "v1" / "run.json").read_text())
    files = {path: path.stat().st_mtime_ns for path in (home / "runs" / "v1").rglob("*.npz")}
    done = attune(capsys, *command, "--resume", "--json")
    assert done.code == 0 and done.json["versions"] == ["v1-r", "v1"] and done.json["simulated"]
    after = json.loads((home / "runs" / "v1" / "run.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in files} == files
    for key in ("stages", "comparison"):
        assert after[key] == before[key]
    assert not leftovers(home / "runs")


def test_best_of_n_alone_says_what_choosing_gives(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "align",
        "best-of-n",
        "--snapshot",
        "votes-1",
        "--most",
        "4",
        "--prompts",
        "4",
        "--reward",
        "v1-reward",
        "--watch",
        "v1-watch",
        "--weight",
        "clap_cosine=1",
        "--seconds",
        "0.5",
        "--json",
        "--home",
        home,
    )
    done = attune(capsys, *command)
    assert done.code == 0, done.err
    assert [row["of"] for row in done.json] == ["tiny-base", "best-of-2", "best-of-4"]
    assert [row["clips"] for row in done.json] == [16, 8, 4]
    best = [float(row["proxy"].split()[0].replace("−", "-")) for row in done.json]
    assert best == sorted(best) and best[2] > best[0]  # the proxy chooses, so the proxy rises
    again = attune(capsys, *command, "--seed", "5")
    # Other clips, though the folder holds a pool of the same size.
    assert again.code == 0 and again.json[0]["proxy"] != done.json[0]["proxy"]


REFUSED = [
    (("run", "recipe.yaml", "v2", "--snapshot", "none"), "No snapshot is called none"),
    (("run", "recipe.yaml", "v/2", "--snapshot", "votes-1"), "is no name"),
    (("run", "recipe.yaml", "v2", "--snapshot", "votes-1", "--reward", "v1-reward"), "belong together"),
    (("run", "recipe.yaml", "v2", "--snapshot", "votes-1", "--reward", "v1-reward", "--watch", "v1-reward"),
     "share 3 raters"),
    (("run", "recipe.yaml", "v2", "--snapshot", "votes-1", "--parent", "nobody"), "nobody"),
    (("expert", "v2", "--snapshot", "votes-1", "--weight", "qualty=1"), "did you mean quality?"),
    (("expert", "v2", "--snapshot", "votes-1", "--weight", "quality=much"), "is not HEAD=WEIGHT"),
    (("ppo", "v2", "--snapshot", "votes-1", "--reference", "middle"), "reference"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_wrong_option_is_refused_in_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    given = [home / "recipe.yaml" if word == "recipe.yaml" else word for word in arguments]
    done = attune(capsys, "align", *given, "--home", home)
    assert done.code == 1 and said in done.err and done.err.strip().splitlines()[-1].startswith("attune: ")
    assert "Traceback" not in done.err and done.out == ""


def test_a_snapshot_whose_clips_are_missing_is_refused_before_anything_is_trained(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    for path in sorted((tmp_path / "copy" / "store" / "audio").rglob("*.flac"))[:5]:
        path.unlink()
    done = attune(capsys, "align", "run", home / "recipe.yaml", "v2", "--snapshot", "votes-1", "--home",
                  tmp_path / "copy")  # fmt: skip
    assert done.code == 1 and "clips are missing from the store" in done.err and "backup" in done.err
    assert not (tmp_path / "copy" / "runs" / "v2").exists()


def test_an_adapter_for_another_base_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home, tmp_path / "copy")
    ws = workspace(tmp_path / "copy")
    folder = ws.store.path_of(ws.version("v1").adapter_uri)
    from alignment.db import versions

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "base.json").write_text(json.dumps({"base_sha256": "0" * 64}))
    sha256, uri = ws.store.put_folder(other)
    base = ws.version("tiny-base")
    with ws.database.session() as s:
        versions.add_version(s, name="stranger", base=base.base, base_sha256=base.base_sha256, parent="tiny-base",
                             adapter_sha256=sha256, adapter_uri=uri)  # fmt: skip
    done = attune(capsys, "align", "run", home / "recipe.yaml", "v2", "--snapshot", "votes-1", "--parent", "stranger",
                  "--home", tmp_path / "copy")  # fmt: skip
    assert done.code == 1 and "another base" in done.err


def test_a_constant_reward_is_refused(home: Path) -> None:
    import numpy as np

    from alignment.circle.learn import load_reward_model
    from alignment.circle.rewarding import weighted_scorer
    from alignment.errors import DataError
    from alignment.rewards.scorers import SharedEncoder

    ws = workspace(home)
    model = load_reward_model(ws, "v1-reward")
    audio = np.random.default_rng(0).normal(size=(4, 8000)).astype(np.float32) * 0.1
    same = np.repeat(audio[:1], 4, axis=0)
    with pytest.raises(DataError, match="constant reward teaches nothing"):
        weighted_scorer(model, SharedEncoder(ws.encoder), {"quality": 1.0}, ["a piano"] * 4, same, 16_000)
    scorer = weighted_scorer(model, SharedEncoder(ws.encoder), {"quality": 1.0}, ["a piano"] * 4, audio, 16_000)
    assert scorer.score_parts(["a piano"] * 4, audio, 16_000)[0].mean() == pytest.approx(0.0, abs=1e-6)


def test_two_processes_train_by_one_command_and_one_of_them_records_and_speaks(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    stage = {"name": "p", "method": "ppo", "ppo": PPO | {"max_steps": 1, "save_steps": 0}}
    recipe = {"generation": {"clip_seconds": 0.5}, "watch": RECIPE["watch"], "train_prompts": 6, "beside": None}
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(recipe | {"stages": [stage]}))
    models = ("--reward", "v1-reward", "--watch", "v1-watch")
    done = attune_together(
        tmp_path / "home", "align", "run", tmp_path / "ppo.yaml", "p1", "--snapshot", "votes-1", *models, "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["versions"] for line in done.stdout.splitlines() if line.startswith("{")] == [["p1"]]
    assert done.stderr.count("p (ppo): ") == 1
    with sqlite3.connect(tmp_path / "home" / "attune.db") as connection:
        audit = "select count(*) from audit_log where action = 'version.register' and subject = 'p1'"
        assert connection.execute(audit).fetchone() == (1,)
        assert connection.execute("select count(*) from train_run where kind = 'ppo'").fetchone() == (1,)
    folder = tmp_path / "home" / "runs" / "p1"
    lines = [json.loads(line) for line in (folder / "p" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 1]
    assert (folder / "report.html").is_file() and leftovers(folder) == []
