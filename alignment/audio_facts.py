"""What is measured on a clip's audio: loudness and true peak (ITU-R BS.1770), silence and clipping; and its file."""

from __future__ import annotations

import io
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
PEAK_CHUNK = 2**18  # samples oversampled at a time: ten minutes of stereo at once would take gigabytes
PEAK_CONTEXT = 32  # samples on either side; the filter reaches 10 of them
TRUE_PEAK_LIMIT_DBTP = -1.0  # of what is heard
# One channel comes out of both speakers; BS.1770 counts such a pair 10 log10(2) dB above the one.
DUAL_MONO_DB = 10 * math.log10(2)


def mono(audio: np.ndarray) -> np.ndarray:
    """The audio (samples,) of (samples,) or (samples, channels), float32: the mean of its channels. What scorers,
    metrics and mono codecs hear of a stereo clip."""
    return audio if audio.ndim == 1 else audio.mean(axis=1, dtype=np.float32)


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


def flac_bytes(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """The audio (samples,) int16 as a FLAC file without tags; the same audio gives the same bytes."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


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


def levelled(audio: np.ndarray, sample_rate_hz: int, target_lufs: float) -> np.ndarray:
    """The audio (samples,) or (samples, 2) float32 with the gain that makes it as loud as others at ``target_lufs``.

    ``target_lufs`` is that of one channel, which both speakers play; two channels are brought to what BS.1770 measures
    of such a pair, 3.01 dB more, so that mono and stereo are equally loud. The gain is held back where it would lift
    the true peak above -1 dBTP; what has no loudness stays as it is."""
    facts = measure(audio, sample_rate_hz)
    if facts.lufs is None:
        return audio
    wanted = target_lufs if audio.ndim == 1 else target_lufs + DUAL_MONO_DB
    gain_db = min(wanted - facts.lufs, TRUE_PEAK_LIMIT_DBTP - facts.true_peak_dbtp)
    return audio * np.float32(10 ** (gain_db / 20))


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

    peak = float(np.abs(audio).max())
    for start in range(0, len(audio), PEAK_CHUNK):
        first, end = max(0, start - PEAK_CONTEXT), min(len(audio), start + PEAK_CHUNK)
        between = resample_poly(audio[first : end + PEAK_CONTEXT], OVERSAMPLING, 1)  # along time, each channel alone
        peak = max(peak, float(np.abs(between[OVERSAMPLING * (start - first) : OVERSAMPLING * (end - first)]).max()))
    return max(FLOOR_DB, 20 * math.log10(peak)) if peak > 0 else FLOOR_DB
