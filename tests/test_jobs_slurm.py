"""A job's command on another machine, by submitit's local executor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from alignment.errors import ConfigError
from alignment.jobs import Command
from alignment.jobs.command import CommandFailed


def test_submitit_runs_a_command_elsewhere_and_finds_it_again(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("submitit")
    from alignment.jobs import slurm

    monkeypatch.setenv("ATTUNE_RUNNER", "submitit-local")
    monkeypatch.setenv("ATTUNE_SLURM", "partition=gpu gpus_per_node=1 timeout_min=5")
    assert slurm.parameters() == {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 5}
    monkeypatch.setenv("ATTUNE_SLURM", "timeout_min=5")
    told = []
    code = (
        f"import os, json; open(r'{tmp_path}/starts', 'a').write('x'); print(json.dumps({{'step': 1, 'steps': 2}})); "
        "print(json.dumps({'chain': 'abc', 'job': os.environ.get('ATTUNE_JOB')}))"
    )
    asked = Command((sys.executable, "-c", code), run_dir=tmp_path / "run")
    known = tmp_path / "run" / "submitit" / "submitted.json"
    known.parent.mkdir(parents=True)
    # As a worker leaves it that was killed while it waited.
    submitted = slurm._submit(asked, "j", known.parent, known.parent / "output.log")
    known.write_text(json.dumps({"id": submitted.job_id}))
    result = slurm.run_elsewhere(asked, job_id="j", tell=lambda *said: told.append(said))
    assert result == {"chain": "abc", "job": None} and told == [(0.5, "step 1 of 2")]
    assert (tmp_path / "starts").read_text() == "x" and not known.exists()
    failing = Command((sys.executable, "-c", "raise SystemExit(3)"), run_dir=tmp_path / "bad")
    with pytest.raises(CommandFailed, match="status 3"):
        slurm.run_elsewhere(failing, job_id="j", tell=lambda *_: None)
    monkeypatch.setenv("ATTUNE_RUNNER", "pbs")
    with pytest.raises(ConfigError, match="ATTUNE_RUNNER is 'pbs'; write local, slurm or submitit-local"):
        slurm.run_elsewhere(asked, job_id="j", tell=lambda *_: None)
