"""What comes from elsewhere is taken whole, once, under its licence; what is wrong with it is told by line."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from circle_support import attune
from exchange_support import (  # noqa: F401
    RATE,
    SECRET,
    Place,
    battle,
    new_place,
    place,
    release,
    tone,
    upgraded,
    write_tones,
)

from alignment.db import external, versions
from alignment.db.figures import comments_of, publication_consents, study_votes
from alignment.db.studies import get_study
from alignment.db.tables import (
    BattleTallyRow,
    ClipRow,
    ExternalRecordRow,
    PromptRow,
    RaterRow,
    RatingItemRow,
    VersionRow,
)
from alignment.db.votes import chain_faults, counted_votes
from alignment.domain import Axis, Outcome, RaterKind, Side, Split, rater_pseudonym
from alignment.errors import ConfigError, DataError, NotFoundError
from alignment.imports import clip_table, trl
from alignment.imports.audio import AudioIntake
from alignment.imports.rows import read_rows
from alignment.requests import split_of
from alignment.studies import StudyRecipe, create_study_from_recipe
from tests.database_support import postgres_server, postgres_url  # noqa: F401


def test_music_arenas_battles_become_a_closed_study_of_votes_on_external_clips(place, tmp_path):  # noqa: F811
    rows = [battle(n) for n in range(4)]
    rows[1] |= {"listen_data_a": '[["PLAY", 99.0]]', "feedback": "too loud"}
    rows[3] |= {"text_adherence": 1, "quality": -2, "confidence": 3, "listen_data_a": None, "listen_data_b": None}
    done = place.take(release(tmp_path, rows))
    assert (done.records, done.votes, done.clips, done.prompts, done.bad) == (4, 4, 8, 4, 0)
    assert done.versions == ("acestep", "sao") and done.licences == {"CC BY 4.0": 4} and not done.simulated
    with place.database.session(write=False) as s:
        study = get_study(s, "music-arena")
        votes = study_votes(s, study.id)
        assert (study.state, study.rater_kind, study.versions) == ("closed", RaterKind.HUMAN, ("acestep", "sao"))
        assert [v.outcome.value for v in votes] == ["A", "B", "TIE", "BOTH_BAD"]
        assert {(v.left_version, v.right_version) for v in votes} == {("acestep", "sao")}
        assert (votes[0].heard_left_seconds, votes[0].heard_right_seconds) == (3.25, 1.5)
        assert votes[0].created_at == datetime(2025, 7, 29, 4, 16, 19, 799690, tzinfo=UTC)  # 00:16 at -04:00
        assert (dict(votes[3].axes), votes[3].confidence) == ({Axis.TEXT_ADHERENCE: 1, Axis.QUALITY: -2}, 3)
        assert [c.text for c in comments_of(s, [v.vote_id for v in votes])] == ["too loud"]
        first = s.execute(sa.text("SELECT first_side FROM assignment ORDER BY id")).scalars().all()
        assert first == [Side.LEFT, Side.RIGHT, Side.LEFT, Side.LEFT]  # battle 1 was begun at b
        assert len({v.session_id for v in votes}) == 2  # user-0 and user-1
        assert not [fault for session in {v.session_id for v in votes} for fault in chain_faults(s, session)]
        assert set(s.scalars(sa.select(BattleTallyRow.votes))) == {1}
        known = set(s.scalars(sa.select(RaterRow.pseudonym)))
        assert known == {rater_pseudonym(SECRET, RaterKind.HUMAN, f"music-arena:user-{n}") for n in (0, 1)}
        assert publication_consents(s, study.id) == {v.rater_id: True for v in votes}
        assert all(p.split is split_of(p.text) for p in s.scalars(sa.select(PromptRow)))
        record = s.scalars(sa.select(ExternalRecordRow).where(ExternalRecordRow.source_id == "battle-1")).one()
        assert record.licence == "CC BY 4.0" and record.payload["hardware_a"] == "A6000"
        assert not {"user_pseudonym", "feedback"} & set(record.payload)
        assert "user-" not in json.dumps([r.payload for r in s.scalars(sa.select(ExternalRecordRow))])
        clip = s.scalars(sa.select(ClipRow)).first()
        assert (clip.source, clip.codes_sha256, clip.codes_reencoded, clip.seconds) == ("external", None, False, 0.25)
        assert {v.base for v in versions.list_versions(s)} == {"external"}
        assert len(counted_votes(s, study_ids=[study.id], for_training=True)) == 4


def test_a_release_that_comes_again_adds_only_what_is_new(place, tmp_path):  # noqa: F811
    path = release(tmp_path, [battle(0), battle(1)])
    place.take(path)
    before = place.rows()
    again = place.take(path)
    assert (again.records, again.known) == (0, 2) and place.rows() == before
    more = place.take(release(tmp_path, [battle(n) for n in range(4)] + [battle(3)]))
    assert (more.records, more.known, more.votes) == (2, 3, 2)  # battle 3 stands in the file twice
    with place.database.session(write=False) as s:
        sessions = {v.session_id for v in study_votes(s, get_study(s, "music-arena").id)}
        assert len(sessions) == 2 and not [f for one in sessions for f in chain_faults(s, one)]
    with pytest.raises(DataError, match="line 1: record battle-0 of music-arena came before and said something else"):
        place.take(release(tmp_path, [battle(0, preference="B")]))


BAD = {
    "preference is 'C'": battle(0, preference="C"),
    "preference is None": battle(0, preference=None),
    "prompt is '   '": battle(0, prompt="   "),
    "prompt is 7": battle(0, prompt=7),
    "user_pseudonym is missing": battle(0, user_pseudonym=None),
    "battle_uuid has 201": battle(0, battle_uuid="x" * 201),
    "prompt has 5001": battle(0, prompt="x" * 5001),
    "total_listening_time_a is -1": battle(0, total_listening_time_a=-1),
    "total_listening_time_b is 'long'": battle(0, total_listening_time_b="long"),
    "a number that is not finite": json.dumps(battle(0)).replace("7.9", "1e999"),
    "total_listening_time_a is nan": json.dumps(battle(0)).replace("3.25", "NaN"),
    "not Unicode": battle(0, lyrics="\ud800"),
    "a NUL character": battle(0, prompt="a\x00b"),
    "'tomorrow' is no time": battle(0, timestamp=None, date="tomorrow"),
    "is no time": battle(0, timestamp=1e30),
    "listen_data_a is '[1'": battle(0, listen_data_a="[1"),
    "quality is 3": battle(0, quality=3),
    "simulated is 'yes'": battle(0, simulated="yes"),
    "split is 'best'": battle(0, split="best"),
    "system 'a/b' is no name": battle(0, system_a="a/b"),
    "outside the folder": battle(0, audio_a="../../etc/passwd"),
    "/etc/passwd lies outside": battle(0, audio_a="/etc/passwd"),
    "no path": battle(0, audio_a="a\u0001" * 3000),
    "is not in the folder": battle(0, audio_a="audio/none.wav"),
    "is no audio": battle(0, audio_a="battles.jsonl"),
    "audio_a is 5": battle(0, audio_a=5),
    "same clip": battle(0, audio_b="audio/0-a.wav", system_b="acestep"),
    "no JSON object": "[1, 2]",
    "it is no JSON": "{",
    "nested too deeply": "[" * 100_000,
    "is that of line": battle(1, preference="A"),  # battle 1 stands in the first line
    "and human votes": battle(5, simulated=True),
}


def test_every_bad_row_is_told_by_line_and_nothing_of_the_file_is_in_the_database(place, tmp_path):  # noqa: F811
    before = place.rows()
    for start in range(0, len(BAD), 15):  # at most twenty are told
        wanted = dict(list(BAD.items())[start : start + 15])
        path = release(tmp_path, [battle(1, preference="TIE"), *wanted.values(), battle(2)])
        with pytest.raises(DataError) as told:
            place.take(path)
        said = str(told.value).splitlines()
        assert said[0].startswith(f"{len(wanted)} of {len(wanted) + 2} rows cannot be imported, so nothing was")
        for number, (reason, line) in enumerate(zip(wanted, said[1:], strict=True), start=2):
            assert line.startswith(f"  line {number}: ") and reason in line, (reason, line)
        assert all(len(line) < 250 for line in said)
        assert place.rows() == before
    part = place.take(path, skip_bad=True)
    assert (part.records, part.bad) == (2, len(wanted)) and len(part.faults) == len(wanted)


def test_more_faults_than_twenty_are_counted(place, tmp_path):  # noqa: F811
    with pytest.raises(DataError, match=r"^25 of 25 rows(.|\n)*line 20: (.|\n)*and 5 more$"):
        place.take(release(tmp_path, ["nothing"] * 25))


def test_a_failure_in_the_middle_of_the_write_leaves_nothing(place, tmp_path, monkeypatch):  # noqa: F811
    from alignment.imports import record

    monkeypatch.setattr(record, "BATCH", 2)
    original, calls = external.add_records, []

    def fails(s, source, records):
        calls.append(len(records))
        if len(calls) == 2:
            raise DataError("the disk went away")
        original(s, source, records)

    before = place.rows()
    monkeypatch.setattr(external, "add_records", fails)
    with pytest.raises(DataError, match="went away"):
        place.take(release(tmp_path, [battle(n) for n in range(4)]))
    assert calls == [2, 2] and place.rows() == before
    monkeypatch.undo()
    assert place.take(tmp_path / "battles.jsonl").records == 4


def test_battles_without_released_audio_are_counted_and_not_taken(place, tmp_path):  # noqa: F811
    done = place.take(release(tmp_path, [battle(0), battle(1, audio_a=""), battle(2, audio_b=None)]))
    assert done.records == 1 and done.not_released == {"audio not released": 2} and done.bad == 0


def test_simulated_votes_stay_marked_and_never_join_a_human_study(place, tmp_path):  # noqa: F811
    done = place.take(release(tmp_path, [battle(0, simulated=True)]), study="played")
    assert done.simulated
    with place.database.session(write=False) as s:
        assert get_study(s, "played").rater_kind == RaterKind.SIMULATED
        assert set(s.scalars(sa.select(RaterRow.kind))) == {RaterKind.SIMULATED}
    with pytest.raises(DataError, match="holds simulated votes and these are human"):
        place.take(release(tmp_path, [battle(1)]), study="played")


def test_names_and_studies_of_our_own_are_never_taken_over(place, tmp_path):  # noqa: F811
    path = release(tmp_path, [battle(0)])
    with place.database.session() as s:
        versions.add_version(s, name="sao", base="tiny", base_sha256="0" * 64)
    with pytest.raises(DataError, match="line 1: system sao has the name of a version here; give --prefix"):
        place.take(path)
    assert place.take(path, prefix="music-arena-").versions == ("music-arena-acestep", "music-arena-sao")
    recipe = StudyRecipe(name="ours", versions=("music-arena-acestep", "music-arena-sao"), pairs=1)
    create_study_from_recipe(place.database, place.store, recipe, actor="olga", state="closed")
    with pytest.raises(DataError, match="Study ours is one of your own"):
        place.take(release(tmp_path, [battle(1)]), prefix="x-", study="ours")
    with pytest.raises(DataError, match="--prefix is 'a b'"):
        place.take(path, prefix="a b")


@pytest.mark.parametrize("form", ["folder", "json", "parquet", "parquet with bytes"])
def test_a_release_is_read_from_a_folder_of_json_from_one_file_and_from_parquet(place, tmp_path, form):  # noqa: F811
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [battle(n, listen_data_b=None) for n in range(3)]
    release(tmp_path, rows)
    path = {"folder": tmp_path / "data", "json": tmp_path / "all.json"}.get(form, tmp_path / "all.parquet")
    if form == "folder":
        for n, row in enumerate(rows):
            (path / "2025JUL").mkdir(parents=True, exist_ok=True)
            (path / "2025JUL" / f"{n}.json").write_text(json.dumps(row))
    elif form == "json":
        path.write_text(json.dumps(rows))
    else:
        if form == "parquet with bytes":
            for row in rows:
                for side in "ab":
                    file = row[f"audio_{side}"]
                    row[f"audio_{side}"] = {"path": "gone.wav", "bytes": (tmp_path / file).read_bytes()}
        parquet.write_table(pa.Table.from_pylist(rows), path)
    done = place.take(path, root=tmp_path)
    assert (done.records, done.votes) == (3, 3)
    with place.database.session(write=False) as s:
        shas = set(s.scalars(sa.select(ClipRow.audio_sha256)))
    assert len(shas) == 6
    heard = {place.store.get_audio(sha)[0].tobytes() for sha in shas}
    assert soundfile.read(tmp_path / "audio" / "2-b.wav", dtype="float32")[0].tobytes() in heard


def test_files_that_are_no_rows_are_told_apart(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_text("hello")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.csv").write_bytes(b"file,prompt,system\na,\xff,b\n")
    for name, kind, said in (
        ("none.jsonl", NotFoundError, "no such file"), ("x.txt", ConfigError, "ends in .txt"),
        ("broken.parquet", DataError, "cannot be read as Parquet"), ("broken.json", DataError, "no JSON"),
        ("latin.csv", DataError, "not UTF-8"), ("", DataError, "broken.json: it is no JSON"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            list(read_rows(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="holds no .json file"):
        list(read_rows(tmp_path / "empty"))


def test_trls_winner_is_left_in_half_of_the_rows_and_wins_in_all(place, tmp_path):  # noqa: F811
    write_tones(tmp_path, [f"{n}-{side}.wav" for n in range(24) for side in ("good", "bad")])
    rows = [{"prompt": f"p {n}", "chosen": f"{n}-good.wav", "rejected": f"{n}-bad.wav"} for n in range(24)]
    rows[1]["prompt"] = [{"role": "user", "content": "p 1"}]
    rows[1]["chosen"] = [{"role": "assistant", "content": "1-good.wav"}]
    rows[2] |= {"chosen_system": "new", "rejected_system": "old", "split": "test", "licence": "CC0", "rater": "ann"}
    path = release(tmp_path, rows, "pairs.jsonl", tones=0)
    done = place.take(path, read=partial(trl.parse, system="them"), source="pairs", licence=None)
    assert (done.records, done.votes) == (24, 24) and done.licences == {"CC0": 1, "unknown": 23}
    assert done.versions == ("new", "old", "them")
    with place.database.session(write=False) as s:
        votes = study_votes(s, get_study(s, "pairs").id)
        text = {v.vote_id: v.prompt_text for v in votes}
        winners = {text[v.vote_id]: v.left_audio if v.outcome is Outcome.A else v.right_audio for v in votes}
        splits = {p.text: p.split for p in s.scalars(sa.select(PromptRow))}
    assert 6 <= sum(v.outcome is Outcome.A for v in votes) <= 18  # 24 fair coins: outside in 0.7% of all cases
    for n in range(24):
        heard = place.store.get_audio(winners[f"p {n}"])[0]
        assert np.array_equal(heard, soundfile.read(tmp_path / f"{n}-good.wav", dtype="float32")[0])
    assert splits["p 2"] is Split.TEST
    assert len({v.rater_id for v in votes}) == 2
    unpaired = release(tmp_path, [{"prompt": "x", "completion": "0-good.wav", "label": True}], "u.jsonl", tones=0)
    with pytest.raises(DataError, match="line 1: it has a completion and a label, which compare nothing"):
        place.take(unpaired, read=partial(trl.parse, system="them"), source="u")


def _table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_any_systems_clips_can_be_rated_and_compared(place, tmp_path):  # noqa: F811
    names = [f"{system}/{n}.wav" for system in ("suno", "udio", "real") for n in range(3)]
    write_tones(tmp_path, names, seconds=0.6)
    rows = [
        {"file": name, "prompt": f"a tune, {name[-5]}", "system": name[:4], "licence": "CC0" if "suno" in name else "",
         "kind": "reference" if "real" in name else "", "split": "test", "note": "x"}
        for name in names
    ]  # fmt: skip
    path = _table(tmp_path / "clips.csv", rows)
    intake = AudioIntake(place.store, tmp_path, sample_rate_hz=8000, clip_seconds=0.5)
    done = place.take(path, read=clip_table.parse, source="clips", licence=None, intake=intake, prompt_set="tunes")
    assert (done.records, done.clips, done.votes, done.study) == (9, 9, 0, None)
    with place.database.session(write=False) as s:
        assert {(c.sample_rate_hz, c.seconds) for c in s.scalars(sa.select(ClipRow))} == {(8000, 0.5)}
        assert {v.name: v.base for v in s.scalars(sa.select(VersionRow))} == {
            "suno": "external", "udio": "external", "real": "reference",
        }  # fmt: skip
    pairs = StudyRecipe(name="which", versions=("suno", "udio"), prompt_set="tunes")
    create_study_from_recipe(place.database, place.store, pairs, actor="olga")
    rating = StudyRecipe(name="how good", mode="rating", versions=("suno", "udio", "real"))
    create_study_from_recipe(place.database, place.store, rating, actor="olga")
    with place.database.session(write=False) as s:
        kinds = s.execute(
            sa.select(VersionRow.name, RatingItemRow.kind)
            .join(ClipRow, RatingItemRow.clip_id == ClipRow.id)
            .join(VersionRow, ClipRow.version_id == VersionRow.id)
            .distinct()
        ).all()
        assert s.execute(sa.text("SELECT count(*) FROM battle")).scalar_one() == 3
    assert sorted(kinds) == [("real", "reference"), ("suno", "normal"), ("udio", "normal")]


def test_bad_rows_of_a_table_are_told_by_line(place, tmp_path):  # noqa: F811
    write_tones(tmp_path, ["0.wav", "1.wav"], seconds=0.3)
    good = {"file": "0.wav", "prompt": "p", "system": "s", "split": "train", "kind": ""}
    rows = [good, good | {"kind": "live"}, good | {"file": "1.wav", "split": "test"}, good | {"file": "2.wav"},
            good | {"file": "1.wav", "kind": "reference"}]  # fmt: skip
    path = _table(tmp_path / "clips.csv", rows)
    with path.open("a") as file:
        file.write("0.wav,p\n")
    with pytest.raises(DataError) as told:
        place.take(path, read=clip_table.parse, source="clips")
    said = str(told.value).splitlines()[1:]
    reasons = (
        "line 3: kind is 'live'",
        "line 4: its prompt is in split train, not test",
        "line 5: 2.wav is not in the folder",
        "line 6: s is a system in one row and a reference in another",
        "line 7: it has not as many cells",
    )
    for line, reason in zip(said, reasons, strict=True):
        assert line.strip().startswith(reason), line
    short = AudioIntake(place.store, tmp_path, clip_seconds=0.5)
    with pytest.raises(DataError, match=r"line 2: 0.wav has 0.30 s; 0.5 s are needed"):
        place.take(_table(path, [good]), read=clip_table.parse, source="clips", intake=short)
    with pytest.raises(DataError, match="line 2: there is no column system; file, prompt, system are needed"):
        place.take(_table(path, [{"file": "0.wav", "prompt": "p"}]), read=clip_table.parse, source="clips")


def test_clips_are_resampled_and_their_codes_are_marked_as_re_encoded(place, tmp_path):  # noqa: F811
    both = np.stack([tone(440, 1.0, 48000), np.zeros(48000, np.float32)], 1)
    soundfile.write(tmp_path / "s.wav", both, 48000, subtype="FLOAT")
    heard: list[tuple[int, int]] = []

    def encode(audio, rate):
        heard.append((len(audio), rate))
        return np.full((4, 50), 7, np.int64)

    intake = AudioIntake(place.store, tmp_path, sample_rate_hz=16000, encode=encode)
    table = _table(tmp_path / "c.csv", [{"file": "s.wav", "prompt": "p", "system": "s"}])
    place.take(table, read=clip_table.parse, source="c", intake=intake)
    assert heard == [(16000, 16000)]
    with place.database.session(write=False) as s:
        clip = s.scalars(sa.select(ClipRow)).one()
    assert clip.codes_reencoded and place.store.get_codes(clip.codes_sha256).shape == (4, 50)
    audio, rate = place.store.get_audio(clip.audio_sha256)
    # The mean of a 0.3 tone and silence is a 0.15 tone; the filter's edges are left out.
    assert rate == 16000 and np.abs(audio[2000:-2000]).max() == pytest.approx(0.15, abs=0.002)
    assert np.allclose(audio[2000:-2000], tone(440, 1.0, 16000)[2000:-2000] / 2, atol=2e-3)


def test_the_codec_of_a_base_gives_the_codes_of_the_resampled_clip():
    import torch
    from music_support import make_tiny_music
    from scipy.signal import resample_poly

    from alignment.imports.audio import codec_of

    model = make_tiny_music()
    audio = tone(440, 1.0, 2 * model.sample_rate_hz)
    codes = codec_of(model)(audio, 2 * model.sample_rate_hz)
    wave = torch.tensor(resample_poly(audio, 1, 2), dtype=torch.float32)[None, None]
    with torch.no_grad():
        expected = model.hf.audio_encoder.encode(wave, bandwidth=model.bandwidth_kbps).audio_codes[0, 0]
    assert np.array_equal(codes, expected.numpy()) and codes.shape == (4, 50)


def test_the_commands_take_rows_and_tell_faults_in_a_sentence(upgraded, tmp_path, capsys):  # noqa: F811
    made = new_place(upgraded, tmp_path / "home")
    made.database.close()
    home = ("--home", made.home)
    path = release(tmp_path, [battle(0), battle(1), battle(2, preference="C")])
    refused = attune(capsys, "import", "music-arena", path, *home)
    assert refused.code == 1 and "line 3: preference is 'C'" in refused.err and "Traceback" not in refused.err
    done = attune(capsys, "import", "music-arena", path, "--skip-bad", "--json", *home)
    assert done.code == 0 and done.json["votes"] == 2 and "left out: line 3" in done.err
    pairs = release(tmp_path, [{"prompt": "p", "chosen": "audio/0-a.wav", "rejected": "audio/0-b.wav"}], "p.jsonl")
    done = attune(capsys, "import", "trl", pairs, "--licence", "CC BY-NC 4.0", *home)
    assert "1 votes in study p" in done.out and "CC BY-NC 4.0 (1)" in done.out
    table = _table(tmp_path / "t.csv", [{"file": "audio/0-a.wav", "prompt": "p", "system": "s"}])
    assert attune(capsys, "import", "csv", table, "--seconds", "9", *home).code == 1
    assert attune(capsys, "import", "csv", table, *home).code == 0
    assert attune(capsys, "import", "csv", tmp_path / "none.csv", *home).err.startswith("attune: ")
    sung = attune(capsys, "generate", "--version", "sao", "--prompt", "p", *home)
    assert sung.code == 1 and "Version sao is clips from elsewhere and no model" in sung.err


def test_postgresql_takes_and_gives_the_same(postgres_url, tmp_path):  # noqa: F811
    from alignment.circle.learn import take_snapshot
    from alignment.circle.workspace import Workspace
    from alignment.clips import ClipStore
    from alignment.db import migrate
    from alignment.db.engine import open_database
    from alignment.exports import make_export
    from alignment.store_check import collect_garbage

    migrate.upgrade(postgres_url)
    made = Place(open_database(postgres_url), ClipStore(tmp_path / "store"), tmp_path)
    rows = [battle(0), battle(1, licence="CC BY-NC 4.0"), battle(2, user_pseudonym="user-0")]
    path = release(tmp_path, rows)
    assert made.take(path).votes == 3 and made.take(path).known == 3
    sold = take_snapshot(Workspace(made.database, made.store, "s"), "sold", ["music-arena"], commercial=True).frozen
    assert sorted(pair.prompt_text for pair in sold.pairs) == ["prompt 0", "prompt 2"]
    with made.database.session(write=False) as s:
        sessions = {v.session_id for v in study_votes(s, get_study(s, "music-arena").id)}
        assert len(sessions) == 2 and not [fault for one in sessions for fault in chain_faults(s, one)]
    assert make_export(made.database, "music-arena", actor="olga").card["licences"] == {
        "CC BY 4.0": 2, "CC BY-NC 4.0": 1,
    }  # fmt: skip
    assert collect_garbage([made.database], made.store, older_than_seconds=-10).units == ()
    with pytest.raises(DataError, match="line 1: record battle-0 of music-arena came before"):
        made.take(release(tmp_path, [battle(0, preference="B")]))
    made.database.close()
