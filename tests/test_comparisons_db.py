"""Comparisons as recorded, on SQLite and PostgreSQL: whole or not at all, once, with equal n."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import sqlalchemy as sa
from singing_support import sing

from alignment.db import comparisons, gates
from alignment.db.comparisons import Difference, Measured, NewComparison
from alignment.db.studies import create_study
from alignment.db.tables import MetricResultRow
from alignment.domain import RaterKind
from alignment.errors import DataError, NotFoundError
from tests.database_support import (  # noqa: F401
    any_database,
    any_url,
    postgres_server,
    postgres_url,
    sqlite_database,
    sqlite_url,
)


def new(clips, name: str = "tuned-vs-base", job_id: str | None = None, n: int = 12) -> NewComparison:
    return NewComparison(
        name=name, versions=("tuned", "base"), clips=tuple(clip.id for clip in clips),
        metrics=(
            Measured("tuned", "silence", None, n, 0.25, 0.1, 0.4), Measured("base", "silence", None, 12, 0.5, 0.3, 0.7),
            Measured("tuned", "kl", None, 2, 3.0, math.nan, math.nan),
        ),
        differences=(Difference("tuned", "base", "silence", None, 12, -0.25, -0.3, math.nan),),
        settings={"seed": 0, "confidence": 0.95}, about={"clap": "clap:x"}, content_sha256="a" * 64, job_id=job_id,
    )  # fmt: skip


def test_a_comparison_comes_back_as_it_was_saved_and_only_once(any_database, tmp_path: Path) -> None:  # noqa: F811
    _, clips = sing(any_database, tmp_path, prompt_count=2)
    clips = sorted(clips, key=lambda clip: (clip.prompt_id, clip.version == "base"))
    with any_database.session() as s:
        saved = comparisons.save_comparison(s, new(clips, job_id="job-1"))
        create_study(
            s, name="heard", versions=["tuned", "base"], questions=["overall"], minimum_listening_seconds=0.0,
            rater_kind=RaterKind.SIMULATED,
        )  # fmt: skip
        comparisons.attach_study(s, saved.name, "heard")
        comparisons.attach_study(s, saved.name, "heard")
    with any_database.session() as s:
        assert comparisons.save_comparison(s, new(clips, name="another", job_id="job-1")).id == saved.id
        assert comparisons.save_comparison(s, new(clips)).id == saved.id
        found = comparisons.get_comparison(s, "tuned-vs-base")
        assert s.scalar(sa.select(sa.func.count()).select_from(MetricResultRow)) == 3
        assert found.versions == ("tuned", "base") and found.studies == ("heard",) and found.job_id == "job-1"
        assert found.metrics[:2] == new(clips).metrics[:2] and math.isnan(found.of("tuned", "kl").low)
        assert found.differences[0].value == -0.25 and math.isnan(found.differences[0].high)
        assert not found.differences[0].is_clear and found.of("base", "kl") is None
        assert found.to_json()["metrics"][2]["low"] is None
        prompts = comparisons.compared_prompts(s, found.id)
        assert [one.prompt.text for one in prompts] == ["prompt 0", "prompt 1"]
        assert all(list(one.clips) == ["tuned", "base"] for one in prompts)
        assert comparisons.list_comparisons(s) == comparisons.list_comparisons(s, version="base") == [found]
        assert gates.latest_metrics(s, "tuned")["silence"] == (0.25, 0.1, 0.4, 12)


def test_what_must_not_be_recorded_is_refused_and_nothing_of_it_stays(sqlite_database, tmp_path: Path) -> None:  # noqa: F811
    _, clips = sing(sqlite_database, tmp_path, prompt_count=1)
    for faulty, error, said in (
        (new(clips, n=11), DataError, "silence rests on 11 and 12 values; measure equally many"),
        (NewComparison(**{**vars(new(clips)), "versions": ("tuned", "gone")}), NotFoundError, "called gone"),
        (NewComparison(**{**vars(new(clips)), "clips": (clips[0].prompt_id,)}), NotFoundError, "No clip has the id"),
    ):
        with pytest.raises(error, match=said), sqlite_database.session() as s:
            comparisons.save_comparison(s, faulty)
    with sqlite_database.session() as s:
        assert comparisons.list_comparisons(s) == []
        assert s.scalar(sa.select(sa.func.count()).select_from(MetricResultRow)) == 0
        comparisons.save_comparison(s, new(clips))
    other = NewComparison(**{**vars(new(clips)), "content_sha256": "b" * 64})
    with pytest.raises(DataError, match="exists with other content"), sqlite_database.session() as s:
        comparisons.save_comparison(s, other)
