"""Loading a model: what is one, what is not, and never anything pickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.errors import ModelError
from alignment.music import checkpoint
from alignment.music.model import MusicModel
from alignment.music.text import encode_prompts
from tests.music_support import make_hf, make_tiny_music, make_tokenizer, save_tiny_music


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_music(tmp_path_factory.mktemp("model") / "tiny-music")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def refusal(source: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        MusicModel.load(source)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_saved_model_loads_as_itself(saved: Path):
    model, original = MusicModel.load(saved), make_tiny_music()
    assert model.base_sha256 == original.base_sha256
    codes = torch.randint(64, (1, 4, 9))
    ours = model.logprobs(codes, encode_prompts(model, ["calm piano"]))
    assert torch.equal(ours, original.logprobs(codes, encode_prompts(original, ["calm piano"])))
    assert (model.sample_rate_hz, model.frame_rate_hz, model.codebooks, model.codebook_size) == (16_000, 50.0, 4, 64)
    assert model.source == "tiny-music"
    assert model.frames(4.0) == 200 and model.frames(0.5) == 25


def test_half_precision_keeps_the_bases_checksum_and_the_codec_in_float32(saved: Path):
    model = MusicModel.load(saved, dtype=torch.bfloat16)
    assert model.base_sha256 == make_tiny_music().base_sha256
    assert model.dtype == torch.bfloat16
    assert next(model.hf.audio_encoder.parameters()).dtype == torch.float32
    text = encode_prompts(model, ["calm piano"])
    logprobs = model.logprobs(torch.randint(64, (1, 4, 9)), text)
    assert logprobs.dtype == torch.float32 and torch.isfinite(logprobs).all()


def test_the_embedded_models_absence_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    assert "attune-tiny" in refusal("tiny")


def test_tiny_means_the_embedded_folder(monkeypatch: pytest.MonkeyPatch, saved: Path):
    monkeypatch.setattr(checkpoint, "TINY", saved)
    assert MusicModel.load().source == "tiny"


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal("nowhere")


def test_a_file_is_refused(copy: Path):
    assert "is a file" in refusal(copy / "config.json")


def test_an_empty_folder_is_refused(tmp_path: Path):
    assert "no config.json" in refusal(tmp_path)


def test_a_config_that_is_not_json_is_refused(copy: Path):
    (copy / "config.json").write_text("{ not json")
    assert "cannot be read" in refusal(copy)


@pytest.mark.parametrize("kind", ["t5", "musicgen_style", None])
def test_another_kind_of_model_is_refused_by_name(copy: Path, kind: str | None):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    message = refusal(copy)
    assert "not a MusicGen" in message and (kind or "no known type") in message


def test_a_musicgen_that_calls_itself_a_melody_checkpoint_is_refused_and_the_other_way_round(
    copy: Path, tmp_path: Path
):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "musicgen_melody"}))
    assert "lack 2 tensors, first audio_enc_to_dec_proj.bias" in refusal(copy)
    other = save_tiny_music(tmp_path / "melody", melody_frames=7)
    assert MusicModel.load(other).melody_frames == 7
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"chroma_length": 0}))
    assert "0 frames of 12 pitch classes" in refusal(other)
    (other / "config.json").write_text(json.dumps(config | {"model_type": "musicgen"}))
    assert "encoder_attn" in refusal(other)


def test_missing_weights_are_named(copy: Path):
    (copy / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "state_dict.pt"])
def test_a_pickled_weight_file_is_refused_without_being_opened(copy: Path, name: str):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(copy / "opened"), "w")  # type: ignore[return-value]

    (copy / "model.safetensors").unlink()
    torch.save({"weights": Trap()}, copy / name)
    message = refusal(copy)
    assert "pickled" in message and name in message
    assert not (copy / "opened").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_corrupt_weight_file_is_refused(copy: Path, damage: str):
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"\xff" * 5000, "empty": b""}[damage])
    assert "damaged" in refusal(copy)


def test_weights_that_lack_a_tensor_are_refused_rather_than_drawn_at_random(copy: Path):
    state = load_file(copy / "model.safetensors")
    del state["decoder.model.decoder.layers.0.fc1.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    assert "layers.0.fc1.weight" in refusal(copy)


def test_weights_of_another_shape_are_refused(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["ffn_dim"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    assert "cannot be loaded" in refusal(copy)


def test_a_missing_tokenizer_is_refused(copy: Path):
    for path in copy.glob("*token*"):
        path.unlink()
    assert "no tokenizer" in refusal(copy)


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def offline(*args: object, allow_patterns: list[str], **kwargs: object) -> None:
        assert not [name for name in ("model.bin", "state_dict.pt") if any(map(Path(name).match, allow_patterns))]
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("ATTUNE_MODELS", "somewhere")
    message = refusal("someone/musicgen-fine-tune")
    assert "couldn't connect to the hub)" in message and "into somewhere/someone/musicgen-fine-tune" in message


def test_a_folder_is_read_without_the_network(monkeypatch: pytest.MonkeyPatch, saved: Path):
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    MusicModel.load(saved)


def test_only_a_musicgen_whose_parts_fit_may_be_wrapped():
    hf = make_hf()
    with pytest.raises(ModelError, match="is a MusicgenForCausalLM"):
        MusicModel(hf.decoder, make_tokenizer())
    hf.config.decoder.audio_channels = 3
    with pytest.raises(ModelError, match="3 channels with 4 codebooks"):
        MusicModel(hf, make_tokenizer())
    hf = make_hf()
    hf.config.audio_encoder.normalize = True
    with pytest.raises(ModelError, match="without a scale"):
        MusicModel(hf, make_tokenizer())
    hf = make_hf()
    hf.config.decoder.num_codebooks = 8
    with pytest.raises(ModelError, match="no bandwidth"):
        MusicModel(hf, make_tokenizer())
