"""Native MusicGens built by audiocraft itself from its own configs, small and random, and their T5."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from alignment.music.audiocraft_import import import_audiocraft
from tests.music_support import WORDS

CONFIGS = Path(__file__).parent / "audiocraft_configs"
TEXT_WIDTH = 24
SMALL_LM = {"dim": 32, "num_heads": 4, "num_layers": 2, "card": 64}
SMALL_CODEC = {"seanet": {"n_filters": 4, "dimension": 16}, "rvq": {"bins": 64}}
# What the published stereo models change: audiocraft/docs/MUSICGEN.md, "Training stereo models".
STEREO = {
    "transformer_lm": {"n_q": 8},
    "codebooks_pattern": {"delay": {"delays": [0, 0, 1, 1, 2, 2, 3, 3]}},
    "interleave_stereo_codebooks": {"use": True},
    "channels": 2,
}
# What the published melody models change: config/conditioner/chroma2music of audiocraft 1.3.0.
MELODY = {
    "fuser": {"cross": [], "prepend": ["self_wav", "description"]},
    "conditioners": {
        "self_wav": {
            "model": "chroma_stem",
            "chroma_stem": {
                "sample_rate": "${sample_rate}", "n_chroma": 12, "radix2_exp": 14, "argmax": True,
                "match_len_on_eval": False, "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None,
            },
        }
    },
}  # fmt: skip


def make_text_encoder(folder: Path) -> Path:
    """A random T5 encoder with a tokenizer of T5's own kind, saved in ``folder``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        t5 = T5EncoderModel(
            T5Config(vocab_size=64, d_model=TEXT_WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=3, pad_token_id=0)
        )
        for parameter in t5.parameters():
            nn.init.normal_(parameter, std=0.4)
    t5.save_pretrained(folder)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *((f"▁{word}", -2.0) for word in WORDS)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    return folder


@contextmanager
def known_to_audiocraft(name: str) -> Iterator[None]:
    """Inside, audiocraft's T5Conditioner takes ``name``, which it reads as a path."""
    conditioner = import_audiocraft("audiocraft.modules.conditioners").T5Conditioner
    conditioner.MODELS.append(name)
    conditioner.MODELS_DIMS[name] = TEXT_WIDTH
    try:
        yield
    finally:
        conditioner.MODELS.remove(name)
        del conditioner.MODELS_DIMS[name]


class Spectrogram(nn.Module):
    """torchaudio's, as audiocraft's chroma asks for it, by torch.stft: the same buffer, the same frames."""

    def __init__(self, *, n_fft: int, win_length: int, hop_length: int, power: float, **others: Any) -> None:
        super().__init__()
        assert power == 2 and others == {"center": True, "pad": 0, "normalized": True}
        self.shape = {"n_fft": n_fft, "win_length": win_length, "hop_length": hop_length}
        self.register_buffer("window", torch.hann_window(win_length))

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        found = torch.stft(wav.flatten(0, -2), **self.shape, window=self.window, return_complex=True)
        return found.abs().square().unflatten(0, wav.shape[:-1]) / self.window.square().sum()


@contextmanager
def hears_melodies() -> Iterator[None]:
    """Inside, audiocraft's own ChromaStemConditioner can be built, though what only a real melody needs is not here."""
    chroma = import_audiocraft("audiocraft.modules.chroma")
    separator = types.ModuleType("demucs")
    stems = nn.Module()
    stems.sources = ["drums", "bass", "other", "vocals"]
    separator.pretrained = types.SimpleNamespace(get_model=lambda name: stems)
    before = chroma.filters, chroma.torchaudio
    generator = np.random.default_rng(0)
    chroma.filters = types.SimpleNamespace(  # of silence any filter hears nothing
        chroma=lambda *, n_fft, n_chroma, **_: generator.random((n_chroma, n_fft // 2 + 1), dtype=np.float32)
    )
    chroma.torchaudio = types.SimpleNamespace(transforms=types.SimpleNamespace(Spectrogram=Spectrogram))
    sys.modules["demucs"] = separator
    try:
        yield
    finally:
        del sys.modules["demucs"]
        chroma.filters, chroma.torchaudio = before


def as_loaded(lm: nn.Module) -> nn.Module:
    """What audiocraft's ``MusicGen.get_pretrained`` sets of a melody checkpoint after loading it."""
    conditioner = lm.condition_provider.conditioners["self_wav"]
    conditioner.match_len_on_eval, conditioner._use_masking = True, False
    return lm


def lm_config(text_encoder: Path | str, *, stereo: bool = False, melody: bool = False, **changes: Any) -> Any:
    """audiocraft's config of a small MusicGen."""
    config = OmegaConf.load(CONFIGS / "musicgen.yaml")
    own = {"transformer_lm": SMALL_LM, "conditioners": {"description": {"t5": {"name": str(text_encoder)}}}}
    return OmegaConf.merge(config, own, STEREO if stereo else {}, MELODY if melody else {}, changes)


def codec_config(**changes: Any) -> Any:
    """audiocraft's config of a small EnCodec."""
    return OmegaConf.merge(OmegaConf.load(CONFIGS / "encodec.yaml"), SMALL_CODEC, changes)


def build(lm: Any, codec: Any) -> tuple[nn.Module, nn.Module]:
    """(language model, codec) by audiocraft's own builders, random, in evaluation mode."""
    builders = import_audiocraft("audiocraft.models.builders")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(6)
        # The same weights without xformers, which the published models ask for.
        runnable = OmegaConf.merge(lm, {"transformer_lm": {"custom": True, "memory_efficient": False}})
        native, compression = builders.get_lm_model(runnable), builders.get_compression_model(codec)
        for name, parameter in native.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "emb." not in name:
                parameter.mul_(2.0)  # far from flat distributions
        for name, tensor in compression.state_dict().items():
            if name.endswith((".embed", ".embed_avg")):
                tensor.normal_()
            if name.endswith(".inited"):
                tensor.fill_(1.0)
            if name.endswith("weight_g"):
                tensor.mul_(2.0)  # or the signal dies on its way through random convolutions
    native.cfg = lm
    return native.eval(), compression.eval()


def save(folder: Path, native: nn.Module, compression: nn.Module, codec: Any, *, pickled: bool = False) -> Path:
    """The two files as audiocraft.utils.export writes them, or as its training runs pickle their configs."""
    folder.mkdir(parents=True)
    for name, module, config in (
        ("state_dict.bin", native, native.cfg),
        ("compression_state_dict.bin", compression, codec),
    ):
        best = {"model": module.state_dict()} if pickled else module.state_dict()
        written = config if pickled else OmegaConf.to_yaml(config)
        torch.save({"best_state": best, "xp.cfg": written, "version": "1.3.0", "exported": True}, folder / name)
    return folder


def generate(native: nn.Module, compression: nn.Module, prompt: str, *, guidance: float, seconds: float) -> Any:
    """Greedy (audio (1, channels, samples), codes (1, K, T)) of audiocraft's own MusicGen."""
    singer = import_audiocraft("audiocraft.models.musicgen").MusicGen("small", compression, native)
    singer.set_generation_params(use_sampling=False, duration=seconds, cfg_coef=guidance)
    return singer.generate([prompt], return_tokens=True)
