"""Audio and text embeddings from a frozen CLAP."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.errors import DataError, ModelError
from alignment.music.checkpoint import quiet

TINY_CLAP = Path(__file__).resolve().parent.parent / "music" / "tiny" / "clap"


class ClapEncoder:
    """Unit-norm embeddings from a folder in transformers' ClapModel format.

    Which CLAP it is matters (another checkpoint gives other scores), so ``name`` goes into every reward model."""

    def __init__(
        self, folder: str | Path = TINY_CLAP, *, device: str | torch.device = "cpu", batch_size: int = 16
    ) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: no CLAP here (config.json is missing); give a ClapModel folder.")
        try:
            with quiet():
                model = ClapModel.from_pretrained(
                    folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
            self.extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds for one cause: not a usable folder
            raise ModelError(f"{folder}: cannot be loaded as a ClapModel ({error}).") from error
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.name = f"clap:{folder.resolve().name}:{_short_sha256(folder)}"

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.model.config.projection_dim)

    @torch.no_grad()
    def audio(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """Embeddings (B, D) float32 of mono clips: (B, N) float32, or B arrays of differing lengths.

        A clip longer than CLAP's window (10 s for the public ones) is the mean of evenly spread windows, so that
        nothing is drawn at random. Raises DataError for clips that are empty or not finite."""
        rate = int(self.extractor.sampling_rate)
        windows, owners = [], []
        for number, clip in enumerate(audio):
            clip = np.asarray(clip, dtype=np.float32)
            if clip.ndim != 1 or clip.size == 0 or not np.isfinite(clip).all():
                raise DataError(f"Clip {number} is {clip.shape} or not finite; mono audio of finite samples is needed.")
            for window in _windows(_resample(clip, sample_rate_hz, rate), int(self.extractor.nb_max_samples)):
                windows.append(window)
                owners.append(number)
        if not windows:
            return np.zeros((0, self.width), np.float32)
        parts = [self._embed(windows[i : i + self.batch_size]) for i in range(0, len(windows), self.batch_size)]
        summed = torch.zeros(owners[-1] + 1, self.width, dtype=torch.float64)
        summed.index_add_(0, torch.tensor(owners), torch.cat(parts).double())
        return _unit(summed)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> np.ndarray:
        """Embeddings (B, D) float32 of prompts."""
        parts = []
        for start in range(0, len(prompts), self.batch_size):
            batch = self.tokenizer(
                list(prompts[start : start + self.batch_size]), padding=True, truncation=True, return_tensors="pt",
                max_length=self._max_tokens(),
            )  # fmt: skip
            inputs = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
            parts.append(_pooled(self.model.get_text_features(**inputs)))
        return _unit(torch.cat(parts)) if parts else np.zeros((0, self.width), np.float32)

    def _embed(self, windows: list[np.ndarray]) -> Tensor:
        features = self.extractor(windows, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        inputs = {"input_features": features["input_features"].to(self.device, torch.float32)}
        if self.model.config.audio_config.enable_fusion:
            # The extractor marks one clip at random as longer when none is; no window here is.
            inputs["is_longer"] = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.device)
        return _pooled(self.model.get_audio_features(**inputs))

    def _max_tokens(self) -> int:
        # RoBERTa numbers positions from padding_idx + 1.
        config = self.model.config.text_config
        return int(config.max_position_embeddings) - int(config.pad_token_id or 0) - 1


def _pooled(output: Tensor | object) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def _unit(values: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(values.double(), dim=-1).float().numpy()


def _windows(clip: np.ndarray, longest: int) -> list[np.ndarray]:
    if len(clip) <= longest:
        return [clip]
    starts = np.linspace(0, len(clip) - longest, math.ceil(len(clip) / longest)).round().astype(int)
    return [clip[start : start + longest] for start in starts]


def _resample(clip: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    if from_hz == to_hz:
        return clip
    from scipy.signal import resample_poly

    shared = math.gcd(from_hz, to_hz)
    return resample_poly(clip, to_hz // shared, from_hz // shared).astype(np.float32)


def _short_sha256(folder: Path) -> str:
    """The first 12 digits of the weights' sha256."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
