"""The benchmark of reward models, on few pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from alignment.config import RewardSettings
from scripts.bench_reward import SETTINGS, measure, planted


def test_the_benchmark_says_how_long_how_much_and_how_well(tmp_path: Path) -> None:
    found = measure(3000, 8, RewardSettings(**{**SETTINGS, "batch_size": 256, "hidden": 16}), tmp_path)
    assert {"pairs", "seconds", "peak_memory_mb", "accuracy", "machine", "versions"} <= set(found)
    assert found["pairs"] == 3000 and found["epochs"] == 5 and found["settings"]["ensemble"] == 4
    assert 0.6 < found["accuracy"] <= 1 and found["accuracy_n"] > 1000
    assert json.loads(json.dumps(found)) == found


def test_planted_votes_tie_as_davidson_says_and_favour_the_left(tmp_path: Path) -> None:
    table = planted(tmp_path, 20_000, 8, 0)
    quality = table.targets[:, 1]
    # Symmetric taste: wins and losses differ by the pull of the left alone.
    assert 0 < np.mean(quality == 1) - np.mean(quality == 0) < 0.15
    assert 0.05 < np.mean(quality == 0.5) < 0.2 == 0.5 / 2.5, "nu 0.5 ties 20% at most"
    assert isinstance(table.audio, np.memmap) and math.isclose(float(np.linalg.norm(table.audio[5])), 1, abs_tol=1e-5)
