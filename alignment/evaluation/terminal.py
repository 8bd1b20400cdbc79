"""The report's figures as compact plain text for a terminal."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from alignment.evaluation.intervals import Interval

if TYPE_CHECKING:
    from alignment.evaluation.report import ReportData


def clean(text: str) -> str:
    """``text`` on one line without control characters: a prompt must not steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def number(value: float | None) -> str:
    """Three significant figures; whole numbers from a thousand on."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 else f"{value:#.3g}".rstrip(".") if size else "0"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def duration(seconds: float) -> str:
    """Seconds as "42 s" or "3 min 20 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(round(seconds)) // 60} min {int(round(seconds)) % 60:02d} s"


def _range(interval: Interval, show) -> str:
    return f"[{show(interval.low)}, {show(interval.high)}]"


def render_table(data: ReportData) -> str:
    """See ``report.terminal_table``."""
    confidence = f"{100 * data.contests[0].rate.confidence:g}%" if data.contests else "95%"
    rows: list[tuple[str, str, str, str]] = [("", "value", f"{confidence} interval", "n")]
    for contest in data.contests:
        rate = contest.rate
        rows.append((contest.label, percent(rate.value), _range(rate.interval, percent), f"{rate.votes} votes"))
    for head in data.reward.heads if data.reward else ():
        found = head.accuracy
        label = f"Reward accuracy, {head.head}"
        rows.append((label, percent(found.value), _range(found, percent), f"{found.n} pairs"))
    for method in data.methods:
        found = method.judge_reward
        rows.append((f"Judge reward, {method.label}", number(found.value), _range(found, number), f"{found.n}"))
    for method in data.methods:
        if method.kl:
            found = method.kl
            rows.append((f"KL to base, {method.label}", f"{number(found.value)} nats", _range(found, number),
                         f"{found.n}"))  # fmt: skip
    for metric in data.metrics:
        for name, found in (("base", metric.base), ("aligned", metric.aligned)):
            if found is not None:
                unit = f" {metric.unit}" if 0 < len(metric.unit) <= 6 else ""  # long ones are on the page
                label = f"{metric.label}, {name}"
                rows.append((label, number(found.value) + unit, _range(found, number), f"{found.n}"))
    for row in data.adherence:
        for name, found in (("base", row.base), ("aligned", row.aligned)):
            label = f"Follows {row.attribute}, {name}"
            rows.append((label, percent(found.value), _range(found, percent), f"{found.n}"))
    rows = [tuple(clean(cell) for cell in row) for row in rows]  # type: ignore[misc]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    widths[0] = max(12, min(widths[0], 80 - 6 - sum(widths[1:])))
    rows = [(row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…", *row[1:]) for row in rows]
    lines = [clean(data.headline), ""]
    if data.simulated:
        lines.insert(1, "SIMULATED LISTENERS: these votes come from a program, not from people.")
    for note in data.notes:
        lines[-1:-1] = textwrap.wrap(clean(note), 80)
    for index, row in enumerate(rows):
        lines.append(f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip())
        if index == 0:
            lines.append("─" * (sum(widths) + 6))
    lines.append("")
    for contest in data.contests[:1]:
        rate = contest.rate
        lines += [
            f"{clean(contest.label)}: {rate.wins} wins, {rate.losses} losses, {rate.ties} ties, "
            f"{rate.both_bad} both bad; {rate.decisive} decisive;",
            f"{rate.raters} raters, {rate.prompts} prompts."
            + (f" Left clip won {percent(rate.left_share.value)} of decisive votes." if rate.left_share else ""),
        ]
    if data.stages:
        total = sum(stage.seconds for stage in data.stages)
        memory = f", peak memory {data.peak_memory_mb:,.0f} MB" if data.peak_memory_mb is not None else ""
        lines.append(f"Time {duration(total)}{memory}.")
    return "\n".join(lines)
