"""Music Arena's release (arXiv:2507.20900): battles with a vote, 28 fields each, as JSON or Parquet.

Left out of what is kept: the pseudonym, which becomes a rater of ours under our own key, and the words of feedback,
which become a comment that a withdrawal deletes. Some systems' audio is not released; there the path is empty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from alignment.domain import Axis, Outcome, Side
from alignment.errors import DataError
from alignment.imports.incoming import (
    LONGEST_ID,
    LONGEST_NAME,
    Incoming,
    IncomingClip,
    IncomingVote,
    NotReleased,
    audio_of,
    flag,
    moment,
    optional_text,
    payload_of,
    seconds,
    split_of_row,
    text,
)

SOURCE = "music-arena"
LICENCE = "CC BY 4.0"  # of https://huggingface.co/datasets/music-arena/music-arena-dataset
PREFERENCES = (Outcome.A, Outcome.B, Outcome.TIE, Outcome.BOTH_BAD)
FIELDS = (
    "battle_uuid", "date", "prompt", "is_instrumental", "is_prebaked", "user_pseudonym", "audio_a", "system_a",
    "audio_b", "system_b", "preference", "total_listening_time_a", "total_listening_time_b", "feedback", "timestamp",
    "lyrics", "hardware_a", "hardware_b", "system_time_a", "system_time_b", "gateway_time_a", "gateway_time_b",
    "duration_a", "duration_b", "sample_rate_a", "sample_rate_b", "listen_data_a", "listen_data_b",
)  # fmt: skip
# What our own releases add, so that a round trip loses nothing.
ADDED = ("text_adherence", "quality", "confidence", "split", "licence", "simulated")


def parse(row: Mapping[str, Any]) -> Incoming | NotReleased:
    """The record of a row. Raises DataError, half a sentence, for what is wrong with it."""
    said = row.get("preference")
    if said not in [outcome.value for outcome in PREFERENCES]:
        raise DataError(f"preference is {ascii(said)[:60]}; it must be A, B, TIE or BOTH_BAD")
    source_id = text(row, "battle_uuid", longest=LONGEST_ID)
    prompt, split = text(row, "prompt"), split_of_row(row)
    audio = [audio_of(row, f"audio_{side}") for side in "ab"]
    systems = [text(row, f"system_{side}", longest=LONGEST_NAME) for side in "ab"]
    vote = IncomingVote(
        outcome=Outcome(said),
        rater=text(row, "user_pseudonym", longest=LONGEST_ID),
        simulated=flag(row, "simulated"),
        at=moment(row),
        heard_left_seconds=seconds(row, "total_listening_time_a"),
        heard_right_seconds=seconds(row, "total_listening_time_b"),
        first_side=_first(row),
        confidence=_step(row, "confidence", 1, 3),
        comment=optional_text(row, "feedback"),
        axes={axis: step for axis in Axis if (step := _step(row, axis.value, -2, 2)) is not None},
    )
    payload = payload_of(row, without=("user_pseudonym", "feedback"))
    if audio[0] is None or audio[1] is None:
        return NotReleased("audio not released")
    clips = tuple(IncomingClip(prompt, systems[n], audio[n], split) for n in (0, 1))
    return Incoming(source_id, payload, optional_text(row, "licence", longest=LONGEST_ID), clips, vote)


def _step(row: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DataError(f"{name} is {ascii(value)[:60]}; whole numbers from {least} to {most} are needed")
    return value


def _first(row: Mapping[str, Any]) -> Side:
    """The side that was played first, by the first events of ``listen_data``; left when they do not tell."""
    began = [_begin(row.get(f"listen_data_{side}"), f"listen_data_{side}") for side in "ab"]
    return Side.RIGHT if began[1] < began[0] else Side.LEFT


def _begin(events: object, name: str) -> float:
    if events is None or events == "":
        return math.inf
    try:
        read = json.loads(events) if isinstance(events, str | bytes) else events
        return min((float(at) for _, at in read), default=math.inf)
    except (TypeError, ValueError, RecursionError):
        raise DataError(f"{name} is {ascii(events)[:60]}; a list of [event, time] is needed") from None
