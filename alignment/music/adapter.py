"""Adapters on the decoder: made, saved and loaded in PEFT's format, tied to the base they were trained on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignment.config import LoraSettings
from alignment.errors import ModelError
from alignment.music.checkpoint import MELODY

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

PROJECTIONS = "(q_proj|k_proj|v_proj|out_proj)"
LAYERS, HEADS = r"model\.decoder\.layers\.\d+\.", r"lm_heads\.\d+"
MODULES = {
    "self_attention": rf"{LAYERS}self_attn\.{PROJECTIONS}",
    "cross_attention": rf"{LAYERS}encoder_attn\.{PROJECTIONS}",
    "feed_forward": f"{LAYERS}(fc1|fc2)",
    "heads": HEADS,
}
# IA3 scales keys, values and what the second feed-forward layer reads (arXiv:2205.05638, section 3.3).
IA3_MODULES = {
    "self_attention": rf"{LAYERS}self_attn\.(k_proj|v_proj)",
    "cross_attention": rf"{LAYERS}encoder_attn\.(k_proj|v_proj)",
    "feed_forward": f"{LAYERS}fc2",
    "heads": HEADS,
}
# PEFT's name of each kind, and what of its config makes the adapter that it is.
FIELDS = {
    "LORA": ("r", "lora_alpha", "bias", "target_modules"),
    "LOHA": ("r", "alpha", "target_modules"),
    "IA3": ("target_modules", "feedforward_modules"),
}
OWN = (".lora_", ".hada_", ".ia3_")  # in the names of an adapter's parameters, of whatever kind
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"


def target_pattern(groups: tuple[str, ...], modules: dict[str, str] = MODULES) -> str:
    """The regular expression PEFT matches: within the decoder only, since T5 has layers of the same names."""
    return r"decoder\.(" + "|".join(modules[group] for group in groups) + ")"


def add(hf: nn.Module, lora: LoraSettings, *, seed: int, base_name: str) -> PeftModel:
    """A PeftModel around ``hf`` with a fresh float32 adapter drawn from ``seed``, which changes nothing yet."""
    from peft import PeftModel

    groups = _groups_there(hf, lora.target_modules)
    values: dict[str, Any] = {"target_modules": target_pattern(groups)}
    if lora.kind == "lora":
        values |= {"r": lora.r, "lora_alpha": lora.lora_alpha, "bias": "none"}
    elif lora.kind == "loha":
        values |= {"r": lora.r, "alpha": lora.lora_alpha}
    else:
        feed_forward = target_pattern(("feed_forward",), IA3_MODULES)
        values = {"target_modules": target_pattern(groups, IA3_MODULES), "feedforward_modules": feed_forward}
    config = _config(lora.kind.upper(), values, base_name)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = PeftModel(hf, config)
    return _settle(model)


def _groups_there(hf: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the groups that the decoder has. Raises ModelError when it has none of them."""
    if hf.config.model_type != MELODY:
        return tuple(wanted)
    there = [group for group in MODULES if group != "cross_attention"]
    if found := tuple(group for group in wanted if group in there):
        return found
    raise ModelError(
        "lora.target_modules is [cross_attention], and a melody checkpoint's decoder has no cross-attention: it reads "
        f"its prompt ahead of the clip. Give some of {', '.join(there)}."
    )


def save(model: PeftModel, folder: Path, *, base_sha256: str) -> None:
    """Write the adapter into ``folder``, whole or not at all; an adapter already there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # PEFT's model card template says nothing
        (partial / BASE).write_text(json.dumps({"base_sha256": base_sha256}) + "\n")
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(hf: nn.Module, folder: Path, *, base_sha256: str) -> PeftModel:
    """A PeftModel with the adapter in ``folder``, trainable. Raises ModelError when it does not fit."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    values, weights = _read(folder, base_sha256)
    kind = values["peft_type"]
    try:
        config = _config(kind, {key: values[key] for key in FIELDS[kind]}, values.get("base_model_name_or_path"))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel(hf, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: {CONFIG} is not a {kind} adapter for this decoder ({_line(error)}).") from None
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if wrong:
        model.unload()
        hf.requires_grad_(False)
        raise ModelError(f"{folder}: the adapter's weights do not fit its config, first at {wrong[0]}; save it again.")
    set_peft_model_state_dict(model, weights)
    return _settle(model)


def check(folder: Path, *, base_sha256: str) -> None:
    """Returns when the folder holds a whole, finite adapter for this base. Raises ModelError otherwise."""
    _read(folder, base_sha256)


def base_tensors(hf: nn.Module) -> dict[str, Tensor]:
    """The base's state by its plain names, as if no adapter were there."""
    state = hf.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not _is_own(name)}


def effective_weight(layer: nn.Module) -> Tensor:
    """A linear layer's weight (out, in) as it acts now: the base's changed by the active adapter, the base's alone
    when it is off. LoRA and LoHa add to it; IA3 scales its rows, or its columns where it scales what is read."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(layer, BaseTunerLayer):
        return layer.weight
    weight = layer.get_base_layer().weight
    if layer.disable_adapters or layer.merged:
        return weight
    for name in layer.active_adapters:
        if hasattr(layer, "ia3_l"):
            weight = (weight * layer.ia3_l[name]).to(weight.dtype)  # (out, 1) or (1, in)
        else:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight


def _config(kind: str, values: dict[str, Any], base_name: str | None) -> PeftConfig:
    from peft import IA3Config, LoHaConfig, LoraConfig

    # No dropout of any sort: a rollout and its score must see the same policy.
    config = {"LORA": LoraConfig, "LOHA": LoHaConfig, "IA3": IA3Config}[kind](**values)
    config.base_model_name_or_path = base_name
    return config


def _is_own(name: str) -> bool:
    return any(part in name for part in OWN)


def _settle(model: PeftModel) -> PeftModel:
    """Adapters in float32 and training, everything else frozen, no dropout anywhere."""
    for name, parameter in model.named_parameters():
        trains = _is_own(name)
        if trains:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trains)
    for layer in model.modules():
        if hasattr(layer, "module_dropout"):
            # PEFT's LoHa draws a number in [0, 1) in training and skips the layer unless it is above this: 0 is
            # reached once in 2**24 draws.
            layer.module_dropout = dict.fromkeys(layer.module_dropout, -1.0)
    model.eval()
    return model


def _read(folder: Path, base_sha256: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such adapter folder; give one that save_adapter wrote.")
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("*.bin")):
            raise ModelError(f"{folder}: the adapter's weights are pickled, which can run code; save as safetensors.")
        raise ModelError(f"{folder}: has no {WEIGHTS}; give a folder that save_adapter wrote.")
    try:
        config = json.loads((folder / CONFIG).read_text())
        base = json.loads((folder / BASE).read_text())["base_sha256"]
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise ModelError(f"{folder}: has no {missing}; give a folder that save_adapter wrote.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{folder}: its config cannot be read ({_line(error)}); save the adapter again.") from None
    if base != base_sha256:
        raise ModelError(
            f"{folder}: this adapter was trained on another base (sha256 {str(base)[:12]}, "
            f"loaded {base_sha256[:12]}); load the base it belongs to."
        )
    if not isinstance(config, dict) or config.get("peft_type") not in FIELDS:
        raise ModelError(
            f"{folder}: {CONFIG} does not describe an adapter of a known kind ({', '.join(FIELDS)}); give a folder "
            "that save_adapter wrote."
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: {WEIGHTS} is damaged ({_line(error)}); fetch or save it again.") from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{folder}: {name} holds numbers that are not finite, so the training went wrong; train again with a "
                "lower learning rate."
            )
    return config, weights


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
