"""What clips sound like without listeners: level, silence, onsets, pitch classes, twins.

A policy that pleases its reward model by a trick mostly shows it in one of these: it falls silent or loud, plays one
note or one beat, or sings the same clip to every prompt.
"""

from __future__ import annotations

import numpy as np

from alignment.audio_facts import measure
from alignment.errors import DataError

LEVEL_FLOOR_LUFS = -70.0  # the absolute gate of BS.1770: nothing quieter is measured, silence stands here
WINDOW_SECONDS, HOP_SECONDS = 0.064, 0.01
BANDS, SMOOTHING = 12, 5  # wide bands and 50 ms: the fluctuation of noise averages out
FLUX_RISE = 0.25  # mean rise in log-magnitude of a band, nats, that an onset has at least
ONSET_GAP_SECONDS = 0.05
LOWEST_HZ, HIGHEST_HZ = 110.0, 1760.0  # three octaves of fundamentals and one of their first harmonics
PITCH_WINDOW_SECONDS = 0.256
TWIN_AGREEMENT = 0.5


def sound_metrics(audio: np.ndarray, sample_rate_hz: int) -> dict[str, np.ndarray]:
    """Each metric of clips (B, samples), (B,) float64.

    level_lufs: integrated loudness (BS.1770), at least LEVEL_FLOOR_LUFS. silence: share of 20 ms under -60 dBFS.
    onset_rate_hz: see ``onset_rate_hz``. pitch_class_entropy_bits: see ``pitch_class_entropy_bits``. Raises DataError
    for audio that is empty, misshapen or not finite."""
    audio = _checked(audio)
    facts = [measure(clip, sample_rate_hz) for clip in audio]
    lufs = [LEVEL_FLOOR_LUFS if fact.lufs is None else max(LEVEL_FLOOR_LUFS, fact.lufs) for fact in facts]
    return {
        "level_lufs": np.array(lufs),
        "silence": np.array([fact.silence_ratio for fact in facts]),
        "onset_rate_hz": onset_rate_hz(audio, sample_rate_hz),
        "pitch_class_entropy_bits": pitch_class_entropy_bits(audio, sample_rate_hz),
    }


def onset_rate_hz(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Onsets a second of clips (B, samples), (B,): peaks of the spectral flux in 12 bands, 50 ms apart at least.

    The flux of a frame is the mean over bands of the rise of log-magnitude since 50 ms ago (Bello et al., "A tutorial
    on onset detection in music signals", 2005, section III-A). Levels are relative to the clip's loudest band, so that
    loudness does not matter; silence has no onset."""
    return np.array([_onsets(clip, sample_rate_hz) for clip in _checked(audio)]) * sample_rate_hz / audio.shape[1]


def pitch_class_entropy_bits(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Entropy in bits of each clip's pitch classes, (B,), from 0 (one note, or silence) to log2 12 = 3.58 (all alike).

    audio (B, samples). The histogram sums the power of spectral peaks from 110 to 1760 Hz over the clip, folded to 12
    classes at A 440 (after the pitch-class entropy of symbolic music, arXiv:2008.01951, section 5)."""
    return np.array([_entropy_bits(clip, sample_rate_hz) for clip in _checked(audio)])


def twins(codes: np.ndarray) -> np.ndarray:
    """(B,): 1 where another clip has the same first-codebook code in more than half of all frames, else 0.

    codes (B, K, T). The mean is the share of duplicates: a policy that sings one clip to everybody has 1. The first
    codebook carries the melody; the others differ even between two takes of one sound."""
    codes = np.asarray(codes)
    if codes.ndim != 3 or 0 in codes.shape:
        raise DataError(f"Found codes of shape {codes.shape}; needs (B, K, T) with at least one clip.")
    first = codes[:, 0]
    out = np.zeros(len(first))
    for row, clip in enumerate(first):
        agreement = (first == clip).mean(1)
        agreement[row] = 0.0
        out[row] = float(agreement.max() > TWIN_AGREEMENT)
    return out


def copies(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(B,): 1 where one of ``others`` (M, K, T) is a twin of the clip, codes (B, K, T), else 0.

    A twin is what ``twins`` takes for one; of unequal lengths the shorter counts. Clips without others have none."""
    codes, others = np.asarray(codes), np.asarray(others)
    if codes.ndim != 3 or others.ndim != 3 or 0 in codes.shape or 0 in others.shape[1:]:
        raise DataError(f"Found codes of shapes {codes.shape} and {others.shape}; needs (B, K, T) and (M, K, T).")
    frames = min(codes.shape[2], others.shape[2])
    theirs = others[:, 0, :frames]
    agreement = [(theirs == clip).mean(1).max(initial=0.0) for clip in codes[:, 0, :frames]]
    return (np.array(agreement) > TWIN_AGREEMENT).astype(float)


def _onsets(clip: np.ndarray, sample_rate_hz: int) -> int:
    magnitude = _spectra(clip, sample_rate_hz, WINDOW_SECONDS, HOP_SECONDS)  # (frames, F)
    edges = np.unique(np.geomspace(2, magnitude.shape[1], BANDS + 1).astype(int))
    bands = np.add.reduceat(magnitude, edges[:-1], axis=1) / np.diff(np.append(edges[:-1], magnitude.shape[1]))
    sums = np.cumsum(np.pad(bands, ((SMOOTHING, 0), (0, 0)), mode="edge"), axis=0)
    smooth = (sums[SMOOTHING:] - sums[:-SMOOTHING]) / SMOOTHING  # (frames, bands)
    level = np.log(smooth / (smooth.max() or 1.0) + 1e-2)
    flux = np.maximum(level[SMOOTHING:] - level[:-SMOOTHING], 0).mean(1)  # (frames - SMOOTHING,)
    gap = round(ONSET_GAP_SECONDS / HOP_SECONDS)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(flux, gap, constant_values=-np.inf), 2 * gap + 1)
    # Strictly above what came before: of equal neighbours the first counts.
    return int(((flux >= around.max(1)) & (flux > around[:, :gap].max(1)) & (flux >= FLUX_RISE)).sum())


def _entropy_bits(clip: np.ndarray, sample_rate_hz: int) -> float:
    power = _spectra(clip, sample_rate_hz, PITCH_WINDOW_SECONDS, PITCH_WINDOW_SECONDS / 2) ** 2  # (frames, F)
    frame, place = np.nonzero((power[:, 1:-1] > power[:, :-2]) & (power[:, 1:-1] >= power[:, 2:]))
    # The true frequency lies between bins: at the top of a parabola through the three log-powers.
    low, mid, high = (np.log(power[frame, place + side] + 1e-20) for side in (0, 1, 2))
    bend = low - 2 * mid + high
    shift = np.where(bend < 0, 0.5 * (low - high) / np.where(bend < 0, bend, -1.0), 0.0)
    hz = (place + 1 + shift) * sample_rate_hz / _length(sample_rate_hz, PITCH_WINDOW_SECONDS)
    counted = (hz >= LOWEST_HZ) & (hz <= HIGHEST_HZ)
    classes = np.rint(12 * np.log2(hz[counted] / 440.0)).astype(int) % 12
    histogram = np.bincount(classes, weights=power[frame, place + 1][counted], minlength=12)
    share = histogram[histogram > 0] / (histogram.sum() or 1.0)
    return float(-(share * np.log2(share)).sum()) + 0.0  # no minus zero


def _checked(audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio, dtype=np.float64)
    if audio.ndim != 2 or 0 in audio.shape:
        raise DataError(f"Found audio of shape {audio.shape}; needs (B, samples) with at least one sample.")
    if not np.isfinite(audio).all():
        raise DataError("Audio holds values that are not numbers; the model that made it is broken.")
    return audio


def _length(sample_rate_hz: int, seconds: float) -> int:
    return max(4, round(sample_rate_hz * seconds))


def _spectra(clip: np.ndarray, sample_rate_hz: int, window_seconds: float, hop_seconds: float) -> np.ndarray:
    """Magnitudes (frames, F) under a Hann window; a clip shorter than a few windows is padded with silence."""
    length, hop = _length(sample_rate_hz, window_seconds), _length(sample_rate_hz, hop_seconds)
    clip = np.pad(clip, (0, max(0, length + (SMOOTHING + 2) * hop - len(clip))))
    frames = np.lib.stride_tricks.sliding_window_view(clip, length)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(length + 1)[:-1], axis=1))
