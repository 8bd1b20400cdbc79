"""The check that "follow the caption" alone makes attune-tiny follow captions: its figures, and the check itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignment.config import REPOSITORY, PpoSettings, load_recipe
from scripts import check_adherence
from scripts.check_adherence import Heard, compared, table


def heard(adherence: list[float], nats: float = 0.0) -> Heard:
    values, base = np.array(adherence), np.full((len(adherence), 4, 5), -3.0)
    return Heard(values, values / 2, values * 10, base + nats, base)


def test_gains_are_paired_by_caption_and_kl_is_summed_over_a_clip() -> None:
    base, ours = heard([0.2, 0.4, 0.9, 0.5]), heard([0.3, 0.5, 1.0, 0.6], nats=0.1)
    found = compared(ours, base, ["a", "b", "c", "d"])
    assert found["adherence"] == pytest.approx(0.6) and found["adherence_low"] < 0.6 < found["adherence_high"]
    # The same gain on every caption has no spread, however the captions differ.
    assert [found[f"adherence_gain{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.1, 0.1, 0.1])
    assert found["reward_gain"] == pytest.approx(1.0) and found["cleanliness_gain"] == pytest.approx(0.05)
    assert found["kl"] == pytest.approx(20 * 0.1) and found["prompts"] == 4
    assert compared(base, base, ["a", "b", "c", "d"])["kl"] == 0


def test_the_table_has_a_line_a_method_with_intervals() -> None:
    base, ours = heard([0.2, 0.4]), heard([0.3, 0.5])
    methods = {"base": compared(base, base, ["a", "b"]), "ppo": compared(ours, base, ["a", "b"])}
    lines = table({"methods": methods}).splitlines()
    assert lines[0].startswith("| | adherence | gain | reward") and len(lines) == 4
    assert lines[3].startswith("| ppo | 0.400 [") and "| +0.100 [+0.100, +0.100] |" in lines[3]


def test_the_recipe_that_ships_is_valid_and_is_what_the_script_reads() -> None:
    recipe = load_recipe(REPOSITORY / "configs" / "ppo.yaml", PpoSettings)
    assert recipe.lora.target_modules == ("cross_attention",) and recipe.generation.clip_seconds == 1.5
    said = (REPOSITORY / "configs" / "ppo.yaml").read_text().splitlines()[1]
    assert "python -m scripts.check_adherence" in said, "the command that measures it"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_adherence_rises_on_held_out_captions_by_the_judge(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Some six minutes on a free core for each method.
    check_adherence.main(["--methods", method, "--seed", "1", "--out", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["methods"]
    assert found[method]["prompts"] == 300
    assert found[method]["adherence_gain_low"] > 0, found[method]
    assert found[method]["reward_gain_low"] > 0 and found[method]["kl_high"] < 100
