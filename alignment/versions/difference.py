"""What two versions differ in: origin, config, votes, reward models, adapter, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.db import metric_results
from alignment.db.engine import Database
from alignment.db.metric_results import MetricResult
from alignment.versions.lineage import Ancestor, lineage, listening_json


@dataclass(frozen=True)
class Difference:
    """A field that is not alike: its dotted name and both values, None where a version has none.

    ``apart`` is None but for metrics, where it says whether the two intervals are disjoint."""

    field: str
    one: Any
    other: Any
    apart: bool | None = None


def differences(database: Database, one: str, other: str) -> list[Difference]:
    """What the two versions differ in, fields first, metrics last. Raises NotFoundError naming the known versions."""
    left, right = lineage(database, one)[0], lineage(database, other)[0]
    fields = _fields(left), _fields(right)
    out = [
        Difference(name, fields[0].get(name), fields[1].get(name))
        for name in dict.fromkeys([*fields[0], *fields[1]])
        if fields[0].get(name) != fields[1].get(name)
    ]
    with database.session(write=False) as s:
        measured = [{(m.metric, m.model): m for m in metric_results.latest(s, name)} for name in (one, other)]
    for metric, model in dict.fromkeys([*measured[0], *measured[1]]):
        pair = measured[0].get((metric, model)), measured[1].get((metric, model))
        if pair[0] is None or pair[1] is None or pair[0].value != pair[1].value:
            label = f"metric.{metric}" + (f" ({model})" if model else "")
            out.append(Difference(label, *(_shown(one) for one in pair), apart=_apart(*pair)))
    return out


def _fields(step: Ancestor) -> dict[str, Any]:
    version = step.version
    return {
        "base": version.base,
        "base_sha256": version.base_sha256,
        "parent": version.parent,
        "adapter_sha256": version.adapter_sha256,
        "licence": version.licence,
        "simulated": version.simulated,
        "commit": version.commit,
        **_flat("listening", listening_json(version.listening)),
        "training": step.run_kind,
        "snapshot": step.snapshot,
        "snapshot_sha256": step.snapshot_sha256,
        "votes": step.votes,
        "reward_models": list(step.reward_models) or None,
        **_flat("config", step.config),
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested mappings by dotted names."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(f"{prefix}.{key}", item).items()}
    return {} if value is None else {prefix: value}


def _shown(result: MetricResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"value": result.value, "low": result.low, "high": result.high, "n": result.n}


def _apart(one: MetricResult | None, other: MetricResult | None) -> bool | None:
    if one is None or other is None or None in (one.low, one.high, other.low, other.high):
        return None
    return one.high < other.low or other.high < one.low
