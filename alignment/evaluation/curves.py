"""Several quantities over training steps in one chart, each with its interval as a band; inline SVG, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from alignment.evaluation.intervals import Interval
from alignment.evaluation.plots import nice_ticks, tick_label
from alignment.evaluation.terminal import number


@dataclass(frozen=True)
class Curve:
    """One quantity: its name, its CSS class and (step, mean with interval) in the order of the steps."""

    name: str
    css: str
    points: Sequence[tuple[int, Interval]]


def curves_chart(
    label: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    marked: tuple[int, str] | None = None,
    levels: Sequence[tuple[float, str]] = (),
    floor: float | None = None,
    note: str = "",
) -> str:
    """One chart. ``marked``: a step with a dashed line and its name; ``levels``: dotted horizontal lines with names;
    ``floor``: the least value there can be, below which no band is drawn.

    Bands are 95% intervals; a mean that is not finite is left out, and a chart without any is empty text."""
    curves = [
        Curve(c.name, c.css, kept) for c in curves if (kept := [(x, i) for x, i in c.points if math.isfinite(i.value)])
    ]
    if not curves:
        return ""
    edges = [
        e for c in curves for _, i in c.points for e in (i.value, i.low, i.high) if math.isfinite(e)
    ] + [value for value, _ in levels]  # fmt: skip
    low, high = min(edges), max(edges)
    if floor is not None:
        low = max(low, floor)
        high = high if high > low else low + 1.0  # nice_ticks would open an empty range to both sides
    ticks = nice_ticks(low, high)
    steps = [x for c in curves for x, _ in c.points]
    first, last = min(steps), max(steps)

    def at(x: float) -> float:
        return 50.0 if last == first else 100 * (x - first) / (last - first)

    def up(y: float) -> float:
        return 100 * (ticks[-1] - min(max(y, ticks[0]), ticks[-1])) / (ticks[-1] - ticks[0])

    shapes = [f'<line class="grid" x1="0" x2="100" y1="{up(t):.2f}" y2="{up(t):.2f}"/>' for t in ticks]
    shapes += [f'<line class="level" x1="0" x2="100" y1="{up(v):.2f}" y2="{up(v):.2f}"/>' for v, _ in levels]
    if marked is not None:
        shapes.append(f'<line class="reference" x1="{at(marked[0]):.2f}" x2="{at(marked[0]):.2f}" y1="0" y2="100"/>')
    dots = []
    for curve in curves:
        banded = [(x, i) for x, i in curve.points if math.isfinite(i.low) and math.isfinite(i.high)]
        if len(banded) > 1:
            outline = [(x, i.low) for x, i in banded] + [(x, i.high) for x, i in reversed(banded)]
            corners = " ".join(f"{at(x):.2f},{up(y):.2f}" for x, y in outline)
            shapes.append(f'<polygon class="band {curve.css}" points="{corners}"/>')
        line = " ".join(f"{at(x):.2f},{up(i.value):.2f}" for x, i in curve.points)
        shapes.append(f'<polyline class="line {curve.css}" points="{line}"/>')
        dots += [
            f'<i class="mark {curve.css}" style="left:{at(x):.2f}%;top:{up(i.value):.2f}%" '
            f'title="{escape(curve.name)}, step {x}: {number(i.value)} [{number(i.low)}, {number(i.high)}]"></i>'
            for x, i in curve.points
        ]
    ends = "; ".join(
        f"{c.name} {number(c.points[0][1].value)} at step {c.points[0][0]}, {number(c.points[-1][1].value)} at step "
        f"{c.points[-1][0]}" for c in curves
    )  # fmt: skip
    y_labels = "".join(f'<span style="top:{up(t):.2f}%">{tick_label(t)}</span>' for t in ticks)
    names = "".join(f'<span style="top:{up(v):.2f}%">{escape(name)}</span>' for v, name in levels)
    key = "".join(f'<span><i class="key {c.css}"></i>{escape(c.name)}</span>' for c in curves) if curves[1:] else ""
    marks = f"<span>{escape(marked[1])}: step {marked[0]} (dashed)</span>" if marked is not None else ""
    caption = f'<p class="chart-note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="curves"><figcaption><span class="chart-label">{escape(label)}</span>'
        f'<span class="chart-unit">{escape(unit)}</span></figcaption>'
        + (f'<p class="legend">{key}{marks}</p>' if key else "")
        + f'<div class="chart-body"><div class="y-labels" aria-hidden="true">{y_labels}</div><div class="chart-plot">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{escape(f"{label}: {ends}")}">'
        f'{"".join(shapes)}</svg>{"".join(dots)}<div class="level-names" aria-hidden="true">{names}</div></div></div>'
        f'<div class="x-labels" aria-hidden="true"><span>step {first}</span><span>{last}</span></div>{caption}</figure>'
    )
