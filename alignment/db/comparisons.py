"""Queries about comparisons: versions measured side by side on the same prompts, each figure with its interval."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.at_once import one_at_a_time
from alignment.db.base import utcnow, uuid7
from alignment.db.clips import get_clips
from alignment.db.prompts import get_prompts
from alignment.db.studies import get_study
from alignment.db.tables import (
    ComparisonClipRow,
    ComparisonMetricRow,
    ComparisonRow,
    ComparisonStudyRow,
    ComparisonVersionRow,
    MetricResultRow,
    StudyRow,
    VersionRow,
)
from alignment.db.versions import get_version
from alignment.domain import Clip, Prompt, json_plain
from alignment.errors import DataError, NotFoundError


@dataclass(frozen=True)
class Measured:
    """One figure of one version. ``model`` is the exact model that it rests on, None where it is the audio alone;
    ``low`` and ``high`` are nan where no interval can be had; ``n`` counts clips, or prompts where a prompt gives one
    value."""

    version: str
    metric: str
    model: str | None
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """By how much a figure of ``version`` lies above that of ``against``, prompt by prompt on the same prompts."""

    version: str
    against: str
    metric: str
    model: str | None
    n: int
    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class NewComparison:
    """A comparison that was measured and is not recorded yet. ``clips`` are ordered by prompt, version and take.

    ``about`` says what the figures rest on (encoder, reference, training clips, reward models); ``content_sha256`` is
    that of everything that was asked, so that the same name never stands for two comparisons."""

    name: str
    versions: tuple[str, ...]
    clips: tuple[uuid.UUID, ...]
    metrics: tuple[Measured, ...]
    differences: tuple[Difference, ...]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    content_sha256: str
    job_id: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Comparison:
    """A comparison as recorded. ``simulated``: simulated votes trained one of its versions."""

    id: uuid.UUID
    name: str
    versions: tuple[str, ...]
    metrics: tuple[Measured, ...]
    differences: tuple[Difference, ...]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    content_sha256: str
    studies: tuple[str, ...]
    simulated: bool
    job_id: str | None
    commit: str | None
    created_at: datetime

    def of(self, version: str, metric: str, model: str | None = None) -> Measured | None:
        """The version's figure of that name (and model, where it is named), None where it was not measured."""
        for found in self.metrics:
            if (found.version, found.metric) == (version, metric) and model in (None, found.model):
                return found
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become None."""
        values = asdict(self) | {"id": str(self.id), "created_at": self.created_at.isoformat()}
        return json_plain(values)


@dataclass(frozen=True)
class ComparedPrompt:
    """One prompt of a comparison with each version's clips, takes in order."""

    prompt: Prompt
    clips: Mapping[str, tuple[Clip, ...]] = field(default_factory=dict)


def save_comparison(s: Session, new: NewComparison) -> Comparison:
    """The comparison as recorded, its figures in metric_result; the same job, or the same name with the same content,
    gives what is there already.

    Raises NotFoundError on an unknown version or clip, DataError when the name stands for another comparison or an
    n differs among the versions (what fewer clips say cannot be set beside what more say)."""
    one_at_a_time(s, "comparison", new.name)
    known = find_comparison(s, job_id=new.job_id) if new.job_id else None
    known = known or find_comparison(s, name=new.name)
    if known is not None:
        if known.content_sha256 != new.content_sha256:
            raise DataError(f"Comparison {new.name} exists with other content; choose another name.")
        return known
    _check_equal_n(new.metrics)
    versions = {name: get_version(s, name).id for name in new.versions}
    get_clips(s, new.clips)
    own, now = uuid7(), utcnow()
    s.execute(
        sa.insert(ComparisonRow).values(
            id=own, name=new.name, content_sha256=new.content_sha256, settings=json_plain(new.settings),
            about=json_plain(new.about), differences=[json_plain(asdict(one)) for one in new.differences],
            job_id=new.job_id, commit=new.commit, created_at=now,
        )
    )  # fmt: skip
    figures = [
        {"id": uuid7(), "version_id": versions[m.version], "metric": m.metric, "model": m.model, "n": m.n,
         "value": m.value, "value_low": _finite(m.low), "value_high": _finite(m.high), "created_at": now}
        for m in new.metrics
    ]  # fmt: skip
    rows: dict[Any, list[dict[str, Any]]] = {
        MetricResultRow: figures,
        ComparisonVersionRow: [{"version_id": id_, "position": at} for at, id_ in enumerate(versions.values())],
        ComparisonClipRow: [{"clip_id": id_, "position": at} for at, id_ in enumerate(new.clips)],
        ComparisonMetricRow: [{"metric_result_id": one["id"]} for one in figures],
    }
    for table, made in rows.items():
        if made:
            mark = {} if table is MetricResultRow else {"comparison_id": own}
            s.execute(sa.insert(table), [mark | one for one in made])
    return get_comparison(s, new.name)


def _check_equal_n(metrics: Sequence[Measured]) -> None:
    counts: dict[tuple[str, str | None], set[int]] = {}
    for one in metrics:
        counts.setdefault((one.metric, one.model), set()).add(one.n)
    for (metric, _), found in counts.items():
        if len(found) > 1:
            raise DataError(f"{metric} rests on {' and '.join(map(str, sorted(found)))} values; measure equally many.")


def attach_study(s: Session, comparison: str, study: str) -> None:
    """Say that listeners compare these versions in that study; said again it changes nothing. Raises NotFoundError."""
    ids = {"comparison_id": get_comparison(s, comparison).id, "study_id": get_study(s, study).id}
    one_at_a_time(s, "comparison_study", ids)
    if s.get(ComparisonStudyRow, ids) is None:
        s.execute(sa.insert(ComparisonStudyRow).values(**ids))


def find_comparison(s: Session, *, name: str | None = None, job_id: str | None = None) -> Comparison | None:
    """The comparison of this name, or of this job; None where there is none."""
    query = sa.select(ComparisonRow)
    query = query.where(ComparisonRow.job_id == job_id) if job_id else query.where(ComparisonRow.name == name)
    row = s.scalar(query)
    return None if row is None else _comparison(s, row)


def get_comparison(s: Session, name: str) -> Comparison:
    """The comparison of this name. Raises NotFoundError that lists the newest."""
    found = find_comparison(s, name=name)
    if found is None:
        newest = list(s.scalars(sa.select(ComparisonRow.name).order_by(ComparisonRow.id.desc()).limit(10)))
        raise NotFoundError(f"No comparison is called {name}; the newest: {', '.join(newest) or 'none yet'}.")
    return found


def list_comparisons(s: Session, *, version: str | None = None, limit: int = 100) -> list[Comparison]:
    """The newest comparisons, or those with one version, newest first."""
    query = sa.select(ComparisonRow).order_by(ComparisonRow.id.desc()).limit(limit)
    if version is not None:
        mine = sa.select(ComparisonVersionRow.comparison_id).where(
            ComparisonVersionRow.version_id == get_version(s, version).id
        )
        query = query.where(ComparisonRow.id.in_(mine))
    return [_comparison(s, row) for row in s.scalars(query)]


def compared_prompts(s: Session, comparison: uuid.UUID) -> list[ComparedPrompt]:
    """The comparison's prompts in their order, each with every version's clips."""
    query = sa.select(ComparisonClipRow.clip_id).where(ComparisonClipRow.comparison_id == comparison)
    ids = list(s.scalars(query.order_by(ComparisonClipRow.position)))
    clips = get_clips(s, ids)
    sorted_out: dict[uuid.UUID, dict[str, list[Clip]]] = {}
    for clip in (clips[id_] for id_ in ids):
        sorted_out.setdefault(clip.prompt_id, {}).setdefault(clip.version, []).append(clip)
    prompts = get_prompts(s, list(sorted_out))
    return [
        ComparedPrompt(prompts[id_], {name: tuple(takes) for name, takes in by_version.items()})
        for id_, by_version in sorted_out.items()
    ]


def _comparison(s: Session, row: ComparisonRow) -> Comparison:
    versions = s.execute(
        sa.select(VersionRow.name, VersionRow.simulated)
        .join(ComparisonVersionRow, ComparisonVersionRow.version_id == VersionRow.id)
        .where(ComparisonVersionRow.comparison_id == row.id)
        .order_by(ComparisonVersionRow.position)
    ).all()
    metrics = s.execute(
        sa.select(MetricResultRow, VersionRow.name)
        .join(ComparisonMetricRow, ComparisonMetricRow.metric_result_id == MetricResultRow.id)
        .join(VersionRow, MetricResultRow.version_id == VersionRow.id)
        .where(ComparisonMetricRow.comparison_id == row.id)
        .order_by(MetricResultRow.id)
    )
    studies = s.scalars(
        sa.select(StudyRow.name)
        .join(ComparisonStudyRow, ComparisonStudyRow.study_id == StudyRow.id)
        .where(ComparisonStudyRow.comparison_id == row.id)
        .order_by(StudyRow.id)
    )
    return Comparison(
        row.id, row.name, tuple(name for name, _ in versions),
        tuple(Measured(name, m.metric, m.model, m.n, m.value, _number(m.value_low), _number(m.value_high))
              for m, name in metrics),
        tuple(Difference(**{k: _number(v) if k in ("low", "high") else v for k, v in one.items()})
              for one in row.differences),
        row.settings, row.about, row.content_sha256, tuple(studies), any(simulated for _, simulated in versions),
        row.job_id, row.commit, row.created_at,
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
