"""The bridge to native audiocraft for the codec: names of EnCodec's tensors on both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from alignment.errors import ModelError

PREFIX = "audio_encoder."  # of the codec's tensors in a MusicGen's state
# (theirs, ours): SEANet's convolutions, weight-normed in torch's older and newer way, its LSTM, the codebooks.
CONV = r"((?:encoder|decoder)\.)model(\.\d+(?:\.block\.\d+|\.shortcut)?)\.(?:conv\.conv|convtr\.convtr)\.(.+)"
PARTS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
LSTM = r"((?:encoder|decoder)\.)model(\.\d+\.lstm\..+)"
BOOK = r"quantizer\.vq\.layers\.(\d+)\._codebook\.(\w+)"


def from_audiocraft_codec_state(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of an EnCodec's tensors, as they stand in a MusicGen. Raises ModelError for a name that a
    MusicGen's codec does not have."""
    state: dict[str, Tensor] = {}
    for name, tensor in native.items():
        if match := re.fullmatch(CONV, name):
            kind = PARTS.get(match[3], match[3])
            state[f"{PREFIX}{match[1]}layers{match[2]}.conv.{kind}"] = tensor
        elif match := re.fullmatch(LSTM, name):
            state[f"{PREFIX}{match[1]}layers{match[2]}"] = tensor
        elif match := re.fullmatch(BOOK, name):
            state[f"{PREFIX}quantizer.layers.{match[1]}.codebook.{match[2]}"] = tensor
        else:
            raise ModelError(f"The codec has {name}, which no EnCodec of a MusicGen has; only those can be imported.")
    return state


def to_audiocraft_codec_state(state: Mapping[str, Tensor], *, transposed: frozenset[str]) -> dict[str, Tensor]:
    """audiocraft's names for the codec in a MusicGen's state; ``transposed`` are the paths of its transposed
    convolutions, such as ``decoder.layers.3.conv``, which audiocraft calls by another name."""
    native: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith(PREFIX):
            continue
        name = name.removeprefix(PREFIX)
        if name.startswith("quantizer."):
            _, _, book, _, kind = name.split(".")
            native[f"quantizer.vq.layers.{book}._codebook.{kind}"] = tensor
            continue
        half, _, rest = name.split(".", 2)
        where, conv, kind = rest.partition(".conv.")
        if not conv:
            native[f"{half}.model.{rest}"] = tensor  # the LSTM
            continue
        for theirs, ours in PARTS.items():
            kind = theirs if kind == ours else kind
        called = "convtr.convtr" if f"{half}.layers.{where}.conv" in transposed else "conv.conv"
        native[f"{half}.model.{where}.{called}.{kind}"] = tensor
    return native
