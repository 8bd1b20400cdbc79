"""How a comparison is told: its figures as a table of metrics and versions, and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment.db.comparisons import Comparison, Difference, Measured
from alignment.evaluation.metric_words import MetricWords, words_of


@dataclass(frozen=True)
class Row:
    """One metric: every version's figure in the order of the comparison, on one axis from ``low`` to ``high``.

    ``clear`` are the differences whose interval leaves 0 out; ``n`` is the same for all versions."""

    words: MetricWords
    model: str | None
    n: int
    cells: tuple[Measured | None, ...]
    clear: tuple[Difference, ...]
    low: float
    high: float


def table_of(comparison: Comparison) -> list[Row]:
    """The metrics in the order in which they were measured."""
    rows = []
    for metric, model in dict.fromkeys((one.metric, one.model) for one in comparison.metrics):
        cells = tuple(
            next((m for m in comparison.metrics if (m.version, m.metric, m.model) == (name, metric, model)), None)
            for name in comparison.versions
        )
        had = [one for one in cells if one is not None]
        bounds = [x for one in had for x in (one.low, one.value, one.high) if math.isfinite(x)]
        clear = tuple(d for d in comparison.differences if (d.metric, d.model) == (metric, model) and d.is_clear)
        rows.append(
            Row(words_of(metric), model, had[0].n, cells, clear, min(bounds, default=0.0), max(bounds, default=1.0))
        )
    return rows


def about_of(comparison: Comparison) -> list[tuple[str, str]]:
    """What the figures rest on, as names and words."""
    told = _flat("", comparison.about) | _flat("", comparison.settings)
    return [(name.replace("_", " "), value) for name, value in told.items() if value]


def _flat(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(f"{prefix}{key}, ", inner).items()}
    if isinstance(value, list | tuple):
        return {prefix[:-2]: ", ".join(map(str, value))}
    return {prefix[:-2]: "" if value is None else str(value)}
