"""What the stages of a long run left behind, so that a run that was stopped goes on and makes nothing twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from alignment.circle.workspace import Progress
from alignment.errors import ConfigError, StoreError

RECIPE = "recipe.json"
SECONDS = "seconds.json"
StageBar = Callable[[str], AbstractContextManager[Progress]]


class Kept:
    """One JSON file for each finished stage, below ``folder``; written whole or not at all."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Claim ``folder`` for a recipe. Raises ConfigError, naming the keys, when it holds a run of another one."""
        self.folder = folder
        found, recipe = self._read(folder / RECIPE), json.loads(json.dumps(recipe))
        if found is None:
            _write(folder / RECIPE, recipe)
        elif found != recipe:
            differing = sorted(key for key in {*found, *recipe} if found.get(key) != recipe.get(key))
            raise ConfigError(
                f"{folder} holds a run with other {', '.join(differing)}; go on with the same recipe, or give another "
                "--home."
            )

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned, as JSON has it; where the stage was finished before, what it returned then."""
        path = self.folder / "stages" / f"{name}.json"
        found = self._read(path)
        if found is None:
            _write(path, {"value": make()})
            found = self._read(path)
        return found["value"]

    @contextmanager
    def timed(self, name: str, bar: StageBar) -> Iterator[Progress]:
        """A bar, and the seconds spent inside added to those of earlier attempts at this stage."""
        began = time.monotonic()
        try:
            with bar(name) as progress:
                yield progress
        finally:
            seconds = self.seconds
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            _write(self.folder / SECONDS, seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage over all attempts, in the order in which stages began; what a kill cut short is missing."""
        return self._read(self.folder / SECONDS) or {}

    @staticmethod
    def _read(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read ({error}); remove it, and this stage is made again.") from None


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error}); free space or choose another folder.") from error
