"""The cache of embeddings: computed once, mapped, whole after a crash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alignment.errors import DataError, StoreError
from alignment.rewards.embeddings import EmbeddingCache, MappedEmbeddings, text_key
from alignment.rewards.table import table_of
from tests.training_support import pair, unit_vectors


def vectors(keys: list[str]) -> np.ndarray:
    return np.array([[float(len(key)), float(ord(key[0])), 0.0] for key in keys])


def test_each_key_is_computed_once_and_stays_after_a_restart(tmp_path: Path) -> None:
    asked: list[str] = []

    def compute(keys: list[str]) -> np.ndarray:
        asked.extend(keys)
        return vectors(keys)

    cache = EmbeddingCache(tmp_path, encoder="one", width=3)
    assert len(cache.open()) == 0
    first = cache.get(["a", "bb", "a"], compute, batch_size=1)
    again = EmbeddingCache(tmp_path, encoder="one", width=3).get(["ccc", "bb"], compute)
    assert asked == ["a", "bb", "ccc"] and list(first) == ["a", "bb"] and list(again) == ["a", "bb", "ccc"]
    assert again["ccc"].tolist() == [3.0, 99.0, 0.0] and again["a"].dtype == np.float32
    assert isinstance(again.matrix, np.memmap) and again.rows(["ccc", "a"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="no embedding of 'dd'"):
        again.rows(["a", "dd"])
    assert len(text_key("calm piano")) == 64


def test_a_crash_between_rows_and_keys_costs_only_what_was_not_finished(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, encoder="one", width=3)
    cache.get(["a"], vectors)
    with (tmp_path / "vectors.f32").open("ab") as file:
        file.write(b"\x01" * 7)  # half a row
    with (tmp_path / "keys.txt").open("a") as file:
        file.write("unfinished")  # no end of line
    found = cache.get(["a", "bb"], vectors)
    assert list(found) == ["a", "bb"] and found["bb"].tolist() == [2.0, 98.0, 0.0]
    assert (tmp_path / "vectors.f32").stat().st_size == 2 * 3 * 4
    (tmp_path / "vectors.f32").write_bytes(b"\x00" * 8)
    with pytest.raises(StoreError, match="damaged"):
        cache.open()


def test_what_was_computed_before_a_failure_stays(tmp_path: Path) -> None:
    def failing(keys: list[str]) -> np.ndarray:
        if "bb" in keys:
            raise DataError("Clip bb is missing.")
        return vectors(keys)

    cache = EmbeddingCache(tmp_path, encoder="one", width=3)
    with pytest.raises(DataError, match="bb is missing"):
        cache.get(["a", "bb"], failing, batch_size=1)
    assert list(cache.open()) == ["a"]
    with pytest.raises(DataError, match=r"embeddings \(1, 2\)"):
        cache.get(["ccc"], lambda keys: np.zeros((1, 2)))


def test_another_encoders_folder_is_refused(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, encoder="one", width=3)
    with pytest.raises(StoreError, match="embeddings of one, and two was asked"):
        EmbeddingCache(tmp_path, encoder="two", width=3)


def test_a_table_points_into_the_mapped_array_and_copies_nothing(tmp_path: Path) -> None:
    known = unit_vectors([f"audio-{n}{side}" for n in range(3) for side in "ba"], 3, 0)
    cache = EmbeddingCache(tmp_path, encoder="one", width=3)
    mapped = cache.get(list(known), lambda keys: np.stack([known[key] for key in keys]))
    text = MappedEmbeddings(["calm piano"], np.ones((1, 3), np.float32))
    pairs = [pair(n) for n in range(3)]
    table, copied = table_of(pairs, mapped, text), table_of(pairs, known, dict(text))
    assert table.audio is mapped.matrix and table.text is text.matrix
    assert np.array_equal(table.audio[table.a], copied.audio[copied.a])
    assert np.array_equal(table.audio[table.b], copied.audio[copied.b])
    assert np.array_equal(table.audio[table.a], np.stack([known[f"audio-{n}a"] for n in range(3)]))
