"""How much memory a run takes before it is started: weights, adapter, optimizer, activations, cache, codec.

Counted from shapes; what no formula gives is measured and named (``ACTIVATIONS_A_LAYER`` and the like, on a CPU; see
docs/checkpoints.md and scripts/measure_memory.py). An estimate is meant to be within a third of the truth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignment.config import LoraSettings
from alignment.errors import ModelError

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

GIB = 2**30
ACTIVATIONS_A_LAYER = 35  # numbers of width D that a decoder layer keeps of one step for its backward pass
LORA_INPUTS = 11  # of them again in float32 where the base is held in half precision: what LoRA reads
LOGIT_COPIES = 15  # of B x K x S x V in float32, in the forward and backward pass of the log-probabilities
CODEC_BYTES = 25  # a sample and filter, while EnCodec decodes
PACKING, CACHE_GROWTH = 1.3, 1.25  # while weights are packed; a cache that grows is there twice for a moment
CODEC_BATCH, CODEC_SAMPLES = 16, 2_560_000  # streams and samples that the codec takes at once, at most
TEXT_TOKENS = 32  # of a prompt, where nobody says how long it is
RESERVE = 0.1  # of the device's memory, for what torch and the allocator keep for themselves


@dataclass(frozen=True)
class Shape:
    """What of a MusicGen its memory depends on."""

    width: int
    layers: int
    ffn: int
    codebooks: int
    codebook_size: int
    channels: int
    text_parameters: int
    codec_parameters: int
    codec_filters: int
    sample_rate_hz: int
    frame_rate_hz: float
    melody_frames: int = 0  # of no melody, ahead of a melody checkpoint's prompts; it has no cross-attention

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of transformers' MusicgenConfig or MusicgenMelodyConfig. Text encoder and codec are built on the meta device
        and counted."""
        from transformers import EncodecModel, T5EncoderModel

        from alignment.music.checkpoint import quiet

        with torch.device("meta"), quiet():
            return cls._counted(config, T5EncoderModel(config.text_encoder), EncodecModel(config.audio_encoder))

    @classmethod
    def of_model(cls, model: MusicModel) -> Shape:
        """Of a model that is there."""
        return cls._counted(model.hf.config, model.hf.text_encoder, model.hf.audio_encoder)

    @classmethod
    def _counted(cls, config: Any, *parts: torch.nn.Module) -> Shape:
        decoder, codec = config.decoder, config.audio_encoder
        text, encodec = (sum(p.numel() for p in part.parameters()) for part in parts)
        return cls(
            decoder.hidden_size, decoder.num_hidden_layers, decoder.ffn_dim, decoder.num_codebooks, decoder.vocab_size,
            decoder.audio_channels, text, encodec, codec.num_filters, codec.sampling_rate,
            codec.sampling_rate / math.prod(codec.upsampling_ratios), getattr(config, "chroma_length", 0),
        )  # fmt: skip

    @property
    def decoder_parameters(self) -> int:
        """Attention twice, feed-forward, three norms a layer; embeddings with their extra row, heads, the last norm.
        A melody checkpoint's layers have one attention and two norms."""
        d, attentions = self.width, 1 if self.melody_frames else 2
        layer = attentions * 4 * d * d + 2 * d * self.ffn + 2 * (attentions + 1) * d
        return self.layers * layer + self.codebooks * d * (2 * self.codebook_size + 1) + 2 * d

    def steps(self, seconds: float) -> int:
        """Decoder steps S of a clip."""
        return max(1, round(seconds * self.frame_rate_hz)) + (self.codebooks - 1) // self.channels

    def ahead(self, text_tokens: int) -> int:
        """Places of self-attention that stand ahead of the first step."""
        return self.melody_frames + text_tokens if self.melody_frames else 0

    def adapter_parameters(self, lora: LoraSettings) -> int:
        """Of a LoRA; LoHa has twice as many, IA3 fewer."""
        d, r = self.width, lora.r
        cross = 0 if self.melody_frames else 8 * d
        per_layer = {"self_attention": 8 * d, "cross_attention": cross, "feed_forward": 2 * (d + self.ffn)}
        rows = self.layers * sum(per_layer.get(group, 0) for group in lora.target_modules)
        heads = self.codebooks * (d + self.codebook_size) if "heads" in lora.target_modules else 0
        return r * (rows + heads) * (2 if lora.kind == "loha" else 1)


@dataclass(frozen=True)
class Estimate:
    """Bytes by what takes them."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.parts.items() if size >= 0.005 * self.total)
        return f"{gib(self.total)} ({parts})"


def gib(size: float) -> str:
    """A size as people read it."""
    return f"{size / GIB:.2g} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def codec_batch(samples: float) -> int:
    """How many streams of that many samples the codec takes at once, at least 1."""
    return max(1, min(CODEC_BATCH, int(CODEC_SAMPLES // max(1, samples))))


def cache_bytes(shape: Shape, positions: int, dtype: torch.dtype) -> int:
    """Keys and values of attention at ``positions`` steps, summed over all rows."""
    return 2 * shape.layers * shape.width * positions * dtype.itemsize


def loading(shape: Shape, dtype: torch.dtype) -> Estimate:
    """Holding the model: decoder and text encoder in ``dtype``, the codec in float32."""
    size = dtype.itemsize
    return Estimate({"weights": (shape.decoder_parameters + shape.text_parameters) * size + 4 * shape.codec_parameters})


def generation(
    shape: Shape, *, clips: int, seconds: float, guidance: float = 1.0, dtype: torch.dtype,
    text_tokens: int = TEXT_TOKENS,
) -> Estimate:  # fmt: skip
    """Singing ``clips`` clips in one batch and then decoding them, whichever takes more. The decoder's weights are
    there twice: packed for rollouts beside the model's own."""
    size, rows = dtype.itemsize, clips * (1 if guidance == 1.0 else 2)
    steps = shape.steps(seconds)
    positions = rows * (shape.ahead(text_tokens) + steps) + (0 if shape.melody_frames else clips * text_tokens)
    samples = seconds * shape.sample_rate_hz * shape.channels
    at_once = min(clips * shape.channels, codec_batch(samples / shape.channels)) * samples / shape.channels
    singing = {
        "cache": int(CACHE_GROWTH * cache_bytes(shape, positions, dtype)),
        "logits": LOGIT_COPIES * clips * shape.codebooks * shape.codebook_size * 4,
    }
    decoding = {"codec": int(CODEC_BYTES * shape.codec_filters * at_once + 8 * clips * samples)}
    return Estimate(
        {
            **loading(shape, dtype).parts,
            "rollout copy": int(PACKING * shape.decoder_parameters * size),
            **max(singing, decoding, key=lambda parts: sum(parts.values())),
        }
    )


def training(
    shape: Shape, *, clips: int, seconds: float, lora: LoraSettings, dtype: torch.dtype, checkpointing: bool = False
) -> Estimate:
    """One backward pass over ``clips`` clips at once (two a pair), with AdamW's two moments of the adapter."""
    steps, adapter = shape.steps(seconds), 4 * shape.adapter_parameters(lora)
    numbers = clips * (shape.ahead(TEXT_TOKENS) + steps) * shape.width
    layers = 1 if checkpointing else shape.layers  # whose activations are there at once
    kept = ACTIVATIONS_A_LAYER * layers + (shape.layers if checkpointing else 0)
    casts = 4 * LORA_INPUTS * layers * numbers
    return Estimate(
        {
            **loading(shape, dtype).parts,
            "adapter": adapter,
            "gradients and optimizer": 3 * adapter,
            "activations": numbers * kept * dtype.itemsize + (0 if dtype == torch.float32 else casts),
            "logits": LOGIT_COPIES * clips * shape.codebooks * steps * shape.codebook_size * 4,
        }
    )


def available(device: str | torch.device) -> int | None:
    """Free bytes on the device; None where nobody can say. ATTUNE_MEMORY, in GiB, takes its place; 0 is no limit."""
    said = os.environ.get("ATTUNE_MEMORY")
    if said:
        try:
            limit = float(said)
        except ValueError:
            raise ModelError(f"ATTUNE_MEMORY is {said!r}; give a number of GiB, 0 for no limit.") from None
        return int(limit * GIB) if limit > 0 else None
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _free_on_this_machine() if device.type == "cpu" else None


def _free_on_this_machine() -> int | None:
    """What Linux says is available, within the limit of this process's control group."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def require_fits(
    estimate: Callable[[int], Estimate], batch: int, *, device: str | torch.device, what: str, smaller: str,
    held: int = 0,
) -> Estimate:  # fmt: skip
    """The estimate of ``batch``, when it fits into the device's free memory beside a tenth of reserve.

    ``held`` bytes of it are there already. Otherwise raises ModelError with the parts, and with the largest batch that
    would fit and what sets it (``smaller``)."""
    found, free = estimate(batch), available(device)
    if free is None or found.total - held <= (1 - RESERVE) * free:
        return found
    fits = next((n for n in range(batch - 1, 0, -1) if estimate(n).total - held <= (1 - RESERVE) * free), 0)
    would = (
        f"{smaller} {fits} would need {gib(estimate(fits).total - held)}"
        if fits
        else f"not even {smaller} 1 would fit, which needs {gib(estimate(1).total - held)}: take a "
        "smaller model, shorter clips, or a larger device"
    )
    raise ModelError(
        f"{what} needs about {found}{f', of which {gib(held)} are there' if held else ''}, and {device} has "
        f"{gib(free)} free, of which a tenth is kept; {would}."
    )


def require_room(size: int, *, device: str | torch.device, what: str) -> None:
    """Return when ``size`` bytes fit into the device's free memory. Raises ModelError with what would help."""
    free = available(device)
    if free is not None and size > (1 - RESERVE) * free:
        raise ModelError(
            f"{what} takes {gib(size)}, and {device} has {gib(free)} free, of which a tenth is kept; free some, take a "
            "larger machine or a smaller checkpoint, or --dtype bf16."
        )


def require_training_fits(
    model: MusicModel, batch: int, *, frames: int, lora: LoraSettings, checkpointing: bool, what: str,
    clips_each: int = 1,
) -> None:  # fmt: skip
    """Return when an optimizer step over ``batch`` examples of ``clips_each`` clips of T frames fits beside the model.
    Raises ModelError with the batch that would."""
    shape, seconds = Shape.of_model(model), frames / model.frame_rate_hz

    def estimate(count: int) -> Estimate:
        return training(
            shape, clips=clips_each * count, seconds=seconds, lora=lora, dtype=model.dtype, checkpointing=checkpointing
        )

    more = "" if checkpointing else "gradient_checkpointing, or "
    require_fits(
        estimate, batch, device=model.device, what=what, smaller=f"{more}per_device_train_batch_size",
        held=held_by(model),
    )  # fmt: skip


def rollout_batch(model: MusicModel, clips: int, *, seconds: float, guidance: float, what: str) -> int:
    """How many of ``clips`` clips can be sung in one batch beside the model: all, or the largest number that fits.

    Each clip is the same in whatever batch. Raises ModelError when not even one fits."""
    shape, held = Shape.of_model(model), held_by(model)

    def estimate(count: int) -> Estimate:
        return generation(shape, clips=count, seconds=seconds, guidance=guidance, dtype=model.dtype)

    free = available(model.device)
    if free is None:
        return clips
    for count in range(clips, 1, -1):
        if estimate(count).total - held <= (1 - RESERVE) * free:
            return count
    require_fits(estimate, 1, device=model.device, what=what, smaller="a batch of", held=held)
    return 1


def held_by(model: MusicModel) -> int:
    """Bytes of the model's parameters and buffers as they are now."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {*model.hf.parameters(), *model.hf.buffers()})
