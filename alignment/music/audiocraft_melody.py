"""What a melody checkpoint has beside a MusicGen in audiocraft: the conditioner of a melody, kept and never asked.

audiocraft's config/conditioner/chroma2music puts the chroma of a melody and then the description ahead of the codes.
Without a melody the chroma is that of silence, whose first pitch class is the largest, in every frame of the duration
that it was trained on (``MusicGen.get_pretrained`` sets ``match_len_on_eval``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignment.errors import ModelError

if TYPE_CHECKING:
    from alignment.music.audiocraft_config import NativeConfig
    from alignment.music.model import MusicModel

NAME = "self_wav"
PROJECTION = f"condition_provider.conditioners.{NAME}.output_proj"
WINDOW = f"condition_provider.conditioners.{NAME}.chroma.spec.window"  # of its spectrogram; transformers has none
FUSER = {"cross": ([], []), "prepend": ([NAME, "description"], [])}  # as in audiocraft_config.FIXED
SECTION = f"conditioners.{NAME}.chroma_stem"
RADIX2_EXP = 14  # of the window's length; a frame is a quarter of it
SECONDS = 30  # of the clips that the published models were trained on
FEWEST_SECONDS = 18  # of such clips: by default audiocraft's MusicGen goes on from that far into a longer one
KNOWN = {
    "sample_rate", "n_chroma", "radix2_exp", "argmax", "match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path"
}  # fmt: skip


def read_melody(config: NativeConfig) -> tuple[int, int] | None:
    """(pitch classes, frames) of the melody that a language model's ``xp.cfg`` takes, or None. Raises ModelError."""
    if config.get(f"conditioners.{NAME}") is None:
        return None
    held = config.get(SECTION)
    if config.get(f"conditioners.{NAME}.model") != "chroma_stem" or not isinstance(held, Mapping):
        raise ModelError(
            f"{config.where}: its {NAME} is a {config.get(f'conditioners.{NAME}.model')}; only a melody by its chroma "
            "(chroma_stem) can be imported, and its text alone is used."
        )
    if strange := sorted(set(held) - KNOWN):
        raise ModelError(f"{config.where}: {SECTION} has {strange[0]}, which no melody model of audiocraft's has.")
    if held.get("argmax", False) is not True:
        raise ModelError(
            f"{config.where}: {SECTION}.argmax is {held.get('argmax', False)!r}; transformers' MusicgenMelody knows "
            "one pitch class a frame only (True)."
        )
    seconds = config.number("dataset.segment_duration", least=0, whole=False)
    frames = _frames(config.number(f"{SECTION}.sample_rate"), seconds, config.number(f"{SECTION}.radix2_exp", least=2))
    return config.number(f"{SECTION}.n_chroma"), frames


def without_window(weights: Mapping[str, Tensor], config: NativeConfig) -> dict[str, Tensor]:
    """The weights but for the window of the chroma's spectrogram. Raises ModelError when it is no Hann window of its
    config's length: another would be lost."""
    if (window := weights.get(WINDOW)) is not None:
        expected = torch.hann_window(2 ** config.number(f"{SECTION}.radix2_exp", least=2))
        # A file in half precision rounds it.
        if window.shape != expected.shape or not torch.allclose(window.float(), expected, atol=5e-3):
            raise ModelError(f"{config.where}: {WINDOW} is not the window that its config names; export it again.")
    return {name: tensor for name, tensor in weights.items() if name != WINDOW}


def window() -> Tensor:
    """The window of the chroma's spectrogram, as an export holds it."""
    return torch.hann_window(2**RADIX2_EXP)


def write_melody(model: MusicModel, config: dict[str, Any]) -> dict[str, Any]:
    """The ``xp.cfg`` of ``model`` with what a melody checkpoint has beside. Raises ModelError for a shorter melody than
    audiocraft takes."""
    if not model.melody_frames:
        return config
    rate, frames, seconds = model.sample_rate_hz, model.melody_frames, float(SECONDS)
    if _frames(rate, seconds, RADIX2_EXP) != frames:
        seconds = (frames - 0.5) * 2 ** (RADIX2_EXP - 2) / rate
    if seconds <= FEWEST_SECONDS:
        raise ModelError(
            f"{model.source}: its melody is {frames} frames long, {seconds:.1f} s; audiocraft's MusicGen takes more "
            f"than {FEWEST_SECONDS} s, so export it for transformers instead (attune versions export --merged)."
        )
    conditioner = {
        "sample_rate": rate, "n_chroma": model.hf.config.num_chroma, "radix2_exp": RADIX2_EXP, "argmax": True,
        "match_len_on_eval": True, "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None,
    }  # fmt: skip
    return config | {
        "fuser": config["fuser"] | {key: needed for key, (needed, _) in FUSER.items()},
        "conditioners": {NAME: {"model": "chroma_stem", "chroma_stem": conditioner}} | config["conditioners"],
        "dataset": {"segment_duration": int(seconds) if seconds == SECONDS else seconds},
    }


def _frames(rate: int, seconds: float, radix2_exp: int) -> int:
    """Frames of the chroma of that long a clip, which is padded to one window at least."""
    length = 2**radix2_exp
    return 1 + max(int(rate * seconds), length) // (length // 4)
