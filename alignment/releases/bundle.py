"""A new folder of rows and audio with a data card, a readme and checksums, there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from alignment.clips import ClipStore
from alignment.db import external, people
from alignment.db.base import utcnow
from alignment.db.engine import Database
from alignment.domain import ANCHOR_BASE, REFERENCE_BASE
from alignment.errors import StoreError

FORMAT = 1
CARD = "datacard.json"
SUMS = "SHA256SUMS"


def provenance(version: str, base: str) -> str:
    """What an exported clip's tag says of where it came from."""
    if base == REFERENCE_BASE:
        return f"Recording, {version}"
    return f"Processed audio, {version}" if base == ANCHOR_BASE else f"AI-generated, version {version}"


class Bundle:
    """A folder in the making; a context manager that leaves nothing behind when something goes wrong.

    Audio that leaves carries a tag that says who made it; what raters hear never does."""

    def __init__(self, database: Database, store: ClipStore, folder: Path) -> None:
        if folder.exists():
            raise StoreError(f"{folder} exists already; name a new folder for the export.")
        self.folder = folder
        self._store, self._database = store, database
        self._place = folder.with_name(f".{folder.name}.{os.getpid()}")
        self._bases: dict[str, str] = {}
        self._audio: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Bundle:
        with self._told():
            shutil.rmtree(self._place, ignore_errors=True)
            self._place.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._place, ignore_errors=True)

    @contextmanager
    def lines(self, name: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A function that adds a row to the JSON Lines file of this name."""
        with self._told(), self.path(name).open("w", encoding="utf-8") as file:
            yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file)

    def path(self, name: str) -> Path:
        """Where the file of this name is written meanwhile."""
        path = self._place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def audio(self, sha256: str, version: str) -> str:
        """The path, inside the folder, of a clip of the version; the same clip is written once."""
        key = (sha256, version)
        if key not in self._audio:
            name = f"audio/{sha256[:2]}/{sha256}-{re.sub(r'[^A-Za-z0-9._-]', '-', version)}.flac"
            with self._told():
                self.path(name).write_bytes(self.tagged(sha256, version))
            self._audio[key] = name
        return self._audio[key]

    def tagged(self, sha256: str, version: str) -> bytes:
        """The stored clip as a FLAC file that says who made it."""
        import soundfile

        if version not in self._bases:
            with self._database.session(write=False) as s:
                self._bases |= external.bases_of(s, [version])
        samples, rate = soundfile.read(io.BytesIO(self._store.open_flac(sha256)), dtype="int16", always_2d=True)
        buffer = io.BytesIO()
        with soundfile.SoundFile(buffer, "w", rate, samples.shape[1], "PCM_16", format="FLAC") as file:
            file.comment = provenance(version, self._bases.get(version, ""))
            file.write(samples)
        return buffer.getvalue()

    def finish(self, card: Mapping[str, Any], readme: str, actor: str, action: str, subject: str) -> dict[str, Any]:
        """The card as it is written, with every file's size and sha256; the folder is there from now on, and the audit
        log says that ``actor`` made it."""
        with self._told():
            files = {
                path.relative_to(self._place).as_posix(): path
                for path in sorted(self._place.rglob("*"))
                if path.is_file()
            }
            sums = {name: _sha256(path) for name, path in files.items()}
            whole = {
                "format": FORMAT, **card, "made_on": utcnow().date().isoformat(),
                "files": {name: {"sha256": sums[name], "bytes": path.stat().st_size} for name, path in files.items()},
            }  # fmt: skip
            self.path(CARD).write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            self.path("README.md").write_text(readme, encoding="utf-8")
            sums |= {name: _sha256(self._place / name) for name in (CARD, "README.md")}
            listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
            self.path(SUMS).write_text(listing, encoding="utf-8")
            with self._database.session() as s:
                people.add_audit(s, actor=actor, action=action, subject=subject, after=whole)
            self._place.rename(self.folder)
        return whole

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the export cannot be written ({error.strerror or error}); free some space or choose "
                "another folder."
            ) from error


def readme(title: str, card: Mapping[str, Any], paragraphs: list[str]) -> str:
    """The readme of a bundle: what it is, how much of it, under which licences."""
    withheld = ", ".join(f"{count} {reason}" for reason, count in sorted(card["withheld"].items()) if count) or "none"
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in card["counts"].items())
    licences = "; ".join(f"{name} ({count})" for name, count in sorted(card["licences"].items()))
    return "\n\n".join(
        [
            f"# {title}",
            *(["**Simulated listeners gave these answers, no person did.**"] if card["simulated"] else []),
            f"{counts[:1].upper()}{counts[1:]}. Licences of the rows: {licences or 'none'}. Withheld: {withheld}.",
            *paragraphs,
            f"`{SUMS}` has the sha256 of every file; check them with `sha256sum -c {SUMS}`.\n",
        ]
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
