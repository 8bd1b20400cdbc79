"""Renders admin pages: templates that escape everything, and how numbers and intervals are written."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from alignment.evaluation.intervals import Interval
from alignment.evaluation.metric_words import words_of

HERE = Path(__file__).resolve().parent
NO_STORE = {"cache-control": "private, no-store"}
# The listening page's player, which organisers use too.
PLAYER = tuple(HERE.parent / "static" / name for name in ("abplayer.js", "waveform.js"))


@cache
def static_digest() -> str:
    """Changes with the static files, so that no browser mixes old and new ones."""
    digest = hashlib.sha256()
    for path in [*sorted((HERE / "static").iterdir()), *PLAYER]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def percent(value: float | None, digits: int = 0) -> str:
    """0.634 as ``63%``; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int = 1) -> str:
    """The value with thousands apart; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) else f"{value:,.{digits}f}"


def span(interval: Interval | Any, digits: int = 0) -> str:
    """``55 to 72%``: an interval of shares."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval yet"
    return f"{100 * interval.low:.{digits}f} to {100 * interval.high:.{digits}f}%"


def span_number(interval: Interval | Any, digits: int = 1) -> str:
    """``55.1 to 72.0``."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval yet"
    return f"{interval.low:,.{digits}f} to {interval.high:,.{digits}f}"


def moment(value: datetime | None) -> str:
    """``2026-03-01 12:00``, in UTC."""
    return "–" if value is None else f"{value:%Y-%m-%d %H:%M}"


def figure(value: float | None, half_width: float | None = None) -> str:
    """A figure of any size: ``0.0213``, ``−23.1``, ``1,234``; a dash for what is not known.

    With half the width of its interval it gets the digits that this is worth (one, or two where the first is below
    5), alone three digits of its own."""
    if value is None or not math.isfinite(value):
        return "–"
    scale = half_width / 5 if half_width else abs(value) / 100
    decimals = min(6, max(0, -math.floor(math.log10(scale)))) if scale else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def figure_of(found: Interval | Any, size: bool = False) -> str:
    """The value of an interval with as many digits as the interval is worth; with ``size`` without its sign."""
    return figure(abs(found.value) if size else found.value, _half_width(found))


def span_figure(found: Interval | Any) -> str:
    """``0.020 to 0.023``."""
    half = _half_width(found)
    return f"{figure(found.low, half)} to {figure(found.high, half)}" if half is not None else "no interval"


def _half_width(found: Interval | Any) -> float | None:
    if found.low is None or found.high is None or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return None
    return (found.high - found.low) / 2


def duration(seconds: float | None) -> str:
    """``8 s``, ``3 min``, ``2 h 05 min``, ``3 d 4 h``; a dash for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def place(value: float, low: float, high: float) -> str:
    """Where a value lies on an axis from ``low`` to ``high``, 0 to 100."""
    share = (value - low) / (high - low) if high > low else 0.5
    return f"{100 * min(1.0, max(0.0, share)):.2f}"


def words(value: str) -> str:
    """``BOTH_BAD`` as ``both bad``."""
    return {"A": "A better", "B": "B better"}.get(value, value.lower().replace("_", " "))


_environment = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(
    percent=percent, number=number, span=span, span_number=span_number, moment=moment, words=words, duration=duration,
    figure=figure, figure_of=figure_of, span_figure=span_figure, metric=words_of,
)  # fmt: skip
_environment.globals.update(place=place, isfinite=math.isfinite)


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """The template as an answer that no cache keeps. ``visitor`` None is a stranger's page."""
    context.setdefault("visitor", None)
    context.setdefault("section", "")
    html = _environment.get_template(template).render(digest=static_digest(), **context)
    return HTMLResponse(html, status_code=status, headers=NO_STORE)


def message_page(request: Request, title: str, text: str, status: int) -> HTMLResponse:
    """A page that says one thing."""
    return page(request, "message.html", status=status, title=title, text=text)
