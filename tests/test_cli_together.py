"""`attune align dpo` under torchrun: the clips are shared out, one process records the version and says so."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.config import REPOSITORY


@pytest.mark.slow
def test_two_processes_sing_the_pool_together_and_register_one_version(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "ATTUNE_DEVICE": "cpu", "ACCELERATE_USE_CPU": "1"
    }  # fmt: skip
    home = tmp_path / "home"
    recipe = tmp_path / "dpo.yaml"
    recipe.write_text("num_train_epochs: 1\nlora: {r: 2, lora_alpha: 4}\nper_device_train_batch_size: 2\n")

    def attune(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> str:
        command = [sys.executable, *launcher, "-m", "alignment.cli", *map(str, arguments), "--home", str(home)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    attune("db", "upgrade")
    attune("generate", "--captions", "12", "--per-prompt", "2", "--seconds", "1")
    attune("simulate-votes", "--study", "s", "--votes", "24", "--raters", "3")
    attune("snapshot", "v", "--study", "s")
    attune("reward", "train", "r", "--snapshot", "v")
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    said = attune(
        "align", "dpo", "w", "--snapshot", "v", "--reward", "r", "--best-of", "3", "--config", recipe, "--json",
        launcher=together,
    )  # fmt: skip
    assert [json.loads(line)["version"] for line in said.splitlines() if line.startswith("{")] == ["w"]
    with sqlite3.connect(home / "attune.db") as connection:
        assert connection.execute("select count(*) from version where name = 'w'").fetchone() == (1,)
        pool = connection.execute(
            "select count(*), count(distinct seed), count(distinct prompt_id) from clip where generation_config_id != "
            "(select generation_config_id from clip order by id limit 1)"
        ).fetchone()
    assert pool[0] == pool[1] == 3 * pool[2] > 0  # three of each prompt, none twice
