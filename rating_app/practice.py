"""Practice pairs and check sounds, made by arithmetic: the same bytes everywhere, no clip of any study, no database."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import permutations

import numpy as np
import soundfile
from scipy.signal import butter, sosfilt

from alignment.audio_facts import measure
from alignment.domain import Side
from rating_app.flac import twins

RATE_HZ = 32_000
PAIR_SECONDS = 4.0
LEVEL_SECONDS = 3.0
TARGET_LUFS = -23.0  # the clips' own loudness (EBU R 128), so that the volume set on these sounds fits the clips
PEAK_LIMIT = 0.89  # -1 dBFS

# Woods, Siegel, Traer & McDermott 2017, "Headphone screening to facilitate web-based auditory experiments",
# Attention, Perception & Psychophysics 79: three 200 Hz tones, one 6 dB quieter, one in antiphase between the ears.
# Over loudspeakers the antiphase tone cancels in the air and seems the quietest.
TONE_HZ = 200.0
TONE_SECONDS = 1.0
TONE_RAMP_SECONDS = 0.1
TONE_GAP_SECONDS = 0.5
QUIETER_DB = -6.0


@dataclass(frozen=True)
class PracticePair:
    """Two clips with a known difference. ``lesson`` is shown after the answer, ``notes`` when one is heard alone."""

    prompt: str
    lesson: str
    notes: Mapping[Side, str]
    clips: Mapping[Side, bytes]


@dataclass(frozen=True)
class ToneTrial:
    """One trial of the headphone check. ``quiet`` is the interval, 0 to 2, that is quieter in truth."""

    quiet: int
    flac: bytes


@cache
def practice_pairs() -> tuple[PracticePair, ...]:
    """Five pairs, the most telling first. Both sides of a pair are equally loud, long and large."""
    tune, drums = _tune(), _drums()
    rng = np.random.default_rng(7)
    hiss = rng.standard_normal(tune.size)
    broken = np.clip(tune / np.abs(tune).max() * 4, -1, 1) * 0.5 + 0.16 * hiss
    muffled = sosfilt(butter(4, 350, fs=RATE_HZ, output="sos"), tune)
    return (
        _pair(
            "a calm melody on a soft electric piano",
            left=broken,
            right=tune,
            lesson="Both were the same melody. A was distorted and full of hiss, B was clean, so most people prefer B. "
            "In the study nobody knows a right answer: only your ears count.",
            notes=("This one was distorted and full of hiss; most people rate it low.",
                   "This was the same melody, clean; most people rate it much higher."),
        ),
        _pair(
            "fast drums, and nothing but drums",
            left=drums,
            right=tune,
            lesson="A did what the description asks. B may sound pleasant, but it has no drums at all, so A fits the "
            "description better. You can like one clip and find that the other fits better; say both.",
            notes=("This one did what the description asks.",
                   "This one may sound pleasant, but there were no drums in it; it fits the description badly."),
        ),
        _pair(
            "a calm melody on a soft electric piano",
            left=tune,
            right=tune,
            lesson="This was the same clip twice. When you hear no difference that matters to you, a tie is the true "
            "answer, and it helps as much as any other.",
            notes=("This one was clean.", "So was this one: the same clip again."),
        ),
        _pair(
            "a calm melody on a soft electric piano",
            left=tune,
            right=muffled,
            lesson="B was the same melody as if through a wall; most people prefer A.",
            notes=("This one was clean.", "This one sounded as if through a wall."),
        ),
        _pair(
            "a steady drum pattern",
            left=_drums(stumbling=True),
            right=drums,
            lesson="A stumbled out of time, B kept it; most people prefer B.",
            notes=("This one stumbled out of time.", "This one kept its time."),
        ),
    )  # fmt: skip


@cache
def level_sound() -> bytes:
    """Steady pink noise as FLAC at the clips' loudness; it repeats without a seam."""
    samples = round(LEVEL_SECONDS * RATE_HZ)
    frequencies = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    band = (frequencies >= 60) & (frequencies <= 12_000)
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, frequencies.size)
    magnitudes = np.where(band, 1 / np.sqrt(np.maximum(frequencies, 1)), 0)
    # A sum of whole periods: its end runs into its beginning.
    return _flac(_levelled(np.fft.irfft(magnitudes * np.exp(1j * phases), samples)))


@cache
def tone_trials() -> tuple[ToneTrial, ...]:
    """The six trials of the headphone check, one for each place of the quieter and of the antiphase tone."""
    time = np.arange(round(TONE_SECONDS * RATE_HZ)) / RATE_HZ
    ramp = np.clip(np.minimum(time, TONE_SECONDS - 1 / RATE_HZ - time) / TONE_RAMP_SECONDS, 0, 1)
    tone = _levelled(np.sin(2 * np.pi * TONE_HZ * time)) * np.sin(ramp * np.pi / 2) ** 2
    gap = np.zeros((round(TONE_GAP_SECONDS * RATE_HZ), 2))
    trials = []
    for quiet, antiphase, _ in permutations(range(3)):
        heard = []
        for interval in range(3):
            gain = 10 ** (QUIETER_DB / 20) if interval == quiet else 1.0
            right = -tone if interval == antiphase else tone
            heard += [np.stack([tone, right], axis=1) * gain, gap]
        trials.append(ToneTrial(quiet, _flac(np.concatenate(heard[:-1]))))
    return tuple(trials)


def address(data: bytes) -> str:
    """The name of a sound in its address: a hash, so that it tells neither the pair nor the side."""
    return sha256(b"attune practice" + data).hexdigest()[:32]


@cache
def sounds() -> dict[str, bytes]:
    """Every sound by its name."""
    clips = [clip for pair in practice_pairs() for clip in pair.clips.values()]
    return {address(data): data for data in (*clips, level_sound(), *(trial.flac for trial in tone_trials()))}


def _pair(prompt: str, *, left: np.ndarray, right: np.ndarray, lesson: str, notes: tuple[str, str]) -> PracticePair:
    clips = twins(_flac(_levelled(_faded(left))), _flac(_levelled(_faded(right))))
    return PracticePair(prompt, lesson, dict(zip(Side, notes, strict=True)), dict(zip(Side, clips, strict=True)))


def _tune() -> np.ndarray:
    """Four bars of a melody over chords on a soft electric piano, (samples,)."""
    time = np.arange(round(PAIR_SECONDS * RATE_HZ)) / RATE_HZ
    melody = (76, 79, 84, 83, 81, 79, 77, 79, 76, 72, 74, 76, 79, 77, 74, 72)
    chords = ((48, 60, 64, 67), (45, 57, 60, 64), (53, 60, 65, 69), (43, 59, 62, 67))
    notes = [(0.25 * i, note, 0.9) for i, note in enumerate(melody)]
    notes += [(1.0 * bar, note, 0.45) for bar, chord in enumerate(chords) for note in chord]
    audio = np.zeros_like(time)
    for start, note, strength in notes:
        since = time - start
        on = since >= 0
        pitch = 440 * 2 ** ((note - 69) / 12)
        decay = np.exp(-np.clip(since, 0, None) * 2.6) * np.clip(since / 0.008, 0, 1)
        bell = 0.9 * np.exp(-np.clip(since, 0, None) * 6) * np.sin(2 * np.pi * pitch * since)
        audio += on * strength * decay * np.sin(2 * np.pi * pitch * since + bell)
    return audio


def _drums(*, stumbling: bool = False) -> np.ndarray:
    """Kick, snare and hat at 150 beats a minute, (samples,)."""
    rng = np.random.default_rng(3)
    time = np.arange(round(PAIR_SECONDS * RATE_HZ)) / RATE_HZ
    audio = np.zeros_like(time)
    noise = rng.standard_normal(time.size)
    hat = sosfilt(butter(4, 6_000, "highpass", fs=RATE_HZ, output="sos"), noise)
    for step in range(20):
        start = 0.2 * step + (rng.uniform(-0.09, 0.09) if stumbling and step else 0.0)
        since = np.clip(time - start, 0, None)
        on = time >= start
        audio += on * 0.5 * np.exp(-since * 60) * hat
        if step % 4 == 0:
            audio += on * 1.6 * np.exp(-since * 14) * np.sin(2 * np.pi * (48 * since - 4.5 * np.exp(-since * 30)))
        if step % 4 == 2:
            audio += on * np.exp(-since * 22) * (0.7 * noise + 0.6 * np.sin(2 * np.pi * 190 * since))
    return audio


def _faded(audio: np.ndarray) -> np.ndarray:
    """Its ends run to zero within 10 ms."""
    edge = np.minimum(np.arange(audio.size), np.arange(audio.size)[::-1])
    return audio * np.clip(edge / (0.01 * RATE_HZ), 0, 1)


def _levelled(audio: np.ndarray) -> np.ndarray:
    """The audio at the clips' loudness; peaks that would not fit are rounded off, and the level is set again."""
    audio = audio / np.abs(audio).max()
    for _ in range(6):
        lufs = measure(audio, RATE_HZ).lufs
        assert lufs is not None, "silence has no loudness"
        audio = audio * 10 ** ((TARGET_LUFS - lufs) / 20)
        if np.abs(audio).max() <= PEAK_LIMIT:
            return audio
        audio = PEAK_LIMIT * np.tanh(audio / PEAK_LIMIT)
    return audio


def _flac(audio: np.ndarray) -> bytes:
    """16-bit FLAC of (samples,) or (samples, 2)."""
    file = io.BytesIO()
    soundfile.write(file, audio, RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()
