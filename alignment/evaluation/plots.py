"""Small plots as HTML and inline SVG: percentages and unscaled strokes keep them crisp at any width, light or dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape

from alignment.evaluation.intervals import Interval
from alignment.evaluation.terminal import number, percent


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers that enclose [low, high]."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def share_domain(intervals: Sequence[Interval]) -> tuple[float, float]:
    """Axis limits for shares in round tenths, at least 40 points wide, symmetric about one half."""
    edges = [x for i in intervals for x in (i.low, i.high, i.value) if math.isfinite(x)]
    reach = max([abs(x - 0.5) for x in edges] + [0.2])
    reach = min(0.5, math.ceil(round(reach * 10, 6)) / 10)
    return 0.5 - reach, 0.5 + reach


def _at(value: float, domain: tuple[float, float]) -> str:
    share = (value - domain[0]) / (domain[1] - domain[0])
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"


def track(
    marks: Sequence[tuple[Interval, str]], domain: tuple[float, float], *, reference: float | None, label: str
) -> str:
    """One line of a forest plot: an interval and its point for each (interval, CSS class), over a reference line."""
    height = 16 + 14 * len(marks)
    parts = [f'<svg class="track" width="100%" height="{height}" role="img" aria-label="{escape(label)}">']
    for tick in axis_ticks(domain):  # lines overshoot: the row clips them, so they run through the whole plot
        parts.append(f'<line class="grid" x1="{_at(tick, domain)}" x2="{_at(tick, domain)}" y1="-99" y2="199"/>')
    if reference is not None:
        x = _at(reference, domain)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="-99" y2="199"/>')
    for index, (interval, css) in enumerate(marks):
        y = height / 2 + 14 * (index - (len(marks) - 1) / 2)
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            low, high = _at(interval.low, domain), _at(interval.high, domain)
            parts.append(f'<line class="whisker {css}" x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>')
            for x in (low, high):
                parts.append(f'<line class="cap {css}" x1="{x}" x2="{x}" y1="{y - 4}" y2="{y + 4}"/>')
        parts.append(f'<circle class="point {css}" cx="{_at(interval.value, domain)}" cy="{y}" r="5"/>')
    return "".join(parts) + "</svg>"


def axis_ticks(domain: tuple[float, float]) -> list[float]:
    step = 0.1 if domain[1] - domain[0] <= 0.61 else 0.25
    return [round(t, 10) for t in nice_range(domain[0], domain[1], step)]


def tick_label(value: float) -> str:
    """A round number as short as it goes."""
    return f"{value:,.10g}".replace("-", "−")


def nice_range(low: float, high: float, step: float) -> list[float]:
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def axis(domain: tuple[float, float]) -> str:
    """Tick labels in percent under a stack of tracks."""
    ticks = "".join(f'<span style="left:{_at(t, domain)}">{100 * t:.0f}%</span>' for t in axis_ticks(domain))
    return f'<div class="axis" aria-hidden="true">{ticks}</div>'


def vote_bar(parts: Sequence[tuple[str, int, str]]) -> str:
    """A stacked bar of (label, count, CSS class); empty parts are left out."""
    total = sum(count for _, count, _ in parts) or 1
    label = ", ".join(f"{count} {name}" for name, count, _ in parts)
    x, shapes = 0.0, []
    for name, count, css in parts:
        width = 100 * count / total
        if count:
            shapes.append(
                f'<rect class="{css}" x="{x:.3f}%" y="0" width="{width:.3f}%" height="14">'
                f"<title>{escape(name)}: {count} ({percent(count / total)})</title></rect>"
            )
        x += width
    head = f'<svg class="votebar" width="100%" height="14" role="img" aria-label="{escape(label)}">'
    return head + "".join(shapes) + "</svg>"


def line_chart(
    label: str, points: Sequence[tuple[float, float]], *, unit: str = "", reference: float | None = None, note: str = ""
) -> str:
    """One quantity over steps, with round axes, the last value named, and a readout under the pointer (page script)."""
    points = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    values = [y for _, y in points] + ([reference] if reference is not None else [])
    ticks = nice_ticks(min(values), max(values))
    bottom, top = ticks[0], ticks[-1]
    first, last = points[0][0], points[-1][0]
    width = (last - first) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - first) / width, 100 * (top - y) / (top - bottom)

    path = "".join(f"{'L' if i else 'M'}{a:.2f} {b:.2f}" for i, (a, b) in enumerate(place(x, y) for x, y in points))
    grid = "".join(
        f'<line class="grid" x1="0" x2="100" y1="{place(first, t)[1]:.2f}" y2="{place(first, t)[1]:.2f}"/>'
        for t in ticks
    )
    if reference is not None:
        y = place(first, reference)[1]
        grid += f'<line class="reference" x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>'
    y_labels = "".join(f'<span style="top:{place(first, t)[1]:.2f}%">{tick_label(t)}</span>' for t in ticks)
    end_x, end_y = place(*points[-1])
    end = f"{number(points[-1][1])}{' ' + unit if unit else ''}"
    summary = f"{label}: {number(points[0][1])} at step {tick_label(first)}, {end} at step {tick_label(last)}"
    data = json.dumps([[*(round(v, 3) for v in place(x, y)), tick_label(x), number(y)] for x, y in points])
    caption = f'<p class="chart-note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart" data-points="{escape(data)}" data-unit="{escape(unit)}">'
        f'<figcaption><span class="chart-label">{escape(label)}</span>'
        f'<span class="chart-value" data-last="{escape(end)}">{escape(end)}</span></figcaption>'
        f'<div class="chart-body"><div class="y-labels" aria-hidden="true">{y_labels}</div>'
        f'<div class="chart-plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(summary)}">{grid}<path class="curve" d="{path}"/></svg>'
        f'<i class="dot" style="left:{end_x:.2f}%;top:{end_y:.2f}%"></i></div></div>'
        f'<div class="x-labels" aria-hidden="true"><span>step {tick_label(first)}</span>'
        f"<span>{tick_label(last)}</span></div>"
        f"{caption}</figure>"
    )


def kl_chart(
    label: str, points: Sequence[tuple[float, Interval, str, str]], *, reference: float, show=number, note: str = ""
) -> str:
    """What is won against what it costs: (KL in nats, value with interval, name, CSS class), the square root of KL
    across, as over-optimisation curves are drawn (arXiv:2210.10760); ``reference`` is the base's level."""
    points = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1].value)]
    if not points:
        return ""
    edges = [x for _, i, _, _ in points for x in (i.value, i.low, i.high) if math.isfinite(x)] + [reference]
    ticks = nice_ticks(min(edges), max(edges))
    bottom, top, height = ticks[0], ticks[-1], 220
    most = max(max(kl for kl, *_ in points), 1.0)

    def x(kl: float) -> str:
        return f"{11 + 71 * math.sqrt(max(kl, 0.0) / most):.2f}%"  # room for the last name

    def y(value: float) -> float:
        return round(14 + (height - 44) * (top - value) / (top - bottom), 1)

    parts = [f'<svg class="klchart" width="100%" height="{height}" role="img" aria-label="{escape(label)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="8%" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="tick" x="0" y="{y(tick) - 3}">{escape(show(tick))}</text>')
    parts.append(f'<line class="reference" x1="8%" x2="100%" y1="{y(reference)}" y2="{y(reference)}"/>')
    for tick in (0, 1, 4, 10, 25, 50, 100, 200, 400, 800):
        if tick <= most and (tick == 0 or math.sqrt(tick / most) > 0.08):
            parts.append(f'<text class="tick" x="{x(tick)}" y="{height - 4}" text-anchor="middle">{tick}</text>')
    for rank, (kl, interval, name, css) in enumerate(sorted(points, key=lambda p: p[0])):
        at = x(kl)
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            parts.append(
                f'<line class="whisker {css}" x1="{at}" x2="{at}" y1="{y(interval.low)}" y2="{y(interval.high)}"/>'
            )
        title = f"{name}: {show(interval.value)} at {number(kl)} nats"
        parts.append(
            f'<circle class="point {css}" cx="{at}" cy="{y(interval.value)}" r="5"><title>{escape(title)}</title>'
            "</circle>"
        )
        shift = -9 if rank % 2 else 15  # neighbours' names stand above and below
        parts.append(f'<text class="name" x="{at}" dx="8" y="{y(interval.value) + shift}">{escape(name)}</text>')
    parts.append(f'<text class="tick" x="100%" y="{height - 4}" text-anchor="end">nats</text></svg>')
    caption = f'<p class="chart-note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption><span class="chart-label">{escape(label)}</span></figcaption>'
        f"{''.join(parts)}{caption}</figure>"
    )
