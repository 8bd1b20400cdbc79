"""Queries about what was measured of versions, with interval, n and the exact model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import MetricResultRow
from alignment.db.versions import get_version


@dataclass(frozen=True)
class MetricResult:
    """One figure of a version. ``low`` and ``high`` are None where no interval was recorded; ``model`` names what
    measured it, None where no model did."""

    metric: str
    model: str | None
    value: float
    low: float | None
    high: float | None
    n: int
    created_at: datetime


def latest(s: Session, version: str) -> list[MetricResult]:
    """The newest figure of each metric and model of a version, by metric. Raises NotFoundError."""
    query = sa.select(MetricResultRow).where(MetricResultRow.version_id == get_version(s, version).id)
    found = {
        (row.metric, row.model): MetricResult(
            row.metric, row.model, row.value, row.value_low, row.value_high, row.n, row.created_at
        )
        for row in s.scalars(query.order_by(MetricResultRow.id))
    }
    return sorted(found.values(), key=lambda one: (one.metric, one.model or ""))
