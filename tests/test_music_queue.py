"""The queue: every clip is the one it would be alone, the batch is full, and a step is what a GPU may replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.domain import GenerationConfig
from alignment.errors import DataError
from alignment.music import slots as slots_module
from alignment.music.model import MusicModel
from alignment.music.sampler import Request, Rollout, _joined, _uniforms, sample, sample_queue
from alignment.music.slots import WARMUP, Slots
from alignment.music.text import encode_prompts
from tests.music_support import make_tiny_music
from tests.test_music_sampler import PROMPTS

LENGTHS = [0.1, 0.5, 0.3, 0.1, 0.4, 0.2, 0.1]  # seconds: 5, 25, 15, 5, 20, 10, 5 frames
REQUESTS = [Request(PROMPTS[n % 3], 10 + n, seconds) for n, seconds in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def model(request: pytest.FixtureRequest) -> MusicModel:
    return make_tiny_music(channels=request.param)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_clip_of_a_queue_is_the_one_sung_alone(model: MusicModel, guidance: float) -> None:
    generation = GenerationConfig(guidance=guidance, top_k=20, temperature=0.9)
    found = dict(sample_queue(model, REQUESTS, generation, rows=3))
    assert sorted(found) == list(range(7))
    for place, wanted in enumerate(REQUESTS):
        own = GenerationConfig(guidance=guidance, top_k=20, temperature=0.9, clip_seconds=wanted.clip_seconds)
        alone = sample(model, [wanted.prompt], generation=own, seeds=[wanted.seed])
        assert torch.equal(found[place].codes, alone.codes)
        assert not found[place].codes.is_inference() and not found[place].logprobs.is_inference()  # training may use it
        torch.testing.assert_close(found[place].logprobs, alone.logprobs, atol=1e-4, rtol=0)
        scored = model.logprobs(found[place].codes, encode_prompts(model, [wanted.prompt]), generation=own)
        torch.testing.assert_close(found[place].logprobs.exp(), scored.exp(), atol=1e-4, rtol=0)


def test_where_a_clip_ends_the_next_begins_and_the_steps_are_known_beforehand() -> None:
    told, finished = [], []
    queue = sample_queue(
        make_tiny_music(), REQUESTS, GenerationConfig(), rows=3, on_step=lambda done, total: told.append((done, total))
    )
    for place, _ in queue:
        finished.append((place, told[-1][0]))
    # Longest first, 3 delayed steps more than frames: 28 | 23 | 18, then 13 at 18, 8 at 23, 8 at 28, 8 at 31.
    assert finished == [(2, 18), (4, 23), (1, 28), (0, 31), (5, 31), (3, 36), (6, 39)]
    assert told == [(step, 39) for step in range(1, 40)]


def test_an_order_by_place_makes_a_rollout_of_clips_of_one_length() -> None:
    model, generation = make_tiny_music(), GenerationConfig(clip_seconds=0.2)
    queue = sample_queue(
        model, [Request(p, s, 0.2) for p, s in zip(PROMPTS, [4, 5, 6], strict=True)], generation, rows=2
    )
    joined = _joined(10, 4, reversed(list(queue)))  # in whatever order they are finished
    together = sample(model, PROMPTS, generation=generation, seeds=[4, 5, 6])
    assert torch.equal(joined.codes, together.codes)
    torch.testing.assert_close(joined.logprobs, together.logprobs, atol=1e-4, rtol=0)
    assert _joined(10, 4, iter([])).codes.shape == (0, 4, 10)
    assert not joined.codes.is_inference() and not torch.is_inference_mode_enabled()


def test_bad_requests_are_told_at_once_and_none_give_nothing() -> None:
    model = make_tiny_music()
    with pytest.raises(DataError, match="negative"):
        sample_queue(model, [Request("flute", -1, 1.0)], GenerationConfig())
    with pytest.raises(DataError, match="rows is 0"):
        sample_queue(model, [Request("flute", 1, 1.0)], GenerationConfig(), rows=0)
    assert list(sample_queue(model, [], GenerationConfig())) == []


def make_slots(model: MusicModel, clips: int = 3) -> Slots:
    """Slots that have begun three clips of 12 frames, and are 4 steps into them."""
    with torch.no_grad():
        text = encode_prompts(model, PROMPTS)
        slots = Slots(model, GenerationConfig(guidance=3.0, top_k=20), clips, 12, text.mask.shape[1])
        slots.place(range(3), text, list(_uniforms(model, [1, 2, 3], 12)))
        for _ in range(4):
            slots.advance()
    return slots


class Watching(TorchDispatchMode):
    """Which operators ran, with the shapes they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN202
        shapes = tuple(tuple(each.shape) for each in _tensors(args))
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


def _tensors(values: Iterable) -> list[torch.Tensor]:
    return [v for v in values if isinstance(v, torch.Tensor)]


def test_a_step_has_fixed_shapes_moves_no_buffer_and_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = make_slots(make_tiny_music())
    # On a CPU the k-th largest is numpy's; a device takes the other branch.
    monkeypatch.setattr(
        "alignment.music.distribution._kth_largest",
        lambda logits, k: torch.topk(logits, k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True),
    )

    def addresses() -> list[int]:
        held = [slots.read, slots.at, slots.uniforms, slots.codes, slots.logprobs, *slots.cache.buffers]
        return [each.data_ptr() for each in (*held, slots.step.bias)]

    before, runs = addresses(), []
    for _ in range(3):
        with torch.no_grad(), Watching() as watching:  # inference mode would show operators before they are taken apart
            slots.advance()
        runs.append(watching.seen)
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) > 50
    assert addresses() == before
    names = Counter(name for name, _ in runs[0])
    asking = ("_local_scalar_dense", "item.", "nonzero", "aten.equal.", "_to_copy", "masked_select")
    assert not [name for name in names if any(word in name for word in asking)]


def test_the_rehearsal_of_a_capture_leaves_no_trace() -> None:
    model = make_tiny_music()
    plain, rehearsed = make_slots(model), make_slots(model)
    with torch.no_grad():
        rehearsed.rehearse()
        for _ in range(8):
            plain.advance()
            rehearsed.advance()
    assert WARMUP > 0
    assert torch.equal(plain.codes[:, :12], rehearsed.codes[:, :12])
    assert torch.equal(plain.logprobs[:, :12], rehearsed.logprobs[:, :12])


def test_attention_looks_no_further_than_the_furthest_clip_and_that_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, reached = make_tiny_music(), []
    whole = dict(sample_queue(model, REQUESTS, GenerationConfig(), rows=3))
    monkeypatch.setattr(slots_module, "BLOCK", 8)
    advance = Slots.advance
    monkeypatch.setattr(Slots, "advance", lambda self: (reached.append(self.cache.room), advance(self)))
    near = dict(sample_queue(model, REQUESTS, GenerationConfig(), rows=3))
    assert all(torch.equal(whole[place].codes, near[place].codes) for place in whole)
    assert reached[:28] == [8] * 8 + [16] * 8 + [24] * 7 + [24] * 1 + [28] * 4  # the longest clip has 28 steps


def test_a_new_clip_hears_nothing_of_the_one_before_in_its_slot() -> None:
    model, generation = make_tiny_music(), GenerationConfig()
    first = [Request("fast dark trumpet tune with drums", 1, 0.4), Request("flute", 7, 0.4)]
    after = dict(sample_queue(model, first, generation, rows=1))
    alone: Rollout = sample(model, ["flute"], generation=GenerationConfig(clip_seconds=0.4), seeds=[7])
    assert torch.equal(after[1].codes, alone.codes)
