"""What audiocraft's configs (``xp.cfg``) say in transformers' words, and back; what has no words there is refused.

The names and defaults are those of audiocraft 1.3.0: config/model/lm, config/model/encodec, config/conditioner.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignment.errors import ModelError
from alignment.music import audiocraft_melody

if TYPE_CHECKING:
    from transformers import EncodecConfig, MusicgenDecoderConfig, MusicgenMelodyDecoderConfig

    from alignment.music.model import MusicModel

VERSION = "1.3.0"
POSITIONS = 2048  # transformers' table of MusicGen's sinusoids; it grows when a clip is longer
REFERENCE = re.compile(r"\$\{([\w.]+)\}")

# Section -> {key: (value that a MusicGen in transformers stands for, audiocraft's default)}.
FIXED: dict[str, dict[str, tuple[Any, Any]]] = {
    "transformer_lm": {
        "activation": ("gelu", "gelu"), "norm_first": (True, False), "norm": ("layer_norm", "layer_norm"),
        "bias_ff": (False, True), "bias_attn": (False, True), "bias_proj": (False, True), "causal": (True, False),
        "past_context": (None, None), "layer_scale": (None, None), "positional_embedding": ("sin", "sin"),
        "xpos": (False, False), "qk_layer_norm": (False, False), "qk_layer_norm_cross": (False, False),
        "kv_repeat": (1, 1), "max_period": (10000, 10000), "positional_scale": (1.0, 1.0),
    },
    "seanet": {
        "channels": (1, 1), "activation": ("ELU", "ELU"), "activation_params": ({"alpha": 1.0}, {"alpha": 1.0}),
        "norm": ("weight_norm", "none"), "norm_params": ({}, {}), "disable_norm_outer_blocks": (0, 0),
        "encoder": ({}, {}), "decoder.final_activation": (None, None), "decoder.final_activation_params": (None, None),
    },
    "encodec": {
        "autoencoder": ("seanet", None), "quantizer": ("rvq", None), "channels": (1, None),
        "renormalize": (False, False), "renorm": (False, False),
    },
    "fuser": {
        "cross": (["description"], []), "sum": ([], []), "prepend": ([], []), "input_interpolate": ([], []),
        "cross_attention_pos_emb": (False, False),
    },
}  # fmt: skip
# Keys that shape a model, and keys that only say how it was trained or run.
READ = {
    "transformer_lm": {"dim", "num_heads", "num_layers", "hidden_scale", "n_q", "card"},
    "seanet": {"dimension", "n_filters", "n_residual_layers", "ratios", "kernel_size", "residual_kernel_size",
               "last_kernel_size", "dilation_base", "causal", "pad_mode", "true_skip", "compress", "lstm", "decoder"},
    "encodec": {"sample_rate", "causal"},
    "fuser": set(),
}  # fmt: skip
IDLE = {
    "transformer_lm": {
        "dropout", "emb_lr", "custom", "memory_efficient", "attention_as_float32", "checkpointing", "weight_init",
        "depthwise_init", "zero_bias_init", "cross_attention", "attention_dropout", "two_step_cfg", "q_modeling",
    },
    "seanet": set(),
    "encodec": set(),
    "fuser": {"cross_attention_pos_emb_scale"},
}  # fmt: skip


class NativeConfig:
    """One ``xp.cfg``: nested mappings whose ``${a.b}`` stand for other values of it. ``where`` begins every error."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise ModelError(f"{where}: its xp.cfg is no mapping; give a checkpoint that audiocraft exported.")
        self.values, self.where = values, where

    def get(self, path: str, default: Any = None) -> Any:
        """The value at ``a.b.c``, references followed; ``default`` where nothing is."""
        return self._resolved(self._raw(path, default), path, 0)

    def _raw(self, path: str, default: Any) -> Any:
        found: Any = self.values
        for part in path.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return default
            found = found[part]
        return found

    def _resolved(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, str) and "${" in value:
            match = REFERENCE.fullmatch(value.strip())
            # Anything else would be a resolver: a call, such as one that reads the environment.
            if match is None or depth > 8:
                raise ModelError(f"{self.where}: {path} is {value!r}, which is not a plain reference; write its value.")
            return self._resolved(self._raw(match[1], None), match[1], depth + 1)
        if isinstance(value, Mapping):
            return {key: self._resolved(inner, f"{path}.{key}", depth) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(inner, path, depth) for inner in value]
        return value

    def number(self, path: str, default: float | None = None, *, least: float = 1, whole: bool = True) -> Any:
        """The number there. Raises ModelError for anything else."""
        value = self.get(path, default)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= least:
            kind = "whole number" if whole else "number"
            raise ModelError(f"{self.where}: {path} is {value!r}; needs a {kind} of at least {least}.")
        return value

    def check_section(self, section: str, **other: tuple[Any, Any]) -> None:
        """Raises ModelError for a key that nobody knows, or a value that transformers' MusicGen has no place for."""
        held = self.get(section)
        if not isinstance(held, Mapping):
            raise ModelError(f"{self.where}: its xp.cfg has no {section}; give a MusicGen that audiocraft exported.")
        known = READ[section] | IDLE[section] | {key.split(".")[0] for key in FIXED[section]}
        strange = sorted(set(held) - known)
        if strange:
            raise ModelError(
                f"{self.where}: {section} has {strange[0]}, which no MusicGen of audiocraft {VERSION} has; only its "
                "own models can be imported."
            )
        for key, (needed, default) in (FIXED[section] | other).items():
            found = self.get(f"{section}.{key}", default)
            if (found or needed) and found != needed:
                raise ModelError(
                    f"{self.where}: {section}.{key} is {found!r}; transformers' MusicGen knows {needed!r} only."
                )


def read_lm(config: NativeConfig) -> tuple[MusicgenDecoderConfig | MusicgenMelodyDecoderConfig, str]:
    """(decoder config, name of the text encoder) of a language model's ``xp.cfg``. Raises ModelError."""
    from transformers import MusicgenDecoderConfig, MusicgenMelodyDecoderConfig

    if config.get("lm_model") != "transformer_lm":
        raise ModelError(f"{config.where}: is a {config.get('lm_model')}; only a transformer_lm can be imported.")
    conditioners = set(config.get("conditioners") or {}) - {"args"}
    melody = audiocraft_melody.NAME in conditioners
    text = config.get("conditioners.description.model")
    if conditioners - {audiocraft_melody.NAME} != {"description"} or text != "t5":
        listed = ", ".join(sorted(conditioners)) or "nothing"
        raise ModelError(
            f"{config.where}: is conditioned on {listed}; only text through T5, alone or beside a melody, is imported."
        )
    if config.get("conditioners.description.t5.normalize_text", False):
        raise ModelError(f"{config.where}: normalizes its captions with spacy; such a model cannot be imported.")
    config.check_section("transformer_lm")
    config.check_section("fuser", **(audiocraft_melody.FUSER if melody else {}))
    width, books = config.number("transformer_lm.dim"), config.number("transformer_lm.n_q")
    channels = 2 if config.get("interleave_stereo_codebooks.use", False) else 1
    if config.get("interleave_stereo_codebooks.per_timestep", False):
        raise ModelError(f"{config.where}: interleaves stereo by time; only stereo by codebook can be imported.")
    _check_pattern(config, books, channels)
    card = config.number("transformer_lm.card")
    decoder = (MusicgenMelodyDecoderConfig if melody else MusicgenDecoderConfig)(
        vocab_size=card,
        max_position_embeddings=POSITIONS,
        num_hidden_layers=config.number("transformer_lm.num_layers"),
        ffn_dim=int(config.number("transformer_lm.hidden_scale", 4, least=0, whole=False) * width),
        num_attention_heads=config.number("transformer_lm.num_heads"),
        hidden_size=width,
        num_codebooks=books,
        audio_channels=channels,
        activation_function="gelu",
        dropout=float(config.get("transformer_lm.dropout", 0.0) or 0.0),
        pad_token_id=card,
        bos_token_id=card,
    )
    return decoder, str(config.get("conditioners.description.t5.name"))


def _check_pattern(config: NativeConfig, books: int, channels: int) -> None:
    needed = [k // channels for k in range(books)]
    pattern = config.get("codebooks_pattern.modeling")
    delays = config.get("codebooks_pattern.delay.delays") or list(range(books))
    starts = [config.get(f"codebooks_pattern.delay.{key}", 0) for key in ("flatten_first", "empty_initial")]
    if pattern != "delay" or delays != needed or any(starts):
        raise ModelError(
            f"{config.where}: its codebooks follow the pattern {pattern} {delays if pattern == 'delay' else ''}; "
            f"needs delay {needed} for {books} codebooks of {channels} channel{'s' * (channels > 1)}."
        )


def read_codec(config: NativeConfig) -> EncodecConfig:
    """transformers' config of an EnCodec's ``xp.cfg``. Raises ModelError."""
    from transformers import EncodecConfig

    if config.get("compression_model") != "encodec":
        raise ModelError(f"{config.where}: is a {config.get('compression_model')}; only EnCodec can be imported.")
    config.check_section("encodec")
    config.check_section("seanet")
    ratios = config.get("seanet.ratios", [8, 5, 4, 2])
    if not isinstance(ratios, list) or not all(isinstance(ratio, int) and ratio > 0 for ratio in ratios):
        raise ModelError(f"{config.where}: seanet.ratios is {ratios!r}; needs a list of whole numbers.")
    rate, bins, books = config.number("encodec.sample_rate"), config.number("rvq.bins"), config.number("rvq.n_q")
    causal = bool(config.get("encodec.causal", False))
    if bool(config.get("seanet.causal", False)) != causal:
        raise ModelError(f"{config.where}: encodec.causal and seanet.causal differ; they must be equal.")
    width = config.number("seanet.dimension", 128)
    values = {
        "sampling_rate": rate,
        "audio_channels": 1,
        "hidden_size": width,
        "codebook_dim": width,
        "num_filters": config.number("seanet.n_filters", 32),
        "num_residual_layers": config.number("seanet.n_residual_layers", 3, least=0),
        "upsampling_ratios": ratios,
        "norm_type": "weight_norm",
        "kernel_size": config.number("seanet.kernel_size", 7),
        "last_kernel_size": config.number("seanet.last_kernel_size", 7),
        "residual_kernel_size": config.number("seanet.residual_kernel_size", 3),
        "dilation_growth_rate": config.number("seanet.dilation_base", 2),
        "use_causal_conv": causal,
        "pad_mode": config.get("seanet.pad_mode", "reflect"),
        "compress": config.number("seanet.compress", 2),
        "num_lstm_layers": config.number("seanet.lstm", 0),  # transformers' EnCodec always has one
        "trim_right_ratio": float(config.number("seanet.decoder.trim_right_ratio", 1.0, least=0, whole=False)),
        "codebook_size": bins,
        "use_conv_shortcut": not config.get("seanet.true_skip", True),
        "normalize": False,
        "chunk_length_s": None,
        "overlap": None,
    }
    kbps = books * math.log2(bins) * math.ceil(rate / math.prod(ratios)) / 1000
    for bandwidth in (kbps, math.nextafter(kbps, math.inf)):  # transformers floors a quotient that may round down
        found = EncodecConfig(**values, target_bandwidths=[bandwidth])
        if found.num_quantizers == books:
            return found
    raise ModelError(f"{config.where}: {books} books of {bins} codes have no bandwidth in transformers' EnCodec.")


def write_lm(model: MusicModel, text_encoder: str) -> dict[str, Any]:
    """The ``xp.cfg`` from which audiocraft builds the language model of ``model``."""
    decoder = model.hf.config.decoder
    width, books = decoder.hidden_size, decoder.num_codebooks
    fixed = {key: needed for key, (needed, _) in FIXED["transformer_lm"].items()}
    dropped = ("xpos", "max_period", "positional_scale")  # not all versions take them; these are its defaults
    return {
        "solver": "musicgen",
        "sample_rate": model.sample_rate_hz,
        "channels": model.channels,
        "lm_model": "transformer_lm",
        "dtype": "float32",
        "device": "cpu",
        "transformer_lm": {
            "dim": width, "num_heads": decoder.num_attention_heads, "num_layers": decoder.num_hidden_layers,
            "hidden_scale": decoder.ffn_dim // width if decoder.ffn_dim % width == 0 else decoder.ffn_dim / width,
            "n_q": books, "card": decoder.vocab_size, "dropout": 0.0, "custom": True, "memory_efficient": False,
            **{key: value for key, value in fixed.items() if key not in dropped},
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {
                "delays": [k // model.channels for k in range(books)], "flatten_first": 0, "empty_initial": 0
            },
        },
        "interleave_stereo_codebooks": {"use": model.channels == 2, "per_timestep": False},
        "compression_model_n_q": None,
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "attribute_dropout": {},
        "fuser": {key: needed for key, (needed, _) in FIXED["fuser"].items()} | {"cross_attention_pos_emb_scale": 1},
        "conditioners": {
            "description": {
                "model": "t5",
                "t5": {"name": text_encoder, "finetune": False, "word_dropout": 0.0, "normalize_text": False},
            }
        },
        "dataset": {"segment_duration": 30},
    }  # fmt: skip


def write_codec(model: MusicModel) -> dict[str, Any]:
    """The ``xp.cfg`` from which audiocraft builds the codec of ``model``."""
    codec = model.hf.config.audio_encoder
    return {
        "compression_model": "encodec",
        "sample_rate": codec.sampling_rate,
        "channels": 1,
        "device": "cpu",
        "encodec": {
            "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": codec.sampling_rate, "channels": 1,
            "causal": codec.use_causal_conv, "renormalize": False,
        },
        "seanet": {
            "dimension": codec.hidden_size, "channels": 1, "causal": codec.use_causal_conv,
            "n_filters": codec.num_filters, "n_residual_layers": codec.num_residual_layers,
            "ratios": list(codec.upsampling_ratios), "activation": "ELU", "activation_params": {"alpha": 1.0},
            "norm": codec.norm_type, "norm_params": {}, "kernel_size": codec.kernel_size,
            "residual_kernel_size": codec.residual_kernel_size, "last_kernel_size": codec.last_kernel_size,
            "dilation_base": codec.dilation_growth_rate, "pad_mode": codec.pad_mode,
            "true_skip": not codec.use_conv_shortcut, "compress": codec.compress, "lstm": codec.num_lstm_layers,
            "disable_norm_outer_blocks": 0, "encoder": {},
            "decoder": {
                "trim_right_ratio": codec.trim_right_ratio, "final_activation": None, "final_activation_params": None
            },
        },
        "rvq": {
            "n_q": model.codebooks // model.channels, "q_dropout": False, "bins": codec.codebook_size,
            "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50, "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False,
        },
    }  # fmt: skip
