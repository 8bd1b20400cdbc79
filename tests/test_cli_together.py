"""Commands that train under torchrun: what is sung is shared out, one process records and speaks, one that ends ends
all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alignment.config import REPOSITORY
from tests.circle_support import attune, leftovers, turn_by_hand
from tests.together_support import ENVIRONMENT, PPO, attune_together, command, sentences

pytestmark = pytest.mark.slow
STEPS = (
    ("db", "upgrade"),
    ("generate", "--captions", "16", "--per-prompt", "3", "--seconds", "0.5"),
    ("simulate-votes", "--study", "s", "--votes", "140", "--raters", "6"),
    ("snapshot", "v", "--study", "s"),
)
TRAINER = {"num_train_epochs": 1, "learning_rate": 4e-3, "lora": {"r": 2}}


def recipe(batch: int) -> dict:
    """Two stages and expert iteration beside them; ``batch`` is one process's."""
    trainer = TRAINER | {"per_device_train_batch_size": batch}
    return {
        "generation": {"clip_seconds": 0.5}, "reward": {"epochs": 8, "ensemble": 2}, "train_prompts": 6,
        "watch": {"prompts": 4, "clips_per_prompt": 2, "best_of": [2, 4]},
        "stages": [
            {"name": "r", "method": "expert", "reward": {"text_adherence": 1, "quality": 1}, "clips_per_prompt": 2,
             "expert": trainer},
            {"name": "u", "method": "dpo", "reward": {"preference": 1}, "reference": "start", "clips_per_prompt": 2,
             "dpo": trainer},
        ],
        "beside": {"name": "expert", "method": "expert", "clips_per_prompt": 2, "expert": trainer},
    }  # fmt: skip


@pytest.fixture(scope="module")
def voted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "home"
    turn_by_hand(folder, STEPS)
    return folder


@pytest.fixture
def home(voted: Path, tmp_path: Path) -> Path:
    """A home of its own with votes and no reward model."""
    shutil.copytree(voted, tmp_path / "home")
    return tmp_path / "home"


def write(folder: Path, name: str, values: dict) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def metrics(home: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (home / "runs" / "n" / "ppo" / "metrics.jsonl").open()]


def only(home: Path, query: str) -> tuple:
    with sqlite3.connect(home / "attune.db") as connection:
        return connection.execute(query).fetchone()


def until(asked: list[str], there: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """torchrun with the command under way, and its workers, as soon as a file is there."""
    process = subprocess.Popen(asked, env=ENVIRONMENT, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    while not there.is_file():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(child) for child in children]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_processes_sing_the_pool_together_and_register_one_version(home: Path) -> None:
    attuned = write(home.parent, "dpo.yaml", TRAINER | {"per_device_train_batch_size": 2, "learning_rate": 1e-4})
    turn_by_hand(home, [("reward", "train", "r", "--snapshot", "v")])
    done = attune_together(
        home, "align", "dpo", "w", "--snapshot", "v", "--reward", "r", "--best-of", "3", "--config", attuned, "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["version"] for line in done.stdout.splitlines() if line.startswith("{")] == ["w"]
    assert done.stderr.count("DPO: ") == 1
    assert only(home, "select count(*) from version where name = 'w'") == (1,)
    pool = only(
        home,
        "select count(*), count(distinct seed), count(distinct prompt_id) from clip where generation_config_id != "
        "(select generation_config_id from clip order by id limit 1)",
    )
    assert pool[0] == pool[1] == 3 * pool[2] > 0  # three of each prompt, none twice


def test_a_recipe_in_two_processes_trains_as_one_does_with_twice_the_batch(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home, tmp_path / "alone")
    alone = attune(
        capsys, "align", "run", write(tmp_path, "one.yaml", recipe(4)), "n", "--snapshot", "v", "--home",
        tmp_path / "alone", "--json",
    )  # fmt: skip
    assert alone.code == 0, alone.err
    done = attune_together(
        home, "align", "run", write(tmp_path, "two.yaml", recipe(2)), "n", "--snapshot", "v", "--json"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["versions"] for one in told] == [["n-r", "n"]] == [alone.json["versions"]]
    for name in ("clips of the snapshot", "two reward models", "r (expert)", "u (dpo)", "expert (expert)", "best of N"):
        assert done.stderr.count(f"{name}: ") == 1
    for table in ("version", "train_run", "reward_model", "snapshot", "clip", "audit_log"):
        count = f"select count(*) from {table}"
        assert only(home, count) == only(tmp_path / "alone", count), table
    for stage in ("r", "u", "expert"):
        ours, theirs = (weights(folder / "runs" / "n" / stage) for folder in (home, tmp_path / "alone"))
        assert max(value.abs().max() for value in theirs.values()) > 1e-2
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)  # steps are 4e-3
    assert leftovers(home / "runs") == []


def test_ppo_in_two_processes_trains_as_one_does_and_goes_on_after_one_was_killed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("align", "ppo", "n", "--snapshot", "v", "--seconds", "0.5", "--config")
    shutil.copytree(home, tmp_path / "alone")
    assert attune(capsys, *asked, write(tmp_path, "two.yaml", PPO), "--home", tmp_path / "alone").code == 0
    asked = (*asked, write(tmp_path, "ppo.yaml", PPO | {"max_steps": 4}))
    shutil.copytree(home, tmp_path / "killed")
    done = attune_together(home, *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    # Two steps: from then on a difference in the last digits may draw another code, and the runs part.
    for two, one in zip(metrics(home)[1:3], metrics(tmp_path / "alone")[1:], strict=True):
        for name in ("reward", "reward_std", "kl", "grad_norm", "loss/value", "entropy"):
            assert two.get(name) == pytest.approx(one.get(name), rel=1e-3, abs=1e-5), name
    whole = weights(home / "runs" / "n" / "ppo")

    run = tmp_path / "killed" / "runs" / "n" / "ppo"
    process, workers = until(command(tmp_path / "killed", *asked), run / "checkpoint-1" / "trainer_state.json")
    os.kill(workers[1], signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode != 0
    assert len(sentences(said)) <= 1 and "(pid: " in said  # torchrun names the one that was killed
    resumed = command(tmp_path / "killed", *asked, "--resume")
    process, workers = until(resumed, run / "checkpoint-3" / "trainer_state.json")
    process.kill()
    process.communicate()  # which ends when nobody holds the pipe any more
    assert not any(is_alive(worker) for worker in workers)
    assert only(tmp_path / "killed", "select count(*) from version where name = 'n'") == (0,)
    again = attune_together(tmp_path / "killed", *asked, "--resume")
    assert again.returncode == 0, again.stderr[-3000:]
    after = weights(run)
    assert all(torch.equal(after[name], whole[name]) for name in whole)


FAILING = """
import os
import alignment.training.experience as experience
from alignment.errors import TrainingError

checked = experience.checked_rewards

def refused(*given, step, **named):
    if os.environ["RANK"] == "{rank}" and step == 2:
        raise TrainingError("Process {rank} has had enough.")
    return checked(*given, step=step, **named)

experience.checked_rewards = refused
from alignment.cli import main
main()
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_finds_wrong_ends_all_with_one_sentence(home: Path, tmp_path: Path, rank: int) -> None:
    (tmp_path / "failing.py").write_text(FAILING.format(rank=rank))
    done = attune_together(
        home, "align", "ppo", "n", "--snapshot", "v", "--config", write(tmp_path, "ppo.yaml", PPO), "--seconds", "0.5",
        program=(str(tmp_path / "failing.py"),),
    )  # fmt: skip
    assert done.returncode == 1
    assert sentences(done.stderr) == [f"Process {rank} has had enough."]
    assert only(home, "select count(*) from version") == (1,) and done.stdout == ""


def test_what_all_find_wrong_is_said_once(home: Path, tmp_path: Path) -> None:
    config = write(tmp_path, "ppo.yaml", PPO)
    for arguments, said in (
        (("tiny-base", "--snapshot", "v"), "Version tiny-base exists already"),
        (("n", "--snapshot", "w"), "No snapshot is called w; known: v."),
        (("n", "--snapshot", "v", "--reward", "r"), "--reward and --watch belong together"),
    ):
        done = attune_together(home, "align", "ppo", *arguments, "--config", config)
        assert done.returncode == 1 and done.stdout == ""
        (sentence,) = sentences(done.stderr)
        assert sentence.startswith(said)
