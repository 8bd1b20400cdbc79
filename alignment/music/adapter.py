"""LoRA adapters on the decoder: made, saved and loaded in PEFT's format, tied to the base they were trained on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignment.config import LoraSettings
from alignment.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel

PROJECTIONS = "(q_proj|k_proj|v_proj|out_proj)"
MODULES = {
    "self_attention": rf"self_attn\.{PROJECTIONS}",
    "cross_attention": rf"encoder_attn\.{PROJECTIONS}",
    "feed_forward": "(fc1|fc2)",
}
CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"


def target_pattern(groups: tuple[str, ...]) -> str:
    """The regular expression PEFT matches: the decoder's layers only, since T5 has layers of the same names."""
    return r"decoder\.model\.decoder\.layers\.\d+\.(" + "|".join(MODULES[group] for group in groups) + ")"


def add(hf: nn.Module, lora: LoraSettings, *, seed: int, base_name: str) -> PeftModel:
    """A PeftModel around ``hf`` with fresh float32 LoRA weights: A from ``seed``, B zero."""
    from peft import LoraConfig, PeftModel

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=0.0,  # a rollout and its score must see the same policy
        bias="none",
        target_modules=target_pattern(tuple(lora.target_modules)),
        base_model_name_or_path=base_name,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = PeftModel(hf, config)
    return _settle(model)


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
    from peft import LoraConfig, PeftModel
    from peft.utils import set_peft_model_state_dict

    config_values, weights = _read(folder, base_sha256)
    try:
        config = LoraConfig(**{key: config_values[key] for key in ("r", "lora_alpha", "bias", "target_modules")})
        config.base_model_name_or_path = config_values.get("base_model_name_or_path")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel(hf, config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: {CONFIG} is not a LoRA adapter for this decoder ({_line(error)}).") from None
    expected = {name for name, _ in model.named_parameters() if "lora_" in name}
    given = {name.replace(".weight", ".default.weight") for name in weights}
    wrong = sorted(expected ^ given)
    shapes = dict(model.named_parameters())
    for name, weight in weights.items():
        parameter = shapes.get(name.replace(".weight", ".default.weight"))
        if parameter is not None and parameter.shape != weight.shape:
            wrong.append(name)
    if wrong:
        model.unload()
        hf.requires_grad_(False)
        raise ModelError(f"{folder}: the adapter's weights do not fit its config, first at {wrong[0]}; save it again.")
    set_peft_model_state_dict(model, weights)
    return _settle(model)


def base_tensors(hf: nn.Module) -> dict[str, Tensor]:
    """The base's state by its plain names, as if no adapter were there."""
    state = hf.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


def effective_weight(layer: nn.Module) -> Tensor:
    """A linear layer's weight as it acts now: base plus the active adapter's update, base alone when it is off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(layer, BaseTunerLayer):
        return layer.weight
    weight = layer.get_base_layer().weight
    if layer.disable_adapters or layer.merged:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    return weight


def _settle(model: PeftModel) -> PeftModel:
    """Adapters in float32 and training, everything else frozen, no dropout anywhere."""
    for name, parameter in model.named_parameters():
        trains = "lora_" in name
        if trains:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trains)
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
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: {CONFIG} does not describe a LoRA adapter; give a folder that save_adapter wrote.")
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: {WEIGHTS} is damaged ({_line(error)}); fetch or save it again.") from None
    return config, weights


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
