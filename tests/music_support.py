"""A tiny random MusicGen with its tokenizer, made in memory with no network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from alignment.music.model import MusicModel

WORDS = (
    "a calm slow fast bright dark piano violin flute guitar organ trumpet synth marimba melody with drums no and in "
    "major minor strings over tune song piece of medium tempo lively gentle"
).split()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words split at spaces; </s> is appended, as T5 does."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def make_hf(
    seed: int = 0,
    *,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    text_width: int = 24,
    codebook_size: int = 64,
    dropout: float = 0.1,
    channels: int = 1,
    melody_frames: int = 0,
) -> MusicgenForConditionalGeneration | MusicgenMelodyForConditionalGeneration:
    """A random MusicGen at 16 kHz, 50 frames a second, 4 codebooks a channel; its dropout is on in the config. With
    ``melody_frames`` a melody checkpoint, of which that many stand ahead of a prompt."""
    bits = codebook_size.bit_length() - 1
    text = T5Config(
        vocab_size=64, d_model=text_width, d_kv=8, d_ff=48, num_layers=2, num_heads=3, pad_token_id=0, eos_token_id=1
    )
    codec = EncodecConfig(
        sampling_rate=16_000, audio_channels=1, num_filters=2, hidden_size=16, num_lstm_layers=1, codebook_dim=16,
        upsampling_ratios=[8, 5, 4, 2], codebook_size=codebook_size, target_bandwidths=[50 * 4 * bits / 1000],
        normalize=False, chunk_length_s=None, overlap=None,
    )  # fmt: skip
    kind = MusicgenMelodyDecoderConfig if melody_frames else MusicgenDecoderConfig
    decoder = kind(
        vocab_size=codebook_size, num_codebooks=4 * channels, audio_channels=channels, hidden_size=width,
        num_hidden_layers=layers, ffn_dim=4 * width, num_attention_heads=heads, max_position_embeddings=512,
        pad_token_id=codebook_size, bos_token_id=codebook_size, dropout=dropout, activation_function="gelu",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"text_encoder": text, "audio_encoder": codec, "decoder": decoder}
        if melody_frames:
            config = MusicgenMelodyConfig(**parts, num_chroma=12, chroma_length=melody_frames)
            hf = MusicgenMelodyForConditionalGeneration(config)
            hf.audio_enc_to_dec_proj.weight.data.normal_(std=0.7)
            hf.audio_enc_to_dec_proj.bias.data.normal_(std=0.3)
        else:
            hf = MusicgenForConditionalGeneration(MusicgenConfig(**parts))
        with torch.no_grad():
            for name, parameter in hf.decoder.named_parameters():
                # Library defaults are so small that every distribution is nearly flat and tests see nothing.
                if parameter.ndim == 2:
                    parameter.normal_(std=0.5 if "embed" in name else 1.5 * parameter.shape[1] ** -0.5)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            for layer in hf.audio_encoder.quantizer.layers:
                layer.codebook.embed.normal_()
    hf.generation_config.pad_token_id = codebook_size
    hf.generation_config.bos_token_id = codebook_size
    hf.generation_config.decoder_start_token_id = codebook_size
    return hf


def make_tiny_music(seed: int = 0, **shapes: int) -> MusicModel:
    """A tiny random MusicModel: decoder of 2 layers and width 32, 4 codebooks of 64, T5 of width 24."""
    return MusicModel(make_hf(seed, **shapes), make_tokenizer(), source=f"random-{seed}")


def make_tiny_melody(seed: int = 0, **shapes: int) -> MusicModel:
    """The same as a melody checkpoint, 7 places of no melody ahead of its prompts."""
    return make_tiny_music(seed, **{"melody_frames": 7} | shapes)


def save_tiny_music(folder: str | Path, seed: int = 0, **shapes: int) -> Path:
    """Save such a model in the standard layout, and return the folder; it loads back with the same checksum."""
    folder = Path(folder)
    make_hf(seed, **shapes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def randomise_adapter(model: MusicModel, seed: int = 0, scale: float = 0.3) -> None:
    """Give the adapter weights that matter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
