"""What is raced in scripts/bench_rollout.py: shapes, prompts, and the three samplers behind one call each."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from alignment.domain import GenerationConfig
from alignment.errors import ModelError
from alignment.music import audiocraft
from alignment.music.checkpoint import TINY
from alignment.music.delay import delayed_steps
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import encode_prompts

Sampler = Callable[[list[str], GenerationConfig], Tensor]  # codes (B, K, T) int64 of the prompts


@dataclass(frozen=True)
class Shape:
    """A MusicGen decoder's sizes; the text encoder in front of it is always a T5 of two layers."""

    layers: int
    width: int
    heads: int
    codebooks: int
    codebook_size: int
    text_width: int
    ratios: tuple[int, ...]  # of the codec: their product is the samples a frame
    sample_rate_hz: int
    filters: int = 2  # of the codec where it is wanted whole; rollouts are raced without a codec


# musicgen-small's are the published ones (arXiv:2306.05284; its config.json on the hub). "nano" is for tests.
RANDOM_SHAPES = {
    "musicgen-small": Shape(24, 1024, 16, 4, 2048, 768, (8, 5, 4, 4), 32_000, 64),
    "nano": Shape(2, 32, 4, 4, 64, 24, (8, 5, 4, 2), 16_000),
}


def load_shape(name: str, *, full_precision: bool = False, whole_codec: bool = False) -> MusicModel:
    """attune-tiny as it ships; any other shape with random weights, wide enough apart that greedy codes vary.

    All are float32 tensors of float16 numbers, as attune-tiny is stored; ``full_precision`` makes them numbers that
    float16 does not hold, as those of a policy with its adapter merged. The codec is a small one unless wanted whole,
    of the published filters."""
    model = MusicModel.load("tiny") if name == "attune-tiny" else _random_model(name, RANDOM_SHAPES[name], whole_codec)
    if full_precision:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.hf.decoder.parameters():
                parameter.mul_(1 + 1e-4 * torch.randn(parameter.shape, generator=generator))
    return model


def describe(model: MusicModel, seconds: float) -> dict[str, Any]:
    """The sizes that decide the time of a rollout."""
    config, frames = model.hf.config.decoder, model.frames(seconds)
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "ffn": config.ffn_dim,
        "codebooks": model.codebooks,
        "codebook_size": model.codebook_size,
        "text_width": model.hf.config.text_encoder.d_model,
        "prompt_tokens": len(model.tokenizer(equal_prompts(model, 1)[0])["input_ids"]),
        "seconds": seconds,
        "frames": frames,
        "steps": frames + model.codebooks - 1,
    }


def bytes_read(model: MusicModel, clips: int, frames: int, guidance: float) -> int:
    """Bytes that a rollout cannot but read: every step the decoder's weights once and the keys and values so far.

    The unconditional half of guidance has keys and values of its own; prompts' are left out, being few."""
    decoder, size = model.hf.decoder, model.dtype.itemsize
    layers = decoder.model.decoder.layers
    weights = sum(p.numel() for part in (layers, decoder.lm_heads) for p in part.parameters()) * size
    steps = delayed_steps(frames, model.codebooks, model.channels)
    rows = clips * (1 if guidance == 1.0 else 2)
    cached = sum(range(1, steps + 1)) * rows * 2 * len(layers) * model.width * size
    return weights * steps + cached


def read_bandwidth(device: str, now: Callable[[], float]) -> float:
    """Bytes a second that a sum over 256 MB reads here, the best of five: the floor's denominator, measured."""
    data = torch.ones(64 * 2**20, device=device)  # 256 MB
    best = math.inf
    for _ in range(5):
        began = now()
        data.sum()
        best = min(best, now() - began)
    return data.numel() * 4 / max(best, 1e-9)


def equal_prompts(model: MusicModel, count: int) -> list[str]:
    """Captions of one and the same number of tokens, repeated if need be: audiocraft attends to padding."""
    by_length = defaultdict(list)
    for words in itertools.product(
        ("calm", "dark", "bright"), ("piano", "flute", "violin", "organ"), ("melody", "tune")
    ):
        caption = "a {} {} {}".format(*words)
        by_length[len(model.tokenizer(caption)["input_ids"])].append(caption)
    captions = max(by_length.values(), key=len)
    return [captions[row % len(captions)] for row in range(count)]


def ours(model: MusicModel) -> Sampler:
    """Attune's sampler, text encoder included; the cache of prompts is emptied so that each call encodes them."""

    def run(prompts: list[str], generation: GenerationConfig) -> Tensor:
        model.text_cache.clear()
        return sample(model, prompts, generation=generation, seeds=range(len(prompts))).codes

    return run


def transformers_generate(model: MusicModel) -> Sampler:
    """transformers' ``generate``, text encoder included; the codec it always calls is replaced while it runs."""

    def run(prompts: list[str], generation: GenerationConfig) -> Tensor:
        tokens = model.tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        greedy = generation.top_k == 1
        drawing = {} if greedy else {"top_k": generation.top_k, "temperature": generation.temperature}
        caught: list[Tensor] = []

        def catch(codes: Tensor, **_: Any) -> SimpleNamespace:
            caught.append(codes)
            return SimpleNamespace(audio_values=None)

        model.hf.audio_encoder.decode = catch
        try:
            model.hf.generate(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], do_sample=not greedy,
                guidance_scale=generation.guidance, **drawing,
                max_new_tokens=model.frames(generation.clip_seconds) + model.codebooks - 1,
            )  # fmt: skip
        finally:
            del model.hf.audio_encoder.decode
        return caught[0][0].cpu()

    return run


def audiocraft_generate(model: MusicModel) -> Sampler:
    """audiocraft's ``LMModel.generate`` on a copy of the weights, with the prompts' states given to it for nothing.

    Its attention is torch's fused one (``memory_efficient``), as in the published MusicGen configs. It doubles the
    batch even at guidance 1: its code knows no other way with a prompt."""
    native = audiocraft.to_audiocraft(model).to(model.device, model.dtype)
    attributes = audiocraft.conditioning_attributes()
    for module in native.modules():
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = True
            # What it returns there for a single step; it would ask xformers for a class that it then does not use.
            module._get_mask = lambda steps, device, dtype: None
    states: dict[str, Tensor] = {}

    class GivenText(nn.Module):
        def tokenize(self, conditions: list[Any]) -> list[str | None]:
            return [condition.text["description"] for condition in conditions]

        def forward(self, captions: list[str | None]) -> dict[str, tuple[Tensor, Tensor]]:
            given = [states[caption] for caption in captions if caption is not None]
            hidden = torch.stack(given + [torch.zeros_like(given[0])] * (len(captions) - len(given)))
            return {"description": (hidden, torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device))}

    native.condition_provider = GivenText()

    def run(prompts: list[str], generation: GenerationConfig) -> Tensor:
        if any(prompt not in states for prompt in prompts):
            text = encode_prompts(model, prompts)
            if not bool(text.mask.all()):
                raise ModelError("audiocraft attends to padding; give it prompts of equal length.")
            states.update(zip(prompts, text.hidden, strict=True))
        return native.generate(
            conditions=[attributes(text={"description": prompt}) for prompt in prompts],
            max_gen_len=model.frames(generation.clip_seconds), use_sampling=generation.top_k != 1,
            temp=generation.temperature, top_k=generation.top_k, cfg_coef=generation.guidance,
        ).cpu()  # fmt: skip

    return run


def _random_model(name: str, shape: Shape, whole_codec: bool) -> MusicModel:
    from transformers import (
        AutoTokenizer,
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    tokenizer = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    text = T5Config(
        vocab_size=len(tokenizer), d_model=shape.text_width, d_kv=shape.text_width // 4, d_ff=2 * shape.text_width,
        num_layers=2, num_heads=4, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    frame_rate_hz = shape.sample_rate_hz / torch.tensor(shape.ratios).prod().item()
    filters, size, lstm = (shape.filters, 128, 2) if whole_codec else (2, 16, 1)
    codec = EncodecConfig(
        sampling_rate=shape.sample_rate_hz, audio_channels=1, num_filters=filters, hidden_size=size, codebook_dim=size,
        num_lstm_layers=lstm, upsampling_ratios=list(shape.ratios), codebook_size=shape.codebook_size, normalize=False,
        target_bandwidths=[frame_rate_hz * shape.codebooks * (shape.codebook_size.bit_length() - 1) / 1000],
    )  # fmt: skip
    pad = shape.codebook_size
    decoder = MusicgenDecoderConfig(
        vocab_size=shape.codebook_size, num_codebooks=shape.codebooks, hidden_size=shape.width,
        num_hidden_layers=shape.layers, ffn_dim=4 * shape.width, num_attention_heads=shape.heads,
        pad_token_id=pad, bos_token_id=pad,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = MusicgenForConditionalGeneration(MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder))
        with torch.no_grad():
            for parameter_name, parameter in hf.decoder.named_parameters():
                if parameter.ndim == 2:  # the library's defaults make every distribution nearly flat
                    parameter.normal_(std=0.5 if "embed" in parameter_name else parameter.shape[1] ** -0.5)
                parameter.copy_(parameter.half())
            for layer in hf.audio_encoder.quantizer.layers:
                layer.codebook.embed.normal_()  # the library's default is zeros: silence whatever the codes
    for field in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        setattr(hf.generation_config, field, pad)
    return MusicModel(hf, tokenizer, source=name)
