"""Which scorers may serve a commercial purpose: what their licences say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from alignment.errors import ConfigError
from alignment.licences import UNKNOWN, is_known, is_non_commercial

__all__ = ["OWN", "UNKNOWN", "is_non_commercial", "licence_of_folder", "refuse_non_commercial"]

OWN = "own"  # trained by the user on the user's votes


class Licensed(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def licence(self) -> str: ...


def refuse_non_commercial(scorers: Iterable[Licensed]) -> None:
    """Raises ConfigError naming every scorer that may not serve a commercial purpose.

    A licence that nobody stated counts as a refusal: what is not known cannot be promised."""
    faults = []
    for scorer in scorers:
        licence = scorer.licence.strip()
        if is_non_commercial(licence):
            faults.append(f"{scorer.name} is licensed {licence}, which forbids commercial use; leave it out.")
        elif not is_known(licence):
            faults.append(f"{scorer.name} has no known licence; state it (licence=...) or leave it out.")
    if faults:
        raise ConfigError("The purpose is commercial: " + " ".join(faults))


def licence_of_folder(folder: str | Path) -> str:
    """The licence in the head of a model's README.md (``license: mit``), of the folder or the one above; else
    UNKNOWN. Hubs write models' licences there."""
    folder = Path(folder).resolve()
    for place in (folder, folder.parent):
        card = place / "README.md"
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="replace")
            head = re.match(r"---\n(.*?)\n---", text, flags=re.S)
            found = re.search(r"^licen[sc]e:\s*[\"']?([^\s\"']+)", head.group(1), flags=re.M) if head else None
            if found:
                return found.group(1)
    return UNKNOWN
