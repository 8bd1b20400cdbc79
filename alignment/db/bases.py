"""Queries about bases: the versions without an adapter, and where their files lie."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from alignment.db.tables import VersionRow
from alignment.db.versions import list_versions
from alignment.domain import Version


def list_bases(s: Session) -> list[Version]:
    """Versions that are a base and nothing else, in the order in which they were registered."""
    return [version for version in list_versions(s) if version.adapter_sha256 is None]


def move_base(s: Session, *, base: str, base_sha256: str, to: str) -> int:
    """Record that this base's files lie elsewhere now, for every version on it; how many those are. Which weights they
    are is said by the checksum and stays."""
    here = (VersionRow.base == base) & (VersionRow.base_sha256 == base_sha256)
    return s.execute(sa.update(VersionRow).where(here).values(base=to)).rowcount
