"""How long a reward model takes to learn from as many pairs as MusicRL had.

    python -m scripts.bench_reward --json

Embeddings of two clips a pair lie memory-mapped in a folder, as the cache of embeddings keeps them; planted listeners
vote on them. Making them is not in the time; training, early stopping and calibration are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.config import RewardSettings
from alignment.rewards.heads import HEADS
from alignment.rewards.table import PairTable
from alignment.rewards.train import mean_differences, train_on_table

PAIRS = 300_000  # MusicRL's human comparisons (arXiv:2402.04229)
WIDTH = 512  # of a public CLAP's embedding
PAIRS_PER_PROMPT, RATERS, HELD_OUT = 6, 400, 4_000
SETTINGS = {"batch_size": 1024, "epochs": 5, "ensemble": 4, "learning_rate": 2e-3, "dropout": 0.1}


def planted(folder: Path, pairs: int, width: int, seed: int) -> PairTable:
    """Pairs whose votes follow a hidden direction of the clip and its agreement with the prompt; every pair has two
    clips of its own. Votes tie by Davidson with nu 0.5, favour the left by 0.2 and come of raters of unlike care."""
    rng = np.random.default_rng(seed)
    prompts = max(1, pairs // PAIRS_PER_PROMPT)
    audio = _unit_rows(folder / "audio.f32", 2 * pairs, width, rng)
    text = _unit_rows(folder / "text.f32", prompts, width, rng)
    prompt = rng.integers(prompts, size=pairs)
    taste = rng.normal(size=width)
    rater = rng.integers(RATERS, size=pairs).astype(np.int32)
    care = np.exp(0.5 * rng.normal(size=RATERS))
    a, b = np.arange(pairs), np.arange(pairs, 2 * pairs)
    targets = np.full((pairs, len(HEADS)), np.nan, dtype=np.float32)
    for start in range(0, pairs, 8192):
        rows = slice(start, start + 8192)
        change = audio[a[rows]] - audio[b[rows]]
        quality = change @ taste * 1.2
        adherence = (change * text[prompt[rows]]).sum(1) * np.sqrt(width) * 1.2
        for column, utility in enumerate((adherence, quality, (adherence + quality) * care[rater[rows]])):
            targets[rows, column] = _vote(utility + 0.2, rng)
    return PairTable(audio, text, a, b, prompt, prompt, targets, rater, np.ones(pairs, np.int8), RATERS)


def _unit_rows(path: Path, rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random unit vectors in a file, memory-mapped for reading."""
    with path.open("wb") as file:
        for start in range(0, rows, 8192):
            part = rng.standard_normal((min(8192, rows - start), width), dtype=np.float32)
            file.write((part / np.linalg.norm(part, axis=1, keepdims=True)).tobytes())
    return np.memmap(path, np.float32, mode="r", shape=(rows, width))


def _vote(log_odds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Credit of a: 1, 0 or, for a tie, 0.5 (Davidson with nu 0.5)."""
    win, lose = np.exp(log_odds / 2), np.exp(-log_odds / 2)
    drawn = rng.random(len(log_odds)) * (win + lose + 0.5)
    return np.where(drawn < win, 1.0, np.where(drawn < win + lose, 0.0, 0.5)).astype(np.float32)


def part_of(table: PairTable, rows: slice) -> PairTable:
    """Some of the comparisons over the same embeddings."""
    cut = {name: getattr(table, name)[rows] for name in ("a", "b", "text_a", "targets", "rater", "side")}
    return PairTable(audio=table.audio, text=table.text, text_b=cut["text_a"], raters=table.raters, **cut)


def anonymous_mb() -> float:
    """Memory of this process that is no mapped file, in MB (Linux; elsewhere NaN)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    except (OSError, StopIteration):
        return float("nan")


def measure(pairs: int, width: int, settings: RewardSettings, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Seconds, memory and accuracy of one training on ``pairs``, with 4,000 more held out (half of them stop it)."""
    table = planted(folder, pairs + HELD_OUT, width, seed)
    train, valid, test = (
        part_of(table, rows)
        for rows in (slice(0, pairs), slice(pairs, pairs + HELD_OUT // 2), slice(pairs + HELD_OUT // 2, None))
    )
    before, memory = anonymous_mb(), []
    began, cpu = time.perf_counter(), time.process_time()
    model = train_on_table(train, valid, settings, lambda *_: memory.append(anonymous_mb()))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    difference = mean_differences(model.heads, test)["preference"].numpy()
    credit = test.targets[:, HEADS.index("preference")]
    decisive = credit != 0.5
    right = (difference > 0)[decisive] == (credit > 0.5)[decisive]
    return {
        "pairs": pairs, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "embeddings_mb": round(4 * width * (len(table.audio) + len(table.text)) / 2**20),
        "anonymous_mb_before": round(before), "anonymous_mb": round(max(memory)),
        "accuracy": round(float(right.mean()), 4), "accuracy_n": int(decisive.sum()),
        "epochs": model.metrics["epochs"], "valid_ece": model.metrics["valid_ece"]["preference"],
        "ties_nu": model.ties.get("preference"), "side": model.metrics.get("side", {}).get("preference"),
        "settings": settings.model_dump(mode="json"), "width": width, "threads": torch.get_num_threads(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "load_before": None},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="training pairs (default 300,000)")
    parser.add_argument("--width", type=int, default=WIDTH, help="width of an embedding (default 512)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--float32", action="store_true", help="multiply in float32, not bfloat16")
    parser.add_argument("--folder", type=Path, default=None, help="where the embeddings go (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    settings = RewardSettings(**SETTINGS, bf16=not arguments.float32)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(arguments.pairs, arguments.width, settings, Path(folder))
    found["machine"]["load_before"] = round(load, 1)
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"{found['pairs']:,} pairs in {found['seconds']} s ({found['cpu_seconds']} s of CPU), accuracy "
              f"{found['accuracy']:.1%}, {found['peak_memory_mb']:,} MB of which {found['embeddings_mb']:,} MB are "
              "the mapped embeddings")  # fmt: skip


if __name__ == "__main__":
    main()
