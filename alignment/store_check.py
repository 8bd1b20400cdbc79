"""The store looked after: files that are missing or altered found, files that nothing refers to taken away.

What the database refers to is whatever any of its rows names (``alignment.db.references``), and what the snapshots'
own files name. Nothing younger than a day is taken away: it may belong to something that is being recorded.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import sqlalchemy as sa

from alignment.clips import SCHEME, ClipStore
from alignment.db.engine import Database
from alignment.db.references import references
from alignment.db.tables import ClipRow, SnapshotRow
from alignment.errors import AttuneError, StoreError
from alignment.preferences import read_snapshot

DAY_SECONDS = 24 * 3600.0
KINDS = ("audio", "codes", "files", "folders")
TRASH = ".gc"
# What the store itself writes, whole or as the leftover of a write; anything else there is somebody else's.
_OURS = re.compile(
    r"(audio/..|codes/..)/[0-9a-f]{64}\.(flac|npy)|files/[0-9a-f]{64}/[^/]+|folders/[0-9a-f]{64}/.+"
    r"|(audio|codes)/../\.[^/]+\.partial"
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checked:
    """How many files were looked at, and a sentence for each that is missing or altered."""

    files: int
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Removed:
    """Units (a file, or a folder as a whole) that nothing refers to, and their bytes; how many were kept and young."""

    units: tuple[str, ...]
    size_bytes: int
    kept: int
    young: int
    dry_run: bool


def check_store(database: Database, store: ClipStore, progress: Progress = lambda done, total: None) -> Checked:
    """Reads every file that the database refers to and compares it with its sha256.

    A folder is checked by its list of names and contents, a snapshot also by the clips it names."""
    faults: dict[str, None] = {}
    files: dict[str, str] = {}
    with database.session(write=False) as s:
        for audio, codes in s.execute(sa.select(ClipRow.audio_sha256, ClipRow.codes_sha256).distinct()):
            files |= store.files_of_clip(audio, codes)
        uris = sorted(uri for uri in references(s).uris if uri.startswith(SCHEME))
        snapshots = set(s.scalars(sa.select(SnapshotRow.uri)))
    for uri in uris:
        try:
            files |= store.files_of(uri)
            if uri in snapshots:
                files |= _named_by_snapshot(store, uri)
        except AttuneError as error:
            faults[str(error)] = None
    for done, (key, sha256) in enumerate(sorted(files.items()), start=1):
        try:
            store.check_file(key, sha256)
        except StoreError as error:
            faults[str(error)] = None
        progress(done, len(files))
    return Checked(len(files), tuple(faults))


def collect_garbage(
    databases: Sequence[Database],
    store: ClipStore,
    *,
    dry_run: bool = False,
    older_than_seconds: float = DAY_SECONDS,
    now: Callable[[], float] = time.time,
) -> Removed:
    """Takes away what no row of any of the ``databases`` refers to and nobody touched for ``older_than_seconds``.

    All databases that share the store must be given. Only files that the store itself writes are ever taken:
    ``audio/``, ``codes/``, ``files/``, ``folders/`` and parts that an interrupted write left. Raises StoreError when a
    snapshot cannot be read, because what it refers to is then unknown; nothing is taken away then."""
    limit = now() - older_than_seconds
    units = _units(store)
    old = {unit: keys for unit, keys in units.items() if _newest(store, keys) < limit}
    # The rows are read after the files: whatever is recorded meanwhile had its files before, and those are young.
    kept_uris, kept_digests = _referred(databases, store)
    # A leftover part of a write carries its target's digest and is referred to by nobody.
    unwanted = [
        unit
        for unit in sorted(old)
        if unit.endswith(".partial") or not (_digest(unit) in kept_digests or f"{SCHEME}{unit}" in kept_uris)
    ]
    taken, size = [], 0
    for unit in unwanted:
        keys = old[unit]
        weight = sum(int(store.fs.size(store.at(key)) or 0) for key in keys if store.fs.exists(store.at(key)))
        if dry_run or _remove(store, unit, keys, limit):
            taken.append(unit)
            size += weight
    return Removed(tuple(taken), size, len(units) - len(taken), len(units) - len(old), dry_run)


def _referred(databases: Iterable[Database], store: ClipStore) -> tuple[set[str], set[str]]:
    """(uris, digests) that any database refers to; a uri's own digest counts as one too."""
    uris: set[str] = set()
    digests: set[str] = set()
    for database in databases:
        with database.session(write=False) as s:
            found = references(s)
            snapshots = sorted(set(s.scalars(sa.select(SnapshotRow.uri))))
        uris |= found.uris | found.mentioned
        digests |= found.digests
        for uri in snapshots:
            digests |= set(_named_by_snapshot(store, uri).values()) if uri.startswith(SCHEME) else set()
    for uri in uris:
        parts = PurePosixPath(uri.removeprefix(SCHEME)).parts
        digests |= set(parts[1:2])
    return uris, digests


def _named_by_snapshot(store: ClipStore, uri: str) -> dict[str, str]:
    """Key -> sha256 of the clips that a snapshot's own file names."""
    frozen = read_snapshot(store.path_of(uri))
    clips = [clip for pair in frozen.pairs for clip in (pair.a, pair.b)] + [one.clip for one in frozen.ratings]
    files: dict[str, str] = {}
    for clip in clips:
        files |= store.files_of_clip(clip.audio_sha256, clip.codes_sha256)
    return files


def _units(store: ClipStore) -> dict[str, list[str]]:
    """Unit -> keys of its files. A unit is what is taken away together: one file, or one stored folder."""
    units: dict[str, list[str]] = {}
    for kind in KINDS:
        top = store.at(kind)
        if not store.fs.exists(top):
            continue
        for path in store.fs.find(top):
            key = kind + str(path)[str(path).index(top.lstrip("/")) + len(top.lstrip("/")) :]
            if not _OURS.fullmatch(key):
                continue
            parts = PurePosixPath(key).parts
            whole = "/".join(parts[:2]) if kind == "folders" and not key.endswith(".partial") else key
            units.setdefault(whole, []).append(key)
    return units


def _digest(unit: str) -> str:
    """The sha256 that a unit is named by: of its content, or in its second part."""
    parts = PurePosixPath(unit).parts
    return parts[1] if parts[0] in ("files", "folders") else PurePosixPath(parts[-1]).stem


def _newest(store: ClipStore, keys: Iterable[str]) -> float:
    """When any of the files was last written or asked for, in seconds since 1970; infinite when it cannot be told."""
    newest = 0.0
    for key in keys:
        try:
            newest = max(newest, store.fs.modified(store.at(key)).timestamp())
        except FileNotFoundError:
            continue
        except (NotImplementedError, OSError, AttributeError):
            return float("inf")
    return newest


def _remove(store: ClipStore, unit: str, keys: Sequence[str], limit: float) -> bool:
    """Whether the unit went away. One that was touched meanwhile stays.

    On a local disk it is moved aside first: a writer who asks for the file after that writes it anew, and one who asked
    before left a mark of time, which is looked at once more before anything is lost."""
    if _newest(store, keys) >= limit:
        return False
    if not store.is_local:
        # A folder's list goes first: a folder without it was never finished.
        for key in sorted(keys, key=lambda key: not key.endswith("manifest.json")):
            with contextlib.suppress(FileNotFoundError):
                store.fs.rm_file(store.at(key))
        return True
    aside = Path(store.at(TRASH)) / uuid.uuid4().hex
    aside.parent.mkdir(parents=True, exist_ok=True)
    source = Path(store.at(unit))
    try:
        source.rename(aside)
        moved = [aside] if aside.is_file() else [path for path in aside.rglob("*") if path.is_file()]
        if max((path.stat().st_mtime for path in moved), default=0.0) >= limit:
            _put_back(aside, source)
            return False
        for path in moved:
            path.unlink()
        for folder in sorted((path for path in aside.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        if aside.exists():
            aside.rmdir()
    except FileNotFoundError:
        return False  # somebody else took it
    except OSError as error:
        raise StoreError(f"{source} cannot be taken away ({error.strerror}); check the rights of the store.") from error
    finally:
        with contextlib.suppress(OSError):
            aside.parent.rmdir()
        if unit.startswith(("audio/", "codes/", "files/")):
            with contextlib.suppress(OSError):
                source.parent.rmdir()  # only when it is empty
    return True


def _put_back(aside: Path, source: Path) -> None:
    """Files moved aside return to where they were; what was written there anew is the same content and stays."""
    pairs: Mapping[Path, Path] = (
        {aside: source}
        if aside.is_file()
        else {path: source / path.relative_to(aside) for path in aside.rglob("*") if path.is_file()}
    )
    for path, target in pairs.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    with contextlib.suppress(OSError):
        for folder in sorted((path for path in aside.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        aside.rmdir()
