"""What the stages of a long run left behind, so that a run that was stopped goes on and makes nothing twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, StoreError

RECIPE = "recipe.json"


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

    def stage(self, name: str, make: Callable[[], Any], seconds: dict[str, float] | None = None) -> Any:
        """What ``make`` returned, as JSON has it; where the stage was finished before, what it returned then.

        ``seconds`` gets the time the stage took, by its name, whenever that was."""
        path = self.folder / "stages" / f"{name}.json"
        found = self._read(path)
        if found is None:
            began = time.monotonic()
            found = {"value": make(), "seconds": time.monotonic() - began}
            _write(path, found)
            found = self._read(path)
        if seconds is not None:
            seconds[name] = found["seconds"]
        return found["value"]

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
        temporary.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error}); free space or choose another folder.") from error

