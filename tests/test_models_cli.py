"""`attune models`: checkpoints by name, moved, missing, of other weights; audiocraft's files in and out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from circle_support import attune
from safetensors.torch import load_file, save_file

from alignment.db import migrate
from tests.music_support import make_hf, make_tokenizer, save_tiny_music


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with two of other weights, ``own/one`` and ``own/two``."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_music(folder / "own" / "one", seed=0)
    make_hf(1, channels=2).save_pretrained(folder / "own" / "two")
    make_tokenizer().save_pretrained(folder / "own" / "two")
    save_tiny_music(folder / "own" / "melody", seed=2, melody_frames=7)
    (folder / "own" / "one" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return folder


@pytest.fixture
def home(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTUNE_MODELS", str(models))
    monkeypatch.setenv("ATTUNE_DEVICE", "cpu")
    home = tmp_path / "home"
    home.mkdir()
    migrate.upgrade(f"sqlite:///{home / 'attune.db'}")
    return home


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints that must succeed."""

    def done(*arguments: str | Path) -> str:
        found = attune(capsys, *arguments)
        assert found.code == 0, found.err
        return found.out

    return done


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says that must fail: one line, no traceback."""

    def done(*arguments: str | Path) -> str:
        found = attune(capsys, *arguments)
        assert found.code == 1
        message = found.err.strip().splitlines()[-1]
        assert message.startswith("attune: ") and message.endswith(".") and "Traceback" not in found.err
        return message

    return done


def last_json(printed: str) -> Any:
    return json.loads(printed.strip().splitlines()[-1])


def test_a_model_is_added_by_name_sings_and_is_listed(home: Path, run: Callable[..., str]):
    added = last_json(run("models", "add", "mine", "own/two", "--home", home, "--json"))
    assert (added["base"], added["channels"], added["codebooks"], added["state"]) == ("own/two", 2, 8, "here")
    assert added["sample_rate_hz"] == 16_000
    assert added["parameters"] == sum(p.numel() for p in make_hf(1, channels=2).decoder.parameters())
    sung = last_json(
        run(
            "generate", "--version", "mine", "--prompt", "calm piano", "--seconds", "0.5", "--per-prompt", "1",
            "--device", "cpu", "--home", home, "--json",
        )
    )  # fmt: skip
    assert soundfile.info(sung["clips"][0]["file"]).channels == 2
    with sqlite3.connect(home / "attune.db") as connection:  # what was not said is as a MusicGen is listened to
        asked = connection.execute(
            "select temperature, top_k, guidance, clip_seconds from generation_config g join clip c on "
            "c.generation_config_id = g.id"
        ).fetchall()
    assert asked == [(1.0, 250, 3.0, 0.5)]
    listed = run("models", "list", "--home", home)
    assert "mine" in listed and "own/two" in listed and "here" in listed


def test_a_melody_checkpoint_is_added_for_its_text_alone_sings_and_says_so(home: Path, run: Callable[..., str]):
    said = run("models", "add", "tune", "own/melody", "--home", home)
    assert "text only: nothing is conditioned on a melody" in said and "Next: attune generate" in said
    assert last_json(run("models", "add", "tune", "own/melody", "--home", home, "--json"))["text_only"] is True
    assert "text only" not in run("models", "add", "plain", "own/one", "--home", home)
    listed = run("models", "list", "--home", home).splitlines()
    assert [("text only" in line) for line in listed if "own/" in line] == ["own/melody" in line for line in listed
                                                                            if "own/" in line]  # fmt: skip
    sung = last_json(
        run(
            "generate", "--version", "tune", "--prompt", "calm piano", "--seconds", "0.5", "--per-prompt", "2",
            "--device", "cpu", "--home", home, "--json",
        )
    )  # fmt: skip
    assert len(sung["clips"]) == 2


def test_a_model_that_moved_is_found_again_and_other_weights_are_refused(
    home: Path, models: Path, tmp_path: Path, run: Callable[..., str], refused: Callable[..., str]
):
    place = Path(shutil.copytree(models / "own" / "one", tmp_path / "before"))
    assert last_json(run("models", "add", "mine", place, "--home", home, "--json"))["licence"] == "cc-by-4.0"
    place.rename(tmp_path / "after")
    assert "missing: put it into" in run("models", "list", "--home", home)
    assert "no such folder" in refused("generate", "--version", "mine", "--prompt", "x", "--home", home)
    moved = last_json(run("models", "add", "mine", tmp_path / "after", "--home", home, "--json"))
    assert moved["base"] == str(tmp_path / "after")
    with sqlite3.connect(home / "attune.db") as connection:
        assert connection.execute("select base from version").fetchall() == [(str(tmp_path / "after"),)]
        moves = connection.execute("select subject from audit_log where action = 'base.move'").fetchall()
    assert moves == [("mine",)]
    assert "other weights" in refused("models", "add", "mine", "own/two", "--home", home)


def test_what_is_no_usable_model_is_refused_in_a_sentence(
    home: Path, models: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def add(source: str | Path, *more: str) -> str:
        return refused("models", "add", "mine", source, *more, "--home", home)

    assert str(models / "facebook" / "musicgen-small") in add("facebook/musicgen-small")
    broken = Path(shutil.copytree(models / "own" / "one", tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    state["decoder.lm_heads.0.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    assert "decoder.lm_heads.0.weight holds values that are not numbers" in add(broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "musicgen_melody"}))
    assert "lack 2 tensors, first audio_enc_to_dec_proj.bias" in add(broken)
    assert refused("models", "add", "../x", "own/one", "--home", home)
    with sqlite3.connect(home / "attune.db") as connection:
        assert connection.execute("select count(*) from version").fetchone() == (0,)
    monkeypatch.setenv("ATTUNE_DEVICE", "cpu")  # so that what --device leaves behind is taken back
    assert "'gpu'" in add("own/one", "--device", "gpu")


@pytest.mark.skipif(importlib.util.find_spec("audiocraft") is None, reason="audiocraft is not installed")
def test_a_version_goes_to_audiocraft_and_comes_back_with_its_checksum(
    home: Path, tmp_path: Path, run: Callable[..., str], refused: Callable[..., str]
):
    sha256 = last_json(run("models", "add", "mine", "own/one", "--home", home, "--json"))["base_sha256"]
    run("models", "export-audiocraft", "mine", tmp_path / "native", "--home", home)
    assert "version mine, licence cc-by-4.0" in (tmp_path / "native" / "README.md").read_text()
    assert "models add NAME" in run("models", "import-audiocraft", tmp_path / "native", tmp_path / "back")
    again = last_json(run("models", "add", "back", tmp_path / "back", "--home", home, "--json"))
    assert again["base_sha256"] == sha256
    assert "new or empty" in refused("models", "export-audiocraft", "mine", tmp_path / "native", "--home", home)
    assert "no such file" in refused("models", "import-audiocraft", tmp_path / "no", tmp_path / "out")


def test_processes_that_sing_together_share_the_clips_out(
    home: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    from alignment.circle.generate import generate_clips
    from alignment.cli.common import open_workspace
    from alignment.db.prompts import add_prompts
    from alignment.domain import GenerationConfig, Split
    from alignment.training import processes, ranks

    run("models", "add", "mine", "own/one", "--home", home)
    ws, generation = open_workspace(home, None), GenerationConfig(clip_seconds=0.5)
    with ws.database.session() as s:
        prompts = add_prompts(s, [(text, "typed", Split.TEST, {}) for text in ("calm piano", "dark organ")])
    sung = []
    monkeypatch.setattr(ranks, "process_count", lambda: 2)
    monkeypatch.setattr("alignment.music.sampler.sample", _counting(sung))
    # The second process comes first, alone; what is left is found to be the first one's.
    for rank in (1, 0):
        monkeypatch.setattr(ranks, "process_number", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "wait_for_all", lambda: None)
        if rank == 1:
            with pytest.raises(KeyError):  # the other's clips are not there: nobody waited
                generate_clips(ws, "mine", prompts, generation, per_prompt=3, seed=4)
        else:
            clips = generate_clips(ws, "mine", prompts, generation, per_prompt=3, seed=4)
    assert [len(part) for part in sung] == [3, 3] and not set(sung[0]) & set(sung[1])
    monkeypatch.undo()
    monkeypatch.setenv("ATTUNE_DEVICE", "cpu")
    assert clips == generate_clips(ws, "mine", prompts, generation, per_prompt=3, seed=4)


def _counting(sung: list[list[int]]) -> Callable[..., Any]:
    from alignment.music.sampler import sample

    def counted(*arguments: Any, **options: Any) -> Any:
        sung.append(list(options["seeds"]))
        return sample(*arguments, **options)

    return counted
