"""Audio of up to eight channels as one or two: what a listener with two speakers or headphones hears of it."""

from __future__ import annotations

import numpy as np

MOST_CHANNELS = 8
# Channels of a file in order: L, R and C in front, l and r beside or behind, S behind in the middle, E low effects.
# WAV and FLAC (RFC 9639, 9.1.3) have one order; Vorbis and Opus another (Vorbis I, 4.3.9; RFC 7845, 5.1.1.2).
ORDER = {3: "LRC", 4: "LRlr", 5: "LRClr", 6: "LRCElr", 7: "LRCESlr", 8: "LRCElrlr"}
VORBIS_ORDER = {3: "LCR", 4: "LRlr", 5: "LCRlr", 6: "LCRlrE", 7: "LCRlrSE", 8: "LCRlrlrE"}
# ITU-R BS.775-4, annex 4: what is not in front left or right at -3 dB; low effects are left out.
SHARES = {"L": (1, 0), "R": (0, 1), "C": (0.5**0.5, 0.5**0.5), "l": (0.5**0.5, 0), "r": (0, 0.5**0.5),
          "S": (0.5, 0.5), "E": (0, 0)}  # fmt: skip


def to_two(samples: np.ndarray, coding: str) -> np.ndarray:
    """Of samples (n, channels) float32: (n,) of one channel, (n, 2) of two as they are and of up to eight mixed.

    ``coding`` is the file's subtype as libsndfile names it, which tells the channels' order. A mix is scaled so that
    full scale in every channel stays full scale."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    if channels == 2:
        return samples
    order = (VORBIS_ORDER if coding in ("VORBIS", "OPUS") else ORDER)[channels]
    shares = np.array([SHARES[name] for name in order])  # (channels, 2)
    return (samples @ (shares / shares.sum(axis=0).max()).astype(np.float32)).astype(np.float32, copy=False)
