"""Matrix products packed for the machine at hand, for weights that many rollout steps in a row will read.

On a CPU a step of a few rows waits for its weights, not for arithmetic. Weights that float16 holds exactly (those of
a checkpoint stored in float16, such as attune-tiny's) are therefore kept in float16, half the bytes, and widened in
registers: the arithmetic stays float32 on the very same numbers. Others are blocked for oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignment.music.adapter import effective_weight

Product = Callable[[Tensor], Tensor]  # (rows, in) to (rows, out)
PackCache = dict[str, tuple[tuple, Product]]


def pack_layers(cache: PackCache, name: str, layers: Sequence[nn.Module], order: Tensor | None = None) -> Product:
    """The layers' weights as they act now, one below the other, as one product; ``order`` permutes its outputs.

    What an adapter changes is packed anew at every call; the frozen base is packed once and kept under ``name``
    for as long as its tensors are the same."""
    weights = [effective_weight(layer) for layer in layers]
    adapted = not all(
        any(weight is own for own in layer.parameters()) for weight, layer in zip(weights, layers, strict=True)
    )
    stamp = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
    if not adapted and name in cache and cache[name][0] == stamp:
        return cache[name][1]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    packed = pack(weight if order is None else weight[order])
    if not adapted:
        cache[name] = (stamp, packed)
    return packed


def pack(weight: Tensor) -> Product:
    """``F.linear`` without bias for ``weight`` (out, in), in the fastest form this machine and build of torch have."""
    if weight.device.type == "cpu":
        if weight.dtype == torch.float32 and has_fbgemm() and torch.equal(weight.half().float(), weight):
            half = torch.ops.quantized.linear_prepack_fp16(weight, None)
            multiply = torch.ops.quantized.linear_dynamic_fp16.default
            return lambda rows: multiply(rows, half)
        if _has_onednn():
            blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            linear = torch.ops.mkldnn._linear_pointwise.default
            return lambda rows: linear(rows, blocked, None, "none", [], "")
    return lambda rows: F.linear(rows, weight)


def has_fbgemm() -> bool:
    """Whether torch was built with fbgemm's products and sums for this processor."""
    return torch.backends.quantized.engine in ("fbgemm", "x86") and hasattr(torch.ops.quantized, "linear_dynamic_fp16")


def _has_onednn() -> bool:
    """Torch compiles these two for its own inductor, on x86 builds only."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
