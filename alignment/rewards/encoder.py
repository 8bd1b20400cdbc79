"""Audio and text embeddings from a frozen CLAP."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.errors import ConfigError, DataError, ModelError
from alignment.music.checkpoint import quiet

TINY_CLAP = Path(__file__).resolve().parent.parent / "music" / "tiny" / "clap"


class ClapEncoder:
    """Unit-norm embeddings from a checkpoint in transformers' ClapModel format: a folder, or a name on the hub such as
    laion/larger_clap_music (fetched once, then read from its cache).

    Which CLAP it is matters (another checkpoint gives other scores), so ``name`` goes into every reward model.
    ``windows`` is the least number of windows a clip longer than CLAP's window is heard through; they overlap where
    fewer would cover it."""

    def __init__(
        self,
        source: str | Path = TINY_CLAP,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 16,
        windows: int = 1,
    ) -> None:
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        if windows < 1:
            raise ConfigError(f"windows is {windows}; a clip is heard through at least 1.")
        folder = _folder_of(source)
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
        self.windows = windows
        called = folder.resolve().name if Path(source).is_dir() else str(source)
        self.name = f"clap:{called}:{_short_sha256(folder)}" + (f":{windows} windows" if windows > 1 else "")

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.model.config.projection_dim)

    @torch.no_grad()
    def audio(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """Embeddings (B, D) float32 of mono clips: (B, N) float32, or B arrays of differing lengths.

        A clip longer than CLAP's window (10 s for the public ones) is the mean of evenly spread windows that cover it,
        so that nothing is drawn at random. Raises DataError for clips that are empty or not finite."""
        rate = int(self.extractor.sampling_rate)
        windows, owners = [], []
        for number, clip in enumerate(audio):
            clip = np.asarray(clip, dtype=np.float32)
            if clip.ndim != 1 or clip.size == 0 or not np.isfinite(clip).all():
                raise DataError(f"Clip {number} is {clip.shape} or not finite; mono audio of finite samples is needed.")
            heard = _resample(clip, sample_rate_hz, rate)
            for window in _windows(heard, int(self.extractor.nb_max_samples), self.windows):
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


def _folder_of(source: str | Path) -> Path:
    """The folder itself, or where the hub's checkpoint of this name lies. Raises ModelError where there is none."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ModelError(
            f"{source}: no CLAP here (config.json is missing); give a ClapModel folder or a name on the hub such as "
            "laion/larger_clap_music."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # the hub's client raises many kinds: offline, unknown, forbidden
        raise ModelError(
            f"{source}: no such folder, and it could not be fetched from the hub ({type(error).__name__}); check the "
            "name and the network, or fetch it elsewhere and give the folder."
        ) from error


def _pooled(output: Tensor | object) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def _unit(values: Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(values.double(), dim=-1).float().numpy()


def _windows(clip: np.ndarray, longest: int, least: int) -> list[np.ndarray]:
    if len(clip) <= longest:
        return [clip]
    count = max(least, math.ceil(len(clip) / longest))
    starts = np.linspace(0, len(clip) - longest, count).round().astype(int)
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
