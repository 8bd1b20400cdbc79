"""One record from elsewhere, read and checked, before anything of it is stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from alignment.domain import Axis, Outcome, Side, Split
from alignment.errors import DataError

LONGEST_TEXT = 5000  # characters of a prompt or a comment
LONGEST_NAME = 100  # of a system
LONGEST_ID = 200


@dataclass(frozen=True)
class AudioRef:
    """Where a clip's audio is: a path below the import's folder, or the bytes of a file."""

    path: str
    data: bytes | None = None


@dataclass(frozen=True)
class IncomingClip:
    """A clip of ``system`` for a prompt. ``split`` None: as the prompt is known, or by a hash of its words."""

    prompt: str
    system: str
    audio: AudioRef
    split: Split | None = None
    is_reference: bool = False  # a recording that no system made


@dataclass(frozen=True)
class IncomingVote:
    """A vote on two clips; A is the first. ``rater`` is a name outside, which is not kept."""

    outcome: Outcome
    rater: str
    simulated: bool = False
    at: datetime | None = None
    heard_left_seconds: float = 0.0
    heard_right_seconds: float = 0.0
    first_side: Side = Side.LEFT
    confidence: int | None = None
    comment: str | None = None
    axes: Mapping[Axis, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Incoming:
    """A record: one clip, or two with a vote. ``payload`` is the row as it came, without audio, rater and comment."""

    source_id: str
    payload: Mapping[str, Any]
    licence: str | None
    clips: tuple[IncomingClip, ...]
    vote: IncomingVote | None = None


@dataclass(frozen=True)
class NotReleased:
    """A record that cannot be taken although nothing is wrong with it, and why."""

    reason: str


def text(row: Mapping[str, Any], name: str, *, longest: int = LONGEST_TEXT) -> str:
    """The row's text under ``name``. Raises DataError unless there is one with words in it."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} is {_shown(value)}; text is needed")
    if len(value) > longest:
        raise DataError(f"{name} has {len(value)} characters; {longest} are the most")
    return value


def optional_text(row: Mapping[str, Any], name: str, *, longest: int = LONGEST_TEXT) -> str | None:
    """The row's text under ``name``, None when there is none or it is empty."""
    value = row.get(name)
    return None if value is None or value == "" else text(row, name, longest=longest)


def seconds(row: Mapping[str, Any], name: str) -> float:
    """The row's number of seconds under ``name``, 0 when there is none. Raises DataError for anything else."""
    value = row.get(name)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(f"{name} is {_shown(value)}; seconds of 0 or more are needed")
    return float(value)


def flag(row: Mapping[str, Any], name: str) -> bool:
    """The row's yes or no under ``name``; no when there is none."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{name} is {_shown(value)}; true or false is needed")
    return bool(value)


def moment(row: Mapping[str, Any]) -> datetime | None:
    """When the vote was cast: ``timestamp`` (seconds since 1970), else ``date`` (ISO 8601; without a zone, UTC)."""
    stamp = row.get("timestamp")
    try:
        if isinstance(stamp, int | float) and not isinstance(stamp, bool):
            return datetime.fromtimestamp(stamp, UTC)
        date = optional_text(row, "date", longest=40)
        if date is None:
            return None
        read = datetime.fromisoformat(date)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise DataError(f"{_shown(stamp if stamp is not None else row.get('date'))} is no time") from None


def split_of_row(row: Mapping[str, Any]) -> Split | None:
    """The split that the row names, if it names one."""
    name = optional_text(row, "split", longest=20)
    if name is None:
        return None
    try:
        return Split(name)
    except ValueError:
        raise DataError(f"split is {name!r}; it must be one of {', '.join(s.value for s in Split)}") from None


def audio_of(row: Mapping[str, Any], name: str) -> AudioRef | None:
    """Where the row's audio under ``name`` is: a path, or what `datasets` makes of one; None when it was not given."""
    value = row.get(name)
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes) and data:
            return AudioRef(str(path or name), data)
        value = path
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"{name} is {_shown(value)}; the path of an audio file is needed")
    return AudioRef(value)


def payload_of(row: Mapping[str, Any], *, without: tuple[str, ...]) -> dict[str, Any]:
    """The row as JSON, without bytes and without the fields named. Raises DataError for what no database keeps."""
    kept = {str(name): _plain(value) for name, value in row.items() if name not in without}
    try:
        written = json.dumps(kept, allow_nan=False, ensure_ascii=False)
        written.encode()
    except (TypeError, ValueError):  # UnicodeEncodeError is a ValueError
        raise DataError("the row holds a number that is not finite, or text that is not Unicode") from None
    if "\\u0000" in written:
        raise DataError("the row holds text with a NUL character")
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return value.get("path")
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _shown(value: object) -> str:
    """The value, cut short, for a sentence."""
    if value is None:
        return "missing"
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
