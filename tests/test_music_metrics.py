"""Level, silence, onsets, pitch classes and twins on sounds whose answer is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.evaluation.music_metrics import (
    LEVEL_FLOOR_LUFS,
    copies,
    onset_rate_hz,
    pitch_class_entropy_bits,
    sound_metrics,
    twins,
)

RATE = 16_000


def tone(hz: float, seconds: float, *, gain: float = 0.3, decay: float = 0.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return gain * np.sin(2 * np.pi * hz * time) * np.exp(-decay * time)


def plucked(beats_hz: float, seconds: float = 5.0, hz: float = 440.0) -> np.ndarray:
    """A note that starts afresh ``beats_hz`` times a second and rings off."""
    note = tone(hz, 1 / beats_hz, decay=12.0)
    return np.tile(note, math.ceil(seconds * beats_hz))[: round(seconds * RATE)]


@pytest.mark.parametrize("beats_hz", [1.0, 2.0, 4.0, 8.0])
def test_notes_are_counted_as_often_as_they_are_struck(beats_hz: float) -> None:
    # The first note starts with the clip, where nothing was before: it is not seen.
    struck = 5 * beats_hz - 1
    assert onset_rate_hz(plucked(beats_hz)[None], RATE)[0] == pytest.approx(struck / 5)


def test_a_sound_that_holds_and_silence_have_no_onset_and_noise_hardly_any() -> None:
    noise = np.random.default_rng(0).normal(size=5 * RATE) * 0.1
    held, hiss, silent = onset_rate_hz(np.stack([tone(440, 5), noise, np.zeros(5 * RATE)]), RATE)
    assert held == silent == 0 and hiss <= 0.4


def test_onsets_do_not_depend_on_loudness() -> None:
    quiet = onset_rate_hz(np.stack([plucked(4.0), 0.0003 * plucked(4.0)]), RATE)
    assert quiet[0] == quiet[1] > 0


@pytest.mark.parametrize(
    ("semitones", "bits"),
    [((0,), 0.0), ((0, 12), 0.0), ((0, 7), 1.0), ((0, 3, 6, 9), 2.0), (tuple(range(12)), math.log2(12))],
)
def test_pitch_classes_of_held_notes_have_the_entropy_of_their_number(semitones: tuple[int, ...], bits: float) -> None:
    notes = [tone(261.6256 * 2 ** (step / 12), 2.048) for step in semitones]
    assert pitch_class_entropy_bits(np.concatenate(notes)[None], RATE)[0] == pytest.approx(bits, abs=0.02)


def test_a_note_is_one_pitch_class_when_it_is_as_low_as_110_hz_and_between_bins() -> None:
    for hz in (110.5, 123.47, 207.65, 1661.2):
        assert pitch_class_entropy_bits(tone(hz, 2.0)[None], RATE)[0] < 0.02


def test_silence_is_stated_and_never_not_a_number() -> None:
    silent = sound_metrics(np.zeros((1, RATE)), RATE)
    assert {name: values.tolist() for name, values in silent.items()} == {
        "level_lufs": [LEVEL_FLOOR_LUFS], "silence": [1.0], "onset_rate_hz": [0.0], "pitch_class_entropy_bits": [0.0],
    }  # fmt: skip


def test_level_follows_gain_and_silence_is_the_share_that_is_silent() -> None:
    half = np.concatenate([tone(997, 2.0), np.zeros(2 * RATE)])
    found = sound_metrics(np.stack([tone(997, 4.0), tone(997, 4.0, gain=0.03), half]), RATE)
    assert found["level_lufs"][0] - found["level_lufs"][1] == pytest.approx(20.0, abs=0.01)
    # BS.1770: a 997 Hz sine of amplitude 1 on one channel is -3.01 LUFS; pyloudnorm at 16 kHz is 0.07 off.
    assert found["level_lufs"][0] == pytest.approx(
        -3.01 + 20 * math.log10(0.3), abs=0.1
    )  # pyloudnorm at 16 kHz: 0.07 off
    assert found["silence"].tolist() == pytest.approx([0.0, 0.0, 0.5], abs=0.006)


def test_a_clip_is_a_twin_when_another_agrees_in_more_than_half_of_its_first_codebook() -> None:
    codes = np.arange(4 * 2 * 10).reshape(4, 2, 10)
    codes[1, 0, :6] = codes[0, 0, :6]  # 6 of 10 frames
    codes[3, 0, :5] = codes[2, 0, :5]  # half is not more than half
    codes[3, 1] = codes[2, 1]  # other codebooks do not count
    assert twins(codes).tolist() == [1, 1, 0, 0]
    assert twins(np.zeros((1, 2, 10), int)).tolist() == [0]


def test_a_clip_shorter_than_a_window_is_measured_and_broken_audio_is_refused() -> None:
    short = sound_metrics(tone(440, 0.02)[None], RATE)
    assert all(np.isfinite(values).all() for values in short.values())
    with pytest.raises(DataError, match="not numbers"):
        onset_rate_hz(np.full((1, 100), np.nan), RATE)
    with pytest.raises(DataError, match="needs"):
        sound_metrics(np.zeros(100), RATE)
    with pytest.raises(DataError, match="needs"):
        twins(np.zeros((0, 2, 3)))


def test_a_copy_agrees_with_another_clip_in_more_than_half_of_the_frames_of_the_shorter() -> None:
    clips = np.zeros((3, 2, 10), int)
    clips[1, 0] = [0] * 5 + [7] * 5  # in just half of the frames as zeros
    clips[2, 0] = [0] * 4 + [8] * 6
    clips[:, 1] = np.arange(3)[:, None]  # the second codebook says nothing
    training = np.zeros((2, 2, 6), int)
    training[1] = 9
    assert copies(clips, training).tolist() == [1, 1, 1]  # of six frames five and four agree
    assert copies(clips, np.concatenate([training, training], axis=2)[:, :, :10]).tolist() == [1, 0, 0]
    assert copies(clips, np.zeros((0, 2, 10), int)).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"\(3, 2\)"):
        copies(clips[:, :, 0], training)
