"""The curves of a sweep as one SVG: win rate and judge reward against the square root of KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignment.evaluation.plots import nice_ticks

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 420, 64, 44, 46
COLOURS = {
    "base": "#7b818c", "best-of": "#22704c", "dpo": "#2a5d9f", "expert": "#b0562a", "dpo_after_expert": "#7a3f9d",
}  # fmt: skip


def write_curves(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Two panels side by side; a point's colour is its method, its numbers stand in its title."""
    panels = (("win_rate", "Win rate against the base, simulated listeners", 0.5),
              ("judge_reward", "Judge reward", rows[0]["judge_reward"]))  # fmt: skip
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 34}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT + 34}" fill="#fff"/>',
    ]
    for number, (key, title, level) in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{_panel(rows, key, title, level)}</g>')
    x = LEFT
    for kind, colour in COLOURS.items():
        parts.append(f'<circle cx="{x}" cy="{HEIGHT + 18}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 10}" y="{HEIGHT + 22}">{kind.replace("_", " ")}</text>')
        x += 40 + 8 * len(kind)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def kind_of(row: Mapping[str, Any]) -> str:
    """base, best-of, or the point's method."""
    if "settings" in row:
        return row["settings"]["align"]["method"]
    return "best-of" if row["kl_bound_nats"] is not None else "base"


def _nats(row: Mapping[str, Any]) -> float:
    kl = row["kl_nats_per_clip"] if row["kl_nats_per_clip"] is not None else row["kl_bound_nats"]
    return max(0.0, kl or 0.0)


def _panel(rows: Sequence[Mapping[str, Any]], key: str, title: str, level: float) -> str:
    shown = [row for row in rows if row[key] is not None]
    edges = [row[f"{key}{end}"] for row in shown for end in ("", "_low", "_high")] + [level]
    ticks = nice_ticks(min(edges), max(edges))
    most = max([_nats(row) for row in shown] + [1.0])

    def x(nats: float) -> float:
        return LEFT + (WIDTH - LEFT - 70) * math.sqrt(nats / most)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    out = [f'<text x="{LEFT}" y="24" font-size="16" font-weight="600">{escape(title)}</text>']
    for tick in ticks:
        text = f"{100 * tick:.0f}%" if key == "win_rate" else f"{tick:.10g}"
        out.append(f'<path d="M{LEFT} {y(tick):.1f}H{WIDTH - 20}" stroke="#e2e2dd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#5c616b">{text}</text>')
    out.append(f'<path d="M{LEFT} {y(level):.1f}H{WIDTH - 20}" stroke="#5c616b" stroke-dasharray="4 3"/>')
    for tick in (0, 1, 4, 10, 25, 50, 100, 200, 400, 800):
        if tick <= most:
            out.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 24}" text-anchor="middle" fill="#5c616b">{tick}</text>')
    out.append(f'<text x="{WIDTH - 20}" y="{HEIGHT - 6}" text-anchor="end" fill="#5c616b">KL, nats a clip</text>')
    for row in shown:
        colour, at, middle = COLOURS[kind_of(row)], x(_nats(row)), y(row[key])
        low, high = y(row[f"{key}_low"]), y(row[f"{key}_high"])
        out.append(f'<path d="M{at:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="1.5" opacity=".45"/>')
        label = escape(str(row["label"]))
        out.append(f'<circle cx="{at:.1f}" cy="{middle:.1f}" r="5" fill="{colour}"><title>{label}</title></circle>')
        if kind_of(row) in ("base", "best-of"):
            out.append(f'<text x="{at + 8:.1f}" y="{middle - 6:.1f}" fill="{colour}">{label}</text>')
    return "".join(out)
