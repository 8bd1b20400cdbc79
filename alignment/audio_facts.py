"""What is measured on a clip's audio: loudness and true peak (ITU-R BS.1770), silence and clipping."""

from __future__ import annotations

import math

import numpy as np

from alignment.domain import AudioFacts
from alignment.errors import DataError

FULL_SCALE = 32768.0
BLOCK_SECONDS = 0.4  # gating block of BS.1770
SHORTEST_SECONDS = 0.05
FRAME_SECONDS = 0.02
SILENCE_DBFS = -60.0
FLOOR_DB = -120.0
OVERSAMPLING = 4  # BS.1770 annex 2


def quantised(audio: np.ndarray) -> np.ndarray:
    """The audio (samples,) or (samples, 2) as int16, as a 16-bit file holds it; values beyond [-1, 1) are clipped.

    Raises DataError for audio that is empty, of another shape or not finite."""
    audio = _checked(np.asarray(audio))
    if audio.dtype == np.int16:
        return audio
    if audio.dtype.kind != "f":
        raise DataError(f"Audio is {audio.dtype}; needs floating point in [-1, 1].")
    if not np.isfinite(audio).all():
        raise DataError("Audio holds values that are not numbers; the model that made it is broken.")
    return np.clip(np.rint(audio.astype(np.float64) * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def measure(audio: np.ndarray, sample_rate_hz: int) -> AudioFacts:
    """Facts of a clip, (samples,) or (samples, 2) float in [-1, 1].

    ``lufs`` is integrated loudness; a clip shorter than a gating block (0.4 s) is one block; None for silence and
    below 0.05 s. ``true_peak_dbtp`` is at least -120. ``silence_ratio``: share of 20 ms frames under -60 dBFS RMS.
    ``clipping_ratio``: share of samples at full scale. Of stereo, loudness is that of both channels together, the peak
    the louder one's, and a frame's power the mean of both. Raises DataError for audio that is empty or misshapen."""
    audio = _checked(np.asarray(audio, dtype=np.float64))
    samples = len(audio)
    frame = max(1, round(FRAME_SECONDS * sample_rate_hz))
    starts = np.arange(0, samples, frame)
    counts = np.diff(np.append(starts, samples))
    power = np.add.reduceat((audio**2).reshape(samples, -1).mean(axis=1), starts) / counts
    return AudioFacts(
        sample_rate_hz=int(sample_rate_hz),
        seconds=samples / sample_rate_hz,
        lufs=_lufs(audio, sample_rate_hz),
        true_peak_dbtp=_true_peak_dbtp(audio),
        silence_ratio=float(np.mean(power < 10 ** (SILENCE_DBFS / 10))),
        clipping_ratio=float(np.mean(np.abs(audio) >= (FULL_SCALE - 1) / FULL_SCALE)),
    )


def _checked(audio: np.ndarray) -> np.ndarray:
    if audio.size == 0 or not (audio.ndim == 1 or (audio.ndim == 2 and audio.shape[1] == 2)):
        raise DataError(f"Audio has shape {audio.shape}; needs (samples,), or (samples, 2), and at least one sample.")
    return audio


def _lufs(audio: np.ndarray, sample_rate_hz: int) -> float | None:
    import pyloudnorm

    seconds = len(audio) / sample_rate_hz
    if seconds < SHORTEST_SECONDS or not audio.any():
        return None
    meter = pyloudnorm.Meter(sample_rate_hz, block_size=min(BLOCK_SECONDS, seconds))
    with np.errstate(divide="ignore"):
        loudness = float(meter.integrated_loudness(audio))
    # Everything under the gate of -70 LUFS comes back as -inf.
    return loudness if math.isfinite(loudness) else None


def _true_peak_dbtp(audio: np.ndarray) -> float:
    from scipy.signal import resample_poly

    peak = max(np.abs(resample_poly(audio, OVERSAMPLING, 1)).max(), np.abs(audio).max())
    return max(FLOOR_DB, 20 * math.log10(peak)) if peak > 0 else FLOOR_DB
