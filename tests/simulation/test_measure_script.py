"""scripts/measure_listeners.py on made-up clips: what it prints, writes and refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from listener_support import TAGS, random_clip

from alignment.errors import ConfigError
from alignment.simulation.listeners import load_listeners
from scripts import measure_listeners as script

SMALL = ("--pairs", "60", "--listeners", "6", "--hearings", "2")


@pytest.fixture(autouse=True)
def made_up_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips for each of 20 prompts, without any model."""
    rng = random.Random(1)
    groups = [(TAGS, [random_clip(rng) for _ in range(3)]) for _ in range(20)]
    monkeypatch.setattr(script, "hear_new", lambda prompts, clips, seed: script.Heard(groups, "made-up clips"))


def test_every_profile_and_population_is_measured_and_marked_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    script.main([*SMALL, "--json"])
    lines = capsys.readouterr().out.strip().splitlines()
    result, listeners = json.loads(lines[-1]), load_listeners()
    assert result["simulated"] is True and lines[0].startswith("**Simulated listeners**")
    assert list(result["profiles"]) == list(listeners.profiles)
    assert list(result["populations"]) == list(listeners.populations)
    assert result["setting"]["pairs"] == 60 and result["setting"]["seed"] == 0 and result["setting"]["votes"] == 120
    assert {"python", "torch"} <= set(result["setting"]["versions"]) and result["setting"]["machine"]
    for figures in (*result["profiles"].values(), *result["populations"].values()):
        for name in ("undecided", "agreement", "left", "repeat", "between"):
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]
        assert figures["undecided"]["value"] == pytest.approx(figures["ties"]["value"] + figures["both_bad"]["value"])
    header = next(line for line in lines if line.startswith("| "))
    assert header.startswith("| simulated listeners | tie | both bad | tie or both bad |")
    assert sum(line.startswith(("| profile `", "| population `")) for line in lines) == len(result["profiles"]) + len(
        result["populations"]
    )


def test_the_calibrated_profile_can_be_pasted_and_gives_what_was_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script.main([*SMALL, "--calibrate", "default", "--agreement", "0.66", "--ties", "0.3", "--json"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("  default: {"))
    path = tmp_path / "listeners.yaml"
    path.write_text(f"profiles:\n{line}\npopulations: {{p: {{default: 1.0}}}}\n")
    pasted, shipped = load_listeners(path).profiles["default"], load_listeners().profiles["default"]
    found = json.loads(out.strip().splitlines()[-1])["calibration"]
    assert (pasted.noise, pasted.indifference) == (found["noise"], found["indifference"])
    assert pasted.model_copy(update={"noise": shipped.noise, "indifference": shipped.indifference}) == shipped
    assert found["expected"]["agreement"] == pytest.approx(0.66, abs=0.002)
    assert found["expected"]["undecided"] == pytest.approx(0.3, abs=0.002)
    assert yaml.safe_load(path.read_text())["profiles"]["default"]["noise"] > 0 and "SIMULATED" in out


def test_the_table_replaces_what_stands_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    script.main([*SMALL, "--write", str(page)])
    once = page.read_text()
    assert once.startswith(f"before\n{script.BEGIN}\n**Simulated listeners**")
    assert once.endswith(f"{script.END}\nafter\n")
    assert "old" not in once and "profile `default`" in once and "made-up clips; 60 pairs on 20 prompts" in once
    script.main([*SMALL, "--write", str(page)])
    assert page.read_text() == once


@pytest.mark.parametrize("text", ["", script.BEGIN, f"{script.END}{script.BEGIN}"])
def test_a_page_without_both_markers_is_left_alone(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match="are not there, in this order"):
        script.write_section(page, "new")
    assert page.read_text() == text


def test_the_shipped_page_has_the_markers_between_which_the_table_stands() -> None:
    page = script.LISTENERS_YAML.parent.parent / "docs" / "listeners.md"
    text = page.read_text()
    inside = text[text.index(script.BEGIN) : text.index(script.END)]
    for name in load_listeners().profiles:
        assert f"profile `{name}`" in inside


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--calibrate", "nobody"), "no profile nobody; "),
        (("--calibrate", "default", "--agreement", "0.99"), "An agreement of 0.99 cannot be reached"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--listeners", "1"), "as many listeners as hearings"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_non_zero_exit(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main([*SMALL, *arguments])
    assert str(stopped.value.code).startswith("measure_listeners: ") and sentence in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)


def test_clips_of_a_home_are_heard_by_prompt_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.db import migrate
    from alignment.db.engine import open_database
    from tests.database_support import fill

    url = f"sqlite:///{tmp_path / 'attune.db'}"
    migrate.upgrade(url)
    database = open_database(url)
    filled = fill(database, battles=3)  # a clip of base and one of tuned for each prompt
    database.close()
    rng = random.Random(0)
    monkeypatch.setattr(script, "Judge", lambda: None)
    monkeypatch.setattr(
        "alignment.circle.listen.judge_clips",
        lambda ws, judge, clips: {clip.audio_sha256: random_clip(rng) for clip in clips},
    )
    heard = script.hear_home(tmp_path, [])
    assert [len(own) for _, own in heard.groups] == [2, 2, 2] and heard.origin.startswith("Clips of base and tuned (")
    assert sorted(tags["n"] for tags, _ in heard.groups) == sorted(prompt.tags["n"] for prompt in filled.prompts)
    assert len(script.pairs_of(heard.groups, 100, 0)) == 3
    assert [len(own) for _, own in script.hear_home(tmp_path, ["tuned"]).groups] == [1, 1, 1]
    with pytest.raises(script.DataError, match="no two clips for any prompt"):
        script.pairs_of(script.hear_home(tmp_path, ["tuned"]).groups, 100, 0)
