"""Embeddings by key: in memory, or cached in a folder and memory-mapped.

    FOLDER/about.json     {"encoder": ..., "width": D}
    FOLDER/vectors.f32    rows of D little-endian float32, in the order of the keys
    FOLDER/keys.txt       one key a line: a clip's audio sha256, or the sha256 of a prompt

A key is written after its row, so a row that a crash left without one is overwritten.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alignment.errors import DataError, StoreError

Embeddings = Mapping[str, np.ndarray]


class MappedEmbeddings(Mapping[str, np.ndarray]):
    """Embeddings (D,) float32 by key, as rows of one array that may be memory-mapped."""

    def __init__(self, keys: Sequence[str], matrix: np.ndarray) -> None:
        if matrix.ndim != 2 or len(keys) != len(matrix):
            raise DataError(f"There are {len(keys)} keys for embeddings {matrix.shape}; one row a key is needed.")
        self.matrix = matrix
        self._row = {key: row for row, key in enumerate(keys)}

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """The row of each key, (N,) int64. Raises DataError naming the first that is missing."""
        missing = next((key for key in keys if key not in self._row), None)
        if missing is not None:
            raise DataError(f"There is no embedding of {missing!r}; encode every clip and prompt of the pairs first.")
        return np.array([self._row[key] for key in keys], dtype=np.int64)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.matrix[self._row[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


class EmbeddingCache:
    """What one encoder made of clips or prompts, kept in a folder; every key is computed once.

    Several processes may use one folder: writing is locked. Raises StoreError when the folder cannot be used or
    belongs to another encoder."""

    def __init__(self, folder: str | Path, *, encoder: str, width: int) -> None:
        self.folder, self.width = Path(folder), width
        self._thread = threading.Lock()
        about = {"encoder": encoder, "width": width}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                path = self.folder / "about.json"
                if not path.exists():
                    path.write_text(json.dumps(about), encoding="utf-8")
                found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder}: no cache of embeddings can be kept here ({error}).") from error
        if found != about:
            raise StoreError(
                f"{self.folder}: holds embeddings of {found.get('encoder')}, and {encoder} was asked; "
                "give each encoder a folder of its own."
            )

    def get(
        self,
        keys: Iterable[str],
        compute: Callable[[list[str]], np.ndarray],
        *,
        batch_size: int = 64,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> MappedEmbeddings:
        """The cache, memory-mapped, with all ``keys`` in it.

        ``compute`` gives the embeddings (B, D) of keys that are not there yet, ``batch_size`` at a time; what was
        computed before an exception stays."""
        known = set(self._keys())
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            self._append(part, np.asarray(compute(part), dtype="<f4"))
            if on_progress is not None:
                on_progress(min(start + batch_size, len(missing)), len(missing))
        return self.open()

    def open(self) -> MappedEmbeddings:
        """What is there now."""
        keys = self._keys()
        if not keys:
            return MappedEmbeddings([], np.zeros((0, self.width), np.float32))
        try:
            matrix = np.memmap(self.folder / "vectors.f32", "<f4", mode="r", shape=(len(keys), self.width))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder}: the embeddings are damaged ({error}); delete the folder.") from error
        return MappedEmbeddings(keys, matrix)

    def _keys(self) -> list[str]:
        path = self.folder / "keys.txt"
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1].splitlines()  # a line cut short was never finished

    def _append(self, keys: list[str], vectors: np.ndarray) -> None:
        if vectors.shape != (len(keys), self.width):
            raise DataError(f"The encoder gave embeddings {vectors.shape}; {(len(keys), self.width)} are needed.")
        try:
            with self._locked():
                there = self._keys()
                known = set(there)  # another process may have been faster
                new = [place for place, key in enumerate(keys) if key not in known]
                with (self.folder / "vectors.f32").open("ab") as file:
                    file.truncate(4 * self.width * len(there))
                    file.write(vectors[new].tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                with (self.folder / "keys.txt").open("ab") as file:
                    file.truncate(sum(len(key.encode()) + 1 for key in there))
                    file.write("".join(f"{keys[place]}\n" for place in new).encode())
        except OSError as error:
            raise StoreError(f"{self.folder}: embeddings cannot be written ({error}); free space.") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread, (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def text_key(prompt: str) -> str:
    """The key of a prompt in a cache: its sha256."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def stack(embeddings: Embeddings, keys: Sequence[str], what: str) -> np.ndarray:
    """(N, D) float32: the embedding of each key. Raises DataError naming the first that is missing."""
    missing = next((key for key in keys if key not in embeddings), None)
    if missing is not None:
        raise DataError(f"There is no {what} {missing!r}; encode every clip and prompt of the pairs first.")
    return np.stack([np.asarray(embeddings[key], dtype=np.float32) for key in keys])
