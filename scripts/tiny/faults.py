"""Flaws of a recording, put in on purpose and known exactly: noise, clipping, muffled sound, hum."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE_HZ = 16_000
PEAK = 0.708  # -3 dBFS, for clean and flawed recordings alike
# Share of clips with each flaw, as the only one, and the range of its strength. What the music model learns from is
# flawed more often, and more strongly, than what the judge learns from and everything is tested on.
FLAWED = {"noise": 0.2, "clipping": 0.14, "muffling": 0.12}
STRENGTHS = (0.25, 1.0)
FLAWED_TRAINING = {"noise": 0.12, "clipping": 0.5, "muffling": 0.08}
STRENGTHS_TRAINING = (0.5, 1.0)


def draw_faults(count: int, seed: int, *, training: bool = False) -> list[dict[str, float]]:
    """``count`` recordings: clean ({}), or with one flaw of a strength in STRENGTHS; the music model's with
    ``training``."""
    flawed, strengths = (FLAWED_TRAINING, STRENGTHS_TRAINING) if training else (FLAWED, STRENGTHS)
    rng = np.random.default_rng([seed, 99])
    edges = np.cumsum(list(flawed.values()))
    out: list[dict[str, float]] = []
    for kind, strength in zip(rng.random(count), rng.uniform(*strengths, count), strict=True):
        which = int(np.searchsorted(edges, kind, side="right"))
        out.append({list(flawed)[which]: round(float(strength), 3)} if which < len(edges) else {})
    return out


def apply_faults(audio: np.ndarray, faults: dict[str, float], seed: int) -> np.ndarray:
    """``audio`` (samples,) float with its flaws, peak at -3 dBFS again.

    noise: hiss, with mains hum in a third of the cases, at 22 (faint) to 6 dB (strong) below the music;
    clipping: driven 8 to 26 dB into a hard limit; muffling: low-passed at 2,400 down to 600 Hz.
    """
    if not faults:
        return audio
    from scipy.signal import butter, sosfilt

    rng = np.random.default_rng([seed, 7])
    out = audio.astype(np.float64)
    power = np.sqrt(np.mean(out**2)) + 1e-9
    if strength := faults.get("noise", 0.0):
        hiss = rng.standard_normal(len(out))
        if rng.random() < 0.33:
            time = np.arange(len(out)) / SAMPLE_RATE_HZ
            hiss = 0.5 * hiss + sum(np.sin(2 * np.pi * 50 * k * time + k) / k**0.5 for k in (2, 3, 4, 5))
        hiss /= np.sqrt(np.mean(hiss**2))
        out = out + hiss * power * 10 ** (-(22 - 16 * strength) / 20)
    if strength := faults.get("clipping", 0.0):
        limit = np.abs(out).max() * 10 ** (-(8 + 18 * strength) / 20)
        out = np.clip(out, -limit, limit)
    if strength := faults.get("muffling", 0.0):
        corner = 2400 * (600 / 2400) ** strength
        out = sosfilt(butter(4, corner, "low", fs=SAMPLE_RATE_HZ, output="sos"), out)
    return (out * (PEAK / max(1e-4, float(np.abs(out).max())))).astype(np.float32)
