"""Checkpoints of audiocraft's own making, imported and exported: the same logits, the same greedy audio."""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music import checkpoint
from alignment.music.model import MusicModel

if importlib.util.find_spec("audiocraft") is None:
    pytest.skip("audiocraft is not installed", allow_module_level=True)

from alignment.music.audiocraft import compute_logits
from alignment.music.audiocraft_convert import export_checkpoint, import_checkpoint
from alignment.music.audiocraft_files import read_native
from alignment.music.audiocraft_import import import_audiocraft
from alignment.music.codec import encode, render
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts
from tests import audiocraft_support as native
from tests.music_support import make_hf, randomise_adapter

PROMPT, SECONDS = "a calm slow piano tune with strings", 0.4
FRAMES = 20


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.make_text_encoder(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def make(text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """stereo or not -> (language model, codec, folder of their files, the same imported), made once."""

    @lru_cache
    def made(stereo: bool) -> Any:
        folder, codec = tmp_path_factory.mktemp("native"), native.codec_config()
        with native.known_to_audiocraft(str(text_encoder)):
            lm, compression = native.build(native.lm_config(text_encoder, stereo=stereo), codec)
        files = native.save(folder / "native", lm, compression, codec)
        figures = import_checkpoint(files, folder / "imported")
        assert figures["codebooks"] == (8 if stereo else 4) and figures["sample_rate_hz"] == 32_000
        return lm, compression, files, MusicModel.load(folder / "imported")

    return made


@pytest.fixture(params=[False, True], ids=["mono", "stereo"])
def built(request: pytest.FixtureRequest, make: Any) -> Any:
    return make(request.param)


@pytest.fixture
def mono(make: Any) -> Any:
    return make(False)


def random_codes(model: MusicModel, frames: int = FRAMES) -> torch.Tensor:
    return torch.randint(64, (1, model.codebooks, frames), generator=torch.Generator().manual_seed(3))


def test_an_imported_checkpoint_has_audiocrafts_logits(built: Any):
    lm, _, _, model = built
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes(
        text={"description": PROMPT}
    )
    codes = random_codes(model)
    with torch.no_grad():
        theirs = lm.compute_predictions(codes, [attributes], keep_only_valid_steps=False).logits
        ours = model.logits(codes, encode_prompts(model, [PROMPT]))
    assert theirs.std() > 0.5  # agreement means something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_imported_checkpoint_sings_audiocrafts_greedy_audio(built: Any, guidance: float):
    lm, compression, _, model = built
    audio, codes = native.generate(lm, compression, PROMPT, guidance=guidance, seconds=SECONDS)
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=SECONDS)
    ours = sample(model, [PROMPT], generation=greedy, seeds=[0])
    assert torch.equal(ours.codes, codes) and len(codes.unique()) > 5
    heard = render(model, ours.codes).reshape(1, -1, model.channels).transpose(0, 2, 1)
    assert audio.std() > 1e-3
    np.testing.assert_allclose(heard, audio.numpy(), atol=1e-5)  # a third of a step of 16 bits


def test_an_imported_codec_encodes_as_audiocrafts(built: Any):
    _, compression, _, model = built
    audio = 0.5 * np.random.default_rng(0).normal(size=(2, 640 * 12)).astype(np.float32)
    theirs, _ = compression.encode(torch.from_numpy(audio)[:, None])
    assert torch.equal(encode(model, audio)[:, :: model.channels], theirs)


def test_every_weight_comes_back_from_an_import_and_an_export(built: Any, tmp_path: Path):
    lm, compression, _, model = built
    export_checkpoint(model, tmp_path / "back")
    for name, module in (("state_dict.bin", lm), ("compression_state_dict.bin", compression)):
        weights, _ = read_native(tmp_path / "back" / name)
        theirs = module.state_dict()
        assert weights.keys() == theirs.keys()
        assert all(torch.equal(weights[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("channels", [1, 2])
def test_audiocraft_loads_an_export_with_its_adapter_merged_and_sings_the_same(
    channels: int, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoTokenizer, T5EncoderModel

    hf = make_hf(text_width=native.TEXT_WIDTH, channels=channels)
    hf.text_encoder = T5EncoderModel.from_pretrained(text_encoder)
    hf.config.text_encoder = hf.text_encoder.config
    model = MusicModel(hf, AutoTokenizer.from_pretrained(text_encoder), source="ours")
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model, scale=0.1)
    before = model.checksum()
    assert export_checkpoint(model, tmp_path / "native")["merged"]
    assert model.has_adapter and model.checksum() == before
    loaders = import_audiocraft("audiocraft.models.loaders")
    monkeypatch.chdir(tmp_path / "native")  # its own text encoder lies beside
    with native.known_to_audiocraft("text_encoder"):
        lm = loaders.load_lm_model(tmp_path / "native")
    compression = loaders.load_compression_model(tmp_path / "native")
    codes, text = random_codes(model), encode_prompts(model, [PROMPT])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(codes, text), compute_logits(lm, codes, text), atol=1e-4, rtol=0)
        with model.reference():
            base = model.logits(codes, text)
    assert (base - model.logits(codes, text)).abs().max() > 0.1  # the adapter matters
    audio, theirs = native.generate(lm, compression, PROMPT, guidance=3.0, seconds=SECONDS)
    greedy = GenerationConfig(top_k=1, guidance=3.0, clip_seconds=SECONDS)
    ours = sample(model, [PROMPT], generation=greedy, seeds=[0])
    assert torch.equal(ours.codes, theirs)
    heard = render(model, ours.codes).reshape(1, -1, channels).transpose(0, 2, 1)
    np.testing.assert_allclose(heard, audio.numpy(), atol=1e-5)  # a third of a step of 16 bits


def test_a_runs_own_pickled_config_is_read_and_half_precision_is_kept(mono: Any, text_encoder: Path, tmp_path: Path):
    lm, compression, _, model = mono
    half = {name: tensor.half() for name, tensor in lm.state_dict().items()}
    files = native.save(tmp_path / "run", lm, compression, native.codec_config(), pickled=True)
    held = {"best_state": {"model": half}, "xp.cfg": lm.cfg, "fsdp_best_state": {}}
    torch.save(held, files / "state_dict.bin")
    import_checkpoint(files, tmp_path / "imported", licence="cc-by-nc-4.0")
    again = MusicModel.load(tmp_path / "imported")
    assert again.dtype == torch.float32
    expected = {name: tensor.half().float() for name, tensor in model.hf.decoder.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.hf.decoder.state_dict().items())
    stored = load_file(tmp_path / "imported" / "model.safetensors")
    assert stored["decoder.lm_heads.0.weight"].dtype == torch.float16
    assert "license: cc-by-nc-4.0" in (tmp_path / "imported" / "README.md").read_text()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def refusal(source: Path, folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        import_checkpoint(source, folder, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert not list(folder.parent.glob(f"*{folder.name}*")), "something half-written stayed"
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_anything_else_pickled_is_refused_by_name_and_not_run(mono: Any, tmp_path: Path, zipped: bool):
    lm, _, files, _ = mono
    held = {"best_state": lm.state_dict(), "xp.cfg": Trap(tmp_path / "ran")}
    torch.save(held, tmp_path / "state_dict.bin", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "state_dict.bin", tmp_path / "out")
    assert "posix.mkdir" in message and "could run code" in message
    assert not (tmp_path / "ran").exists()


def changed(mono: Any, folder: Path, change: Any, name: str = "state_dict.bin") -> Path:
    """A copy of the native files, one of them after ``change(package)``."""
    folder.mkdir()
    for file in mono[2].iterdir():
        package = torch.load(file, weights_only=True)
        if file.name == name:
            change(package)
        torch.save(package, folder / file.name)
    return folder


FAULTS = {
    "unknown key": (lambda p: p["best_state"].update(bias=torch.zeros(1)), "bias, which no MusicGen"),
    "melody": (
        lambda p: p["best_state"].update({"condition_provider.conditioners.self_wav.output_proj.bias": torch.zeros(1)}),
        "audio_enc_to_dec_proj.bias, for which its own config has no place",
    ),
    "lost key": (lambda p: p["best_state"].pop("emb.0.weight"), "lacks 1 tensors, first decoder.model.decoder.embed"),
    "wrong shape": (
        lambda p: p["best_state"].update({"out_norm.weight": torch.zeros(33)}), r"is (33,), its config says (32,)"
    ),
    "not a number": (lambda p: p["best_state"]["out_norm.weight"].fill_(float("nan")), "not numbers"),
    "no tensor": (lambda p: p["best_state"].update(version=3), "version is no tensor"),
    "no config": (lambda p: p.pop("xp.cfg"), "has best_state and xp.cfg"),
    "bad yaml": (lambda p: p.update({"xp.cfg": "a: [1\nb"}), "not valid YAML"),
    "resolver": (
        lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("dim: 32\n", "dim: ${oc.env:HOME}\n")}), "plain reference"
    ),
    "bias": (lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("bias_ff: false", "bias_ff: true")}), "bias_ff is True"),
    "unknown setting": (
        lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("kv_repeat: 1", "kv_repeat: 1\n  moe: 4")}), "has moe"
    ),
    "pattern": (
        lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("modeling: delay", "modeling: parallel")}), "needs delay"
    ),
    "text": (
        lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("  description:", "  melody:")}), "conditioned on melody"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_language_model_that_does_not_fit_is_refused_in_a_sentence(mono: Any, tmp_path: Path, fault: str):
    change, words = FAULTS[fault]
    assert words in refusal(changed(mono, tmp_path / "native", change), tmp_path / "out")


def test_a_codec_that_does_not_fit_is_refused_in_a_sentence(mono: Any, tmp_path: Path):
    faults = [
        (lambda p: p["best_state"].update({"encoder.model.0.norm.weight": torch.zeros(4)}), "no EnCodec of a MusicGen"),
        (lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("norm: weight_norm", "norm: none")}), "seanet.norm"),
        (lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("lstm: 2", "lstm: 0")}), "seanet.lstm is 0"),
        (lambda p: p.update({"xp.cfg": p["xp.cfg"].replace("bins: 64", "bins: 32")}), "codes a book"),
    ]
    for number, (change, words) in enumerate(faults):
        folder = changed(mono, tmp_path / f"native{number}", change, "compression_state_dict.bin")
        assert words in refusal(folder, tmp_path / "out")


def test_a_codec_by_name_and_a_text_encoder_elsewhere_are_found_where_the_message_says(
    mono: Any, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATTUNE_MODELS", str(tmp_path / "models"))
    files = changed(mono, tmp_path / "native", lambda p: p.update(
        {"xp.cfg": p["xp.cfg"].replace(str(text_encoder), "t5-base")}
    ))  # fmt: skip
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, files / "compression_state_dict.bin")
    message = refusal(files, tmp_path / "out")
    codec = tmp_path / "models" / "facebook" / "encodec_32khz"
    assert str(codec) in message and "--codec" in message and "HF_HUB_OFFLINE" in message
    mono[3].hf.audio_encoder.save_pretrained(codec)
    message = refusal(files, tmp_path / "out")
    assert str(tmp_path / "models" / "t5-base") in message and "--text-encoder" in message
    import_checkpoint(files, tmp_path / "out", text_encoder=text_encoder)
    assert MusicModel.load(tmp_path / "out").base_sha256 == mono[3].base_sha256
    with pytest.raises(ModelError, match="new or empty"):
        import_checkpoint(files, tmp_path / "out", text_encoder=text_encoder)


def test_a_model_that_is_not_there_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTUNE_MODELS", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        MusicModel.load("facebook/musicgen-small")
    assert str(tmp_path / "facebook" / "musicgen-small") in str(caught.value)
    assert checkpoint.models_folder() == tmp_path


def test_attune_tiny_sings_the_same_in_audiocraft_loaded_as_its_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = MusicModel.load("tiny")
    export_checkpoint(model, tmp_path / "native", note="It is attune-tiny.")
    card = (tmp_path / "native" / "README.md").read_text()
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    for name in ("MODELS", "MODELS_DIMS"):  # taken back afterwards
        monkeypatch.setattr(conditioners.T5Conditioner, name, getattr(conditioners.T5Conditioner, name).copy())
    monkeypatch.setattr(conditioners, "T5Tokenizer", conditioners.T5Tokenizer)
    monkeypatch.chdir(tmp_path / "native")
    exec(card.partition("run `")[2].partition("`")[0])
    loaders = import_audiocraft("audiocraft.models.loaders")
    lm, compression = loaders.load_lm_model(tmp_path / "native"), loaders.load_compression_model(tmp_path / "native")
    prompt = "a slow piano melody in major"
    audio, codes = native.generate(lm, compression, prompt, guidance=3.0, seconds=0.6)
    greedy = GenerationConfig(top_k=1, guidance=3.0, clip_seconds=0.6)
    ours = sample(model, [prompt], generation=greedy, seeds=[0])
    assert torch.equal(ours.codes, codes)
    np.testing.assert_allclose(render(model, ours.codes), audio[:, 0].numpy(), atol=1e-5)
    assert "It is attune-tiny." in card
