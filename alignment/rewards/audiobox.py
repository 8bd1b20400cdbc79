"""Meta's Audiobox-Aesthetics as a scorer (arXiv:2502.05139): an optional extra, loaded only when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.errors import ConfigError, ModelError, NotFoundError
from alignment.rewards.scorers import Scored

AXES = {
    "CE": "content enjoyment",
    "CU": "content usefulness",
    "PC": "production complexity",
    "PQ": "production quality",
}


class AudioboxAesthetics:
    """One axis of Audiobox-Aesthetics, on its scale from 1 to 10; it hears the clip alone and no prompt.

    ``checkpoint`` is the file checkpoint.pt, fetched beforehand: nothing is downloaded here. Licence of code and
    weights: CC-BY-4.0 for the most part, some code MIT. Raises ConfigError without the package or for an unknown axis,
    NotFoundError without the file, ModelError when it cannot be loaded."""

    licence = "CC-BY-4.0"

    def __init__(self, checkpoint: str | Path, *, axis: str = "PQ", batch_size: int = 8) -> None:
        if axis not in AXES:
            known = ", ".join(f"{short} ({name})" for short, name in AXES.items())
            raise ConfigError(f"There is no aesthetics axis {axis!r}; known: {known}.")
        try:
            from audiobox_aesthetics.infer import initialize_predictor
        except ImportError as error:
            raise ConfigError(
                f"Audiobox-Aesthetics is not installed ({error}); run `pip install audiobox_aesthetics`, or leave this "
                "scorer out."
            ) from None
        if not Path(checkpoint).is_file():
            raise NotFoundError(f"{checkpoint}: no such file; fetch checkpoint.pt of facebook/audiobox-aesthetics.")
        try:
            self._predictor: Any = initialize_predictor(str(checkpoint))
        except Exception as error:  # torch and the package raise many kinds for one cause: not its checkpoint
            raise ModelError(f"{checkpoint}: cannot be loaded as Audiobox-Aesthetics ({error}).") from error
        self.axis, self.batch_size = axis, batch_size
        self.name = f"audiobox_{axis.lower()}"

    def score(self, prompts: Sequence[str], audio: np.ndarray, sample_rate_hz: int) -> Scored:
        """Scores of B clips, audio (B, N) mono."""
        clips = torch.from_numpy(np.asarray(audio, dtype=np.float32))[:, None]  # (B, 1, N)
        rows: list[Any] = []
        for part in clips.split(self.batch_size):
            rows += self._predictor.forward([{"path": clip, "sample_rate": sample_rate_hz} for clip in part])
        # Its first release gave each row as JSON text.
        values = [(json.loads(row) if isinstance(row, str) else row)[self.axis] for row in rows]
        return Scored(np.array(values, dtype=np.float64))
