"""The store keeps what it was given, notices what was altered, and never leaves half a file."""

from __future__ import annotations

import errno
import hashlib
import io
import math

import numpy as np
import pytest
import soundfile

from alignment import clips
from alignment.clips import ClipStore, measure
from alignment.errors import DataError, StoreError

RATE = 16000


def _tone(hertz=1000.0, amplitude=0.5, seconds=1.0, rate=RATE):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_audio_comes_back_to_within_half_a_16_bit_step(tmp_path):
    store = ClipStore(str(tmp_path))
    audio = _tone()
    sha256, facts = store.put_audio(audio, RATE)
    back, rate = store.get_audio(sha256)
    assert (rate, back.dtype, facts.seconds) == (RATE, np.float32, 1.0)
    assert np.abs(back - audio).max() <= 0.5 / 32768 + 1e-7
    assert hashlib.sha256(store.open_flac(sha256)).hexdigest() == sha256
    store.verify(sha256)


def test_the_same_audio_gives_the_same_file_in_every_store(tmp_path):
    one = ClipStore(str(tmp_path / "one")).put_audio(_tone(), RATE)
    two = ClipStore(str(tmp_path / "two"))
    assert two.put_audio(_tone(), RATE) == one == two.put_audio(_tone(), RATE)
    assert sum(path.is_file() for path in (tmp_path / "two").rglob("*")) == 1


def test_codes_come_back_exactly(tmp_path):
    store = ClipStore(str(tmp_path))
    codes = np.arange(12, dtype=np.int64).reshape(4, 3) * 2978
    sha256 = store.put_codes(codes)
    assert store.get_codes(sha256).dtype == np.int16
    assert (store.get_codes(sha256) == codes).all()
    for wrong in (codes + 10, codes - 1, codes[0], codes.astype(float)):
        with pytest.raises(DataError):
            store.put_codes(wrong)


def test_an_altered_and_a_missing_file_are_told_apart(tmp_path):
    store = ClipStore(str(tmp_path))
    sha256, _ = store.put_audio(_tone(), RATE)
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for read in (store.get_audio, store.open_flac, store.verify):
        with pytest.raises(StoreError, match="was altered"):
            read(sha256)
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        store.get_audio(sha256)
    with pytest.raises(StoreError, match="not a sha256"):
        store.open_flac("../../etc/passwd")


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(handle, data):
        handle.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    store = ClipStore(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(clips, "_write", full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.put_audio(_tone(), RATE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.put_audio(_tone(), RATE)


def test_loudness_of_the_reference_tone_is_that_of_the_standard():
    # BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LKFS; EBU Tech 3341 allows meters 0.1.
    facts = measure(_tone(997.0, 1.0, 2.0, 48000), 48000)
    assert facts.lufs == pytest.approx(-3.01, abs=0.1)
    assert facts.true_peak_dbtp == pytest.approx(0.0, abs=0.05)
    assert facts.silence_ratio == 0.0


def test_true_peak_finds_a_peak_between_samples():
    # A sine at a quarter of the rate, 45 degrees off: samples reach 0.5 * sin(45 degrees), the wave itself 0.5.
    audio = 0.5 * np.sin(np.pi / 2 * np.arange(RATE) + np.pi / 4)
    fade = np.minimum(1, np.minimum(np.arange(RATE), np.arange(RATE)[::-1]) / 1000)
    assert measure(audio * fade, RATE).true_peak_dbtp == pytest.approx(20 * math.log10(0.5), abs=0.1)


def test_silence_and_very_short_clips_have_facts_too():
    silence = measure(np.zeros(RATE, np.float32), RATE)
    assert (silence.lufs, silence.true_peak_dbtp, silence.silence_ratio) == (None, -120.0, 1.0)
    short = measure(_tone(997.0, 1.0, 0.2), RATE)
    assert short.lufs == pytest.approx(-3.01, abs=0.3)
    assert measure(_tone(seconds=0.01), RATE).lufs is None
    half = np.concatenate([np.zeros(RATE, np.float32), np.ones(RATE, np.float32)])
    assert (measure(half, RATE).silence_ratio, measure(half, RATE).clipping_ratio) == (0.5, 0.5)


def test_renditions_are_equally_loud_and_peaks_stay_below_the_limit(tmp_path):
    store = ClipStore(str(tmp_path))
    for amplitude in (0.05, 0.8):
        sha256, _ = store.put_audio(_tone(amplitude=amplitude, seconds=2.0), RATE)
        heard, rate = soundfile.read(io.BytesIO(store.rendition(sha256)), dtype="float32")
        assert measure(heard, rate).lufs == pytest.approx(-23.0, abs=0.05)
    peaky = _tone(amplitude=0.01, seconds=2.0)
    peaky[5000] = 0.9
    sha256, _ = store.put_audio(peaky, RATE)
    heard, rate = soundfile.read(io.BytesIO(store.rendition(sha256, target_lufs=-10.0)), dtype="float32")
    assert measure(heard, rate).true_peak_dbtp == pytest.approx(-1.0, abs=0.05)
    silent, _ = store.put_audio(np.zeros(RATE, np.float32), RATE)
    assert store.rendition(silent) == store.open_flac(silent)


@pytest.mark.parametrize("wrong", [np.zeros(0, "f4"), np.zeros((2, 8), "f4"), np.array([0, np.nan], "f4"), [1, 2]])
def test_what_is_not_audio_is_refused(tmp_path, wrong):
    with pytest.raises(DataError):
        ClipStore(str(tmp_path)).put_audio(np.asarray(wrong), RATE)


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_comes_back_whole_and_an_altered_one_is_refused(tmp_path, remote):
    source = tmp_path / "adapter"
    (source / "inner").mkdir(parents=True)
    (source / "adapter.safetensors").write_bytes(b"weights")
    (source / "inner" / "config.json").write_text("{}")
    store = ClipStore(f"memory://{tmp_path.name}" if remote else str(tmp_path / "store"))
    sha256, uri = store.put_folder(source)
    assert store.put_folder(source) == (sha256, uri)
    path = store.path_of(uri)
    assert (path / "adapter.safetensors").read_bytes() == b"weights"
    assert (path / "inner" / "config.json").read_text() == "{}"
    digest, file_uri = store.put_file(source / "adapter.safetensors")
    assert digest == hashlib.sha256(b"weights").hexdigest()
    assert store.path_of(file_uri).read_bytes() == b"weights"
    with pytest.raises(StoreError, match="not a uri"):
        store.path_of("store://folders/../../etc")
    if not remote:
        (path / "inner" / "config.json").write_text("{ }")
        with pytest.raises(StoreError, match="was altered"):
            store.path_of(uri)
