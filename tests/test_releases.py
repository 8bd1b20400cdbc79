"""What leaves can be read by others, says under which licence, and holds nothing that may not leave."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from circle_support import attune
from exchange_support import (  # noqa: F401
    Place,
    battle,
    new_place,
    place,
    release,
    tone,
    upgraded,
    write_tones,
)
from study_support import give_consent, voted_study

from alignment.circle.learn import take_snapshot
from alignment.circle.workspace import Workspace
from alignment.db import clips, external, prompts, studies
from alignment.db.tables import ClipRow, RaterRow, SnapshotRow, VersionRow, VoteTable
from alignment.domain import Outcome, RaterKind, VoteDraft
from alignment.errors import DataError, NotFoundError, StoreError
from alignment.exports import make_export
from alignment.imports import clip_table, trl
from alignment.preferences import read_snapshot
from alignment.releases.snapshot import export_snapshot, export_trl
from alignment.releases.study import export_music_arena, export_parquet
from alignment.votes import VoteService

LINES = 8


def _jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _imported(place: Place, folder: Path, **changes) -> None:  # noqa: F811
    folder.mkdir()
    rows = [battle(n, **changes) for n in range(LINES)]
    rows[3] |= {"text_adherence": 1, "quality": -2, "confidence": 2, "licence": "CC BY-SA 4.0"}
    place.take(release(folder, rows, tones=LINES))


def _snapshot(place: Place, name: str = "frozen", study: str = "music-arena", **rules):  # noqa: F811
    return take_snapshot(Workspace(place.database, place.store, "secret"), name, [study], **rules)


def _heard(folder: Path, file: str) -> str:
    """sha256 of the samples of a clip."""
    return hashlib.sha256(soundfile.read(folder / file, dtype="int16")[0].tobytes()).hexdigest()


def _checked(folder: Path) -> dict:
    """The card of an export, after every file has been compared with SHA256SUMS."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    named = {name: digest for digest, name in (line.split("  ") for line in lines)}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*named, "SHA256SUMS"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in named.items())
    card = json.loads((folder / "datacard.json").read_text())
    assert {name: one["sha256"] for name, one in card["files"].items()} == {
        name: digest for name, digest in named.items() if name not in ("datacard.json", "README.md")
    }
    return card


def test_music_arenas_format_goes_round_without_loss(place, upgraded, tmp_path):  # noqa: F811
    _imported(place, tmp_path / "in")
    export_music_arena(place.database, place.store, "music-arena", tmp_path / "one", actor="olga")
    other = new_place(upgraded, tmp_path / "other")
    done = other.take(tmp_path / "one" / "battles.jsonl")
    assert (done.records, done.votes, done.licences) == (LINES, LINES, {"CC BY 4.0": LINES - 1, "CC BY-SA 4.0": 1})
    export_music_arena(other.database, other.store, "music-arena", tmp_path / "two", actor="olga")

    def said(folder: str, name: str = "battles.jsonl") -> list[tuple]:
        rows = _jsonl(tmp_path / folder / name)
        kept = ("prompt", "system_a", "system_b", "preference", "total_listening_time_a", "total_listening_time_b",
                "duration_a", "duration_b", "sample_rate_a", "sample_rate_b")  # fmt: skip
        axes = ("text_adherence", "quality", "confidence")
        return sorted(
            (*(row[f] for f in kept), *(str(row.get(f)) for f in axes), _heard(tmp_path / folder, row["audio_a"]),
             _heard(tmp_path / folder, row["audio_b"]))
            for row in rows
        )  # fmt: skip

    assert said("one") == said("two")
    # 3.25 s are told as 3.2; everything else is as it was in the release itself.
    assert [row[:4] + row[10:] for row in said("one")] == [row[:4] + row[10:] for row in said("in")]
    card = _checked(tmp_path / "two")
    assert card["counts"] == {"votes": LINES, "without_counterpart": 0, "raters": 2} and not card["simulated"]
    assert card["licences"] == {"CC BY 4.0": LINES - 1, "CC BY-SA 4.0": 1}
    assert [row["split"] for row in _jsonl(tmp_path / "two" / "battles.jsonl")].count("train") >= 4
    other.database.close()


def test_trls_pairs_go_round_and_are_what_trl_itself_makes_of_them(place, upgraded, tmp_path, monkeypatch):  # noqa: F811
    import datasets
    from trl.data_utils import unpair_preference_dataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    _imported(place, tmp_path / "in")
    frozen = _snapshot(place).frozen
    pairs, single = tmp_path / "pairs", tmp_path / "single"
    card = export_trl(place.database, place.store, "frozen", pairs, actor="olga")
    export_trl(place.database, place.store, "frozen", single, actor="olga", unpaired=True)
    assert card == _checked(pairs) and card["counts"]["pairs"] == frozen.counts["decisive"] == LINES // 2
    assert card["counts"]["left_out_undecided"] == LINES // 2

    def loaded(folder: Path) -> datasets.Dataset:
        files = {path.stem: str(path) for path in folder.glob("*.jsonl")}
        sets = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
        return datasets.concatenate_datasets([sets[name] for name in sorted(sets)])

    def clips_of(folder: Path, rows, wanted=("prompt", "completion", "label")):
        return sorted((row["prompt"], _heard(folder, row["completion"]), row["label"]) for row in rows)

    paired = loaded(pairs)
    assert set(paired.column_names) >= {"prompt", "chosen", "rejected"} and len(paired) == LINES // 2
    assert clips_of(pairs, unpair_preference_dataset(paired)) == clips_of(single, loaded(single))
    # Battle n is won by a where n % 4 is 0, by b where it is 1.
    for row in paired:
        n = int(row["prompt"].removeprefix("prompt "))
        winner, loser = "ab" if n % 4 == 0 else "ba"
        assert _heard(pairs, row["chosen"]) == _heard(tmp_path / "in", f"audio/{n}-{winner}.wav")
        assert _heard(pairs, row["rejected"]) == _heard(tmp_path / "in", f"audio/{n}-{loser}.wav")
    other = new_place(upgraded, tmp_path / "other")
    read = partial(trl.parse, system="nobody")
    for path in sorted(pairs.glob("*.jsonl")):
        other.take(path, read=read, source="pairs", licence=None)
    again = _snapshot(other, study="pairs").frozen

    def winners(snapshot):
        decided = [pair for pair in snapshot.pairs if pair.preference != 0.5]
        ordered = [(p.a, p.b) if p.preference else (p.b, p.a) for p in decided]
        return sorted(
            (p.prompt_text, p.split, w.audio_sha256, w.version, loser.audio_sha256, loser.version)
            for p, (w, loser) in zip(decided, ordered, strict=True)
        )

    assert winners(again) == winners(frozen)
    other.database.close()


def test_parquet_is_what_datasets_loads_with_the_clips_in_their_rows(place, tmp_path):  # noqa: F811
    import datasets

    _imported(place, tmp_path / "in", simulated=True)
    card = export_parquet(place.database, place.store, "music-arena", tmp_path / "out", actor="olga")
    assert card == _checked(tmp_path / "out") and card["simulated"]
    assert "Simulated listeners" in (tmp_path / "out" / "README.md").read_text()
    file = str(tmp_path / "out" / "votes.parquet")
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["audio_a"] == datasets.Audio(decode=False)
    export = make_export(place.database, "music-arena", actor="olga")
    plain = [json.loads(line) for line in export.files["votes.jsonl"].decode().splitlines()]
    same = ("day", "prompt", "version_a", "version_b", "audio_sha256_a", "outcome", "quality", "heard_seconds_b",
            "licence", "kind", "switches")  # fmt: skip

    def told(rows):
        return sorted([[str(row[name]) for name in same] for row in rows])

    assert told(loaded) == told(plain) and len(loaded) == LINES
    row = loaded[0]
    with soundfile.SoundFile(io.BytesIO(row["audio_a"]["bytes"])) as clip:
        assert clip.comment == f"AI-generated, version {row['version_a']}"
        heard = clip.read(dtype="float32")
    assert np.array_equal(heard, place.store.get_audio(row["audio_sha256_a"])[0])
    assert json.loads(row["flags"]) == {} and row["confidence"] in (None, 2)


def test_a_frozen_snapshot_leaves_with_its_card_and_is_read_again_by_its_hash(place, tmp_path):  # noqa: F811
    _imported(place, tmp_path / "in")
    taken = _snapshot(place)
    card = export_snapshot(place.database, place.store, "frozen", tmp_path / "out", actor="olga")
    assert card == _checked(tmp_path / "out")
    assert card["complete"] and card["frozen_content_sha256"] == taken.frozen.content_sha256
    read = read_snapshot(tmp_path / "out" / "snapshot.jsonl")
    assert (read.content_sha256, dict(read.counts)) == (card["content_sha256"], dict(taken.frozen.counts))

    def content(snapshot):
        return sorted((p.prompt_text, p.split, p.outcome, p.a.audio_sha256, p.b.audio_sha256) for p in snapshot.pairs)

    assert content(read) == content(taken.frozen)
    for pair in read.pairs:
        (file,) = (tmp_path / "out" / "audio").rglob(f"{pair.a.audio_sha256}-*.flac")
        samples = soundfile.read(file, dtype="float32")[0]
        assert np.array_equal(samples, place.store.get_audio(pair.a.audio_sha256)[0])
        assert soundfile.SoundFile(file).comment == f"AI-generated, version {pair.a.version}"
    # No id of the database is in any file.
    text = "".join(p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".jsonl", ".json", ".md"))
    with place.database.session(write=False) as s:
        ids = [
            *s.scalars(sa.select(VoteTable.id)),
            *s.scalars(sa.select(RaterRow.id)),
            *s.scalars(sa.select(ClipRow.id)),
        ]
    assert len(ids) == 3 * LINES + 2 and not [one for one in ids if str(one) in text or one.hex in text]
    altered = (tmp_path / "out" / "snapshot.jsonl").read_text().replace('"A"', '"B"', 1)
    (tmp_path / "out" / "snapshot.jsonl").write_text(altered)
    with pytest.raises(DataError, match="altered"):
        read_snapshot(tmp_path / "out" / "snapshot.jsonl")


def _sung(place: Place) -> None:  # noqa: F811
    """Gives the clips of ``voted_study`` audio and codes of their own: two versions of a model of ours."""
    with place.database.engine.begin() as connection:
        for trigger in ("clip_refuses_update",):
            connection.exec_driver_sql(f"DROP TRIGGER {trigger}")
    with place.database.session() as s:
        for number, clip in enumerate(s.scalars(sa.select(ClipRow).order_by(ClipRow.id)).all()):
            clip.audio_sha256, _ = place.store.put_audio(tone(200 + 31 * number), 16000)
            clip.codes_sha256 = place.store.put_codes(np.full((4, 12), number))


def test_only_answers_whose_raters_agreed_leave_with_a_snapshot(place, tmp_path):  # noqa: F811
    # Rater 0 agreed, rater 1 refused, rater 2 was never asked, rater 3 agreed and withdraws after the freezing.
    filled, raters = voted_study(
        place.database, battles=3, raters=4, consent=lambda n: {0: True, 1: False, 3: True}.get(n), comment="hm"
    )
    _sung(place)
    _snapshot(place, study="study")
    with place.database.session() as s:
        s.execute(sa.update(RaterRow).where(RaterRow.id == raters[3]).values(status="withdrawn", pseudonym=None))
    card = export_snapshot(place.database, place.store, "frozen", tmp_path / "out", actor="olga", licence="CC0")
    assert card["withheld"] == {"without publication consent": 6, "withdrawn": 3} and not card["complete"]
    assert card["counts"]["pairs"] == 3 and card["licences"] == {"CC0": 3}
    read = read_snapshot(tmp_path / "out" / "snapshot.jsonl")
    assert {p.rater_id for p in read.pairs}.isdisjoint({str(r) for r in raters}) and len(read.pairs) == 3
    codes = {path.name: path for path in (tmp_path / "out" / "codes").rglob("*.npy")}
    for pair in read.pairs:
        assert np.array_equal(np.load(codes[f"{pair.b.codes_sha256}.npy"]), place.store.get_codes(pair.b.codes_sha256))
    assert export_trl(place.database, place.store, "frozen", tmp_path / "trl", actor="olga")["counts"]["pairs"] == 3
    give_consent(place.database, raters[0], filled.study_id, publication=False)
    for export in (export_snapshot, export_trl):
        with pytest.raises(DataError, match=r"No answer of snapshot frozen may be published \(3 withdrawn, 9 without"):
            export(place.database, place.store, "frozen", tmp_path / "none", actor="olga")
    for export in (export_music_arena, export_parquet):
        with pytest.raises(DataError, match=r"No vote of study study may be published"):
            export(place.database, place.store, "study", tmp_path / "none", actor="olga")
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".none*"))


def test_records_without_a_known_licence_stay_and_the_others_keep_theirs(place, tmp_path):  # noqa: F811
    rows = [battle(0, licence="CC BY-NC 4.0"), battle(1, licence="unknown"), battle(2)]
    place.take(release(tmp_path, rows), licence="CC BY 4.0")
    export = make_export(place.database, "music-arena", actor="olga", licence="CC0")
    assert export.counts["withheld_without_licence"] == 1
    assert export.card["licences"] == {"CC BY 4.0": 1, "CC BY-NC 4.0": 1}
    assert b"CC BY-NC 4.0" in export.files["votes.csv"] and b"Licence: CC BY 4.0; CC BY-NC" in export.files["README.md"]
    card = export_music_arena(place.database, place.store, "music-arena", tmp_path / "o", actor="olga", licence="CC0")
    assert card["withheld"] == {"came under no known licence": 1}
    assert sorted(row["licence"] for row in _jsonl(tmp_path / "o" / "battles.jsonl")) == ["CC BY 4.0", "CC BY-NC 4.0"]
    _snapshot(place)
    trl_card = export_trl(place.database, place.store, "frozen", tmp_path / "t", actor="olga", licence="CC0")
    assert trl_card["licences"] == card["licences"]


def test_a_full_disk_leaves_no_part_of_an_export(place, tmp_path, monkeypatch):  # noqa: F811
    _imported(place, tmp_path / "in")
    _snapshot(place)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    for export, name in ((export_music_arena, "music-arena"), (export_trl, "frozen"), (export_snapshot, "frozen")):
        with pytest.raises(StoreError, match="cannot be written .No space left"):
            export(place.database, place.store, name, tmp_path / "out", actor="olga")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "in"]
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        export_parquet(place.database, place.store, "music-arena", tmp_path / "out", actor="olga")
    with pytest.raises(NotFoundError, match="No snapshot is called nothing; known: frozen"):
        export_trl(place.database, place.store, "nothing", tmp_path / "new", actor="olga")
    with pytest.raises(DataError, match="names no licence"):
        export_trl(place.database, place.store, "frozen", tmp_path / "new", actor="olga", licence=" ")


COMMERCIAL = {"CC BY 4.0": True, "CC0": True, "own": True, "CC BY-NC 4.0": False, "CC-BY-NC-SA-4.0": False,
              "research only": False, "unknown": False, "": False, "other": False}  # fmt: skip


def test_no_record_under_another_licence_enters_a_commercial_snapshot(place, tmp_path):  # noqa: F811
    rows = [battle(n, licence=licence or None) for n, licence in enumerate(COMMERCIAL)]
    place.take(release(tmp_path, rows, tones=len(rows)), licence=None)
    whole, sold = _snapshot(place, "whole").frozen, _snapshot(place, "sold", commercial=True).frozen
    fits = {f"prompt {n}" for n, allowed in enumerate(COMMERCIAL.values()) if allowed}
    assert {pair.prompt_text for pair in sold.pairs} == fits and len(whole.pairs) == len(rows)
    assert sold.counts["left_out_not_commercial"] == 6 and sold.policy["commercial"] is True
    assert "commercial" not in whole.policy and "left_out_not_commercial" not in whole.counts
    with place.database.session(write=False) as s:
        recorded = {row.name: row.licence for row in s.scalars(sa.select(SnapshotRow))}
    assert recorded == {
        "sold": "CC BY 4.0; CC0; own",
        "whole": "CC BY 4.0; CC BY-NC 4.0; CC-BY-NC-SA-4.0; CC0; own; research only; unknown",
    }
    from alignment.db.snapshots import add_snapshot

    with (
        pytest.raises(DataError, match="is for commercial use and 6 of its votes came under CC BY-NC 4.0; "),
        place.database.session() as s,
    ):  # whatever was frozen, the record refuses it
        add_snapshot(
            s, name="forced", policy={"commercial": True}, high_water_mark=None, content_sha256="0" * 64, uri="store://x",
            simulated=False, members=whole.members,
        )  # fmt: skip


def test_votes_of_our_own_raters_on_clips_that_may_not_be_sold_stay_out_too(place, tmp_path):  # noqa: F811
    write_tones(tmp_path, ["free.wav", "kept.wav", "free2.wav"])
    (tmp_path / "c.csv").write_text(
        "file,prompt,system,licence\nfree.wav,p,a,CC0\nkept.wav,p,b,CC BY-NC 4.0\nfree2.wav,p,c,CC BY 4.0\n"
    )
    place.take(tmp_path / "c.csv", read=clip_table.parse, source="c", licence=None)
    with place.database.session(write=False) as s:
        by = {clip.version: clip for clip in clips.list_clips(s)}
        (prompt,) = prompts.list_prompts(s)
    ws = Workspace(place.database, place.store, "a secret for tests only")
    for name, other in (("mixed", "b"), ("clean", "c")):
        with place.database.session() as s:
            study = studies.create_study(
                s, name=name, versions=["a", other], questions=[], minimum_listening_seconds=0.0,
                rater_kind=RaterKind.HUMAN,
            )  # fmt: skip
            studies.add_battles(s, study, [studies.NewBattle(prompt.id, by["a"].id, by[other].id)])
        service = VoteService(place.database, secret=ws.secret)
        session = service.open_session(service.enrol_rater("ann", kind=RaterKind.HUMAN), name)
        served = service.next_assignment(session, rng=random.Random(1))
        service.record_vote(session, VoteDraft(served.id, f"key-{name}", Outcome.A))
    with pytest.raises(DataError, match="None of 1 votes and ratings may serve a commercial purpose"):
        take_snapshot(ws, "sold", ["mixed"], commercial=True)
    both = take_snapshot(ws, "both", ["mixed", "clean"], commercial=True).frozen
    assert len(both.pairs) == 1 and {both.pairs[0].a.version, both.pairs[0].b.version} == {"a", "c"}
    with place.database.session() as s:  # a model's licence binds what it sings where it forbids
        s.execute(sa.update(VersionRow).where(VersionRow.name == "a").values(licence="MIT"))
    assert len(take_snapshot(ws, "free", ["clean"], commercial=True).frozen.pairs) == 1
    with place.database.session() as s:
        s.execute(sa.update(VersionRow).where(VersionRow.name == "c").values(licence="CC-BY-NC-4.0"))
    with pytest.raises(DataError, match="None of 1 votes and ratings may serve a commercial purpose"):
        take_snapshot(ws, "not-free", ["clean"], commercial=True)
    with place.database.session(write=False) as s:
        assert external.licences_of_clips(s, [by["a"].id, by["c"].id]) == {
            by["a"].id: {"CC0"}, by["c"].id: {"CC BY 4.0", "CC-BY-NC-4.0"},
        }  # fmt: skip


def test_the_commands_write_say_what_stayed_and_refuse_in_a_sentence(upgraded, tmp_path, capsys):  # noqa: F811
    made = new_place(upgraded, tmp_path / "home")
    _imported(made, tmp_path / "in", simulated=True)
    made.database.close()
    home = ("--home", made.home)
    assert attune(capsys, "snapshot", "s", "--study", "music-arena", "--commercial", *home).code == 0
    for what, name in (("music-arena", "music-arena"), ("parquet", "music-arena"), ("trl", "s"), ("snapshot", "s")):
        done = attune(capsys, "export", what, name, tmp_path / what, "--no-audio", *home)
        assert done.code == 0 and "SIMULATED" in done.out and "withheld: nothing" in done.out
        assert not (tmp_path / what / "audio").exists() and _checked(tmp_path / what)["simulated"]
        again = attune(capsys, "export", what, name, tmp_path / what, *home)
        assert again.code == 1 and "exists already" in again.err and "Traceback" not in again.err
    done = attune(capsys, "export", "trl", "s", tmp_path / "u", "--unpaired", "--json", *home)
    assert done.json["counts"]["pairs"] == LINES // 2 and "files" not in done.json
    assert attune(capsys, "export", "trl", "none", tmp_path / "v", *home).code == 1


def test_clips_that_raters_hear_carry_no_tag(place, tmp_path):  # noqa: F811
    _imported(place, tmp_path / "in")
    with place.database.session(write=False) as s:
        clip = clips.list_clips(s)[0]
    for data in (place.store.rendition(clip.audio_sha256), place.store.open_flac(clip.audio_sha256)):
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            assert not any(file.copy_metadata().values())
        assert b"AI-generated" not in data
