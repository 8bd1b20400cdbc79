"""Several runs over training in one small plot: inline SVG, crisp at any width, light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from alignment.evaluation.plots import nice_ticks, tick_label
from alignment.evaluation.terminal import number

Points = Sequence[tuple[float, float]]


def runs_chart(
    label: str,
    runs: Mapping[str, Points],
    *,
    kept: Mapping[str, float] | None = None,
    reference: float | None = None,
    unit: str = "",
    across: str = "step",
    note: str = "",
) -> str:
    """A line a run over steps (or another quantity ``across``), a ring where ``kept`` says that its adapter was kept.

    The legend is the caption: a run's name with its last value. Points that are not finite are left out; without any
    the plot is empty text."""
    lines = {run: [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
             for run, points in runs.items()}  # fmt: skip
    lines = {run: points for run, points in lines.items() if points}
    if not lines:
        return ""
    values = [y for points in lines.values() for _, y in points] + ([] if reference is None else [reference])
    ticks = nice_ticks(min(values), max(values))
    bottom, top = ticks[0], ticks[-1]
    first = min(x for points in lines.values() for x, _ in points)
    width = max(x for points in lines.values() for x, _ in points) - first or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return round(100 * (x - first) / width, 2), round(100 * (top - y) / (top - bottom), 2)

    parts = [f'<line class="grid" x1="0" x2="100" y1="{at(first, t)[1]}" y2="{at(first, t)[1]}"/>' for t in ticks]
    if reference is not None:
        y = at(first, reference)[1]
        parts.append(f'<line class="reference" x1="0" x2="100" y1="{y}" y2="{y}"/>')
    dots = []
    for run, points in lines.items():
        css = f"run-{escape(run.lower())}"
        path = "".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(at(*point) for point in points))
        parts.append(f'<path class="line {css}" d="{path}"/>')
        chosen = (kept or {}).get(run)
        for x, y in points:
            if chosen is not None and x == chosen:
                left, down = at(x, y)
                dots.append(f'<i class="ring {css}" style="left:{left}%;top:{down}%"></i>')
    said = "; ".join(f"{run} {number(p[0][1])} to {number(p[-1][1])}" for run, p in lines.items())
    legend = "".join(
        f'<span><i class="key run-{escape(run.lower())}"></i>{escape(run)} <b>{number(points[-1][1])}</b></span>'
        for run, points in lines.items()
    )
    y_labels = "".join(f'<span style="top:{at(first, t)[1]}%">{tick_label(t)}</span>' for t in ticks)
    title = escape(label) + (f" <small>{escape(unit)}</small>" if unit else "")
    caption = f'<p class="chart-note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="runs"><figcaption><span class="chart-label">{title}</span></figcaption>'
        f'<p class="legend">{legend}</p><div class="chart-body"><div class="y-labels" aria-hidden="true">{y_labels}'
        f'</div><div class="chart-plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{label}: {said}")}">{"".join(parts)}</svg>{"".join(dots)}</div></div>'
        f'<div class="x-labels" aria-hidden="true"><span>{escape(across)} {tick_label(round(first, 1))}</span>'
        f"<span>{tick_label(round(first + width, 1))}</span></div>{caption}</figure>"
    )
