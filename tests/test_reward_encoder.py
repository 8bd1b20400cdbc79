"""CLAP embeddings from a tiny random CLAP with no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from alignment.errors import ConfigError, DataError, ModelError
from alignment.rewards.encoder import ClapEncoder

RATE = 16_000


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fusion"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clap")
    text = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 20, "projection_dim": 8, "pad_token_id": 1}  # fmt: skip
    audio = {"num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4],
             "hidden_size": 64, "patch_embeds_hidden_size": 16, "depths": [1, 1, 1], "projection_dim": 8,
             "num_attention_heads": [2, 2, 2], "enable_fusion": request.param}  # fmt: skip
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(folder)
    truncation = "fusion" if request.param else "rand_trunc"
    ClapFeatureExtractor(feature_size=16, sampling_rate=RATE, hop_length=160, max_length_s=1, frequency_max=8000,
                         truncation=truncation).save_pretrained(folder)  # fmt: skip
    words = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "<unk>": 2, "calm": 3, "piano": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ClapEncoder:
    return ClapEncoder(folder, batch_size=3)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def test_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch(encoder: ClapEncoder) -> None:
    clips = [noise(n, n) for n in (8_000, 16_000, 12_345, 16_000, 40_000)]
    together = encoder.audio(clips, RATE)
    assert together.shape == (5, 8) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for row, clip in zip(together, clips, strict=True):
        np.testing.assert_allclose(row, encoder.audio(clip[None], RATE)[0], atol=2e-6)
    prompts = ["calm piano", "piano", "calm calm calm piano", "piano"]
    text = encoder.text(prompts)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(text[1], encoder.text(["piano"])[0], atol=2e-6)
    assert (text[1] == text[3]).all() or np.allclose(text[1], text[3], atol=2e-6)


def test_embeddings_are_those_of_transformers_own_forward(encoder: ClapEncoder, folder: Path) -> None:
    model = ClapModel.from_pretrained(folder).eval()
    clips = np.stack([noise(16_000, seed) for seed in range(2)])
    features = encoder.extractor(list(clips), sampling_rate=RATE, return_tensors="pt")["input_features"]
    ids = torch.tensor([[3, 4], [4, 4]])
    with torch.no_grad():
        out = model(input_ids=ids, input_features=features, attention_mask=torch.ones_like(ids),
                    is_longer=torch.zeros(2, 1, dtype=torch.bool))  # fmt: skip
    np.testing.assert_allclose(encoder.audio(clips, RATE), out.audio_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.text(["calm piano", "piano piano"]), out.text_embeds.numpy(), atol=2e-6)


def test_a_clip_longer_than_the_window_is_the_mean_of_its_windows_and_never_random(encoder: ClapEncoder) -> None:
    long = noise(40_000)  # 2.5 s with a window of 1 s: three windows, at 0, 0.75 and 1.5 s
    first = encoder.audio([long], RATE)
    np.random.seed(7)
    assert (encoder.audio([long], RATE) == first).all()
    windows = encoder.audio([long[start : start + 16_000] for start in (0, 12_000, 24_000)], RATE)
    mean = windows.mean(0)
    np.testing.assert_allclose(first[0], mean / np.linalg.norm(mean), atol=2e-6)


def test_audio_at_another_rate_is_resampled(encoder: ClapEncoder) -> None:
    tones = {rate: np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32) for rate in (RATE, 32_000)}
    low, high = (encoder.audio([tone], rate)[0] for rate, tone in tones.items())
    wrong = encoder.audio([tones[32_000]], RATE)[0]
    assert low @ high > 0.999 and low @ high > low @ wrong


def test_the_name_tells_checkpoints_apart(encoder: ClapEncoder, folder: Path, tmp_path: Path) -> None:
    assert encoder.name.startswith(f"clap:{folder.name}:") and encoder.name == ClapEncoder(folder).name


def test_silence_is_embedded_and_audio_that_is_no_number_is_refused(encoder: ClapEncoder) -> None:
    assert np.isfinite(encoder.audio(np.zeros((1, 8_000), np.float32), RATE)).all()
    assert encoder.audio([], RATE).shape == (0, 8) and encoder.text([]).shape == (0, 8)
    with pytest.raises(DataError, match="Clip 1"):
        encoder.audio([noise(100), np.array([np.nan], np.float32)], RATE)
    with pytest.raises(DataError, match="Clip 0"):
        encoder.audio([np.zeros(0, np.float32)], RATE)


def test_a_folder_that_is_no_clap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no CLAP here"):
        ClapEncoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded as a ClapModel"):
        ClapEncoder(tmp_path)


def test_more_windows_than_are_needed_overlap_and_their_number_is_in_the_name(
    encoder: ClapEncoder, folder: Path
) -> None:
    closer = ClapEncoder(folder, batch_size=3, windows=4)
    long = noise(40_000)  # 2.5 s with a window of 1 s: four windows, at 0, 0.5, 1 and 1.5 s
    windows = encoder.audio([long[start : start + 16_000] for start in (0, 8_000, 16_000, 24_000)], RATE)
    mean = windows.mean(0)
    np.testing.assert_allclose(closer.audio([long], RATE)[0], mean / np.linalg.norm(mean), atol=2e-6)
    short = [noise(16_000)]
    np.testing.assert_allclose(closer.audio(short, RATE), encoder.audio(short, RATE), atol=2e-6)
    assert closer.name == f"{encoder.name}:4 windows"
    with pytest.raises(ConfigError, match="windows is 0"):
        ClapEncoder(folder, windows=0)


def test_a_checkpoint_is_found_by_its_name_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    named = ClapEncoder("someone/some-clap")
    assert asked == ["someone/some-clap"] and named.name.startswith("clap:someone/some-clap:")
    np.testing.assert_array_equal(named.text(["piano"]), ClapEncoder(folder).text(["piano"]))

    def refuse(name: str, **_: object) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match="someone/other: no such folder, and it could not be fetched"):
        ClapEncoder("someone/other")
