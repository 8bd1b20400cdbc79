"""Log lines as JSON objects, without anything that tells a version, a token, a cookie or an address."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

LARGEST_FILE_BYTES = 20 * 2**20  # and one older file of that size beside it
REQUEST_ID: ContextVar[str] = ContextVar("attune_request_id", default="")

# Longest and most telling first. What is left of a message still says what went wrong and where.
_PATTERNS = (
    (re.compile(r"://[^\s/@]*@"), "://[user]@"),
    (re.compile(r"\bv1\.[0-9a-f]{8,}\.[0-9a-f.]+"), "[cookie]"),
    (re.compile(r"(?i)\b(bearer|invite=|token=|cookie:?|attune=)\s*[^\s,;&\"')]+"), r"\1 [hidden]"),
    (re.compile(r"/clip/[^\s\"')]+"), "/clip/[hidden]"),
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "[id]"),
    (re.compile(r"\b[0-9a-fA-F]{16,}\b"), "[id]"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b"), "[address]"),
    (re.compile(r"(?<![\w:])[0-9a-fA-F:]*::[0-9a-fA-F:]*(?!\w)"), "[address]"),
    (re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){4,7}[0-9a-fA-F]{1,4}(?![\w:])"), "[address]"),
    (re.compile(r"[^\s@\"'<>]+@[^\s@\"'<>]+\.[a-z]{2,}"), "[mail]"),
)


class SecretNames:
    """Names of versions and studies: a log that said which version a rater heard would end its blindness."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None

    def add(self, names: Iterable[str]) -> None:
        fresh = {name for name in names if len(name) > 2} - self._names
        if not fresh:
            return
        with self._lock:
            self._names |= fresh
            longest_first = sorted(self._names, key=len, reverse=True)
            self._pattern = re.compile("|".join(re.escape(name) for name in longest_first))

    def hide(self, text: str) -> str:
        return self._pattern.sub("[name]", text) if self._pattern is not None else text


NAMES = SecretNames()


def scrub(text: str) -> str:
    """``text`` without addresses, ids, tokens, cookies and the names of versions."""
    text = NAMES.hide(text)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


class JsonLines(logging.Formatter):
    """One JSON object a line. Tracebacks are kept as places in our code, messages without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": scrub(record.getMessage()),
        }
        if request_id := REQUEST_ID.get():
            line["request"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["said"] = scrub(str(error))[:500]
            # Files, lines and functions only: source lines and locals could hold anything.
            frames = traceback.extract_tb(error.__traceback__)[-12:]
            line["trace"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(
    stream: TextIO | None = None, *, level: int = logging.INFO, quiet_to: Path | None = None
) -> logging.Handler:
    """Sends every log of this process to ``stream`` (stderr) as JSON lines; returns the handler.

    With ``quiet_to`` all lines go to that file, and only warnings and errors to the stream as well. Raises OSError
    when the file cannot be written."""
    handlers: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if quiet_to is not None:
        quiet_to.parent.mkdir(parents=True, exist_ok=True)
        handlers[0].setLevel(logging.WARNING)
        handlers.append(RotatingFileHandler(quiet_to, maxBytes=LARGEST_FILE_BYTES, backupCount=1, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    for name in ("rating_app", "alignment", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    return handlers[0]
