"""Where a model runs and in which precision: an option, else ATTUNE_DEVICE and ATTUNE_DTYPE, else what is there."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from alignment.errors import ConfigError

DTYPES = {
    "fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
    "fp16": torch.float16, "float16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """A torch device and the precision of the base's weights; adapters, optimizers and the codec stay in float32."""

    device: str
    dtype: torch.dtype


def choose(device: str | None = None, dtype: str | None = None) -> Placement:
    """Without an option: a CUDA device in bfloat16 (float16 where it knows no bfloat16), else the CPU in float32.

    Under torchrun each process takes the CUDA device of its LOCAL_RANK. Raises ConfigError for a device that is not
    there and a precision that is not known."""
    device = device or os.environ.get("ATTUNE_DEVICE") or "auto"
    dtype = dtype or os.environ.get("ATTUNE_DTYPE") or "auto"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"The device is {device!r}; give auto, cpu, mps, cuda or cuda:N (--device).") from None
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"The device is {device}, and torch {torch.__version__} sees no CUDA device here; check the driver and "
                "that this is a CUDA build, or give --device cpu."
            )
        index = found.index if found.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        if index >= torch.cuda.device_count():
            raise ConfigError(f"The device is cuda:{index}, and there are {torch.cuda.device_count()}; give another.")
        device = f"cuda:{index}"
    elif found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("The device is mps, which torch does not offer here; give --device cpu.")
    elif found.type not in ("cpu", "mps"):
        raise ConfigError(f"The device is {device}; Attune runs on cpu, mps, cuda or cuda:N (--device).")
    if dtype == "auto":
        half = torch.bfloat16 if device.startswith("cuda") and torch.cuda.is_bf16_supported() else torch.float16
        return Placement(device, half if device.startswith("cuda") else torch.float32)
    if dtype not in DTYPES:
        raise ConfigError(f"The precision is {dtype!r}; give auto, fp32, bf16 or fp16 (--dtype).")
    if DTYPES[dtype] == torch.float16 and device == "cpu":
        raise ConfigError("The precision is fp16, which a CPU multiplies too slowly; give --dtype fp32 or bf16.")
    return Placement(device, DTYPES[dtype])
