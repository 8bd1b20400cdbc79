"""The parts of jobs by themselves: how far a job is, schedules, slots, commands, leashes, submitit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from jobs_support import Place, gone

from alignment.db import jobs as queries
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.jobs import Command, StepContext, processes, schedules, status
from alignment.jobs.align_job import align
from alignment.jobs.child import run as run_step
from alignment.jobs.command import CommandFailed, argv_of, failure, progress_of, run_command
from alignment.jobs.course import unfinished_from
from alignment.jobs.cron import next_time
from alignment.jobs.slots import gpu_slot, locked

PYTHON = sys.executable


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def silent(*_: object, **__: object) -> None:
    """Hears nothing."""


def command(code: str, run_dir: Path, **more: object) -> Command:
    run_dir.mkdir(parents=True, exist_ok=True)
    return Command((PYTHON, "-c", code), run_dir=run_dir, **more)


def test_a_cron_line_is_read_in_utc() -> None:
    evening = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
    assert next_time("0 3 * * *", evening) == datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
    assert next_time("*/15 * * * 1", evening) == datetime(2026, 11, 23, 0, 0, tzinfo=UTC)  # a Monday
    karachi = evening.astimezone(timezone(timedelta(hours=5)))  # one in the morning there
    assert next_time("0 22 * * *", karachi) == datetime(2026, 11, 21, 22, 0, tzinfo=UTC)


def test_a_schedule_asks_once_for_what_fell_due_and_passes_over_while_its_last_job_is_open(place: Place) -> None:
    status.add_schedule(place.settings, "fake", "0 3 * * *", {"votes": 4}, asked_by="test")
    with pytest.raises(DataError, match="There is a schedule fake already"):
        status.add_schedule(place.settings, "fake", "0 4 * * *")
    due = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)  # three nights without a worker
    move = "update job_schedule set next_at = '{}'".format(due.strftime("%Y-%m-%d %H:%M:%S.000000"))

    def again() -> list[str]:
        with status.ledger_of(place.settings).session() as s:
            s.connection().exec_driver_sql(move)
        return schedules.ask_for_due(place.settings, silent)

    (first,) = again()
    job = place.job(first)
    assert (job.state, job.asked_by, job.recipe["votes"]) == ("queued", "schedule fake", 4)
    assert schedules.ask_for_due(place.settings, silent) == []  # the next turn is tonight
    assert again() == []
    (shown,) = status.list_schedules(place.settings)
    assert f"{first} is queued" in shown.last_note and shown.last_job == first
    assert shown.next_at == next_time("0 3 * * *", datetime.now(UTC))
    status.cancel(place.settings, first)
    assert again() == [first]  # the same due time is the same job
    with pytest.raises(NotFoundError, match="no schedule nightly; known schedules: fake"):
        status.remove_schedule(place.settings, "nightly")
    status.remove_schedule(place.settings, "fake")
    assert status.list_schedules(place.settings) == []


def test_two_workers_that_see_the_same_due_time_ask_for_one_job(place: Place) -> None:
    from alignment.db import job_workers

    status.add_schedule(place.settings, "fake", "0 3 * * *")
    (seen,) = status.list_schedules(place.settings)
    later = seen.next_at + timedelta(days=1)
    with status.ledger_of(place.settings).session() as s:
        assert job_workers.take_turn(s, seen, next_at=later, job="a", note=None)
        assert not job_workers.take_turn(s, seen, next_at=later, job="b", note=None)
    assert status.list_schedules(place.settings)[0].last_job == "a"


def step(name: str, state: str, *, seconds: float | None = None, share: float | None = None, ago: float = 0.0):
    started = datetime.now(UTC) - timedelta(seconds=ago)
    return queries.StepRecord(name, state, None, share, None, 1, started, None, seconds)


def record(state: str = "running") -> queries.JobRecord:
    now = datetime.now(UTC)
    return queries.JobRecord("j", "fake", {}, state, "b", None, 1, "j", None, "w", None, None, None, None, None, now,
                             now, now, None)  # fmt: skip


def test_what_is_left_of_a_job_follows_from_the_share_of_its_step_and_from_earlier_jobs() -> None:
    steps = [step("a", "done", seconds=10.0), step("b", "running", share=0.25, ago=20.0), step("c", "pending")]
    # b: 20 s for a quarter, so 60 s more; c: 40 s as usual. Done: 10 of a, a quarter of b's usual 100, of 150 in all.
    share, left = status._how_far(record(), steps, {"a": 10.0, "b": 100.0, "c": 40.0})
    assert share == pytest.approx(35 / 150, abs=1e-3) and left == pytest.approx(100.0, abs=0.5)
    # Without earlier jobs each step counts the same, and nobody knows how long c takes.
    share, left = status._how_far(record(), steps, {})
    assert share == pytest.approx(1.25 / 3, abs=1e-3) and left is None
    assert status._how_far(record("done"), steps, {}) == (1.0, 0.0)
    # A step without a share of its own: what is usual less what it took.
    share, left = status._how_far(record(), [step("b", "running", ago=30.0)], {"b": 100.0})
    assert left == pytest.approx(70.0, abs=0.5)


def test_a_resumed_job_asks_anew_from_the_first_answer_that_is_no_result() -> None:
    done, failed, waits = {"state": "done"}, {"state": "failed"}, {"state": "waiting"}
    assert unfinished_from([]) == 1
    assert unfinished_from([(1, done), (2, waits), (3, done)]) == 4
    assert unfinished_from([(1, done), (2, failed)]) == 2
    assert unfinished_from([(1, done), (2, {"state": "stopped"})]) == 2
    assert unfinished_from([(1, done), (2, None), (3, done)]) == 2


def test_a_line_of_progress_gives_a_share_and_words_and_a_result_gives_none() -> None:
    assert progress_of({"share": 0.5, "text": "half"}, None) == (0.5, "half")
    assert progress_of({"step": 3, "steps": 12}, None) == (0.25, "step 3 of 12")
    assert progress_of({"step": 3, "time": 1.0, "loss": 2.0}, 6) == (0.5, "step 3 of 6")
    assert progress_of({"step": 3, "time": 1.0}, None) == (None, "step 3")
    assert progress_of({"progress": "train", "done": 5, "total": 20}, None) == (0.25, "train: 5 of 20")
    assert progress_of({"versions": ["a"], "report": "x"}, None) is None
    assert progress_of({"step": 3, "best": 2.0}, None) is None


def test_a_command_gives_its_last_json_line_and_fails_with_its_last_words(tmp_path: Path, capfd) -> None:
    told = []
    said = ["hello", '{"a": 0}', '{"share": 0.5, "text": "half"}', '{"a": 1}']
    code = f"print({chr(10).join(said)!r})"
    result = run_command(command(code, tmp_path, result={"b": 2}), job_id="j", slot=None,
                         tell=lambda *said: told.append(said))  # fmt: skip
    assert result == {"a": 1, "b": 2} and told == [(0.5, "half")]
    assert capfd.readouterr().out.splitlines() == ["hello", '{"a": 0}', '{"a": 1}']
    assert run_command(command("print('{}')", tmp_path, result=lambda said: {"n": len(said)}), job_id="j", slot=None,
                       tell=silent) == {"n": 0}  # fmt: skip
    with pytest.raises(CommandFailed, match="^No snapshot x; take one.$"):
        run_command(command("import sys; sys.exit('attune: No snapshot x; take one.')", tmp_path), job_id="j",
                    slot=None, tell=silent)  # fmt: skip
    with pytest.raises(CommandFailed, match="^The command ended with status 3: no word.$"):
        run_command(command("raise SystemExit(3)", tmp_path), job_id="j", slot=None, tell=silent)
    assert failure(-9, []) == "The command was ended by SIGKILL; the machine may have run out of memory."
    long = json.dumps({"a": "x" * 500})  # a whole report: the log shows its beginning, the step keeps all of it
    result = run_command(command(f"print({long!r})", tmp_path), job_id="j", slot=None, tell=silent)
    assert result == json.loads(long)
    assert capfd.readouterr().out.splitlines()[-1] == f"{long[:300]} ... ({len(long)} characters)"


def test_metrics_of_a_training_run_tell_how_far_a_silent_command_is(tmp_path: Path) -> None:
    line = json.dumps({"step": 3, "time": 1.0, "loss": 2.5})
    (tmp_path / "new").write_text(line + "\n")
    code = (
        f"import os, time; os.replace(r'{tmp_path}/new', r'{tmp_path}/metrics.jsonl')\n"
        f"while not os.path.exists(r'{tmp_path}/heard'): time.sleep(0.01)"
    )
    told = []

    def tell(*said: object) -> None:
        told.append(said)
        (tmp_path / "heard").touch()

    run_command(command(code, tmp_path, steps=6), job_id="j", slot=None, tell=tell)
    assert told == [(0.5, "step 3 of 6")]


def test_a_launcher_takes_the_place_of_python_only_where_a_command_may_run_on_several_gpus(monkeypatch) -> None:
    monkeypatch.setenv("ATTUNE_LAUNCHER", "torchrun --standalone --nproc-per-node 4")
    argv = (PYTHON, "-m", "alignment.cli", "align", "dpo")
    assert argv_of(Command(argv, Path("x"))) == argv
    several = argv_of(Command(argv, Path("x"), several_gpus=True))
    assert several == ("torchrun", "--standalone", "--nproc-per-node", "4", "-m", "alignment.cli", "align", "dpo")


def test_the_command_of_an_align_job_may_run_on_several_gpus(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ATTUNE_LAUNCHER", "torchrun --standalone --nproc-per-node 2")
    asked = {"name": "v2", "snapshot": "votes", "recipe": {"stages": [{"name": "dpo", "method": "dpo"}]}}
    argv = argv_of(align(StepContext("j", "align", tmp_path, "sqlite://", tmp_path / "j", asked)))
    assert argv[:7] == ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "alignment.cli", "align")


def waiting_for_locks() -> int:
    """How many threads of this process the kernel lets wait for a lock of a file."""
    waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return sum(line[-4] == str(os.getpid()) for line in waiting)


def test_the_gpu_slot_is_given_in_the_order_of_asking_and_freed_by_death(tmp_path: Path, monkeypatch) -> None:
    holder = subprocess.Popen(
        [PYTHON, "-c", "import sys, time\nfrom pathlib import Path\nfrom alignment.jobs.slots import gpu_slot\n"
         "with gpu_slot(Path(sys.argv[1]), on_wait=print):\n print('held', flush=True)\n time.sleep(60)",
         str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    order: list[str] = []

    def ask(name: str) -> None:
        with gpu_slot(tmp_path, on_wait=lambda: order.append(f"{name} waits")):
            order.append(f"{name} has it")

    threads = []
    for name in ("a", "b", "c"):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        while f"{name} waits" not in order or waiting_for_locks() < len(threads) - 1:
            time.sleep(0.01)  # the first of them has the lock and looks for a slot, the others stand behind it
    assert not any("has it" in line for line in order)
    holder.kill()
    for thread in threads:
        thread.join(10)
    assert [line for line in order if "has it" in line] == ["a has it", "b has it", "c has it"]
    monkeypatch.setenv("ATTUNE_GPU_SLOTS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with gpu_slot(tmp_path, on_wait=silent) as one, gpu_slot(tmp_path, on_wait=silent) as two:
        assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in (one, two)] == ["4,5", "6,7"]
    monkeypatch.setenv("ATTUNE_GPU_SLOTS", "many")
    with pytest.raises(ConfigError, match="ATTUNE_GPU_SLOTS is 'many'"):
        with gpu_slot(tmp_path, on_wait=silent):
            pass


def test_a_lock_is_held_by_the_command_as_long_as_it_lives(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait=False) as fd:
        process = subprocess.Popen(["sleep", "60"], pass_fds=[fd])
    with locked(tmp_path / "lock", wait=False) as fd:
        assert fd is None
    process.kill()
    process.wait()
    with locked(tmp_path / "lock", wait=False) as fd:
        assert fd is not None


def test_a_process_on_a_leash_dies_with_its_parent_and_what_it_left_is_found_by_its_job(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\nfrom alignment.jobs import processes\n"
        'inner = \'import subprocess, time; p = subprocess.Popen(["sleep", "60"], start_new_session=True); \''
        "'print(p.pid, flush=True); time.sleep(60)'\n"
        "p = processes.start([sys.executable, '-c', inner], environment={**os.environ, 'ATTUNE_JOB': 'j-17'})\n"
        "print(p.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True)
    leashed, rank = sorted(int(parent.stdout.readline()) for _ in range(2))
    assert os.getpgid(leashed) == leashed  # a group of its own
    parent.kill()
    parent.wait()
    while not gone(leashed):
        time.sleep(0.01)
    assert not gone(rank)
    assert processes.end_leftovers("j-1") == 0 and not gone(rank)
    assert processes.end_leftovers("j-17") >= 1 and gone(rank)


def test_a_full_disk_fails_a_step_with_what_to_do(tmp_path: Path, monkeypatch) -> None:
    from tests import jobs_fake

    def fill(context: object) -> None:
        with open("/dev/full", "w") as file:
            file.write("x" * 100000)

    def kind(run: object) -> jobs_fake.JobKind:
        return jobs_fake.JobKind("fake", jobs_fake.FakeRecipe, (jobs_fake.Step("fill", run),), "")

    monkeypatch.setenv("ATTUNE_JOB_KINDS", "tests.jobs_fake:KINDS")
    monkeypatch.setattr(jobs_fake, "FAKE", kind(fill))
    spec = {"kind": "fake", "step": "fill", "job_id": "j", "home": str(tmp_path), "database_url": "", "store": "",
            "run_dir": str(tmp_path / "run"), "recipe": {}, "results": {}}  # fmt: skip

    class Teller:
        tell = progress = staticmethod(silent)

    answer = run_step(spec, Teller())
    assert answer["state"] == "failed"
    assert answer["reason"] == "A file cannot be used (No space left on device); free space, then resume the job."
    monkeypatch.setattr(jobs_fake, "FAKE", kind(lambda _: {"x": {1}}))
    assert "the step's result must be JSON" in run_step(spec, Teller())["reason"]


def test_nothing_but_the_engine_knows_dbos_and_a_web_page_loads_neither_it_nor_torch(place: Place) -> None:
    root = Path(__file__).resolve().parent.parent
    named = [path.name for folder in ("alignment", "rating_app") for path in (root / folder).rglob("*.py")
             if "import dbos" in path.read_text() or "from dbos" in path.read_text()]  # fmt: skip
    assert named == ["engine.py"]
    code = (
        "import sys\nfrom alignment.config import Settings\nfrom alignment.jobs import status\n"
        f"s = Settings.from_environment(database={place.settings.database_url!r})\n"
        "job = status.submit(s, 'fake', {'votes': 1}); status.list_jobs(s); status.cancel(s, job)\n"
        "print(sorted({'torch', 'dbos', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_of_the_engine_that_lost_its_job_may_say_nothing_of_it(place: Place) -> None:
    job_id = place.submit()
    with status.ledger_of(place.settings).session() as s:
        old = queries.get_job(s, job_id)
        assert queries.move_job(s, job_id, to="running", workflow=old.workflow)
        assert queries.requeue(s, queries.get_job(s, job_id), why="its machine is lost")
        assert not queries.requeue(s, old, why="asked for twice")
        assert not queries.move_job(s, job_id, to="running", workflow=old.workflow)
        assert not queries.end_job(s, job_id, "done", None, workflow=old.workflow)
        new = queries.get_job(s, job_id)
        assert (new.state, new.workflow, new.previous, new.attempt) == ("queued", f"{job_id}.2", job_id, 2)
