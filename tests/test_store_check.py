"""The store's files are found when altered, and go only when nothing refers to them and nobody wants them any more."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from circle_support import attune
from exchange_support import Place, battle, new_place, place, release, tone, upgraded  # noqa: F401

from alignment import store_check
from alignment.circle.learn import take_snapshot
from alignment.circle.workspace import Workspace
from alignment.clips import ClipStore
from alignment.db import runs
from alignment.db.base import utcnow, uuid7
from alignment.db.references import references
from alignment.db.tables import AuditLogRow, ClipRow, ExternalRecordRow, SnapshotRow, VersionRow, metadata
from alignment.db.versions import add_version
from alignment.errors import StoreError
from alignment.store_check import check_store, collect_garbage

OLD = time.time() - 3 * 24 * 3600


def _age(store: ClipStore, when: float = OLD) -> None:
    for path in Path(store.root).rglob("*"):
        if path.is_file():
            os.utime(path, (when, when))


def _files(store: ClipStore) -> set[str]:
    root = Path(store.root)
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def _folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(f"{path.name}/{name}".encode())
    return path


@pytest.fixture
def full(place, tmp_path) -> Place:  # noqa: F811
    """A home with clips, votes, a snapshot of some, an adapter, a reward model and a run; every file three days old."""
    place.take(release(tmp_path, [battle(0), battle(1)]))
    take_snapshot(Workspace(place.database, place.store, "secret"), "frozen", ["music-arena"])
    (tmp_path / "later").mkdir()
    place.take(release(tmp_path / "later", [battle(3)]))  # clips that no snapshot names
    with place.database.session() as s:
        sha256, uri = place.store.put_folder(_folder(tmp_path / "adapter", "adapter.safetensors", "in/config.json"))
        add_version(s, name="tuned", base="tiny", base_sha256="0" * 64, adapter_sha256=sha256, adapter_uri=uri)
        sha256, uri = place.store.put_folder(_folder(tmp_path / "reward", "heads.safetensors"))
        run_sha, run_uri = place.store.put_folder(_folder(tmp_path / "run", "log.json"))
        run = runs.add_train_run(
            s, kind="reward", snapshot_id=None, config={}, metrics={}, artefact_sha256=run_sha, artefact_uri=run_uri
        )
        runs.add_reward_model(
            s, name="likes", train_run_id=run, encoder="clap", heads=["quality"], calibration={},
            artefact_sha256=sha256, artefact_uri=uri,
        )  # fmt: skip
    _age(place.store)
    return place


def test_nothing_that_a_row_refers_to_ever_goes(full):
    before = _files(full.store)
    assert len(before) == 6 + 1 + 3 + 2 + 2  # clips, snapshot, three folders with their lists
    done = collect_garbage([full.database], full.store)
    assert (done.units, done.kept, done.young, done.size_bytes) == ((), 6 + 1 + 3, 0, 0)
    assert _files(full.store) == before
    checked = check_store(full.database, full.store)
    assert (checked.files, checked.faults) == (len(before), ())


def test_what_nothing_refers_to_goes_and_is_told_first_by_a_dry_run(full, tmp_path):
    before = _files(full.store)
    audio, _ = full.store.put_audio(tone(999), 16000)
    codes = full.store.put_codes(np.ones((4, 3), np.int64))
    _, folder = full.store.put_folder(_folder(tmp_path / "extra", "a", "b/c"))
    _, file = full.store.put_file(_folder(tmp_path / "one", "x.txt") / "x.txt")
    leftover = Path(full.store.at(f"audio/ab/.{audio}.flac.1.partial"))
    foreign = [
        Path(full.store.at(name)) for name in ("audio/notes.txt", "files/readme", "elsewhere/x", "folders/new/a")
    ]
    for path in (leftover, *foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1234")
    _age(full.store)
    wanted = {
        f"audio/{audio[:2]}/{audio}.flac", f"codes/{codes[:2]}/{codes}.npy", folder.removeprefix("store://"),
        file.removeprefix("store://"), f"audio/ab/{leftover.name}",
    }  # fmt: skip
    there = _files(full.store)
    told = collect_garbage([full.database], full.store, dry_run=True)
    assert set(told.units) == wanted and told.dry_run and _files(full.store) == there
    gone = collect_garbage([full.database], full.store)
    assert gone.units == told.units and gone.size_bytes == told.size_bytes > 4
    others = {path.relative_to(full.store.root).as_posix() for path in foreign}
    assert _files(full.store) == before | others  # what the store did not write is not its business
    assert collect_garbage([full.database], full.store).units == ()


def test_what_is_younger_than_a_day_stays_and_asking_for_a_file_makes_it_young(full):
    audio, _ = full.store.put_audio(tone(999), 16000)
    kept = collect_garbage([full.database], full.store)
    assert kept.units == () and kept.young == 1
    _age(full.store, time.time() - 23 * 3600)
    assert collect_garbage([full.database], full.store).units == ()
    _age(full.store)
    assert len(collect_garbage([full.database], full.store, dry_run=True).units) == 1
    full.store.put_audio(tone(999), 16000)  # an import that brings the same clip again
    assert collect_garbage([full.database], full.store).units == ()
    full.store.get_audio(audio)


@pytest.mark.parametrize("moment", ["before the look", "before the move", "after the move"])
def test_a_file_stored_again_while_garbage_is_collected_is_there_afterwards(full, tmp_path, monkeypatch, moment):
    source = _folder(tmp_path / "again", "a", "b/c")
    _, uri = full.store.put_folder(source)
    audio, _ = full.store.put_audio(tone(999), 16000)
    _age(full.store)

    def again():
        full.store.put_folder(source)
        full.store.put_audio(tone(999), 16000)

    rename, newest = Path.rename, store_check._newest
    if moment == "before the look":
        calls = []

        def looked(store, keys):
            calls.append(1)
            if len(calls) == 13:  # all twelve units were looked at once: this is the first before a removal
                again()
            return newest(store, keys)

        monkeypatch.setattr(store_check, "_newest", looked)
    else:

        def moved(path, target):
            if moment == "before the move":
                again()
            done = rename(path, target)
            if moment == "after the move":
                again()
            return done

        monkeypatch.setattr(Path, "rename", moved)
    collect_garbage([full.database], full.store)
    monkeypatch.undo()
    assert (full.store.path_of(uri) / "b" / "c").read_bytes() == b"again/b/c"
    full.store.get_audio(audio)
    assert check_store(full.database, full.store).faults == ()
    assert not Path(full.store.at(".gc")).exists()


def test_files_that_only_json_or_a_snapshots_own_lines_name_stay(full, tmp_path):
    sha256, uri = full.store.put_folder(_folder(tmp_path / "named", "x"))
    audio, _ = full.store.put_audio(tone(999), 16000)
    with full.database.session() as s:
        runs.add_train_run(s, kind="dpo", snapshot_id=None, config={"start": {"from": [uri]}}, metrics={"page": audio})
    with full.database.engine.connect() as connection:  # rows of clips never go; if they did, the snapshot names them
        connection.exec_driver_sql("COMMIT")
        for statement in ("PRAGMA foreign_keys=OFF", "DROP TRIGGER clip_refuses_delete", "DELETE FROM clip"):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
        connection.exec_driver_sql("BEGIN")
    _age(full.store)
    with full.database.session(write=False) as s:
        assert uri in references(s).mentioned and audio in references(s).digests
    # Only the two clips that were frozen nowhere have lost whatever named them.
    assert [unit[:6] for unit in collect_garbage([full.database], full.store).units] == ["audio/"] * 2


def test_every_column_that_can_name_a_file_is_looked_at(full):
    # A new table's column of these names protects its files without being listed anywhere.
    named = {
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name.endswith("uri") or column.name in ("audio_sha256", "codes_sha256", "adapter_sha256")
    }
    assert named >= {
        "clip.audio_sha256", "clip.codes_sha256", "version.adapter_uri", "version.adapter_sha256", "snapshot.uri",
        "train_run.artefact_uri", "reward_model.artefact_uri",
    }  # fmt: skip
    with full.database.session(write=False) as s:
        found = references(s)
        clips = {sha for sha in s.scalars(sa.select(ClipRow.audio_sha256))}
        uris = {*s.scalars(sa.select(SnapshotRow.uri)), *s.scalars(sa.select(VersionRow.adapter_uri))} - {None}
    assert clips <= found.digests and uris <= found.uris and len(found.uris) == 4


def test_a_snapshot_that_cannot_be_read_stops_the_collection(full):
    audio, _ = full.store.put_audio(tone(999), 16000)
    _age(full.store)
    with full.database.session(write=False) as s:
        path = full.store.path_of(s.scalar(sa.select(SnapshotRow.uri)))
    path.write_text(path.read_text() + " ")
    with pytest.raises(StoreError, match="was altered"):
        collect_garbage([full.database], full.store)
    full.store.get_audio(audio)


def test_a_store_that_two_databases_share_keeps_what_either_refers_to(full, upgraded, tmp_path):  # noqa: F811
    other = new_place(upgraded, tmp_path / "other")
    other.store = full.store
    (tmp_path / "in").mkdir()
    other.take(release(tmp_path / "in", [battle(5)]), source="other")
    _age(full.store)
    assert len(collect_garbage([full.database], full.store, dry_run=True).units) == 2
    assert collect_garbage([full.database, other.database], full.store).units == ()
    other.database.close()


def test_a_missing_and_an_altered_file_of_every_kind_are_found_by_their_hash(full):
    assert check_store(full.database, full.store).faults == ()
    everything = sorted(_files(full.store))
    for number, name in enumerate(everything):
        path = Path(full.store.at(name))
        data = path.read_bytes()
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        faults = check_store(full.database, full.store).faults
        assert faults and all(name in fault and ("missing" if number % 2 else "altered") in fault for fault in faults)
        path.write_bytes(data)
    assert check_store(full.database, full.store).faults == ()


def test_a_store_that_is_no_local_folder_is_collected_too(place):  # noqa: F811
    store = ClipStore(f"memory://{uuid.uuid4().hex}")
    kept, _ = store.put_audio(tone(300), 16000)
    gone, _ = store.put_audio(tone(400), 16000)
    with place.database.session() as s:
        s.execute(
            sa.insert(ExternalRecordRow).values(
                id=uuid7(), source="x", source_id="1", payload={"audio": kept}, created_at=utcnow()
            )
        )
        s.execute(sa.insert(AuditLogRow).values(id=uuid7(), actor="a", action="b", created_at=utcnow()))
    young = collect_garbage([place.database], store)
    assert young.units == () and young.young == 2
    done = collect_garbage([place.database], store, now=lambda: time.time() + 2 * 24 * 3600)
    assert done.units == (f"audio/{gone[:2]}/{gone}.flac",)
    store.get_audio(kept)
    with pytest.raises(StoreError, match="missing"):
        store.get_audio(gone)


def test_the_commands_exit_1_on_a_fault_and_take_away_only_when_told(full, capsys):
    full.database.close()
    home = ("--home", full.home)
    assert attune(capsys, "clips", "check", *home).code == 0
    audio, _ = full.store.put_audio(tone(999), 16000)
    _age(full.store)
    told = attune(capsys, "clips", "gc", "--dry-run", "--json", *home)
    assert told.json["removed"] == [f"audio/{audio[:2]}/{audio}.flac"] and told.json["dry_run"]
    full.store.get_audio(audio)
    assert "1 of 11 files and folders taken away" in attune(capsys, "clips", "gc", *home).out
    victim = next(Path(full.store.root).rglob("*.flac"))
    victim.write_bytes(b"noise")
    found = attune(capsys, "clips", "check", "--json", *home)
    assert found.code == 1 and "was altered" in found.json["faults"][0] and "Traceback" not in found.err
