"""Queries about what the database refers to in the store: every uri and every sha256, whichever table holds it.

Found by the columns' names and kinds, not from a list, so that a table added later protects its files from the day it
exists: columns called ``uri`` or ``..._uri`` name files and folders, columns called ``sha256`` or ``..._sha256`` name
contents, and JSON may hold either anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import metadata

_URI = re.compile(r"store://[A-Za-z0-9._/-]+")
_SHA256 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
# Hashes of rows and tokens, never of files: left out so that a million votes need not be read.
_NO_FILES = frozenset({"vote", "vote_axis", "listen_event", "vote_flag", "assignment", "listening_session", "prompt"})
_AT_ONCE = 10_000


@dataclass
class References:
    """Uris in columns of their own; uris that some text or JSON mentions; sha256 digests of contents anywhere."""

    uris: set[str] = field(default_factory=set)
    mentioned: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)


def references(s: Session) -> References:
    """Everything in the store that any row refers to."""
    found = References()
    for table in metadata.sorted_tables:
        if table.name in _NO_FILES:
            continue
        for column in table.columns:
            is_json = isinstance(column.type, sa.JSON)
            if column.name == "uri" or column.name.endswith("_uri"):
                found.uris.update(_values(s, column))
            elif column.name == "sha256" or column.name.endswith("_sha256"):
                found.digests.update(_values(s, column))
            elif is_json or isinstance(column.type, sa.Text):
                for value in _values(s, column):
                    text = json.dumps(value) if is_json else str(value)
                    found.mentioned.update(_URI.findall(text))
                    found.digests.update(_SHA256.findall(text))
    return found


def _values(s: Session, column: sa.Column) -> Iterator:
    rows = s.execute(sa.select(column).where(column.is_not(None)).execution_options(yield_per=_AT_ONCE))
    return (value for (value,) in rows)
