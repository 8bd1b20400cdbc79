"""What stands between a music model and transformers' Trainer: a module, a dataset, a collator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from alignment.music.text import TextBatch, encode_prompts
from alignment.training.examples import ClipExample, DpoExample
from alignment.training.losses import sequence_logprobs
from alignment.training.processes import is_first_process, process_count, process_number
from alignment.training.weights import write_tensors

if TYPE_CHECKING:
    from alignment.music.model import MusicModel


class PolicyModule(nn.Module):
    """A music model as one module, so that accelerate can wrap it: log-probabilities of clips, (B,), in nats.

    With ``bf16`` the decoder's products are in bfloat16 wherever clips are scored: in training, in validation and for
    the reference, which would else differ from the policy before the first step."""

    def __init__(self, model: MusicModel, *, bf16: bool = False) -> None:
        super().__init__()
        self.hf = model.hf  # registered, so that its parameters are found
        self.music, self.bf16 = model, bf16

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    def forward(self, codes: Tensor, frames: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """codes (B, K, T) int64, padded beyond ``frames`` (B,); hidden (B, L, D) and mask (B, L) of the prompts.

        Clips of one length are scored together. Padding is cut off and never scored: under the delay pattern, codes
        beyond a clip's end would still be seen by its last frames in the higher codebooks."""
        lengths = frames.tolist()
        if len(set(lengths)) == 1:
            return self._score(codes[..., : lengths[0]], hidden, mask)
        total = hidden.new_zeros(len(lengths), dtype=torch.float64)
        for length in sorted(set(lengths)):
            rows = (frames == length).nonzero().squeeze(1)
            total = total.index_put((rows,), self._score(codes[rows, :, :length], hidden[rows], mask[rows]))
        return total

    def _score(self, codes: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self.bf16):
            return sequence_logprobs(self.music.logprobs(codes, TextBatch(hidden, mask)))

    @contextmanager
    def checkpointing(self, *, enabled: bool) -> Iterator[None]:
        """Recompute activations in the backward pass inside this block; the model's mode is put back after it."""
        was_training, decoder = self.hf.training, self.hf.decoder
        # transformers is renaming gradient_ to activation_checkpointing.
        word = "activation" if hasattr(decoder, "activation_checkpointing_enable") else "gradient"
        if enabled:
            getattr(decoder, f"{word}_checkpointing_enable")({"use_reentrant": False})
            decoder.disable_input_require_grads()  # only the reentrant kind needs that hook
            decoder.train()  # transformers recomputes in training mode only; dropout is off for good
        try:
            yield
        finally:
            if enabled:
                getattr(decoder, f"{word}_checkpointing_disable")()
            self.hf.train(was_training)


def _held(codes: np.ndarray) -> Tensor:
    """Codes as a data set keeps them, in 16 bits where they fit: many clips wait in memory, few are in a batch."""
    found = np.asarray(codes)
    return torch.from_numpy(found.astype(np.int16 if found.max(initial=0) < 2**15 else np.int64))


class ExampleDataset(Dataset):
    """Examples with their prompt's encoding, one more than there are: the last is blank and counts for nothing."""

    def __init__(self, policy: PolicyModule, examples: Sequence[DpoExample] | Sequence[ClipExample]) -> None:
        self.prompts = [example.prompt for example in examples]
        texts = _encode_once(policy.music, self.prompts)
        mean_weight = float(np.mean([example.weight for example in examples]))
        self.items: list[dict[str, Any]] = [
            {"index": n, "hidden": texts[example.prompt], "weight": example.weight / mean_weight, **self.parts(example)}
            for n, example in enumerate(examples)
        ]

    def parts(self, example: Any) -> dict[str, Any]:
        """What an example holds beside its prompt and its weight."""
        return {"clip": _held(example.codes)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index] if index < len(self.items) else {**self.items[0], "index": -1, "weight": 0.0}


class ClipDataset(ExampleDataset):
    """Single clips, ready for ``collate_clips``."""


class PairDataset(ExampleDataset):
    """Pairs with their reference log-probabilities, ready for ``collate``."""

    def parts(self, example: DpoExample) -> dict[str, Any]:
        return {
            "chosen": _held(example.chosen),
            "rejected": _held(example.rejected),
            "label": example.label,
            "ref_chosen": 0.0,
            "ref_rejected": 0.0,
        }

    @classmethod
    def with_reference(
        cls,
        policy: PolicyModule,
        examples: Sequence[DpoExample],
        *,
        batch_size: int,
        at_start: bool = False,
        cache: Path | None = None,
    ) -> PairDataset:
        """The dataset of the examples; prompts are encoded once and clips scored once: with the adapter off, or
        ``at_start`` with the adapter as it is now. What stands in the file ``cache`` is not scored again."""
        dataset = cls(policy, examples)
        known = _read_reference(cache, len(examples))
        if known is None:
            known = dataset._score_reference(policy, batch_size, at_start)
            if cache is not None and is_first_process():
                write_tensors(known, cache)
        for item, chosen, rejected in zip(dataset.items, known["chosen"], known["rejected"], strict=True):
            item["ref_chosen"], item["ref_rejected"] = float(chosen), float(rejected)
        return dataset

    @torch.no_grad()
    def _score_reference(self, policy: PolicyModule, batch_size: int, at_start: bool) -> dict[str, Tensor]:
        """Log-probabilities of all pairs, chosen (N,) and rejected (N,) float64; several processes share the work."""
        training, found = policy.hf.training, []
        policy.hf.eval()
        starts = range(0, len(self.items), batch_size)
        with nullcontext() if at_start else policy.music.reference():
            for start in starts[process_number() :: process_count()]:
                batch = collate(self.items[start : start + batch_size])
                inputs = {name: value.to(policy.device) for name, value in batch.items()}
                logprobs = policy(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])
                found.append((start, logprobs.cpu().view(2, -1)))
        policy.hf.train(training)
        every = sorted(gather_object(found) if process_count() > 1 else found, key=lambda part: part[0])
        chosen, rejected = torch.cat([logprobs for _, logprobs in every], dim=1)
        return {"chosen": chosen.contiguous(), "rejected": rejected.contiguous()}


class EpochOrder(Sampler):
    """The order of an epoch's examples, drawn from ``seed`` plus the epoch: the same for any number of processes.

    With several processes, blanks (index N) fill the last round of batches, where accelerate would repeat examples."""

    def __init__(self, examples: int, *, seed: int, fill: int = 1) -> None:
        self.examples, self.seed, self.epoch = examples, seed, 0
        self.length = -(-examples // fill) * fill

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.examples, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        yield from order.tolist()
        yield from [self.examples] * (self.length - self.examples)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of B pairs: ``_padded``'s tensors of 2 B clips, chosen first, four (B,) float64 and index (B,)."""
    clips = [item["chosen"] for item in items] + [item["rejected"] for item in items]
    return (
        _padded(clips, [item["hidden"] for item in items] * 2)
        | {
            name: torch.tensor([item[name] for item in items], dtype=torch.float64)
            for name in ("weight", "label", "ref_chosen", "ref_rejected")
        }
        | _index(items)
    )


def collate_clips(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch of B single clips: ``_padded``'s tensors, weight (B,) float64 and index (B,)."""
    weight = torch.tensor([item["weight"] for item in items], dtype=torch.float64)
    return (
        _padded([item["clip"] for item in items], [item["hidden"] for item in items])
        | {"weight": weight}
        | _index(items)
    )


def _index(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    return {"index": torch.tensor([item["index"] for item in items])}  # -1 for a blank


def _read_reference(cache: Path | None, examples: int) -> dict[str, Tensor] | None:
    """What an earlier start of this run scored, if it is whole."""
    if cache is None or not cache.is_file():
        return None
    try:
        known = load_file(cache)
    except (SafetensorError, OSError):
        return None  # scored again
    fits = known.keys() == {"chosen", "rejected"} and all(len(values) == examples for values in known.values())
    return known if fits else None


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
