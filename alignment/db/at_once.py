"""What several workers may record at the same moment. On SQLite a writer is alone; on PostgreSQL two transactions that
look for a thing and do not find it would both add it, and the schema would refuse the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.batches import batches


def is_postgresql(s: Session) -> bool:
    return s.get_bind().dialect.name == "postgresql"


def one_at_a_time(s: Session, what: str, name: object) -> None:
    """Return when no other transaction is adding ``what`` of this name; others wait until this one has ended.

    What is read afterwards holds what they committed. Ask before looking whether it is there."""
    if is_postgresql(s):
        key = f"attune.{what}:{name}"
        s.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})


def insert_new(s: Session, table: Any, rows: Sequence[Mapping[str, Any]], *, key: Sequence[str]) -> bool:
    """Insert the rows; those whose ``key`` another transaction has added meanwhile are left as they are there.

    True when that may have happened and the caller should read them again."""
    if not is_postgresql(s):
        s.execute(sa.insert(table), list(rows))
        return False
    from sqlalchemy.dialects.postgresql import insert

    # In one order everywhere: two that insert the same rows from both ends would wait for each other for ever.
    ordered = sorted(rows, key=lambda row: [str(row[name]) for name in key])
    for part in batches(ordered):
        s.execute(insert(table).on_conflict_do_nothing(index_elements=list(key)), part)
    return True
