"""Practice pairs and check sounds: what is in them, how loud they are, and that they are the same everywhere."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from alignment.audio_facts import measure
from alignment.domain import Side
from rating_app import practice


def read(flac: bytes) -> np.ndarray:
    audio, rate = soundfile.read(io.BytesIO(flac))
    assert rate == practice.RATE_HZ
    return audio


def tones(flac: bytes) -> list[np.ndarray]:
    """The middles of the three tones, (samples, 2) each, without their ramps."""
    audio, rate = read(flac), practice.RATE_HZ
    return [audio[int((1.5 * i + 0.2) * rate) : int((1.5 * i + 0.8) * rate)] for i in range(3)]


def test_practice_clips_are_as_loud_as_the_studies_clips_and_a_pair_is_one_length_and_size():
    for pair in practice.practice_pairs():
        left, right = pair.clips[Side.LEFT], pair.clips[Side.RIGHT]
        assert len(left) == len(right)
        assert read(left).size == read(right).size == 4 * practice.RATE_HZ
        for clip in (left, right):
            facts = measure(read(clip), practice.RATE_HZ)
            assert facts.lufs == pytest.approx(-23.0, abs=0.05)  # the loudness of ClipStore.rendition
            assert facts.true_peak_dbtp < -0.5


def test_the_known_difference_is_really_there():
    noisy, bare, same, *_ = practice.practice_pairs()

    # Broadband hiss fills what the melody leaves empty: compare the power above 8 kHz.
    def treble(clip: bytes) -> float:
        power = np.abs(np.fft.rfft(read(clip))) ** 2
        return float(power[4 * 8000 :].sum() / power.sum())

    assert treble(noisy.clips[Side.LEFT]) > 1000 * treble(noisy.clips[Side.RIGHT])
    assert treble(bare.clips[Side.LEFT]) > 100 * treble(bare.clips[Side.RIGHT])  # hats and snares against none
    assert same.clips[Side.LEFT] == same.clips[Side.RIGHT] and "tie" in same.lesson


def test_the_level_sound_is_pink_steady_and_repeats_without_a_seam():
    audio = read(practice.level_sound())
    assert measure(audio, practice.RATE_HZ).lufs == pytest.approx(-23.0, abs=0.05)
    # Steady: no second of it is louder than another by more than half a decibel.
    levels = [20 * np.log10(np.std(part)) for part in np.split(audio, 3)]
    assert max(levels) - min(levels) < 0.5
    # Pink: every octave holds the same power.
    power = np.abs(np.fft.rfft(audio)) ** 2
    octaves = [10 * np.log10(power[3 * low : 3 * 2 * low].sum()) for low in (125, 250, 500, 1000, 2000, 4000)]
    assert max(octaves) - min(octaves) < 0.3
    # The step over the seam is no larger than steps within.
    assert abs(audio[0] - audio[-1]) < np.abs(np.diff(audio)).max()


def test_each_trial_has_one_quieter_and_one_antiphase_tone_as_woods_and_others_describe():
    places = set()
    for trial in practice.tone_trials():
        heard = tones(trial.flac)
        levels = [20 * np.log10(np.std(tone[:, 0])) for tone in heard]
        antiphase = [i for i, tone in enumerate(heard) if np.allclose(tone[:, 0], -tone[:, 1], atol=1e-4)]
        inphase = [i for i, tone in enumerate(heard) if np.allclose(tone[:, 0], tone[:, 1], atol=1e-4)]
        assert len(antiphase) == 1 and len(inphase) == 2
        assert int(np.argmin(levels)) == trial.quiet and trial.quiet in inphase
        assert sorted(levels)[0] - sorted(levels)[1] == pytest.approx(-6.0, abs=0.01)
        for tone in heard:  # 200 Hz: the strongest of bins 1/0.6 Hz wide
            assert np.argmax(np.abs(np.fft.rfft(tone[:, 0]))) / 0.6 == pytest.approx(200, abs=1)
        places.add((trial.quiet, antiphase[0]))
    assert places == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_another_process_makes_the_same_bytes():
    code = "from rating_app import practice; print(*sorted(practice.sounds()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(practice.sounds())
