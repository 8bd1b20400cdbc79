"""The MusicGen checkpoints that Meta published: their shapes and licence, so that they can be planned for unseen.

Shapes from their config.json on the hub, which audiocraft's config/model/lm/model_scale repeats (arXiv:2306.05284,
section 3.1). The weights are CC BY-NC 4.0: not for commercial use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import MusicgenConfig, MusicgenMelodyConfig

LICENCE = "CC-BY-NC-4.0"


@dataclass(frozen=True)
class Published:
    """The decoder of a published checkpoint; ``melody`` marks those that also take a melody, of which Attune uses
    the text alone."""

    width: int
    layers: int
    heads: int
    channels: int = 1
    melody: bool = False


SMALL, MEDIUM, LARGE = (1024, 24, 16), (1536, 48, 24), (2048, 48, 32)
PUBLISHED = {
    "facebook/musicgen-small": Published(*SMALL),
    "facebook/musicgen-medium": Published(*MEDIUM),
    "facebook/musicgen-large": Published(*LARGE),
    "facebook/musicgen-stereo-small": Published(*SMALL, channels=2),
    "facebook/musicgen-stereo-medium": Published(*MEDIUM, channels=2),
    "facebook/musicgen-stereo-large": Published(*LARGE, channels=2),
    "facebook/musicgen-melody": Published(*MEDIUM, melody=True),
    "facebook/musicgen-melody-large": Published(*LARGE, melody=True),
    "facebook/musicgen-stereo-melody": Published(*MEDIUM, channels=2, melody=True),
    "facebook/musicgen-stereo-melody-large": Published(*LARGE, channels=2, melody=True),
}


def published_config(name: str, **changes: Any) -> MusicgenConfig | MusicgenMelodyConfig:
    """transformers' config of a published checkpoint: T5-base, EnCodec at 32 kHz with 4 books of 2048, the decoder, and
    of a melody checkpoint its 235 frames of 12 pitch classes; ``changes`` are made to the decoder. Raises KeyError for
    another name."""
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenMelodyConfig,
        MusicgenMelodyDecoderConfig,
        T5Config,
    )

    shape = PUBLISHED[name]
    text = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    codec = EncodecConfig(
        sampling_rate=32_000, target_bandwidths=[2.2], codebook_size=2048, num_filters=64,
        upsampling_ratios=[8, 5, 4, 4], hidden_size=128, use_causal_conv=False, use_conv_shortcut=False,
        num_lstm_layers=2, normalize=False, chunk_length_s=None, overlap=None, pad_mode="reflect",
    )  # fmt: skip
    decoder = {
        "vocab_size": 2048, "num_codebooks": 4 * shape.channels, "audio_channels": shape.channels,
        "hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "ffn_dim": 4 * shape.width, "max_position_embeddings": 2048, "activation_function": "gelu", "dropout": 0.1,
        "pad_token_id": 2048, "bos_token_id": 2048,
    }  # fmt: skip
    if shape.melody:
        own = MusicgenMelodyDecoderConfig(**decoder | changes)
        return MusicgenMelodyConfig(
            text_encoder=text, audio_encoder=codec, decoder=own, num_chroma=12, chroma_length=235
        )
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=MusicgenDecoderConfig(**decoder | changes))
