"""Several workers that record the same thing at the same moment: it is there once, and nobody is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from database_support import *  # noqa: F403 - fixtures
from database_support import FACTS, Filled, fill
from sqlalchemy.orm import Session

from alignment.accounts import Accounts
from alignment.db import (
    clips,
    comparisons,
    external,
    figures,
    generations,
    job_workers,
    jobs,
    prompts,
    ratings,
    runs,
    snapshots,
    studies,
    versions,
)
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.db.tables import metadata
from alignment.db.tables_jobs import JobRow, JobStepRow, JobWorkerRow, jobs_url, open_ledger
from alignment.domain import GenerationConfig, RaterKind, Split
from alignment.errors import DataError

WORKERS, TURNS = 6, 2
NIGHT = GenerationConfig(temperature=0.7)


def at_once(database: Database, record: Callable[[Session, int], Any]) -> tuple[list[Any], list[Exception]]:
    """What WORKERS threads get that record in transactions begun together, and what they are refused with."""

    def in_a_transaction(number: int) -> Any:
        with database.session() as s:
            return record(s, number)

    return together(database, in_a_transaction)


def together(database: Database, record: Callable[[int], Any]) -> tuple[list[Any], list[Exception]]:
    start, got, refused = threading.Barrier(WORKERS), [], []

    def work(number: int) -> None:
        try:
            with database.session(write=False) as s:  # a connection is there before the race begins
                s.execute(sa.text("SELECT 1"))
            start.wait()
            got.append(record(number))
        except Exception as error:  # a thread's failure would otherwise pass unseen
            refused.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got, refused


def count(database: Database, table: sa.Table) -> int:
    with database.session(write=False) as s:
        return s.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def a_run(s: Session, **about: Any) -> Any:
    return runs.add_train_run(s, kind="reward", snapshot_id=None, config={}, metrics={}, **about)


def a_version(s: Session, name: str) -> Any:
    return versions.add_version(s, name=name, base="tiny", base_sha256="0" * 64, listening=NIGHT).id


def a_snapshot(s: Session, name: str) -> Any:
    return snapshots.add_snapshot(
        s, name=name, policy={}, high_water_mark=None, content_sha256="b" * 64, uri="store://x", simulated=True,
        members=[],
    )  # fmt: skip


def a_reward_model(s: Session, name: str) -> Any:
    return runs.add_reward_model(
        s, name=name, train_run_id=runs.list_train_runs(s)[0].id, encoder="clap", heads=["quality"], calibration={},
        artefact_sha256="c" * 64, artefact_uri="store://y",
    )  # fmt: skip


def a_study(s: Session, name: str) -> Any:
    return studies.create_study(
        s, name=name, versions=["base", "tuned"], questions=["preference"], minimum_listening_seconds=0,
        rater_kind=RaterKind.HUMAN,
    )  # fmt: skip


def a_prompt_set(s: Session, filled: Filled, name: str) -> Any:
    return studies.add_prompt_set(s, name, [prompt.id for prompt in filled.prompts])


def a_comparison(s: Session, filled: Filled, name: str) -> Any:
    new = comparisons.NewComparison(name, ("base", "tuned"), (filled.clips[0].id,), (), (), {}, {}, "a" * 64)
    return comparisons.save_comparison(s, new).id


def thirty_prompts(s: Session, name: str, number: int) -> list[Any]:
    words = [(f"{name} {i}", "test", Split.TRAIN, {}) for i in range(30)]
    return sorted(prompt.id for prompt in prompts.add_prompts(s, words[::-1] if number % 2 else words))


def a_clip_of_each(s: Session, filled: Filled, seed: int, number: int) -> list[Any]:
    new = [clips.NewClip(p.id, "base", NIGHT, seed, f"{seed:064d}", None, FACTS) for p in filled.prompts]
    return sorted(clip.id for clip in clips.add_clips(s, new[::-1] if number % 2 else new))


def scores_of_all(s: Session, filled: Filled) -> None:
    scores = {clip.id: (0.5, 0.1) for clip in filled.clips}
    figures.set_clip_scores(s, runs.get_reward_model(s, "judge").id, scores, utcnow())


def items_of_all(s: Session, filled: Filled, study: Any, number: int) -> None:
    items = [(clip.prompt_id, clip.id, "normal") for clip in filled.clips]
    ratings.add_items(s, study, items[::-1] if number % 2 else items)


@pytest.fixture
def filled(any_database: Database) -> Filled:  # noqa: F811
    """Four prompts with two clips each, and what clips are scored by."""
    found = fill(any_database)
    with any_database.session() as s:
        a_run(s)
        a_reward_model(s, "judge")
    return found


def test_what_several_workers_record_at_once_is_there_once(any_database, filled: Filled) -> None:  # noqa: F811
    def is_once(table: str, rows: int, record: Callable[[Session, int], Any]) -> None:
        before = count(any_database, metadata.tables[table])
        got, refused = at_once(any_database, record)
        assert not refused, f"{table}: {refused[0]}"
        assert got == [got[0]] * WORKERS, table
        assert count(any_database, metadata.tables[table]) == before + rows, table

    for turn in range(TURNS):
        name = f"turn {turn}"
        setting = GenerationConfig(temperature=1.5 + turn)
        is_once("generation_config", 1, lambda s, _, g=setting: generations.add_generation_config(s, g))
        is_once("prompt", 30, lambda s, number, n=name: thirty_prompts(s, n, number))
        is_once("version", 1, lambda s, _, n=name: a_version(s, n))
        is_once("clip", 4, lambda s, number, t=turn: a_clip_of_each(s, filled, 70 + t, number))
        is_once("snapshot", 1, lambda s, _, n=name: a_snapshot(s, n))
        is_once("train_run", 1, lambda s, _, n=name: a_run(s, job_id=n))
        is_once("reward_model", 1, lambda s, _, n=name: a_reward_model(s, n))
        is_once("study_version", 2, lambda s, _, n=name: a_study(s, n))
        with any_database.session(write=False) as s:
            study = studies.get_study(s, name).id
        is_once("study_version", 1, lambda s, _, n=name, st=study: external.add_study_versions(s, st, [n]))
        is_once("prompt_set_member", 4, lambda s, _, n=name: a_prompt_set(s, filled, n))
        is_once("rating_item", 8, lambda s, number, st=study: items_of_all(s, filled, st, number))
        is_once("comparison", 1, lambda s, _, n=name: a_comparison(s, filled, n))
        is_once("comparison_study", 1, lambda s, _, n=name: comparisons.attach_study(s, n, n))
        is_once("clip_score", 0 if turn else 8, lambda s, _: scores_of_all(s, filled))


@pytest.fixture
def ledger(any_database: Database) -> Iterator[Database]:  # noqa: F811
    found = open_ledger(jobs_url(any_database.url))
    yield found
    found.close()


def test_a_job_its_steps_and_a_worker_are_on_record_once(ledger: Database) -> None:
    for turn in range(TURNS):
        job = f"job-{turn}"
        for table, rows, record in (
            (JobRow, 1, lambda s, _, n=job: jobs.add_job(s, job_id=n, kind="k", recipe={}, asked_by=None).id),
            (JobStepRow, 3, lambda s, _, n=job: jobs.step_names(s, n, ["a", "b", "c"])),
            (JobWorkerRow, 1, lambda s, _, n=job: job_workers.beat(s, name=n, host="h", pid=1, code="c")),
        ):
            before = count(ledger, table.__table__)
            got, refused = at_once(ledger, record)
            assert not refused and got == [got[0]] * WORKERS
            assert count(ledger, table.__table__) == before + rows


def test_of_several_who_want_one_name_one_has_it_and_the_others_are_told(any_database, ledger: Database) -> None:  # noqa: F811
    tomorrow = utcnow() + timedelta(days=1)
    accounts = Accounts(any_database)
    for turn in range(TURNS):
        name = f"night-{turn}"
        got, refused = at_once(ledger, lambda s, _, n=name: job_workers.add_schedule(
            s, name=n, kind="k", cron="* * * * *", recipe={}, next_at=tomorrow, asked_by=None
        ))  # fmt: skip
        assert len(got) == 1 and {type(error) for error in refused} == {DataError}
        assert {str(error).partition(";")[0] for error in refused} == {f"There is a schedule {name} already"}
        got, refused = together(any_database, lambda _, n=name: accounts.add(n, "admin", None, actor="test"))
        assert len(got) == 1 and len(refused) == WORKERS - 1
        assert {str(error).partition(";")[0] for error in refused} == {f"An account is called {name} already"}
