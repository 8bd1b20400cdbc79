"""What the training scripts of attune-tiny share: data, checkpoints and a line of progress."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

SAMPLE_RATE_HZ = 16_000
BUILD = Path("build/tiny")


def load_split(split: str, data: Path = BUILD / "data") -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Audio (N, samples) int16 memory-mapped, and one {text, tags} a clip."""
    audio = np.load(data / f"{split}.npy", mmap_mode="r")
    rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
    return audio, rows


def to_float(audio: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(audio, dtype=np.float32) / 32768.0)


@torch.no_grad()
def decode_codes(codec: Any, codes: np.ndarray) -> np.ndarray:
    """Audio (N, samples) int16 of codes (N, K, T), by an ``EncodecModel``."""
    out = []
    for start in range(0, len(codes), 32):
        batch = torch.from_numpy(codes[start : start + 32]).long()[None]  # (1, B, K, T): one chunk
        wave = codec.decode(batch, [None]).audio_values[:, 0]
        out.append((wave.clamp(-1, 1) * 32767).to(torch.int16).numpy())
    return np.concatenate(out)


def corrupt(codes: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codes (N, K, T) with ``share`` (N,) of each clip's replaced, half of them by codes the clip has elsewhere."""
    count, books, frames = codes.shape
    elsewhere = np.take_along_axis(codes, rng.integers(0, frames, codes.shape), axis=2)
    foreign = np.where(rng.random(codes.shape) < 0.5, elsewhere, rng.integers(0, codes.max() + 1, codes.shape))
    return np.where(rng.random((count, books, frames)) < share[:, None, None], foreign, codes)


def save_state(path: Path, **state: Any) -> None:
    """Write a resumable checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=False) if path.exists() else None


class Progress:
    """Prints step, seconds and named running means."""

    def __init__(self, every: int) -> None:
        self.every, self.began, self.sums, self.count = every, time.time(), {}, 0

    def __call__(self, step: int, **values: float) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        if step % self.every == 0:
            text = " ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
            print(f"step {step} {time.time() - self.began:.0f}s {text}", flush=True)
            self.sums, self.count = {}, 0


def save_facts(name: str, **facts: Any) -> None:
    """What a finished training says of itself in the model card."""
    import platform

    machine = (
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    )
    (BUILD / f"{name}.json").write_text(json.dumps({**facts, "hardware": machine}, indent=2) + "\n")
