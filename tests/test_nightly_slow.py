"""A whole night with simulated listeners and a real training; minutes long."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.circle import nightly_train
from alignment.circle.trust import Trust
from alignment.db.migrate import upgrade
from alignment.db.runs import get_train_run
from alignment.evaluation.intervals import Interval
from tests.nightly_support import PROGRAMS, Drive, changed, workspace

pytestmark = pytest.mark.slow
RECIPE = changed(
    PROGRAMS, min_new_votes=60, listeners=PROGRAMS["listeners"] | {"prompts": 24},
    align=PROGRAMS["align"] | {"train_prompts": 8},
)  # fmt: skip


def turned(home: Path, job_id: str) -> Drive:
    home.mkdir()
    upgrade(f"sqlite:///{home / 'attune.db'}")
    return Drive(home, RECIPE, job_id).run()


def test_simulated_nights_turn_whole_and_train_the_same_whatever_the_job_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sixty votes on half-second clips teach nothing that could be shown; whether they do is tested elsewhere.
    learnt = Trust({"preference": Interval(0.7, 0.6, 0.8, n=60)}, 3)
    monkeypatch.setattr(nightly_train, "measure_trust", lambda *_: learnt)
    nights = [turned(tmp_path / name, job) for name, job in (("one", "job-1"), ("two", "job-2"))]
    for night in nights:
        assert night.done[-1] == "report" and night.results["candidate"]["simulated"]
        assert night.results["decide"]["outcome"] in ("promoted", "rejected") and night.results["decide"]["simulated"]
        page = Path(night.results["report"]["page"]).read_text(encoding="utf-8")
        assert "Simulated listeners" in page and night.results["candidate"]["adapter_sha256"] in page
        ws = workspace(night.home)
        with ws.database.session(write=False) as s:
            run = get_train_run(s, ws.version(night.results["candidate"]["version"]).train_run_id)
        assert run.job_id == f"{night.job_id}/{night.results['candidate']['version']}"
    first, second = (night.results["candidate"] for night in nights)
    assert first["adapter_sha256"] == second["adapter_sha256"] and first["version"] != second["version"]


def test_a_training_that_is_asked_for_again_is_read_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = Trust({"preference": Interval(0.7, 0.6, 0.8, n=60)}, 3)
    monkeypatch.setattr(nightly_train, "measure_trust", lambda *_: learnt)
    (tmp_path / "home").mkdir()
    upgrade(f"sqlite:///{tmp_path / 'home' / 'attune.db'}")
    night = Drive(tmp_path / "home", RECIPE).run(until="align")
    again = [night.step("align") for _ in range(2)]
    assert again[0] == again[1]
    ws = workspace(night.home)
    with ws.database.session(write=False) as s:
        assert s.connection().exec_driver_sql("SELECT count(*) FROM train_run WHERE kind = 'dpo'").scalar_one() == 1
