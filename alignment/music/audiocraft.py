"""The bridge to native audiocraft: its language model with our weights, and our weights from its."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alignment.errors import ModelError
from alignment.music.adapter import base_tensors, effective_weight
from alignment.music.audiocraft_import import import_audiocraft
from alignment.music.audiocraft_melody import NAME as MELODY
from alignment.music.audiocraft_melody import PROJECTION as MELODY_PROJECTION
from alignment.music.model import MusicModel
from alignment.music.text import TextBatch

LAYER_NAMES = {
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm2": "final_layer_norm",
    "self_attn.out_proj": "self_attn.out_proj",
    "cross_attention.out_proj": "encoder_attn.out_proj",
}
ATTENTIONS = {"self_attn": "self_attn", "cross_attention": "encoder_attn"}
PROJECTION = "condition_provider.conditioners.description.output_proj"
PROJECTIONS = {"enc_to_dec_proj": PROJECTION, "audio_enc_to_dec_proj": MELODY_PROJECTION}


def delay_pattern(codebooks: int, frames: int, *, channels: int = 1) -> Any:
    """audiocraft's own delay Pattern for T frames of K books."""
    return _provider(codebooks, channels).get_pattern(frames)


def conditioning_attributes() -> type:
    """audiocraft's own ConditioningAttributes, what its ``generate`` takes a prompt in."""
    return import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes


def to_audiocraft(model: MusicModel) -> nn.Module:
    """audiocraft's LMModel with the base's weights. It hears text through ``condition_tensors`` only."""
    lm, conditioners = import_audiocraft(), import_audiocraft("audiocraft.modules.conditioners")
    config = model.hf.config.decoder
    heard = {"prepend": [MELODY, "description"]} if model.melody_frames else {"cross": ["description"]}
    native = lm.LMModel(
        _provider(model.codebooks, model.channels),
        conditioners.ConditioningProvider({}),
        conditioners.ConditionFuser({"cross": [], "sum": [], "prepend": [], "input_interpolate": []} | heard),
        n_q=model.codebooks,
        card=model.codebook_size,
        dim=model.width,
        num_heads=config.num_attention_heads,
        hidden_scale=config.ffn_dim / config.hidden_size,
        norm="layer_norm",
        norm_first=True,
        bias_proj=False,
        bias_ff=False,
        bias_attn=False,
        causal=True,
        custom=True,
        cross_attention=not model.melody_frames,
        activation=config.activation_function,
        num_layers=config.num_hidden_layers,
        dropout=0.0,
        positional_embedding="sin",
    )
    state = to_audiocraft_state(base_tensors(model.hf))
    projections = tuple(PROJECTIONS.values())
    native.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith(projections)})
    return native.eval().to(model.device)


def from_audiocraft(native: nn.Module, model: MusicModel) -> None:
    """Copy an LMModel's weights into the base of ``model``, whose shapes must be the same. Raises ModelError.

    The base is another one afterwards: its checksum is taken anew."""
    if model.has_adapter:
        raise ModelError("This model has an adapter, made for the base about to be replaced; remove it first.")
    state = from_audiocraft_state(native.state_dict())
    current = model.hf.state_dict()
    wrong = [name for name, tensor in state.items() if name not in current or current[name].shape != tensor.shape]
    wrong += [name for name in current if name.startswith("decoder.") and name not in state]
    if wrong:
        raise ModelError(f"The audiocraft model does not fit this MusicGen's shapes, first at {wrong[0]}.")
    with torch.no_grad():
        for name, tensor in state.items():
            current[name].copy_(tensor)
    model.text_cache.clear()
    model.base_sha256 = model.checksum()


def compute_logits(native: nn.Module, codes: Tensor, text: TextBatch, melody: Tensor | None = None) -> Tensor:
    """audiocraft's own logits (B, K, T, V), aligned with codes by its own pattern; of a melody checkpoint with the
    ``melody`` (C, D) that it hears.

    It attends to zeroed padding where transformers masks it, so give prompts of equal length or one at a time."""
    if not bool(text.mask.all()):
        raise ModelError("audiocraft attends to padding; give it prompts of equal length, or one at a time.")
    conditions = {"description": (text.hidden, text.mask)}
    if melody is not None:  # what comes later is put further ahead
        conditions[MELODY] = (melody.expand(len(text), -1, -1), torch.ones_like(text.mask[:, :1]))
    # By default audiocraft leaves out (as NaN) the last K - 1 steps, in which some books have already ended.
    return native.compute_predictions(
        codes, conditions=[], condition_tensors=conditions, keep_only_valid_steps=False
    ).logits


def _provider(codebooks: int, channels: int) -> Any:
    patterns = import_audiocraft("audiocraft.modules.codebooks_patterns")
    return patterns.DelayedPatternProvider(n_q=codebooks, delays=[k // channels for k in range(codebooks)])


def merged_tensors(hf: nn.Module) -> dict[str, Tensor]:
    """The model's state by its plain names with the adapter, where it is on, merged into the weights. The model itself
    is left as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = {
        f"{name}.weight": effective_weight(layer).detach()
        for name, layer in hf.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    return base_tensors(hf) | merged


def to_audiocraft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audiocraft's names for the decoder and text projection of a transformers MusicGen's state."""
    native: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in PROJECTIONS:
            native[f"{PROJECTIONS[module]}.{kind}"] = tensor
        if not name.startswith("decoder."):
            continue
        name = name.removeprefix("decoder.").removeprefix("model.decoder.")
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            _add_layer_tensor(native, state, f"transformer.layers.{layer}", layer, rest, tensor)
        else:
            renamed = name.replace("embed_tokens.", "emb.").replace("lm_heads.", "linears.")
            native[renamed.replace("layer_norm.", "out_norm.")] = tensor
    return native


def from_audiocraft_state(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_audiocraft_state``. Raises ModelError for a name that a MusicGen does not have."""
    state: dict[str, Tensor] = {}
    for name, tensor in native.items():
        ours = next((ours for ours, theirs in PROJECTIONS.items() if name.startswith(f"{theirs}.")), None)
        if ours is not None:
            state[f"{ours}.{name.rpartition('.')[2]}"] = tensor
        elif name.startswith("transformer.layers."):
            layer, rest = name.removeprefix("transformer.layers.").split(".", 1)
            prefix = f"decoder.model.decoder.layers.{layer}"
            module, _, kind = rest.rpartition(".")
            if kind == "in_proj_weight" and module in ATTENTIONS:
                for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{prefix}.{ATTENTIONS[module]}.{part}_proj.weight"] = chunk
            elif module in LAYER_NAMES:
                state[f"{prefix}.{LAYER_NAMES[module]}.{kind}"] = tensor
            else:
                raise ModelError(_unknown(name))
        elif name.startswith("linears."):
            state[f"decoder.lm_heads.{name.removeprefix('linears.')}"] = tensor
        elif name.startswith("emb."):
            state[f"decoder.model.decoder.embed_tokens.{name.removeprefix('emb.')}"] = tensor
        elif name.startswith("out_norm."):
            state[f"decoder.model.decoder.layer_norm.{name.removeprefix('out_norm.')}"] = tensor
        else:
            raise ModelError(_unknown(name))
    return state


def _unknown(name: str) -> str:
    return f"The audiocraft model has {name}, which no MusicGen has; only such models can be imported."


def _add_layer_tensor(
    native: dict[str, Tensor], state: Mapping[str, Tensor], prefix: str, layer: str, rest: str, tensor: Tensor
) -> None:
    module, kind = rest.rsplit(".", 1)
    for theirs, ours in LAYER_NAMES.items():
        if module == ours:
            native[f"{prefix}.{theirs}.{kind}"] = tensor
    for theirs, ours in ATTENTIONS.items():
        if rest == f"{ours}.q_proj.weight":
            where = f"decoder.model.decoder.layers.{layer}.{ours}"
            native[f"{prefix}.{theirs}.in_proj_weight"] = torch.cat(
                [state[f"{where}.{part}_proj.weight"] for part in "qkv"]
            )
