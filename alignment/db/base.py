"""What every table is built from: naming of constraints, UTC times, enums as text, ids."""

from __future__ import annotations

import enum
import secrets
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


def utcnow() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


_uuid_lock = threading.Lock()
_uuid_last = 0  # the last 60-bit (milliseconds, counter) given out


def uuid7() -> uuid.UUID:
    """A new UUIDv7 (RFC 9562, method 1). Within a process each is greater than the one before, so id order is
    insertion order even inside one millisecond."""
    global _uuid_last
    with _uuid_lock:
        _uuid_last = max(_uuid_last + 1, (time.time_ns() // 1_000_000) << 12)
        stamp = _uuid_last
    value = ((stamp >> 12) & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware time, kept in UTC: ``timestamptz`` on PostgreSQL, UTC text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; pass an aware time.")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def enum_text(kind: type[enum.Enum]) -> sa.Enum:
    """A column type that keeps an enum's values as short text; ``one_of`` adds the check."""
    return sa.Enum(
        kind, native_enum=False, create_constraint=False, length=20, values_callable=lambda e: [m.value for m in e]
    )


def one_of(column: str, values: type[enum.Enum] | tuple[str, ...]) -> sa.CheckConstraint:
    """A named check that ``column`` holds one of the values."""
    words = values if isinstance(values, tuple) else tuple(str(member.value) for member in values)
    listed = ", ".join(f"'{word}'" for word in words)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=column)


Sha256 = Annotated[str, mapped_column(sa.String(64))]
Name = Annotated[str, mapped_column(sa.String(200))]
Id = Annotated[uuid.UUID, mapped_column(sa.Uuid(), primary_key=True, default=uuid7)]
Created = Annotated[datetime, mapped_column(UtcDateTime(), default=utcnow)]


def refers(target: str, *, index: bool = False, **options: Any) -> Any:
    """A column that refers to ``table.column``."""
    return mapped_column(sa.ForeignKey(target), index=index, **options)


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map = {
        str: sa.Text(),
        uuid.UUID: sa.Uuid(),
        datetime: UtcDateTime(),
        dict[str, Any]: sa.JSON(),
        list[Any]: sa.JSON(),
        float: sa.Double(),
    }
