"""Two channels stay two on the way in, to the listener and out again; what needs one hears their mean."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import sqlalchemy as sa
from circle_support import attune
from exchange_support import RATE, Place, battle, new_place, place, tone, upgraded  # noqa: F401
from music_support import make_tiny_music

from alignment import audio_facts
from alignment.audio_facts import flac_bytes, measure
from alignment.circle.compare import tagged
from alignment.circle.learn import take_snapshot
from alignment.circle.workspace import Workspace
from alignment.db.tables import ClipRow
from alignment.errors import DataError
from alignment.imports import clip_table, trl
from alignment.imports.audio import AudioIntake, codec_of
from alignment.imports.channels import to_two
from alignment.music.codec import encode
from alignment.releases.snapshot import export_snapshot, export_trl
from alignment.releases.study import export_music_arena, export_parquet
from rating_app.flac import twins

LINES = 4


def both(number: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """(samples, 2): another tone on either side."""
    return np.stack([tone(200 + 40 * number, seconds, rate), 0.5 * tone(3000 - 70 * number, seconds, rate)], axis=1)


def write(folder: Path, name: str, samples: np.ndarray, rate: int = RATE, **form) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, samples, rate, **({"subtype": "PCM_16"} | form))
    return folder / name


def table(folder: Path, *files: str) -> Path:
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "prompt", "system"), *((name, "p", "them") for name in files)])
    return folder / "clips.csv"


def test_a_stereo_file_is_stored_measured_and_heard_in_stereo(place, tmp_path):  # noqa: F811
    samples = np.stack([np.zeros(2 * RATE), 0.5 * np.sin(2 * np.pi * 997 * np.arange(2 * RATE) / RATE)], axis=1)
    path = write(tmp_path, "right.wav", samples)
    place.take(table(tmp_path, "right.wav"), read=clip_table.parse, source="c")
    with place.database.session(write=False) as s:
        clip = s.scalars(sa.select(ClipRow)).one()
    stored, rate = place.store.get_recording(clip.audio_sha256)
    assert rate == RATE and np.array_equal(stored, soundfile.read(path, dtype="float32")[0])
    # BS.1770: a full-scale sine of 997 Hz in one channel reads -3.01 LUFS, and half of it 6.02 less; a silent channel
    # adds nothing. The peak is the louder channel's, and a frame is silent only where both are.
    assert clip.lufs == pytest.approx(-9.03, abs=0.1) and clip.true_peak_dbtp == pytest.approx(-6.02, abs=0.05)
    assert clip.silence_ratio == 0.0 and clip.seconds == 2.0
    # In both channels the power is twice as much.
    assert measure(np.stack([samples[:, 1]] * 2, 1), RATE).lufs == pytest.approx(-6.02, abs=0.1)
    heard, _ = soundfile.read(io.BytesIO(place.store.rendition(clip.audio_sha256)))
    assert heard.shape == (2 * RATE, 2) and not heard[:, 0].any() and np.abs(heard[:, 1]).max() > 0.05
    mixed, _ = place.store.get_audio(clip.audio_sha256)
    assert np.allclose(mixed, stored.mean(axis=1), atol=1e-7) and mixed.shape == (2 * RATE,)
    ws = Workspace(place.database, place.store, "secret")
    (heard_by_clap,) = ws.embed_audio([clip.audio_sha256]).values()
    assert np.allclose(heard_by_clap, ws.encoder.audio([stored.mean(axis=1)], RATE)[0], atol=1e-5)


def test_one_channel_and_the_same_in_both_are_heard_equally_loud(tmp_path, place):  # noqa: F811
    one = tone(440, 1.0)
    alone, _ = place.store.put_audio(one, RATE)
    twice, facts = place.store.put_audio(np.stack([one, one], axis=1), RATE)
    mono, rate = soundfile.read(io.BytesIO(place.store.rendition(alone)))
    stereo, _ = soundfile.read(io.BytesIO(place.store.rendition(twice)))
    # Both speakers play the one channel: what they play has to be the same, sample for sample but for rounding.
    assert np.abs(stereo - mono[:, None]).max() <= 1.01 / 32768
    assert measure(mono, rate).lufs == pytest.approx(-23.0, abs=0.05)
    assert measure(stereo, rate).lufs == pytest.approx(-23.0 + 3.01, abs=0.05)
    loud = np.stack([one, np.zeros_like(one)], axis=1)
    loud[8000] = 0.9  # the peak of one channel holds the gain of both
    peaky, _ = place.store.put_audio(loud, RATE)
    heard, _ = soundfile.read(io.BytesIO(place.store.rendition(peaky, target_lufs=-3.0)))
    assert measure(heard, rate).true_peak_dbtp == pytest.approx(-1.0, abs=0.05)
    # On the wire both are as large, whatever their channels.
    left, right = twins(place.store.rendition(alone), place.store.rendition(twice))
    assert len(left) == len(right)
    assert [soundfile.info(io.BytesIO(data)).channels for data in (left, right)] == [1, 2]


def test_a_long_clips_peak_is_that_of_all_of_it_at_once(monkeypatch):
    from scipy.signal import resample_poly

    monkeypatch.setattr(audio_facts, "PEAK_CHUNK", 1000)
    rng = np.random.default_rng(0)
    for _ in range(20):
        clip = np.zeros((2500, 2))
        clip[990:1010, 1] = rng.uniform(-0.5, 0.5, 20)  # across the border of two parts, in one channel
        clip[[999, 1000], 1] = 0.9  # the peak lies between them
        whole = 20 * np.log10(np.abs(resample_poly(clip, 4, 1, axis=0)).max())
        assert measure(clip, RATE).true_peak_dbtp == pytest.approx(whole, abs=1e-9)
        assert measure(clip[:, 1], RATE).true_peak_dbtp == pytest.approx(whole, abs=1e-9)
        assert measure(clip[:, 0], RATE).true_peak_dbtp == -120.0
        clip[[999, 1000], 1] = 0.0
        clip[[1000, 1001], 1] = 0.9
        whole = 20 * np.log10(np.abs(resample_poly(clip, 4, 1, axis=0)).max())
        assert measure(clip, RATE).true_peak_dbtp == pytest.approx(whole, abs=1e-9)


def test_what_has_more_channels_is_mixed_to_two_by_the_standards_shares_and_that_is_said(
    upgraded, tmp_path, capsys  # noqa: F811
):  # fmt: skip
    # Front left, front right, centre, low effects, back left, back right: each alone.
    near = 0.5**0.5
    by_hand = np.array([[1, 0], [0, 1], [near, near], [0, 0], [near, 0], [0, near]]) / (1 + 2 * near)
    assert np.allclose(to_two(np.eye(6, dtype=np.float32), "PCM_16"), by_hand, atol=1e-6)
    order = [0, 2, 1, 4, 5, 3]  # Vorbis: left, centre, right, back left, back right, low effects
    assert np.allclose(to_two(np.eye(6, dtype=np.float32), "VORBIS"), by_hand[order], atol=1e-6)
    for channels in range(3, 9):
        for coding in ("PCM_16", "OPUS"):
            full = to_two(np.ones((1, channels), np.float32), coding)
            assert full.shape == (1, 2) and np.allclose(full, 1.0), "full scale stays full scale, and both sides equal"
    made = new_place(upgraded, tmp_path / "home")
    surround = np.zeros((RATE, 6), np.float32)
    surround[:, 4] = tone(440, 1.0)
    write(tmp_path, "s.wav", surround)
    write(tmp_path, "t.wav", both(1))
    done = attune(capsys, "import", "csv", table(tmp_path, "s.wav", "t.wav"), "--home", made.home)
    assert done.code == 0 and "mixed, from more than two channels: 1 clips" in done.out
    with made.database.session(write=False) as s:
        (clip,) = [c for c in s.scalars(sa.select(ClipRow)) if c.seconds == 1.0]
    stored, _ = made.store.get_recording(clip.audio_sha256)
    assert np.allclose(stored[:, 0], surround[:, 4] * by_hand[4, 0], atol=2 / 32768) and not stored[:, 1].any()
    write(tmp_path, "nine.wav", np.zeros((RATE, 9), np.float32))
    with pytest.raises(DataError, match=r"line 2: nine.wav has 9 channels; up to 8 are taken"):
        made.take(table(tmp_path, "nine.wav"), read=clip_table.parse, source="nine")
    # One channel where it is asked for.
    done = attune(capsys, "import", "csv", table(tmp_path, "t.wav"), "--mono", "--source", "again", "--prefix", "m-",
                  "--home", made.home, "--json")  # fmt: skip
    assert done.json["mixed_down"] == 0
    with made.database.session(write=False) as s:
        kinds = {made.store.get_recording(c.audio_sha256)[0].ndim for c in s.scalars(sa.select(ClipRow))}
    assert kinds == {1, 2}
    made.database.close()


def test_stereo_is_resampled_and_cut_channel_by_channel(place, tmp_path):  # noqa: F811
    write(tmp_path, "s.wav", both(0, 1.0, 48_000), 48_000, subtype="FLOAT")
    intake = AudioIntake(place.store, tmp_path, sample_rate_hz=RATE, clip_seconds=0.75)
    place.take(table(tmp_path, "s.wav"), read=clip_table.parse, source="c", intake=intake)
    with place.database.session(write=False) as s:
        clip = s.scalars(sa.select(ClipRow)).one()
    stored, rate = place.store.get_recording(clip.audio_sha256)
    assert rate == RATE and stored.shape == (12_000, 2)
    assert np.allclose(stored[1000:11000], both(0, 0.75)[1000:11000], atol=3e-3)  # the filter's edges are left out


@pytest.mark.parametrize("channels", [1, 2])
def test_a_mono_model_encodes_the_mean_and_a_stereo_model_each_side(channels, monkeypatch):
    from alignment.music import codec

    model, heard = make_tiny_music(channels=channels), []
    monkeypatch.setattr(codec, "encode", lambda model, audio: heard.append(audio) or encode(model, audio))
    samples = np.random.default_rng(0).normal(size=(model.sample_rate_hz, 2)).astype(np.float32)
    for audio, wanted in (
        (samples, samples if channels == 2 else samples.mean(axis=1)),
        (samples[:, 0], samples[:, 0]),
    ):
        codes = codec_of(model)(audio, model.sample_rate_hz)
        assert codes.shape == (4 * channels, 50) and np.array_equal(codes, encode(model, wanted[None])[0].numpy())
        assert np.array_equal(heard.pop(), wanted[None])


def stereo_release(folder: Path) -> Path:
    for n in range(LINES):
        for place_, side in enumerate("ab"):
            write(folder, f"audio/{n}-{side}.wav", both(2 * n + place_))
    rows = [json.dumps(battle(n)) for n in range(LINES)]
    (folder / "battles.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "battles.jsonl"


def sounds(place: Place) -> dict[str, bytes]:  # noqa: F811
    """sha256 -> samples of every clip, all of which have two channels."""
    with place.database.session(write=False) as s:
        shas = set(s.scalars(sa.select(ClipRow.audio_sha256)))
    loaded = {sha: place.store.get_recording(sha)[0] for sha in shas}
    assert {audio.shape for audio in loaded.values()} == {(RATE // 2, 2)}
    return {sha: audio.tobytes() for sha, audio in loaded.items()}


def test_stereo_goes_round_through_every_format(place, upgraded, tmp_path):  # noqa: F811
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = tmp_path / "in"
    place.take(stereo_release(folder))
    there = sounds(place)
    files = {soundfile.read(path, dtype="float32")[0].tobytes() for path in (folder / "audio").iterdir()}
    assert set(there.values()) == files and len(there) == 2 * LINES

    export_music_arena(place.database, place.store, "music-arena", tmp_path / "arena", actor="olga")
    other = new_place(upgraded, tmp_path / "other")
    other.take(tmp_path / "arena" / "battles.jsonl")
    assert sounds(other) == there  # by name and by content

    take_snapshot(Workspace(place.database, place.store, "secret"), "frozen", ["music-arena"])
    export_trl(place.database, place.store, "frozen", tmp_path / "trl", actor="olga")
    third = new_place(upgraded, tmp_path / "third")
    for path in sorted((tmp_path / "trl").glob("*.jsonl")):
        third.take(path, read=partial(trl.parse, system="nobody"), source="pairs", licence=None)
    assert 0 < len(sounds(third)) == LINES and sounds(third).items() <= there.items()  # ties have no winner

    export_snapshot(place.database, place.store, "frozen", tmp_path / "snapshot", actor="olga")
    out = {path.name[:64]: path for path in (tmp_path / "snapshot" / "audio").rglob("*.flac")}
    assert {sha: soundfile.read(path, dtype="float32")[0].tobytes() for sha, path in out.items()} == there

    export_parquet(place.database, place.store, "music-arena", tmp_path / "parquet", actor="olga")
    rows = parquet.read_table(tmp_path / "parquet" / "votes.parquet").to_pylist()
    clips = {row[f"audio_sha256_{side}"]: row[f"audio_{side}"]["bytes"] for row in rows for side in "ab"}
    assert {sha: soundfile.read(io.BytesIO(data), dtype="float32")[0].tobytes() for sha, data in clips.items()} == there
    # The same bytes come in again: a table of the exported files, and battles in Parquet with the files in their rows.
    from_table = new_place(upgraded, tmp_path / "table")
    from_table.take(table(tmp_path / "snapshot", *(str(path) for path in out.values())), read=clip_table.parse)
    assert sounds(from_table) == there
    battles = [json.loads(line) for line in (tmp_path / "arena" / "battles.jsonl").read_text().splitlines()]
    for row in battles:
        for side in "ab":
            row[f"audio_{side}"] = {
                "path": "gone.flac",
                "bytes": (tmp_path / "arena" / row[f"audio_{side}"]).read_bytes(),
            }
    parquet.write_table(pa.Table.from_pylist(battles), tmp_path / "battles.parquet")
    from_parquet = new_place(upgraded, tmp_path / "bytes")
    from_parquet.take(tmp_path / "battles.parquet")
    assert sounds(from_parquet) == there
    for one in (other, third, from_table, from_parquet):
        one.database.close()


def test_clips_beside_a_comparisons_page_stay_stereo():
    for samples in (both(0), both(0)[:, 0]):
        data = np.round(samples * 32768).astype(np.int16)
        with soundfile.SoundFile(io.BytesIO(tagged(flac_bytes(data, RATE), "v7"))) as file:
            assert "v7" in file.comment and np.array_equal(file.read(dtype="int16"), data)
