"""Melody checkpoints of audiocraft's own making, imported and exported: the same logits and audio from text alone."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music.model import MusicModel

if importlib.util.find_spec("audiocraft") is None:
    pytest.skip("audiocraft is not installed", allow_module_level=True)

from alignment.music import audiocraft
from alignment.music.audiocraft_convert import export_checkpoint, import_checkpoint
from alignment.music.audiocraft_files import read_native
from alignment.music.audiocraft_import import import_audiocraft
from alignment.music.audiocraft_melody import WINDOW
from alignment.music.codec import render
from alignment.music.prefix import null_melody
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts, without_prompts
from tests import audiocraft_support as native
from tests.music_support import make_hf, make_tiny_melody, randomise_adapter

PROMPT, SECONDS = "a calm slow piano tune with strings", 0.4


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.make_text_encoder(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def make(text_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """stereo or not -> (language model, codec, folder of their files, the same imported), made once."""

    @lru_cache
    def made(stereo: bool) -> Any:
        folder, codec = tmp_path_factory.mktemp("native"), native.codec_config()
        with native.known_to_audiocraft(str(text_encoder)), native.hears_melodies():
            lm, compression = native.build(native.lm_config(text_encoder, stereo=stereo, melody=True), codec)
        assert WINDOW in lm.state_dict()
        files = native.save(folder / "native", lm, compression, codec)
        figures = import_checkpoint(files, folder / "imported")
        assert figures["codebooks"] == (8 if stereo else 4) and figures["text_only"]
        return native.as_loaded(lm), compression, files, MusicModel.load(folder / "imported")

    return made


@pytest.fixture(params=[False, True], ids=["mono", "stereo"])
def built(request: pytest.FixtureRequest, make: Any) -> Any:
    return make(request.param)


def no_melody(prompt: str) -> Any:
    """What audiocraft's MusicGen.generate makes of a description without a melody."""
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    silence = conditioners.WavCondition(torch.zeros(1, 1, 1), torch.tensor([0]), [32_000], [None], [None])
    return conditioners.ConditioningAttributes(text={"description": prompt}, wav={"self_wav": silence})


def random_codes(model: MusicModel, clips: int = 1, frames: int = 20) -> torch.Tensor:
    return torch.randint(64, (clips, model.codebooks, frames), generator=torch.Generator().manual_seed(3))


def test_an_imported_melody_checkpoint_has_audiocrafts_logits_from_text_alone(built: Any):
    lm, _, _, model = built
    assert model.melody_frames == 235  # 1 + 30 s * 32 kHz / 4096
    codes = random_codes(model)
    with torch.no_grad():
        theirs = lm.compute_predictions(codes, [no_melody(PROMPT)], keep_only_valid_steps=False).logits
        ours = model.logits(codes, encode_prompts(model, [PROMPT]))
        conditioner = lm.condition_provider.conditioners["self_wav"]
        silence, _ = conditioner(no_melody(PROMPT).wav["self_wav"])
        torch.testing.assert_close(null_melody(model), silence[0], atol=1e-6, rtol=0)
    assert theirs.std() > 0.5  # agreement means something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_imported_melody_checkpoint_sings_audiocrafts_greedy_audio(built: Any, guidance: float):
    lm, compression, _, model = built
    audio, codes = native.generate(lm, compression, PROMPT, guidance=guidance, seconds=SECONDS)
    greedy = GenerationConfig(top_k=1, guidance=guidance, clip_seconds=SECONDS)
    ours = sample(model, [PROMPT], generation=greedy, seeds=[0])
    assert torch.equal(ours.codes, codes) and len(codes.unique()) > 5
    heard = render(model, ours.codes).reshape(1, -1, model.channels).transpose(0, 2, 1)
    np.testing.assert_allclose(heard, audio.numpy(), atol=1e-5)  # a third of a step of 16 bits


def test_every_weight_comes_back_from_an_import_and_an_export(built: Any, tmp_path: Path):
    lm, compression, _, model = built
    export_checkpoint(model, tmp_path / "back")
    for name, module in (("state_dict.bin", lm), ("compression_state_dict.bin", compression)):
        weights, config = read_native(tmp_path / "back" / name)
        theirs = module.state_dict()
        assert weights.keys() == theirs.keys()
        assert all(torch.equal(weights[key], theirs[key]) for key in theirs)
        if name == "state_dict.bin":
            assert config.get("dataset.segment_duration") == 30


# 30 s at 16 kHz are 1 + 480,000 / 4096 = 118 frames; 100 frames are as long as 99.5 of 4096 samples.
@pytest.mark.parametrize(("channels", "frames"), [(1, 118), (2, 100)])
def test_audiocraft_loads_an_exported_melody_checkpoint_with_its_adapter_merged_and_sings_the_same(
    channels: int, frames: int, text_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoTokenizer, T5EncoderModel

    hf = make_hf(text_width=native.TEXT_WIDTH, channels=channels, melody_frames=frames)
    hf.text_encoder = T5EncoderModel.from_pretrained(text_encoder)
    hf.config.text_encoder = hf.text_encoder.config
    model = MusicModel(hf, AutoTokenizer.from_pretrained(text_encoder), source="ours")
    model.add_adapter(LoraSettings(r=4), seed=1)
    randomise_adapter(model, scale=0.1)
    assert export_checkpoint(model, tmp_path / "native")["merged"]
    loaders = import_audiocraft("audiocraft.models.loaders")
    monkeypatch.chdir(tmp_path / "native")  # its own text encoder lies beside
    with native.known_to_audiocraft("text_encoder"), native.hears_melodies():
        lm = native.as_loaded(loaders.load_lm_model(tmp_path / "native"))
    compression = loaders.load_compression_model(tmp_path / "native")
    assert lm.condition_provider.conditioners["self_wav"].chroma_len == frames
    codes = random_codes(model)
    with torch.no_grad():
        theirs = lm.compute_predictions(codes, [no_melody(PROMPT)], keep_only_valid_steps=False).logits
        ours = model.logits(codes, encode_prompts(model, [PROMPT]))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        with model.reference():
            assert (model.logits(codes, encode_prompts(model, [PROMPT])) - ours).abs().max() > 0.1
    audio, sung = native.generate(lm, compression, PROMPT, guidance=3.0, seconds=SECONDS)
    greedy = GenerationConfig(top_k=1, guidance=3.0, clip_seconds=SECONDS)
    ours = sample(model, [PROMPT], generation=greedy, seeds=[0])
    assert torch.equal(ours.codes, sung)
    heard = render(model, ours.codes).reshape(1, -1, channels).transpose(0, 2, 1)
    np.testing.assert_allclose(heard, audio.numpy(), atol=1e-5)


def test_a_melody_too_short_for_audiocraft_is_not_exported(tmp_path: Path):
    with pytest.raises(ModelError, match=r"7 frames long, 1.7 s; audiocraft's MusicGen takes more than 18 s.*--merged"):
        export_checkpoint(make_tiny_melody(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_logits_agree_in_memory_in_both_directions_for_both_halves_of_guidance():
    model, prompts = make_tiny_melody(), ["calm piano melody", "fast dark organ"]  # of equal length
    lm = audiocraft.to_audiocraft(model)
    text, codes = encode_prompts(model, prompts), random_codes(model, clips=2)
    with torch.no_grad():
        for heard in (text, without_prompts(model, text)):
            theirs = audiocraft.compute_logits(lm, codes, heard, null_melody(model))
            torch.testing.assert_close(model.logits(codes, heard), theirs, atol=5e-5, rtol=0)
    other = make_tiny_melody(1)
    audiocraft.from_audiocraft(lm, other)
    ours, back = model.hf.decoder.state_dict(), other.hf.decoder.state_dict()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


FAULTS = {
    "no argmax": (("argmax: true", "argmax: false"), None, "argmax is False"),
    "another conditioner": (("model: chroma_stem", "model: style"), None, "its self_wav is a style"),
    "unknown setting": (("n_chroma: 12", "n_chroma: 12\n      winhop: 9"), None, "has winhop"),
    "crossed": (("cross: []", "cross: [description]"), None, "fuser.cross"),
    "other classes": (("n_chroma: 12", "n_chroma: 24"), None, "audio_enc_to_dec_proj.weight is (32, 12)"),
    "other window": (("x", "x"), lambda p: p.update({WINDOW: torch.ones(2**14)}), "not the window"),
    "short window": (("x", "x"), lambda p: p.update({WINDOW: torch.hann_window(8)}), "not the window"),
    "no projection": (
        ("x", "x"), lambda p: p.pop("condition_provider.conditioners.self_wav.output_proj.bias"), "lacks 1 tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_melody_checkpoint_that_does_not_fit_is_refused_in_a_sentence(make: Any, tmp_path: Path, fault: str):
    (before, after), change, words = FAULTS[fault]
    files = tmp_path / "native"
    files.mkdir()
    for file in make(False)[2].iterdir():
        package = torch.load(file, weights_only=True)
        if file.name == "state_dict.bin":
            assert before in package["xp.cfg"]
            package["xp.cfg"] = package["xp.cfg"].replace(before, after)
            if change is not None:
                change(package["best_state"])
        torch.save(package, files / file.name)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(files, tmp_path / "out")
    message = str(caught.value)
    assert words in message and "\n" not in message and message.endswith(".")
    assert not list(tmp_path.glob("*out*")), "something half-written stayed"
