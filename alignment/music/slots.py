"""A batch kept full: clips of a queue in slots, each at its own step, advanced together by one call.

What ``advance`` does has fixed shapes, works in place and asks the device nothing back, so that on a GPU it is
captured once as a CUDA graph and replayed: a step then costs the host one launch. Lengths are known beforehand, so the
host knows without asking when a slot is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignment.domain import GenerationConfig
from alignment.music.cache import BLOCK
from alignment.music.delay import delay_values, delayed_steps, undo_delay
from alignment.music.distribution import draw
from alignment.music.prefix import decoder_step
from alignment.music.text import TextBatch

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

REACH = 256  # steps of attention that one graph more looks at; without graphs it grows by cache.BLOCK
WARMUP = 3  # steps before a capture: torch's libraries allocate their workspaces in the first ones


class Slots:
    """``clips`` slots for clips of up to ``frames`` frames and prompts of up to ``tokens`` tokens."""

    def __init__(self, model: MusicModel, generation: GenerationConfig, clips: int, frames: int, tokens: int) -> None:
        self.model, self.generation, device = model, generation, model.device
        self.step = decoder_step(model, delayed_steps(frames, model.codebooks, model.channels))
        self.cache = self.step.start_rows(clips, tokens, generation.guidance)
        books = model.codebooks
        self.every = torch.arange(clips, device=device)
        self.late = torch.arange(books, device=device) // model.channels  # (K,)
        self.at = torch.zeros(clips, dtype=torch.int64, device=device)
        self.frames = torch.zeros_like(self.at)
        self.read = torch.full((clips, books), model.pad, device=device)
        self.uniforms = torch.full((clips, self.step.steps, books), 0.5, device=device)
        self.codes = torch.zeros(self.uniforms.shape, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros_like(self.uniforms)
        self.done, self.whole = [0] * clips, [0] * clips  # steps of each slot's clip, known to the host
        self.reach = REACH if device.type == "cuda" else BLOCK
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def place(self, slots: Sequence[int], text: TextBatch, uniforms: Sequence[Tensor]) -> None:
        """Begin a clip in each of the slots: its prompt's row of ``text`` and its uniforms (K, T) in [0, 1)."""
        where = torch.tensor(slots, device=self.model.device)
        self.step.place(where, text)
        self.at[where], self.read[where] = 0, self.model.pad
        for slot, own in zip(slots, uniforms, strict=True):
            delayed = delay_values(own[None], 0.5, channels=self.model.channels)[0].T  # (S, K)
            self.uniforms[slot, : len(delayed)] = delayed.to(self.uniforms.device)
            self.frames[slot], self.done[slot], self.whole[slot] = own.shape[1], 0, len(delayed)

    def run(self, told: Callable[[], None]) -> list[int]:
        """Steps until a clip is finished; the slots where one now is, free again once taken. ``told`` hears of each."""
        singing = [slot for slot, whole in enumerate(self.whole) if self.done[slot] < whole]
        for _ in range(min(self.whole[slot] - self.done[slot] for slot in singing)):
            self._advance(max(self.done[slot] for slot in singing))
            for slot in singing:
                self.done[slot] += 1
            told()
        return [slot for slot in singing if self.done[slot] == self.whole[slot]]

    def take(self, slots: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The finished clips of these slots: codes (K, T) int64 and their log-probabilities (K, T), on the CPU."""
        channels = self.model.channels
        both = [each[slots].cpu().transpose(1, 2) for each in (self.codes, self.logprobs)]  # (b, K, S) each
        found = []
        for row, slot in enumerate(slots):
            codes, logprobs = (undo_delay(each[row, None, :, : self.whole[slot]], channels=channels) for each in both)
            found.append((codes[0], logprobs[0]))
        return found

    def advance(self) -> None:
        """One step of every slot, all on the device. A slot without a clip goes through the motions."""
        logits = self.step(self.read, self.at)
        codes, logprobs = draw(logits, self.uniforms[self.every, self.at], self.generation)  # (B, K) each
        self.codes[self.every, self.at], self.logprobs[self.every, self.at] = codes, logprobs
        frame = self.at[:, None] - self.late
        counts = (frame >= 0) & (frame < self.frames[:, None])
        self.read.copy_(torch.where(counts, codes, self.model.pad))
        self.at.add_(1).clamp_(max=self.step.steps - 1)

    def _advance(self, furthest: int) -> None:
        """``advance``, attention looking as far as the slot that is furthest stands."""
        before = self.step.before  # of the longest prompt, where prompts stand ahead of the codes
        self.cache.room = min(-(-(before + furthest + 1) // self.reach) * self.reach, before + self.step.steps)
        if self.model.device.type == "cuda":
            self._graph().replay()
        else:
            self.advance()

    def _graph(self) -> torch.cuda.CUDAGraph:
        """``advance`` captured at this reach; graphs share their memory, since one runs at a time."""
        if self.cache.room not in self.graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.rehearse()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=next(iter(self.graphs.values())).pool() if self.graphs else None):
                self.advance()
            self.graphs[self.cache.room] = graph
        return self.graphs[self.cache.room]

    def rehearse(self) -> None:
        """Some steps that are taken back: all that they wrote beside what is restored, the same steps write again."""
        read, at = self.read.clone(), self.at.clone()
        for _ in range(WARMUP):
            self.advance()
        self.read.copy_(read)
        self.at.copy_(at)
