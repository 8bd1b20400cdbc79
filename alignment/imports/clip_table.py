"""A folder of clips with a CSV: file, prompt, system; and id, split, licence, kind (system or reference)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.errors import DataError
from alignment.imports.incoming import (
    LONGEST_ID,
    LONGEST_NAME,
    AudioRef,
    Incoming,
    IncomingClip,
    optional_text,
    payload_of,
    split_of_row,
    text,
)

COLUMNS = ("file", "prompt", "system")
KINDS = ("system", "reference")


def parse(row: Mapping[str, Any]) -> Incoming:
    """The record of a row. Raises DataError, half a sentence, for what is wrong with it."""
    missing = [column for column in COLUMNS if column not in row]
    if missing:
        raise DataError(f"there is no column {', '.join(missing)}; {', '.join(COLUMNS)} are needed")
    kind = optional_text(row, "kind", longest=20) or "system"
    if kind not in KINDS:
        raise DataError(f"kind is {kind!r}; it must be {' or '.join(KINDS)}")
    file = text(row, "file")
    clip = IncomingClip(
        prompt=text(row, "prompt"),
        system=text(row, "system", longest=LONGEST_NAME),
        audio=AudioRef(file),
        split=split_of_row(row),
        is_reference=kind == "reference",
    )
    return Incoming(
        optional_text(row, "id", longest=LONGEST_ID) or text(row, "file", longest=LONGEST_ID),
        payload_of(row, without=()),
        optional_text(row, "licence", longest=LONGEST_ID),
        (clip,),
    )
