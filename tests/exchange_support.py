"""Releases to import, written by hand, and databases that begin from one upgraded file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from alignment.clips import ClipStore
from alignment.db import migrate
from alignment.db.engine import Database, open_database
from alignment.db.tables import metadata
from alignment.imports.audio import AudioIntake
from alignment.imports.music_arena import parse
from alignment.imports.rows import read_rows
from alignment.imports.run import Imported, ImportSettings, import_rows

RATE = 16000
SECRET = b"a secret for tests only"


@dataclass
class Place:
    """A database and a store to import into."""

    database: Database
    store: ClipStore
    home: Path

    def rows(self) -> dict[str, int]:
        """Table -> number of rows, of tables that have any."""
        with self.database.engine.connect() as connection:
            counts = {
                name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
                for name in metadata.tables
            }
        return {name: count for name, count in counts.items() if count}

    def take(self, path: Path, *, read=parse, root: Path | None = None, intake=None, **settings: Any) -> Imported:
        """Import the rows of a file, by default in Music Arena's format."""
        chosen = ImportSettings(**{"source": "music-arena", "licence": "CC BY 4.0", **settings})
        intake = intake or AudioIntake(self.store, root or (path if path.is_dir() else path.parent))
        return import_rows(self.database, intake, SECRET, read_rows(path), read, chosen, actor="olga")


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file under the newest schema."""
    path = tmp_path_factory.mktemp("upgraded") / "attune.db"
    migrate.upgrade(f"sqlite:///{path}")
    open_database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def place(upgraded: Path, tmp_path: Path) -> Iterator[Place]:
    """An empty database and store."""
    made = new_place(upgraded, tmp_path / "home")
    yield made
    made.database.close()


def new_place(upgraded: Path, home: Path) -> Place:
    home.mkdir()
    shutil.copy(upgraded, home / "attune.db")
    return Place(open_database(f"sqlite:///{home / 'attune.db'}"), ClipStore(home / "store"), home)


def tone(hertz: float, seconds: float = 0.25, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_tones(folder: Path, names: list[str], **shape: Any) -> None:
    """A different tone under each name."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, tone(200 + 37 * number, **shape), shape.get("rate", RATE), subtype="PCM_16")


def battle(number: int, **changes: Any) -> dict[str, Any]:
    """A row of Music Arena's release, with all its 28 fields."""
    row = {
        "battle_uuid": f"battle-{number}", "date": "2025-07-29T00:16:19.799690-04:00", "prompt": f"prompt {number}",
        "is_instrumental": True, "is_prebaked": False, "user_pseudonym": f"user-{number % 2}",
        "audio_a": f"audio/{number}-a.wav", "system_a": "acestep", "audio_b": f"audio/{number}-b.wav",
        "system_b": "sao", "preference": ("A", "B", "TIE", "BOTH_BAD")[number % 4], "total_listening_time_a": 3.25,
        "total_listening_time_b": 1.5, "feedback": "", "timestamp": 1753762579.7996902 + number, "lyrics": "",
        "hardware_a": "A6000", "hardware_b": "Unknown (API)", "system_time_a": 7.9, "system_time_b": 34.2,
        "gateway_time_a": 9.5, "gateway_time_b": 43.8, "duration_a": 0.25, "duration_b": 0.25,
        "sample_rate_a": RATE, "sample_rate_b": RATE, "listen_data_a": '[["PLAY", 20.5], ["PAUSE", 21.0]]',
        "listen_data_b": '[["PLAY", 30.5]]',
    }  # fmt: skip
    return {**row, **changes}


def release(folder: Path, rows: list[dict[str, Any] | str], name: str = "battles.jsonl", tones: int = 6) -> Path:
    """The rows as JSON Lines, with the tones of battles 0 to ``tones`` beside them; a row given as text stays it."""
    write_tones(folder, [f"audio/{n}-{side}.wav" for n in range(tones) for side in "ab"])
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name
