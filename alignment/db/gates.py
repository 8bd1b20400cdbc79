"""Queries about the gate: who was promoted or not, on what evidence, and the alpha that it took."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from alignment.db.base import utcnow, uuid7
from alignment.db.tables import GateDecisionRow, MetricResultRow, VersionRow
from alignment.db.versions import get_version
from alignment.errors import DataError

OUTCOMES = ("promoted", "rejected", "undecided")


@dataclass(frozen=True)
class RecordedDecision:
    """A decision of the gate as recorded."""

    id: uuid.UUID
    candidate: str
    champion: str | None
    outcome: str
    evidence: Mapping[str, Any]
    alpha_spent: float
    created_at: datetime


def record_decision(
    s: Session, *, candidate: str, champion: str | None, outcome: str, evidence: Mapping[str, Any], alpha_spent: float
) -> uuid.UUID:
    """The id of the decision as written. Raises NotFoundError on an unknown version, DataError on another outcome or an
    alpha outside 0 to 1."""
    if outcome not in OUTCOMES:
        raise DataError(f"A gate's outcome is {outcome!r}; it must be one of {', '.join(OUTCOMES)}.")
    if not 0 <= alpha_spent <= 1:
        raise DataError(f"The gate spent alpha {alpha_spent}; it must lie from 0 to 1.")
    new = uuid7()
    s.execute(
        sa.insert(GateDecisionRow).values(
            id=new,
            candidate_id=get_version(s, candidate).id,
            champion_id=get_version(s, champion).id if champion is not None else None,
            evidence=dict(evidence),
            outcome=outcome,
            alpha_spent=alpha_spent,
            created_at=utcnow(),
        )
    )
    return new


def list_decisions(s: Session, *, candidate: str | None = None) -> list[RecordedDecision]:
    """The decisions, or those on one candidate, in the order in which they were made."""
    one, two = aliased(VersionRow), aliased(VersionRow)
    query = (
        sa.select(GateDecisionRow, one.name, two.name)
        .join(one, GateDecisionRow.candidate_id == one.id)
        .outerjoin(two, GateDecisionRow.champion_id == two.id)
        .order_by(GateDecisionRow.id)
    )
    if candidate is not None:
        query = query.where(GateDecisionRow.candidate_id == get_version(s, candidate).id)
    return [
        RecordedDecision(row.id, name, champion, row.outcome, row.evidence, row.alpha_spent, row.created_at)
        for row, name, champion in s.execute(query)
    ]


def spent_alphas(s: Session, *, since: datetime | None = None, besides: str | None = None) -> list[float]:
    """The alpha of each candidate that was tested, in the order of first decisions: once each, however often looked at.

    ``since`` is when the budget was opened; ``besides`` leaves out the candidate whose own alpha is asked for."""
    spent: dict[str, float] = {}
    for made in list_decisions(s):
        if made.candidate != besides and (since is None or made.created_at >= since):
            spent[made.candidate] = max(spent.get(made.candidate, 0.0), made.alpha_spent)
    return list(spent.values())


def latest_metrics(s: Session, version: str) -> dict[str, tuple[float, float, float, int]]:
    """Metric -> (value, low, high, n) of the version as measured last; nan where no interval was recorded."""
    query = sa.select(MetricResultRow).where(MetricResultRow.version_id == get_version(s, version).id)
    return {
        row.metric: (
            row.value,
            math.nan if row.value_low is None else row.value_low,
            math.nan if row.value_high is None else row.value_high,
            row.n,
        )
        for row in s.scalars(query.order_by(MetricResultRow.id))
    }
