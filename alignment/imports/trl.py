"""TRL's preference rows: prompt, chosen, rejected, where chosen and rejected are audio files.

TRL knows no rater, no systems and no sides. Those that a row names (id, rater, chosen_system, rejected_system, split,
licence, simulated) are taken; otherwise one rater said everything, and which clip counts as shown left is drawn from
the row itself, because a winner that is always left would look like a preference for that side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from alignment.domain import Outcome, canonical_sha256
from alignment.errors import DataError
from alignment.imports.incoming import (
    LONGEST_ID,
    LONGEST_NAME,
    AudioRef,
    Incoming,
    IncomingClip,
    IncomingVote,
    audio_of,
    flag,
    moment,
    optional_text,
    payload_of,
    split_of_row,
    text,
)


def parse(row: Mapping[str, Any], *, system: str) -> Incoming:
    """The record of a row; ``system`` made the clips of which the row does not say who did. Raises DataError, half a
    sentence, for what is wrong with it."""
    if "completion" in row and "chosen" not in row:
        raise DataError(
            "it has a completion and a label, which compare nothing; rows with chosen and rejected are needed"
        )
    flat = {**row, **{name: _words(row.get(name)) for name in ("prompt", "chosen", "rejected")}}
    prompt, split = text(flat, "prompt"), split_of_row(row)
    sides = {}
    for name in ("chosen", "rejected"):
        audio = audio_of(flat, name)
        if audio is None:
            raise DataError(f"{name} is missing; the path of an audio file is needed")
        sides[name] = IncomingClip(
            prompt, optional_text(row, f"{name}_system", longest=LONGEST_NAME) or system, audio, split
        )
    source_id = optional_text(row, "id", longest=LONGEST_ID) or canonical_sha256(
        {"prompt": prompt, **{name: _named(clip.audio) for name, clip in sides.items()}}
    )
    chosen_left = hashlib.sha256(f"side:{source_id}".encode()).digest()[0] % 2 == 0
    return Incoming(
        source_id,
        payload_of(row, without=("rater",)),
        optional_text(row, "licence", longest=LONGEST_ID),
        (sides["chosen"], sides["rejected"]) if chosen_left else (sides["rejected"], sides["chosen"]),
        IncomingVote(
            outcome=Outcome.A if chosen_left else Outcome.B,
            rater=optional_text(row, "rater", longest=LONGEST_ID) or "everyone",
            simulated=flag(row, "simulated"),
            at=moment(row),
        ),
    )


def _words(value: Any) -> Any:
    """The content of TRL's conversational form, a list with one message; anything else as it is."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return value[0].get("content")
    return value


def _named(audio: AudioRef) -> str:
    return audio.path if audio.data is None else hashlib.sha256(audio.data).hexdigest()
