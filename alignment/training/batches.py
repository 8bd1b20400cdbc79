"""What stands between a music model and transformers' Trainer: a module, a dataset, a collator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from alignment.music.text import TextBatch, encode_prompts
from alignment.training.examples import ClipExample, DpoExample
from alignment.training.losses import sequence_logprobs

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


class PolicyModule(nn.Module):
    """A music model as one module, so that accelerate can wrap it: log-probabilities of clips, (B,), in nats."""

    def __init__(self, model: MusicModel) -> None:
        super().__init__()
        self.hf = model.hf  # registered, so that its parameters are found
        self.music = model

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def forward(self, codes: Tensor, frames: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """codes (B, K, T) int64, padded beyond ``frames`` (B,); hidden (B, L, D) and mask (B, L) of the prompts.

        Clips of one length are scored together. Padding is cut off and never scored: under the delay pattern, codes
        beyond a clip's end would still be seen by its last frames in the higher codebooks."""
        lengths = frames.tolist()
        if len(set(lengths)) == 1:
            return sequence_logprobs(self.music.logprobs(codes[..., : lengths[0]], TextBatch(hidden, mask)))
        total = hidden.new_zeros(len(lengths), dtype=torch.float64)
        for length in sorted(set(lengths)):
            rows = (frames == length).nonzero().squeeze(1)
            scored = self.music.logprobs(codes[rows, :, :length], TextBatch(hidden[rows], mask[rows]))
            total = total.index_put((rows,), sequence_logprobs(scored))
        return total

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training may move, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    @contextmanager
    def checkpointing(self, *, enabled: bool) -> Iterator[None]:
        """Recompute activations in the backward pass inside this block; the model's mode is put back after it."""
        was_training, decoder = self.hf.training, self.hf.decoder
        # transformers is renaming gradient_ to activation_checkpointing.
        word = "activation" if hasattr(decoder, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(decoder, f"{word}_checkpointing_enable")({"use_reentrant": False})
            decoder.disable_input_require_grads()  # only the reentrant kind needs that hook
        try:
            yield
        finally:
            if enabled:
                getattr(decoder, f"{word}_checkpointing_disable")()
            self.hf.train(was_training)


class PairDataset(Dataset):
    """Examples with their prompt's encoding and their reference log-probabilities, ready for ``collate``."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    @classmethod
    @torch.no_grad()
    def with_reference(
        cls, policy: PolicyModule, examples: Sequence[DpoExample], *, batch_size: int, at_start: bool = False
    ) -> PairDataset:
        """The dataset of the examples; prompts are encoded once and clips scored once: with the adapter off, or
        ``at_start`` with the adapter as it is now."""
        texts = _encode_once(policy.music, [example.prompt for example in examples])
        mean_weight = float(np.mean([example.weight for example in examples]))
        items: list[dict[str, Any]] = [
            {
                "chosen": torch.from_numpy(np.array(example.chosen, dtype=np.int64)),
                "rejected": torch.from_numpy(np.array(example.rejected, dtype=np.int64)),
                "hidden": texts[example.prompt],
                "weight": example.weight / mean_weight,
                "ref_chosen": 0.0,
                "ref_rejected": 0.0,
            }
            for example in examples
        ]
        training = policy.hf.training
        policy.hf.eval()
        with nullcontext() if at_start else policy.music.reference():
            for start in range(0, len(items), batch_size):
                batch = items[start : start + batch_size]
                inputs = {name: value.to(policy.device) for name, value in collate(batch).items()}
                logprobs = policy(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])
                for item, chosen, rejected in zip(batch, *logprobs.cpu().chunk(2), strict=True):
                    item["ref_chosen"], item["ref_rejected"] = float(chosen), float(rejected)
        policy.hf.train(training)
        return cls(items)


class ClipDataset(Dataset):
    """Single clips with their prompt's encoding, ready for ``collate_clips``."""

    def __init__(self, policy: PolicyModule, examples: Sequence[ClipExample]) -> None:
        texts = _encode_once(policy.music, [example.prompt for example in examples])
        mean_weight = float(np.mean([example.weight for example in examples]))
        self.items = [
            {
                "clip": torch.from_numpy(np.array(example.codes, dtype=np.int64)),
                "hidden": texts[example.prompt],
                "weight": example.weight / mean_weight,
            }
            for example in examples
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of B pairs: ``_padded``'s tensors of 2 B clips, chosen first, and three (B,) float64."""
    clips = [item["chosen"] for item in items] + [item["rejected"] for item in items]
    return _padded(clips, [item["hidden"] for item in items] * 2) | {
        name: torch.tensor([item[name] for item in items], dtype=torch.float64)
        for name in ("weight", "ref_chosen", "ref_rejected")
    }


def collate_clips(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of B single clips: ``_padded``'s tensors and weight (B,) float64."""
    weight = torch.tensor([item["weight"] for item in items], dtype=torch.float64)
    return _padded([item["clip"] for item in items], [item["hidden"] for item in items]) | {"weight": weight}


def _padded(clips: Sequence[Tensor], texts: Sequence[Tensor]) -> dict[str, Tensor]:
    """N clips: codes (N, K, T); frames and counts (N,); their prompts' hidden (N, L, D) and mask (N, L)."""
    frames = torch.tensor([clip.shape[1] for clip in clips])
    codes = torch.zeros(len(clips), clips[0].shape[0], int(frames.max()), dtype=torch.int64)
    for row, clip in enumerate(clips):
        codes[row, :, : clip.shape[1]] = clip
    longest = max(len(text) for text in texts)
    hidden = texts[0].new_zeros(len(texts), longest, texts[0].shape[1])
    mask = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        hidden[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"codes": codes, "frames": frames, "counts": frames * codes.shape[1], "hidden": hidden, "mask": mask}


def _encode_once(model: MusicModel, prompts: Sequence[str]) -> dict[str, Tensor]:
    """{prompt: its encoding (L, D), without padding}, each prompt encoded once."""
    unique = list(dict.fromkeys(prompts))
    found = {}
    for start in range(0, len(unique), 64):
        part = unique[start : start + 64]
        batch = encode_prompts(model, part)
        for prompt, hidden, mask in zip(part, batch.hidden, batch.mask, strict=True):
            found[prompt] = hidden[mask.bool()].detach().cpu()
    return found
