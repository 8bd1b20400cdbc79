"""What a worker does with jobs: states, reasons, waiting, cancelling, resuming; one worker for all these tests."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_support import CHAIN_12, Place, gone, patience
from typer.testing import CliRunner

from alignment.cli import app
from alignment.db import jobs as queries
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.jobs import status


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("jobs"))
    made.plain = made.submit()
    made.few = made.submit(votes=1)
    made.failing = made.submit(fail="the judge is ill; call another one")
    made.waiting = made.submit("brief", judged=False, wait=1.5)
    made.crashing = made.submit("brief", crash=True)
    made.retried = made.submit("retried", fail="the judge is ill")
    made.work()
    yield made
    made.close()


def states(job: status.JobView) -> dict[str, str]:
    return {step.name: step.state for step in job.steps}


def test_a_job_is_done_when_its_steps_are_and_shows_each_with_its_reason_and_seconds(place: Place) -> None:
    job = place.ended(place.plain)
    assert (job.state, job.reason, job.share, job.eta_seconds) == ("done", None, 1.0, 0.0)
    assert states(job) == {"collect": "done", "optional": "skipped", "train": "done", "judge": "done",
                           "register": "done"}  # fmt: skip
    assert next(step.reason for step in job.steps if step.name == "optional") == "nothing to warm up"
    assert all(step.seconds is not None and step.seconds >= 0 for step in job.steps)
    assert (place.home / "versions" / job.id).read_text() == CHAIN_12
    assert place.attempts(job.id) == ["collect", "optional", "train", "judge", "register"]
    log = place.log(job.id)
    assert log[0] == "asked for by test" and "5 votes" in log and "trained" in log and log[-1] == "done"
    assert not any("steps_done" not in line and line.startswith("{") for line in log)  # progress is no log


def test_a_job_with_nothing_to_do_ends_well_and_says_why(place: Place) -> None:
    job = place.ended(place.few)
    assert (job.state, job.reason) == ("done", "1 new votes, 3 are needed")
    assert states(job) == {"collect": "done"} | dict.fromkeys(["optional", "train", "judge", "register"], "skipped")
    assert place.attempts(job.id) == ["collect"]


def test_a_step_that_may_be_tried_again_is_and_the_log_says_so(place: Place) -> None:
    job = place.ended(place.retried)
    assert (job.state, job.reason) == ("failed", "judge: the judge is ill")
    assert place.attempts(job.id) == ["judge"] * 3 and job.steps[0].attempts == 3
    assert [line for line in place.log(job.id) if "Another attempt" in line] == [
        "the judge is ill Another attempt in 2 s.", "the judge is ill Another attempt in 4 s.",
    ]  # fmt: skip


def test_a_failed_job_says_why_in_one_sentence_and_goes_on_behind_its_last_finished_step(place: Place) -> None:
    job = place.ended(place.failing)
    assert (job.state, job.reason) == ("failed", "judge: the judge is ill; call another one")
    assert states(job)["judge"] == "failed" and states(job)["register"] == "pending"
    with pytest.raises(DataError, match="is failed already; there is nothing to cancel"):
        status.cancel(place.settings, job.id)
    (place.home / "mended").touch()
    assert status.resume(place.settings, job.id, asked_by="test").state == "queued"
    job = place.ended(place.failing)
    assert (job.state, job.attempt) == ("done", 2)
    assert place.attempts(job.id) == ["collect", "optional", "train", "judge", "judge", "register"]
    with pytest.raises(DataError, match="only what failed"):
        status.resume(place.settings, job.id)


def test_a_step_that_crashes_is_started_again_twice_and_then_fails_without_harm_to_the_worker(place: Place) -> None:
    job = place.ended(place.crashing)
    assert (job.state, job.reason) == ("failed", "judge: The step was ended by SIGSEGV.")
    assert place.attempts(job.id).count("judge") == 3
    assert place.workers[0].poll() is None


def test_a_waiting_job_says_for_what_and_holds_no_gpu_slot(place: Place) -> None:
    place.until(lambda: place.job(place.waiting).state == "waiting")
    job = place.job(place.waiting)
    assert (job.step, job.reason) == ("judge", "waits for the judge")
    place.ended(place.plain)  # it trained while the other one waited
    (place.home / "judged").touch()
    job = place.ended(place.waiting)
    assert job.state == "done" and place.attempts(job.id).count("judge") > 1


def test_cancel_stops_a_stubborn_trainer_within_five_seconds_and_frees_the_gpu_slot(place: Place) -> None:
    job_id = place.submit(pause=0.2, steps=500, stubborn=True)
    place.until(lambda: place.job(job_id).steps and place.job(job_id).steps[2].share)
    after = place.submit()  # only now: of two jobs at once either may be first at the slot
    trainer = place.trainers(job_id)[0]
    job = place.job(job_id)
    assert job.state == "running" and job.steps[2].text.endswith("of 500")
    text = place.until(lambda: [step.text for step in place.job(after).steps if step.name == "train" and step.text])
    assert text == ["waits for the GPU slot"]
    began = time.monotonic()
    status.cancel(place.settings, job_id, asked_by="test")
    job = place.ended(job_id)
    place.until(lambda: gone(trainer))
    assert time.monotonic() - began < 5 * patience()
    assert (job.state, job.reason) == ("cancelled", "Cancelled by test.")
    assert place.ended(after).state == "done"  # it got the slot


@pytest.mark.slow
def test_a_cancelled_job_is_resumed_from_its_checkpoint(place: Place) -> None:
    job_id = place.submit(pause=0.1)
    place.until(lambda: (place.folder(job_id) / "train" / "checkpoint.json").exists())
    status.cancel(place.settings, job_id)
    assert place.ended(job_id).state == "cancelled"
    status.resume(place.settings, job_id)
    assert place.ended(job_id).state == "done"
    assert (place.home / "versions" / job_id).read_text() == CHAIN_12
    assert place.attempts(job_id).count("collect") == 1 and len(place.trainers(job_id)) == 2


def test_a_job_that_the_engine_takes_for_ended_does_not_stay_open_for_ever(place: Place) -> None:
    job = place.ended(place.submit("brief"))
    with status.ledger_of(place.settings).session() as s:  # as if the engine had lost it
        assert queries.move_job(s, job.id, to="running", only_from=["done"], ended=None)
    lost = place.ended(job.id)
    assert (lost.state, lost.reason) == ("failed", "Its course ended without an outcome; resume it.")


def test_what_the_engine_records_is_json_and_holds_no_pickle(place: Place) -> None:
    place.ended(place.plain)
    file = sqlite3.connect(place.home / "attune-jobs.db")
    tables = [row[0] for row in file.execute("select name from sqlite_master where type = 'table'")]
    for table in tables:
        for column in {row[1] for row in file.execute(f"pragma table_info({table})")} & {"inputs", "output", "error"}:
            for (text,) in file.execute(f"select {column} from {table} where {column} is not null"):
                json.loads(text)  # raises for base64
    names = {row[0] for row in file.execute("select distinct serialization from operation_outputs")}
    assert names <= {"attune_json", None}
    answers = [json.loads(row[0]) for row in file.execute("select output from operation_outputs")]
    assert len(answers) > 5
    assert {answer["state"] for answer in answers} <= {"done", "skipped", "finished", "waiting", "failed", "stopped"}
    file.close()


def test_a_second_worker_of_the_same_name_is_refused(place: Place) -> None:
    place.ended(place.plain)
    second = place.work()
    assert second.wait() == 1
    said = (place.home / "worker.log").read_text()
    assert "runs already on this home" in said and "another --name" in said


def test_the_command_line_shows_jobs_and_their_logs(place: Place) -> None:
    place.ended(place.few)
    home = ["--home", str(place.home)]
    shown = CliRunner().invoke(app, ["jobs", "show", place.few, *home])
    assert shown.exit_code == 0 and "1 new votes, 3 are needed" in shown.stdout
    listed = CliRunner().invoke(app, ["jobs", "list", "--json", *home])
    assert {place.plain, place.few} <= {job["id"] for job in json.loads(listed.stdout.splitlines()[-1])}
    logs = CliRunner().invoke(app, ["jobs", "logs", place.plain, "--step", "collect", *home])
    assert logs.stdout.strip().endswith("collect: 5 votes")


def test_a_faulty_request_is_refused_in_a_sentence_and_asks_for_nothing(place: Place) -> None:
    before = len(status.list_jobs(place.settings, limit=500))
    with pytest.raises(NotFoundError, match="no job kind 'nightli'; known kinds: align, brief, compare, fake"):
        place.submit("nightli")
    with pytest.raises(ConfigError, match="unknown key paus; did you mean pause"):
        place.submit(paus=1)
    with pytest.raises(NotFoundError, match="There is no job x; the newest are (fake|brief|retried)-"):
        place.job("x")
    with pytest.raises(ConfigError, match="has 3 fields and a cron line needs 5"):
        status.add_schedule(place.settings, "fake", "0 3 *")
    with pytest.raises(ConfigError, match="is no cron line"):
        status.add_schedule(place.settings, "fake", "99 3 * * *")
    assert len(status.list_jobs(place.settings, limit=500)) == before


@pytest.mark.slow
def test_a_worker_told_to_end_does_so_within_five_seconds_and_the_next_one_goes_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    try:
        job_id = place.submit(pause=0.1, steps=12)
        worker = place.work()
        trainer = place.until(lambda: (place.folder(job_id) / "train" / "checkpoint.json").exists() and
                              place.trainers(job_id)[0])  # fmt: skip
        began = time.monotonic()
        worker.terminate()
        assert worker.wait() == 0 and time.monotonic() - began < 5 * patience() and gone(trainer)
        assert place.job(job_id).state == "running"
        assert place.work("--once").wait() == 0
        assert place.job(job_id).state == "done"
        assert (place.home / "versions" / job_id).read_text() == CHAIN_12
    finally:
        place.close()


@pytest.mark.slow
def test_a_worker_with_other_steps_leaves_a_job_alone_and_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path)
    try:
        job_id = place.submit(judged=False, wait=60)
        worker = place.work()
        place.until(lambda: place.job(job_id).state == "waiting")
        worker.terminate()
        worker.wait()
        assert place.work("--once", ATTUNE_FAKE="tests.jobs_fake:OTHER").wait() == 0
        job = place.job(job_id)
        assert job.is_open and "its kind fake has other steps in its code" in job.reason
        assert place.attempts(job_id).count("judge") == 1
        (place.home / "judged").touch()
        with sqlite3.connect(place.home / "attune-jobs.db") as file:  # an hour later
            file.execute("update operation_outputs set output = json_set(output, '$.until', 0) "
                         "where json_extract(output, '$.state') = 'waiting'")  # fmt: skip
        assert place.work("--once").wait() == 0
        assert place.job(job_id).state == "done" and place.attempts(job_id).count("judge") == 2
    finally:
        place.close()


@pytest.mark.slow
def test_run_follows_a_job_to_its_end_without_any_other_worker(tmp_path: Path) -> None:
    place = Place(tmp_path)
    run = place.attune("run", "fake", "--json")
    assert run.wait() == 0
    said = (tmp_path / "worker.log").read_text()
    assert json.loads(said.splitlines()[-1])["state"] == "done" and "train: trained" in said
