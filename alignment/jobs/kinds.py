"""The kinds of jobs there are, each imported when it is used: the list itself needs nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.config import Recipe
from alignment.errors import ConfigError, NotFoundError
from alignment.jobs.parts import JobKind

MORE_KINDS = "ATTUNE_JOB_KINDS"  # package.module:NAME of a mapping with further kinds


@dataclass(frozen=True)
class KindRef:
    """Where a kind is defined. The recipe is named apart, so that a web page can check one without the steps."""

    kind: str  # package.module:NAME of the JobKind
    recipe: str  # package.module:NAME of its recipe
    about: str

    def load(self) -> JobKind:
        """Raises NotFoundError when this installation lacks it."""
        return _found(self.kind)

    def load_recipe(self) -> type[Recipe]:
        return _found(self.recipe)


class _Kinds(Mapping[str, KindRef]):
    """The shipped kinds, and those that ATTUNE_JOB_KINDS adds."""

    _shipped = {
        "nightly": KindRef(
            "alignment.circle.nightly:NIGHTLY",
            "alignment.circle.nightly_recipe:NightlyRecipe",
            "the whole circle: votes, snapshot, reward model, alignment, comparison, promotion or not, report",
        ),
        "compare": KindRef(
            "alignment.circle.compare_job:COMPARE",
            "alignment.circle.compare_job:CompareRecipe",
            "versions side by side: clips, metrics with intervals, a page",
        ),
        "align": KindRef(
            "alignment.jobs.align_job:ALIGN",
            "alignment.jobs.align_job:AlignJobRecipe",
            "one alignment recipe from a snapshot to a new version",
        ),
    }

    def _all(self) -> dict[str, KindRef]:
        more = os.environ.get(MORE_KINDS)
        return {**self._shipped, **(_found(more) if more else {})}

    def __getitem__(self, name: str) -> KindRef:
        """Raises NotFoundError naming the known kinds."""
        known = self._all()
        if name not in known:
            raise NotFoundError(f"There is no job kind {name!r}; known kinds: {', '.join(sorted(known))}.")
        return known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


KINDS = _Kinds()


def _found(address: str) -> Any:
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise
        raise NotFoundError(f"{address} is not part of this installation; install a newer Attune.") from None
    except (AttributeError, ValueError):
        raise ConfigError(f"{address} names nothing; write package.module:NAME.") from None
