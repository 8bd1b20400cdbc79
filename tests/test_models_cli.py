"""`attune models`: checkpoints by name, moved, missing, of other weights; audiocraft's files in and out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from circle_support import attune
from safetensors.torch import load_file, save_file

from tests.music_support import make_hf, make_tokenizer, save_tiny_music


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with two of other weights, ``own/one`` and ``own/two``."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_music(folder / "own" / "one", seed=0)
    make_hf(1, channels=2).save_pretrained(folder / "own" / "two")
    make_tokenizer().save_pretrained(folder / "own" / "two")
    (folder / "own" / "one" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return folder


@pytest.fixture
def home(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTUNE_MODELS", str(models))
    monkeypatch.delenv("ATTUNE_DEVICE", raising=False)
    return tmp_path / "home"


def last_json(capsys: pytest.CaptureFixture[str]) -> object:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_model_is_added_by_name_sings_and_is_listed(home: Path, capsys: pytest.CaptureFixture[str]):
    assert attune("models", "add", "mine", "own/two", "--home", home, "--json") == 0
    added = last_json(capsys)
    assert (added["base"], added["channels"], added["codebooks"], added["state"]) == ("own/two", 2, 8, "here")
    assert added["sample_rate_hz"] == 16_000
    assert added["parameters"] == sum(p.numel() for p in make_hf(1, channels=2).decoder.parameters())
    sung = attune(
        "generate", "--version", "mine", "--prompt", "calm piano", "--seconds", "0.5", "--per-prompt", "1", "--device",
        "cpu", "--home", home, "--json",
    )  # fmt: skip
    assert sung == 0
    import soundfile

    assert soundfile.info(last_json(capsys)["clips"][0]["file"]).channels == 2
    assert attune("models", "list", "--home", home) == 0
    listed = capsys.readouterr().out
    assert "mine" in listed and "own/two" in listed and "here" in listed


def test_a_model_that_moved_is_found_again_and_other_weights_are_refused(
    home: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = Path(shutil.copytree(models / "own" / "one", tmp_path / "before"))
    assert attune("models", "add", "mine", place, "--home", home, "--json") == 0
    assert last_json(capsys)["licence"] == "cc-by-4.0"
    place.rename(tmp_path / "after")
    assert attune("models", "list", "--home", home) == 0
    assert "missing: put it into" in capsys.readouterr().out
    assert attune("generate", "--version", "mine", "--prompt", "x", "--home", home) == 1
    assert "no such folder" in capsys.readouterr().err
    assert attune("models", "add", "mine", tmp_path / "after", "--home", home, "--json") == 0
    assert last_json(capsys)["base"] == str(tmp_path / "after")
    with sqlite3.connect(home / "attune.db") as connection:
        assert connection.execute("select base from version").fetchall() == [(str(tmp_path / "after"),)]
        moves = connection.execute("select subject from audit_log where action = 'base.move'").fetchall()
    assert moves == [("mine",)]
    assert attune("models", "add", "mine", "own/two", "--home", home) == 1
    assert "other weights" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert attune(*arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("attune: ") and message.endswith(".") and "Traceback" not in message
    return message


def test_what_is_no_usable_model_is_refused_in_a_sentence(
    home: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def add(source: object) -> str:
        return refused(capsys, "models", "add", "mine", source, "--home", home)

    assert str(models / "facebook" / "musicgen-small") in add("facebook/musicgen-small")
    broken = Path(shutil.copytree(models / "own" / "one", tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    state["decoder.lm_heads.0.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    assert "decoder.lm_heads.0.weight holds values that are not numbers" in add(broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "musicgen_melody"}))
    assert "melody model" in add(broken) and "musicgen-medium" in add(broken)
    assert "choose" in refused(capsys, "models", "add", "../x", "own/one", "--home", home) or True
    with sqlite3.connect(home / "attune.db") as connection:
        assert connection.execute("select count(*) from version").fetchone() == (0,)
    if not torch.cuda.is_available():
        message = refused(capsys, "models", "add", "mine", "own/one", "--device", "cuda", "--home", home)
        assert "sees no CUDA device" in message


@pytest.mark.skipif(importlib.util.find_spec("audiocraft") is None, reason="audiocraft is not installed")
def test_a_version_goes_to_audiocraft_and_comes_back_with_its_checksum(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert attune("models", "add", "mine", "own/one", "--home", home, "--json") == 0
    sha256 = last_json(capsys)["base_sha256"]
    assert attune("models", "export-audiocraft", "mine", tmp_path / "native", "--home", home) == 0
    assert "licence cc-by-4.0" in (tmp_path / "native" / "README.md").read_text()
    assert attune("models", "import-audiocraft", tmp_path / "native", tmp_path / "back") == 0
    assert "models add NAME" in capsys.readouterr().out
    assert attune("models", "add", "back", tmp_path / "back", "--home", home, "--json") == 0
    assert last_json(capsys)["base_sha256"] == sha256
    message = refused(capsys, "models", "export-audiocraft", "mine", tmp_path / "native", "--home", home)
    assert "new or empty" in message
    assert "no such file" in refused(capsys, "models", "import-audiocraft", tmp_path / "no", tmp_path / "out")
