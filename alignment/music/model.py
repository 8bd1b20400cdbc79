"""A MusicGen with or without an adapter: loading, exact log-probabilities, and the base as its own reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.errors import ModelError, ShapeError
from alignment.music import adapter as adapters
from alignment.music import checkpoint, memory
from alignment.music.delay import apply_delay, undo_delay
from alignment.music.distribution import guide, token_logprobs
from alignment.music.prefix import forced_logits
from alignment.music.text import TextBatch, without_prompts

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration


class MusicModel:
    """One copy of the weights: the policy with its adapter on, the reference with it off.

    ``hf`` is the transformers model itself and stays usable; with an adapter its decoder's linear layers are
    PEFT's. The base is frozen, only adapters train, and dropout is off for good: transformers applies it
    through float attributes, so ``train()`` would otherwise switch it on unseen.
    """

    def __init__(
        self,
        hf: MusicgenForConditionalGeneration | MusicgenMelodyForConditionalGeneration,
        tokenizer: Any,
        *,
        source: str = "memory",
    ) -> None:
        checkpoint.require_supported(hf, source)
        self.hf, self.tokenizer, self.source = hf, tokenizer, source
        self.peft: PeftModel | None = None
        self.text_cache: dict[str, Tensor] = {}
        self.packed: dict[str, Any] = {}  # the base's weights as rollouts multiply by them
        self._reference_depth = 0
        hf.requires_grad_(False)
        hf.eval()
        _switch_dropout_off(hf.decoder)
        decoder, codec = hf.config.decoder, hf.config.audio_encoder
        self.codebooks: int = decoder.num_codebooks  # of a stereo model left and right of each, side by side
        self.channels: int = decoder.audio_channels
        self.codebook_size: int = decoder.vocab_size
        self.width: int = decoder.hidden_size
        self.melody_frames: int = checkpoint.melody_frames(hf)  # of no melody, ahead of a melody checkpoint's prompts
        # The extra embedding row. Read from the size, since trainers are known to overwrite pad_token_id.
        self.pad: int = decoder.vocab_size
        self.sample_rate_hz: int = codec.sampling_rate
        self.samples_per_frame: int = codec.hop_length
        self.frame_rate_hz: float = codec.sampling_rate / codec.hop_length
        self.bandwidth_kbps: float = checkpoint.bandwidth_kbps(hf)
        self.base_sha256: str = self.checksum()

    @classmethod
    def load(
        cls, source: str | Path = "tiny", *, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> MusicModel:
        """The model in a folder, ``tiny`` for the one that ships with Attune, or a hub id such as
        ``facebook/musicgen-small``.

        Folders are read without the network, and weights from safetensors only. The codec stays in float32.
        Raises ModelError, in one sentence, for anything else."""
        hf, tokenizer, name = checkpoint.read(source)
        model = cls(hf, tokenizer, source=name)  # the checksum is taken before any cast
        if torch.device(device).type != "cpu":
            size = memory.loading(memory.Shape.of_model(model), dtype).total
            memory.require_room(size, device=device, what=f"{name}: its weights in {str(dtype).removeprefix('torch.')}")
        if dtype != torch.float32:
            for name in ("text_encoder", "decoder", "enc_to_dec_proj", "audio_enc_to_dec_proj"):
                if hasattr(hf, name):
                    getattr(hf, name).to(dtype)
        hf.to(device)
        return model

    @property
    def device(self) -> torch.device:
        return self.hf.decoder.lm_heads[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.decoder.lm_heads[0].weight.dtype

    def frames(self, clip_seconds: float) -> int:
        """Frames T of a clip of that length, at least 1."""
        return max(1, round(clip_seconds * self.frame_rate_hz))

    def checksum(self) -> str:
        """sha256 of the base's weights as they are now, adapter left out, whatever precision they are held in."""
        digest = hashlib.sha256()
        for name, tensor in sorted(adapters.base_tensors(self.hf).items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            if tensor.is_floating_point():
                tensor = tensor.float()
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # Adapter -------------------------------------------------------------------------------------------

    @property
    def has_adapter(self) -> bool:
        return self.peft is not None

    def add_adapter(self, lora: LoraSettings, *, seed: int = 0) -> None:
        """Put a fresh adapter on the decoder, in float32; until it is trained it changes nothing."""
        self._require_no_adapter()
        self.peft = adapters.add(self.hf, lora, seed=seed, base_name=self.source)

    def load_adapter(self, folder: str | Path) -> None:
        """Put on the adapter saved in ``folder``. Raises ModelError if it is damaged or made for another base."""
        self._require_no_adapter()
        self.peft = adapters.load(self.hf, Path(folder), base_sha256=self.base_sha256)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format (safetensors), with the checksum of its base beside it."""
        adapters.save(self._require_adapter(), Path(folder), base_sha256=self.base_sha256)

    def remove_adapter(self) -> None:
        """Take the adapter off; the base is left exactly as it was. Without an adapter nothing happens."""
        if self._reference_depth:
            raise ModelError("The adapter cannot be removed inside reference(); leave the block first.")
        if self.peft is not None:
            self.peft.unload()
            self.peft = None
            self.hf.requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[MusicModel]:
        """Inside this block the model is its own reference: the adapter is off. Blocks may be nested."""
        if self.peft is None or self._reference_depth:
            self._reference_depth += 1
            try:
                yield self
            finally:
                self._reference_depth -= 1
            return
        with self.peft.disable_adapter():
            self._reference_depth = 1
            try:
                yield self
            finally:
                self._reference_depth = 0

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, and nothing else."""
        return [parameter for parameter in self.hf.parameters() if parameter.requires_grad]

    # Scores --------------------------------------------------------------------------------------------

    def logits(self, codes: Tensor, text: TextBatch) -> Tensor:
        """Logits (B, K, T, V): [b, k, t] is what the decoder, having read all before, says of ``codes[b, k, t]``.

        codes (B, K, T) int64; text of B rows. Gradients flow to the adapter. Raises ShapeError on mismatch."""
        if codes.ndim != 3 or codes.shape[1] != self.codebooks or codes.shape[0] != len(text):
            raise ShapeError(
                f"Found codes {tuple(codes.shape)} with text for {len(text)} clips; "
                f"needs ({len(text)}, {self.codebooks}, T)."
            )
        read = apply_delay(codes.to(self.device), self.pad, channels=self.channels)  # (B, K, S)
        if self.melody_frames:
            return undo_delay(forced_logits(self, read, text), channels=self.channels)
        out = self.hf.decoder(
            input_ids=read.flatten(0, 1),  # (B * K, S)
            encoder_hidden_states=text.hidden,
            encoder_attention_mask=text.mask,
            use_cache=False,
        ).logits  # (B * K, S, V)
        return undo_delay(out.unflatten(0, (-1, self.codebooks)), channels=self.channels)

    def logprobs(self, codes: Tensor, text: TextBatch, *, generation: GenerationConfig | None = None) -> Tensor:
        """Log-probability of each code in nats, (B, K, T) float32, under what ``sample`` draws from.

        The default is the plain model: temperature 1, no top-k, no guidance. A code that top-k would have cut
        off gets -inf. ``generation.clip_seconds`` plays no part."""
        generation = generation or GenerationConfig()
        codes = codes.to(self.device)
        scores = self.logits(codes, text)
        if generation.guidance != 1.0:
            scores = guide(scores.float(), self.logits(codes, without_prompts(self, text)).float(), generation.guidance)
        return token_logprobs(scores, codes, generation)

    def _require_adapter(self) -> PeftModel:
        if self.peft is None:
            raise ModelError("This model has no adapter; add one with add_adapter or load_adapter.")
        return self.peft

    def _require_no_adapter(self) -> None:
        if self.peft is not None:
            raise ModelError("This model already has an adapter; call remove_adapter first.")


def _switch_dropout_off(decoder: nn.Module) -> None:
    for module in decoder.modules():
        for name in ("dropout", "activation_dropout", "attention_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float | int):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
