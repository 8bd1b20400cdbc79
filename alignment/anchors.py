"""Low anchors: clips low-passed at 3.5 kHz after ITU-R BS.1534-3, so that listeners who hear nothing show.

An anchor is processed audio and nobody's policy: its version has the base ``anchor`` and is retired, its clips are
external and have no codes, so neither a snapshot nor a training can take them for a model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alignment.clips import ClipStore
from alignment.db.clips import NewClip, add_clips
from alignment.db.engine import Database
from alignment.db.versions import add_version
from alignment.domain import ANCHOR_BASE, Clip, ClipSource, VersionStatus, canonical_sha256
from alignment.errors import DataError

LOW_ANCHOR = "low anchor 3.5 kHz"
CUTOFF_HZ = 3500.0
STOP_HZ = 4000.0
STOP_DB = 60.0  # BS.1534-3 asks for 25 dB at 4 kHz and 50 dB at 4.5 kHz, with 0.1 dB of ripple up to 3.5 kHz
# An anchor that takes away less than this (dB below the clip) may sound like the clip itself.
AUDIBLE_DB = -30.0


@dataclass(frozen=True)
class Anchored:
    """A clip, its low anchor, and the power that the filter took away, in dB relative to the clip's."""

    clip: Clip
    anchor: Clip
    removed_db: float


@lru_cache(maxsize=8)
def _taps(sample_rate_hz: int) -> np.ndarray:
    from scipy.signal import firwin, kaiserord

    count, beta = kaiserord(STOP_DB, (STOP_HZ - CUTOFF_HZ) / (sample_rate_hz / 2))
    count += 1 - count % 2  # odd: a delay of whole samples, which is taken out again
    return firwin(count, (CUTOFF_HZ + STOP_HZ) / 2, window=("kaiser", beta), fs=sample_rate_hz)


def low_pass(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """The audio (samples,) or (samples, 2) without what lies above 3.5 kHz: as long as before and not shifted.

    Raises DataError at sample rates of 8 kHz and below, where nothing lies there."""
    from scipy.signal import fftconvolve

    if sample_rate_hz <= 2 * STOP_HZ:
        raise DataError(f"A low anchor needs audio above {2 * STOP_HZ:.0f} Hz sample rate; found {sample_rate_hz}.")
    audio, taps = np.asarray(audio, dtype=np.float64), _taps(int(sample_rate_hz))
    return fftconvolve(audio, taps if audio.ndim == 1 else taps[:, None], mode="same", axes=0)


def removed_db(audio: np.ndarray, filtered: np.ndarray) -> float:
    """Power of what a filter took away, in dB relative to the audio's; -inf for silence."""
    whole, gone = float(np.sum(np.square(audio))), float(np.sum(np.square(audio - filtered)))
    return 10 * np.log10(gone / whole) if whole > 0 and gone > 0 else float("-inf")


def add_low_anchors(database: Database, store: ClipStore, clips: Sequence[Clip]) -> list[Anchored]:
    """The low anchors of the clips, stored and recorded once, in the order given.

    A clip whose anchor is the clip itself, because nothing was there to take away, is left out."""
    made = []
    for clip in clips:
        audio, rate = store.get_recording(clip.audio_sha256)
        filtered = low_pass(audio, rate)
        sha256, facts = store.put_audio(np.clip(filtered, -1, 1), rate)
        if sha256 == clip.audio_sha256:
            continue
        # The seed only has to tell the anchors of one prompt apart.
        seed = int(clip.audio_sha256[:12], 16)
        new = NewClip(
            clip.prompt_id, LOW_ANCHOR, clip.generation, seed, sha256, None, facts, source=ClipSource.EXTERNAL
        )
        made.append((clip, new, removed_db(audio, filtered)))
    with database.session() as s:
        add_version(
            s,
            name=LOW_ANCHOR,
            base=ANCHOR_BASE,
            base_sha256=canonical_sha256({"low_pass_hz": CUTOFF_HZ, "stop_hz": STOP_HZ, "stop_db": STOP_DB}),
            status=VersionStatus.RETIRED,
        )
        stored = add_clips(s, [new for _, new, _ in made])
    return [Anchored(clip, anchor, gone) for (clip, _, gone), anchor in zip(made, stored, strict=True)]
