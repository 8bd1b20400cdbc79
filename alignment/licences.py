"""What a licence allows, by its name or its words."""

from __future__ import annotations

import re
from collections.abc import Iterable

UNKNOWN = "unknown"
# "NC" as a part of its own (CC-BY-NC-4.0), or in words.
_NON_COMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non[\s-]?commercial|(research|academic)[\s-](only|use)", re.I)


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its name or its words, forbids commercial use."""
    return bool(_NON_COMMERCIAL.search(licence))


def is_known(licence: str | None) -> bool:
    """Whether anybody stated the licence."""
    return licence is not None and licence.strip().lower() not in ("", UNKNOWN, "other")


def allows_commercial_use(licence: str | None) -> bool:
    """Whether commercial use is allowed. A licence that nobody stated allows nothing: what is not known cannot be
    promised."""
    return licence is not None and is_known(licence) and not is_non_commercial(licence)


def listed(licences: Iterable[str | None]) -> str | None:
    """The distinct licences in one line, in order; None when there are none. One nobody stated is ``unknown``."""
    names = sorted({licence.strip() if licence and is_known(licence) else UNKNOWN for licence in licences})
    return "; ".join(names) or None
