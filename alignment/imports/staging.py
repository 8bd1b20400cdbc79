"""Checked records waiting on disk, so that memory does not grow with an import and the database is written at once."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType

from alignment.domain import AudioFacts, Axis, Outcome, Side, Split, canonical_sha256
from alignment.errors import StoreError
from alignment.imports.audio import StoredAudio
from alignment.imports.incoming import AudioRef, Incoming, IncomingClip, IncomingVote


@dataclass(frozen=True)
class Staged:
    """A record with its clips in the store, in the order of ``incoming.clips``."""

    place: str
    incoming: Incoming
    stored: tuple[StoredAudio, ...]


class Staging:
    """A temporary file of staged records; a context manager that removes it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="attune-import-")
        self._file = sqlite3.connect(Path(self._folder.name) / "staged.db", isolation_level=None)
        # It is thrown away either way: no journal, no waiting for the disk.
        self._file.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;")
        self._file.executescript(
            "CREATE TABLE staged (number INTEGER PRIMARY KEY, place, source_id UNIQUE, digest, body);"
            "CREATE TABLE split (prompt TEXT PRIMARY KEY, split);"
        )

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._folder.cleanup()

    def __len__(self) -> int:
        return int(self._file.execute("SELECT count(*) FROM staged").fetchone()[0])

    def place_of(self, source_id: str) -> tuple[str, str] | None:
        """(where the record of this id stood, its digest), if there was one."""
        return self._file.execute("SELECT place, digest FROM staged WHERE source_id = ?", (source_id,)).fetchone()

    def split_of(self, prompt: str, split: Split) -> Split:
        """The split that the first row with this prompt gave it, which is ``split`` when this is the first."""
        self._file.execute("INSERT OR IGNORE INTO split VALUES (?, ?)", (prompt, split.value))
        return Split(self._file.execute("SELECT split FROM split WHERE prompt = ?", (prompt,)).fetchone()[0])

    def add(self, staged: Staged) -> None:
        """Keeps a record. Raises StoreError when the temporary folder has no room."""
        one = staged.incoming
        # The bytes are in the store by now.
        clips = [asdict(replace(clip, audio=AudioRef(clip.audio.path))) for clip in one.clips]
        vote = None if one.vote is None else asdict(one.vote) | {"at": one.vote.at and one.vote.at.isoformat()}
        body = {"payload": one.payload, "licence": one.licence, "clips": clips, "vote": vote,
                "stored": [asdict(stored) for stored in staged.stored]}  # fmt: skip
        row = (staged.place, one.source_id, digest_of(one), json.dumps(body))
        try:
            self._file.execute("INSERT INTO staged (place, source_id, digest, body) VALUES (?, ?, ?, ?)", row)
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{self._folder.name} cannot be written ({error}); free some space or set TMPDIR. Nothing was imported."
            ) from error

    def __iter__(self) -> Iterator[Staged]:
        for place, source_id, body in self._file.execute("SELECT place, source_id, body FROM staged ORDER BY number"):
            yield _read(place, source_id, json.loads(body))


def digest_of(incoming: Incoming) -> str:
    """What tells whether a record is the one that came before."""
    return canonical_sha256(incoming.payload)


def _read(place: str, source_id: str, body: dict) -> Staged:
    clips = tuple(
        IncomingClip(
            **{**clip, "audio": AudioRef(clip["audio"]["path"]), "split": clip["split"] and Split(clip["split"])}
        )
        for clip in body["clips"]
    )
    vote = None
    if body["vote"] is not None:
        said = body["vote"]
        vote = IncomingVote(
            **{
                **said,
                "outcome": Outcome(said["outcome"]),
                "at": said["at"] and datetime.fromisoformat(said["at"]),
                "first_side": Side(said["first_side"]),
                "axes": {Axis(axis): step for axis, step in said["axes"].items()},
            }
        )
    stored = tuple(StoredAudio(**{**one, "facts": AudioFacts(**one["facts"])}) for one in body["stored"])
    return Staged(place, Incoming(source_id, body["payload"], body["licence"], clips, vote), stored)
