"""Running `attune` inside the test process, and a home in which the circle has turned up to a reward model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

CLIP_SECONDS = "1.0"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out.strip().splitlines()[-1])


def attune(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    """What `attune ARGUMENTS` returns and prints."""
    from alignment.cli import main

    before = sys.argv
    sys.argv = ["attune", *map(str, arguments)]
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def turn_by_hand(home: Path, steps: Sequence[Sequence[str]]) -> None:
    """Run commands one after the other in fresh processes' manner, each of which must succeed."""
    from typer.testing import CliRunner

    from alignment.cli import app

    for step in steps:
        result = CliRunner().invoke(app, [*step, "--home", str(home)], catch_exceptions=False)
        assert result.exit_code == 0, (step, result.output)


FIRST_STEPS = (
    ("db", "upgrade"),
    ("generate", "--captions", "16", "--per-prompt", "3", "--seconds", CLIP_SECONDS),
    ("simulate-votes", "--study", "first", "--votes", "48", "--raters", "4"),
    ("snapshot", "votes-1", "--study", "first"),
    ("reward", "train", "likes-1", "--snapshot", "votes-1"),
)


def leftovers(home: Path) -> list[Path]:
    """Files that an interrupted write would leave behind."""
    return [
        p for p in home.rglob("*") if p.is_file() and (p.name.startswith(".") or "partial" in p.name or "tmp" in p.name)
    ]
