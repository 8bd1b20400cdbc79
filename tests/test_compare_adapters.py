"""The comparison of adapters: its table, its interval, and one small run that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.compare_adapters import PLACES, RATES, main, paired_interval, parse, table


def test_the_table_has_a_line_for_the_base_and_one_for_each_adapter() -> None:
    row = {
        "adapter": "ia3, cross", "rate": 0.03, "parameters": 1536, "held_out_reward": 0.25, "gain": 0.0125,
        "interval": (-0.01, 0.035), "kl": 1.26, "cpu_seconds": 9.96,
    }  # fmt: skip
    lines = table(0.2375, [row]).splitlines()
    assert lines[2] == "| base | | 0 | 0.2375 | | | 0 | |"
    assert lines[3] == "| ia3, cross | 0.03 | 1,536 | 0.2500 | +0.0125 | [-0.0100, +0.0350] | 1.3 | 10.0 |"
    assert all(line.count("|") == 9 for line in lines)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_for_many_prompts() -> None:
    differences = np.random.default_rng(1).normal(0.5, 2.0, size=4000)
    low, high = paired_interval(differences)
    width = 1.96 * differences.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((differences.mean() - width, differences.mean() + width), abs=0.01)


def test_an_unknown_kind_or_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--kinds", "lora,vera"])
    assert "vera is none of lora, loha, ia3" in capsys.readouterr().err
    assert set(parse(["--out", "x"]).places.split(",")) == set(PLACES) and set(RATES) == {"lora", "loha", "ia3"}


@pytest.mark.slow
def test_a_run_measures_each_adapter_once_and_other_sizes_need_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--out", str(tmp_path), "--prompts", "8", "--clips", "2", "--held-out", "4", "--seconds", "0.5", "--json"]
    main([*sizes, "--kinds", "ia3", "--places", "heads"])
    first = json.loads(capsys.readouterr().out)["rows"]
    main([*sizes, "--kinds", "ia3", "--places", "heads,cross"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows[0] == first[0] and [row["place"] for row in rows] == ["heads", "cross"]
    assert rows[0]["parameters"] == 4 * 512 and rows[0]["kl"] != 0
    with pytest.raises(SystemExit, match="other sizes"):
        main([*sizes, "--seed", "1"])
