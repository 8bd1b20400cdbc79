"""Exports: what leaves the house is whole, says what it is, and works where Attune is not."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from circle_support import attune, leftovers

from alignment.circle.workspace import Workspace
from alignment.db import clips, prompts, versions
from alignment.domain import ClipSource, GenerationConfig, RaterKind, Split
from alignment.errors import DataError, ModelError, StoreError
from alignment.evaluation.version_card import CardFacts, GateResult, MeasuredFigure, version_card
from alignment.music.codec import decode
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.versions import export_adapter, export_audio, export_merged
from rating_app.flac import alone, twins
from tests.music_support import make_hf
from tests.version_support import LISTENING, Registry, decide, freeze, open_registry

PROMPTS = ["calm piano", "fast dark organ with drums"]
FRAMES = 20

# Plain transformers and peft. The codec is listened to, since generate() returns waveforms only.
WITHOUT_ATTUNE = """
import json, sys
sys.modules["alignment"] = None
try:
    import alignment
except ImportError:
    pass
else:
    raise SystemExit("Attune is here")
import torch
from peft import PeftModel
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

base, adapter, merged, prompts, frames = json.loads(sys.argv[1])

def sung(model, tokenizer, guidance):
    caught, codec = [], model.audio_encoder
    original = codec.decode
    codec.decode = lambda codes, *a, **k: (caught.append(codes), original(codes, *a, **k))[1]
    audio = model.generate(
        **tokenizer(prompts, return_tensors="pt", padding=True), do_sample=False, guidance_scale=guidance,
        max_new_tokens=frames + 3,
    )
    del codec.decode
    return {"codes": caught[0][0].tolist(), "audio": audio[:, 0].tolist()}

out = {}
plain = MusicgenForConditionalGeneration.from_pretrained(merged)
words = AutoTokenizer.from_pretrained(merged)
out["merged"] = [sung(plain, words, guidance) for guidance in (1.0, 3.0)]
out["config"] = plain.generation_config.to_diff_dict()
below = MusicgenForConditionalGeneration.from_pretrained(base)
alone = sung(below, AutoTokenizer.from_pretrained(base), 1.0)
peft = PeftModel.from_pretrained(below, adapter)
out["adapter"] = [sung(peft.base_model.model, words, guidance) for guidance in (1.0, 3.0)]
out["base"] = alone
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A base, version v1 of simulated votes, and four clips: three that v1 sang and one from elsewhere; read only."""
    folder = tmp_path_factory.mktemp("exports")
    registry = open_registry(f"sqlite:///{folder / 'attune.db'}", folder, kind=RaterKind.SIMULATED)
    taken = freeze(registry.database, kind=RaterKind.SIMULATED)
    registry.register("v1", registry.adapter(folder / "a1", seed=1), simulated=True, run={"snapshot_id": taken})
    decide(registry.database, "v1", "base", simulated=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 1600))
    stored = [registry.store.put_audio(wave, 16_000) for wave in noise]
    with registry.database.session() as s:
        asked = prompts.add_prompts(s, [(f"a tune, {i}", "test", Split.TEST, {}) for i in range(4)])
        versions.add_version(s, name="low-pass", base="anchor", base_sha256="0" * 64)
        clips.add_clips(s, [
            clips.NewClip(
                prompt.id, "v1", LISTENING, 40 + i, sha256, None, facts,
                source=ClipSource.EXTERNAL if i == 3 else ClipSource.GENERATED,
            )
            for i, (prompt, (sha256, facts)) in enumerate(zip(asked, stored, strict=True))
        ])  # fmt: skip
    return registry


def test_merged_and_bare_exports_sing_the_same_greedy_codes_without_attune(made: Registry, tmp_path: Path):
    merged = export_merged(made.store, made.database, "v1", tmp_path / "merged")
    adapter = export_adapter(made.store, made.database, "v1", tmp_path / "adapter")
    request = json.dumps([str(made.source), str(adapter), str(merged), PROMPTS, FRAMES])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ATTUNE, request], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with made.database.session(write=False) as s:
        version = versions.get_version(s, "v1")
    policy = Workspace(made.database, made.store, "secret").policy(version)
    seconds = FRAMES / policy.frame_rate_hz
    for i, guidance in enumerate((1.0, 3.0)):
        greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=seconds)
        ours = sample(policy, PROMPTS, generation=greedy, seeds=[0, 0]).codes
        audio = decode(policy, ours)
        for form in ("merged", "adapter"):
            assert found[form][i]["codes"] == ours.tolist(), (form, guidance)
            assert np.abs(np.array(found[form][i]["audio"])[:, : audio.shape[1]] - audio).max() < 1e-6
        if guidance == 1.0:
            assert found["base"]["codes"] != ours.tolist(), "the adapter changes what is sung"
    # The merged folder samples as people hear the version: half a second is 25 frames and 3 steps of delay.
    told = {k: found["config"][k] for k in ("do_sample", "temperature", "top_k", "guidance_scale", "max_new_tokens")}
    assert told == {"do_sample": True, "temperature": 0.9, "top_k": 20, "guidance_scale": 3.0, "max_new_tokens": 28}


def test_an_exported_adapter_loads_into_attune_again_and_a_base_is_exported_whole(made: Registry, tmp_path: Path):
    again = MusicModel.load(made.source)
    again.load_adapter(export_adapter(made.store, made.database, "v1", tmp_path / "adapter"))
    assert again.checksum() == made.base.base_sha256
    whole = export_merged(made.store, made.database, "base", tmp_path / "deep" / "base")
    assert {path.stat().st_mode & 0o777 for path in whole.iterdir()} == {0o644}, "others may read it"
    assert MusicModel.load(whole).base_sha256 == made.base.base_sha256
    with pytest.raises(DataError, match="base has no adapter, it is the base itself; export it with --merged"):
        export_adapter(made.store, made.database, "base", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists() and leftovers(tmp_path) == []


def test_every_clip_that_leaves_says_what_it_is_and_sounds_as_it_was_stored(made: Registry, tmp_path: Path):
    for form in ("flac", "wav"):
        folder = export_audio(made.store, made.database, "v1", tmp_path / form, audio_format=form)
        with (folder / "clips.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        # The clip from elsewhere is not this version's to sign.
        assert [row["seed"] for row in rows] == ["40", "41", "42"]
        assert sorted(p.name for p in folder.iterdir()) == sorted(
            ["README.md", "clips.csv", *(row["file"] for row in rows)]
        )
        for row in rows:
            with soundfile.SoundFile(folder / row["file"]) as file:
                assert file.format == form.upper() and file.subtype == "PCM_16" and file.samplerate == 16_000
                assert file.comment == "AI-generated, version v1, trained by SIMULATED listeners"
                assert file.title == row["prompt"] and file.copyright == "CC-BY-NC-4.0"
                samples = file.read(dtype="float32")
            assert np.array_equal(samples, made.store.get_audio(row["audio_sha256"])[0])
            assert row["tag"] == "AI-generated, version v1" and row["guidance"] == "3.0"
        card = (folder / "README.md").read_text()
        assert '3 clips of a text-to-music model. Every file carries the tag "AI-generated, version v1".' in card


def test_what_raters_hear_never_carries_a_tag(made: Registry, tmp_path: Path):
    folder = export_audio(made.store, made.database, "v1", tmp_path / "audio")
    tagged = sorted(folder.glob("*.flac"))
    marks = (b"AI-generated", b"v1", b"a tune", b"CC-BY-NC", b"comment", b"COMMENT")
    assert all(mark in tagged[0].read_bytes() for mark in marks[:4])
    with made.database.session(write=False) as s:
        sung = clips.list_clips(s, version="v1")
    heard = [made.store.open_flac(clip.audio_sha256) for clip in sung]
    heard += [made.store.rendition(clip.audio_sha256) for clip in sung]
    # Even a tagged file that came back would be bare when it is sent.
    heard += [*twins(tagged[0].read_bytes(), tagged[1].read_bytes()), alone(tagged[2].read_bytes())]
    for flac in heard:
        assert not any(mark in flac for mark in marks)


@pytest.mark.parametrize("kind", ["adapter", "merged", "audio"])
def test_an_export_refuses_a_folder_that_holds_anything(made: Registry, tmp_path: Path, kind: str):
    export = {"adapter": export_adapter, "merged": export_merged, "audio": export_audio}[kind]
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    for place in (full, full / "mine.txt"):
        with pytest.raises(StoreError, match="is not an empty folder; give a new one, nothing was written"):
            export(made.store, made.database, "v1", place)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine.txt"]
    assert (full / "mine.txt").read_text() == "keep me"
    (tmp_path / "empty").mkdir()
    assert (export(made.store, made.database, "v1", tmp_path / "empty") / "README.md").is_file()


def test_a_version_whose_files_are_gone_or_altered_is_not_exported(made: Registry, tmp_path: Path):
    from alignment.clips import ClipStore

    store = ClipStore(shutil.copytree(made.store.root, tmp_path / "store"))
    with made.database.session(write=False) as s:
        version = versions.get_version(s, "v1")
    weights = store.path_of(version.adapter_uri) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for export in (export_adapter, export_merged):
        with pytest.raises(StoreError, match="was altered after it was stored"):
            export(store, made.database, "v1", tmp_path / "out")
    weights.unlink()
    for export in (export_adapter, export_merged):
        with pytest.raises(StoreError, match="is missing"):
            export(store, made.database, "v1", tmp_path / "out")
    with pytest.raises(StoreError, match="is missing"):
        shutil.rmtree(tmp_path / "store" / "audio")
        export_audio(store, made.database, "v1", tmp_path / "out")
    with pytest.raises(DataError, match="is audio and no model .* nothing to export"):
        export_merged(store, made.database, "low-pass", tmp_path / "out")
    with pytest.raises(DataError, match="base has sung nothing yet; run attune generate --version base"):
        export_audio(store, made.database, "base", tmp_path / "out")
    with pytest.raises(DataError, match="cannot be exported as 'mp3'; choose flac or wav"):
        export_audio(store, made.database, "v1", tmp_path / "out", audio_format="mp3")
    assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []


def test_a_base_that_was_replaced_is_not_merged_into(tmp_path: Path):
    registry = open_registry(f"sqlite:///{tmp_path / 'attune.db'}", tmp_path)
    registry.register("v1", registry.adapter(tmp_path / "a1", seed=1))
    make_hf(7).save_pretrained(registry.source)
    with pytest.raises(ModelError, match="Version v1 was registered on base .* restore the old files"):
        export_merged(registry.store, registry.database, "v1", tmp_path / "out")
    shutil.rmtree(registry.source)
    with pytest.raises(ModelError, match="no such folder"):
        export_merged(registry.store, registry.database, "v1", tmp_path / "out")
    assert not (tmp_path / "out").exists() and leftovers(tmp_path) == []
    registry.database.close()


def test_a_full_disk_leaves_nothing_behind(made: Registry, tmp_path: Path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\); free space"):
        export_adapter(made.store, made.database, "v1", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_each_form_and_says_how_large_it_is(made: Registry, tmp_path: Path, capsys):
    home = Path(made.database.engine.url.database).parent
    done = attune(capsys, "versions", "export", "v1", tmp_path / "bare", "--home", home, "--json").json
    assert done["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"]
    assert done["bytes"] == sum(path.stat().st_size for path in (tmp_path / "bare").iterdir())
    done = attune(capsys, "versions", "export", "v1", tmp_path / "wav", "--audio", "--format", "wav", "--home", home)
    assert done.code == 0 and "5 files" in done.out
    refused = attune(capsys, "versions", "export", "v1", tmp_path / "x", "--audio", "--merged", "--home", home)
    assert refused.code == 1 and "are two exports; run the command once for each" in refused.err
    refused = attune(capsys, "versions", "export", "v1", tmp_path / "bare", "--merged", "--home", home)
    assert refused.code == 1 and "is not an empty folder" in refused.err and "Traceback" not in refused.err
    assert done.json if False else True


# The card -------------------------------------------------------------------------------------------------


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_tells_data_votes_licence_results_and_that_programs_voted(made: Registry, tmp_path: Path):
    card = (export_adapter(made.store, made.database, "v1", tmp_path / "adapter") / "README.md").read_text()
    head = head_of(card)
    assert head["license"] == "cc-by-nc-4.0" and head["library_name"] == "peft"
    assert head["pipeline_tag"] == "text-to-audio" and head["base_model"] == "model"
    assert {"ai-generated", "simulated-listeners"} <= set(head["tags"])
    assert str(made.source) not in card, "where the base lies on this machine is nobody's business"
    assert "**SIMULATED.** Programs voted, not people" in card and "AI-generated music" in card
    assert 'PeftModel.from_pretrained(model, "THIS FOLDER")' in card
    assert "`temperature=0.9`, `top_k=20`, `guidance_scale=3`, 0.5 seconds a clip" in card
    told = "12 SIMULATED votes (8 train, 4 test), sha256 555555555555, licence CC0-1.0"
    assert f"    - snapshot votes-1: {told}\n" in card
    assert "      - study heard: 12 votes of 3 SIMULATED raters on 4 prompts, 2026-03-01 to 2026-03-01\n" in card
    assert "over base (SIMULATED listeners): promoted, win rate 70.0% [60.0%, 80.0%] in 90 bets." in card
    assert "This version: CC-BY-NC-4.0.\nVotes of snapshot votes-1: CC0-1.0." in card
    assert f"torch {torch.__version__.split('+')[0]}" in card


def test_the_card_can_be_read_without_exporting(made: Registry, tmp_path: Path, capsys):
    home = Path(made.database.engine.url.database).parent
    exported = export_merged(made.store, made.database, "v1", tmp_path / "merged") / "README.md"
    assert attune(capsys, "versions", "show", "v1", "--card", "--home", home).out == exported.read_text()
    assert attune(capsys, "versions", "show", "v1", "--card", "--home", home, "--json").json["card"].startswith("---")


def test_a_card_of_people_has_no_mark_and_shows_each_figure_with_its_interval_and_n():
    lineage = {
        "kind": "version", "name": "v3", "status": "champion", "simulated": False, "base": "tiny",
        "base_sha256": "a" * 64, "adapter_sha256": "b" * 64, "commit": None, "licence": None, "listening": None,
    }  # fmt: skip
    figures = [
        MeasuredFigure("clap_score", "laion/clap", 0.3127, 0.30, 0.325, 1200),
        MeasuredFigure("duplicates", None, 0.0, None, None, 64),
    ]
    card = version_card(
        CardFacts("v3", "merged", lineage, figures, [GateResult("v2", "rejected", "2026-11-21", False)])
    )
    assert "imulated" not in card and "SIMULATED" not in card
    assert head_of(card)["license"] == "other" and "not stated; ask who trained it" in card
    assert "| clap_score | 0.313 | 0.300 to 0.325 | 1,200 | laion/clap |" in card
    assert "| duplicates | 0 | not recorded | 64 | – |" in card
    assert "The gate, 2026-11-21, over v2: rejected." in card
    assert "Nothing was measured" in version_card(CardFacts("v3", "merged", lineage))
