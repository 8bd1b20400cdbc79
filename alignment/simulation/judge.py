"""The gold judge: what a clip is (lead, tempo, mode, accompaniment, drums) and its faults, from audio alone.

A small convolutional network on a log-frequency spectrogram, trained by ``scripts/tiny/train_judge.py`` on
renders of its own that no reward encoder has seen, hears attributes, noise, clipping, muffled sound and
roughness; silence and level are measured. It stands in for ears in simulations and is read once, at the end,
in the demo's report. Training code never imports it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alignment.errors import ModelError
from alignment.simulation.captions import ATTRIBUTE_VALUES

WEIGHTS = Path(__file__).parent / "judge"
SAMPLE_RATE_HZ = 16_000
WINDOW, HOP = 4096, 320
BINS_PER_OCTAVE, LOWEST_HZ, BINS = 24, 82.4, 156
HEARD_FAULTS = ("noise", "clipping", "muffling", "roughness")
SILENT_DBFS = -50.0  # a stretch of 50 ms below this is silent
LEVEL_DBFS = (-45.0, -32.0)  # RMS of a clip at which level is a full fault, and from which on none


@lru_cache(maxsize=1)
def _filterbank() -> Tensor:
    """Triangular log-frequency filters, (WINDOW // 2 + 1, BINS), two a semitone from E2 upwards."""
    centres = LOWEST_HZ * 2 ** (np.arange(-1, BINS + 1) / BINS_PER_OCTAVE)
    hz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)
    width = SAMPLE_RATE_HZ / WINDOW  # no filter is narrower than one bin of the transform
    bank = np.zeros((len(hz), BINS))
    for i in range(BINS):
        low, centre, high = centres[i], centres[i + 1], centres[i + 2]
        low, high = min(low, centre - width), max(high, centre + width)
        rise, fall = (hz - low) / (centre - low), (high - hz) / (high - centre)
        bank[:, i] = np.clip(np.minimum(rise, fall), 0, None)
    return torch.tensor(bank, dtype=torch.float32)


def spectrogram(audio: Tensor) -> Tensor:
    """Log-frequency spectrogram (B, BINS, frames) of audio (B, samples) at 16 kHz, level removed."""
    window = torch.hann_window(WINDOW, device=audio.device)
    power = torch.stft(audio, WINDOW, HOP, window=window, return_complex=True).abs()  # (B, F, frames)
    bands = torch.einsum("bft,fk->bkt", power, _filterbank().to(audio.device))
    level = bands.clamp_min(1e-3).log()
    return level - level.mean((1, 2), keepdim=True)


class JudgeNetwork(nn.Module):
    """Spectrogram (B, BINS, frames) -> logits by attribute, and HEARD_FAULTS (B, 4) in [0, 1]."""

    def __init__(self, width: int = 14) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: tuple[int, int]) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        self.stem = nn.Sequential(
            nn.Conv2d(1, width, (5, 7), stride=(2, 4), padding=(2, 3), bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.body = nn.Sequential(
            block(width, 2 * width, (2, 1)),
            block(2 * width, 2 * width, (2, 2)),
            block(2 * width, 4 * width, (2, 1)),
            block(4 * width, 4 * width, (2, 2)),
        )
        self.norm = nn.LayerNorm(8 * width)
        self.rhythm = nn.Sequential(
            nn.Conv1d(12, 32, 9, padding=4), nn.ReLU(), nn.Conv1d(32, 48, 9, padding=4, stride=2), nn.ReLU()
        )
        self.pitch = nn.Sequential(nn.Linear(24 * 2, 64), nn.ReLU(), nn.Linear(64, 32))
        features = 8 * width + 2 * 48 + 32
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Dropout(0.2), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, len(values)))
                for name, values in ATTRIBUTE_VALUES.items()
            }
        )
        self.faults = nn.Sequential(nn.Linear(features + 12, 64), nn.ReLU(), nn.Linear(64, len(HEARD_FAULTS)))

    def forward(self, spectrum: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x = self.body(self.stem(spectrum[:, None]))  # (B, C, f, t)
        x = x.mean(2)
        timbre = self.norm(torch.cat([x.mean(2), x.amax(2)], 1))
        # Onsets: rises of twelve wide bands, seen at 50 frames a second.
        bands = torch.stack([part.mean(1) for part in spectrum.chunk(12, dim=1)], 1)
        rises = self.rhythm((bands[..., 1:] - bands[..., :-1]).clamp_min(0))
        # Pitch classes, folded over octaves; every rotation is looked at, so the key does not matter.
        folded = spectrum[:, : 24 * (BINS // 24)].clamp_min(0).mean(2).view(len(spectrum), -1, 24)
        profile = torch.cat([folded.mean(1), folded.amax(1)], 1)
        profile = profile / profile.norm(dim=1, keepdim=True).clamp_min(1e-6) * math.sqrt(48)
        turned = torch.stack(
            [torch.cat([profile[:, :24].roll(-2 * k, 1), profile[:, 24:].roll(-2 * k, 1)], 1) for k in range(12)], 1
        )
        tonal = self.pitch(turned).amax(1)
        features = torch.cat([timbre, rises.mean(2), rises.amax(2), tonal], 1)
        floors = bands.quantile(0.1, dim=2)  # what is there even in the pauses: hiss, hum, missing treble
        faults = torch.sigmoid(self.faults(torch.cat([features, floors], 1)))
        return {name: head(features) for name, head in self.heads.items()}, faults


@dataclass(frozen=True)
class Judgement:
    """What the judge heard in one clip: P(value) by attribute, and the strength of each fault in [0, 1]."""

    attributes: Mapping[str, Mapping[str, float]]
    faults: Mapping[str, float]

    @property
    def cleanliness(self) -> float:
        """Product of (1 - fault) over all faults; 1 is spotless."""
        return math.prod(1.0 - fault for fault in self.faults.values())

    def adherence(self, tags: Mapping[str, str]) -> float:
        """Mean probability, over the attributes asked for, that the clip has them; in [0, 1]."""
        asked = [self.attributes[name][value] for name, value in tags.items() if value in self.attributes.get(name, {})]
        return sum(asked) / len(asked) if asked else 0.5

    def has(self, name: str, value: str) -> bool:
        """Whether ``value`` is the likeliest for attribute ``name``."""
        heard = self.attributes[name]
        return max(heard, key=heard.__getitem__) == value


class Judge:
    """Loads the shipped weights; raises ModelError when they are missing."""

    def __init__(self, folder: Path = WEIGHTS) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / "judge.safetensors"
        if not path.exists():
            raise ModelError(f"{path}: no judge weights there; run `make tiny` to build them.")
        self.network = JudgeNetwork()
        try:
            weights = load_file(path)
            self.network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
            self.facts = json.loads((folder / "judge.json").read_text())
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{folder}: damaged judge ({reason}); restore it or run `make tiny`.") from error
        self.network.eval()

    @torch.no_grad()
    def __call__(self, audio: np.ndarray, *, batch_size: int = 32) -> list[Judgement]:
        """One judgement a clip; audio (B, samples) float32 at 16 kHz."""
        out: list[Judgement] = []
        for start in range(0, len(audio), batch_size):
            part = torch.from_numpy(np.ascontiguousarray(audio[start : start + batch_size]))
            logits, faults = self.network(spectrogram(part))
            shares = {name: logit.softmax(-1).tolist() for name, logit in logits.items()}
            for row, (heard_faults, measured) in enumerate(zip(faults.tolist(), measure_level(part), strict=True)):
                heard = {
                    name: dict(zip(ATTRIBUTE_VALUES[name], share[row], strict=True)) for name, share in shares.items()
                }
                out.append(Judgement(heard, dict(zip(HEARD_FAULTS, heard_faults, strict=True)) | measured))
        return out


def measure_level(audio: Tensor) -> list[dict[str, float]]:
    """Faults "silence" (share of 50 ms stretches below SILENT_DBFS) and "level" (too quiet as a whole), a clip."""
    frames = audio.unfold(1, SAMPLE_RATE_HZ // 20, SAMPLE_RATE_HZ // 20)  # (B, n, samples of 50 ms)
    decibels = 10 * frames.square().mean(2).clamp_min(1e-12).log10()
    silence = (decibels < SILENT_DBFS).float().mean(1)
    rms = 10 * audio.square().mean(1).clamp_min(1e-12).log10()
    full, none = LEVEL_DBFS
    level = ((none - rms) / (none - full)).clamp(0, 1)
    return [{"silence": s, "level": q} for s, q in zip(silence.tolist(), level.tolist(), strict=True)]


def read_share(judgements: Sequence[Judgement], tags: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Share of clips in which each attribute asked for is the likeliest one heard."""
    return {
        name: float(np.mean([j.has(name, t[name]) for j, t in zip(judgements, tags, strict=True) if name in t]))
        for name in ATTRIBUTE_VALUES
    }
