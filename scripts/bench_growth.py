"""How the time of each phase grows: with a clip's length, with clips at a time, with votes.

    python -m scripts.bench_growth --json
    python -m scripts.bench_growth --phases rollout,leaderboard --lengths 5,10 --votes 1000,10000

A growth of 1 is linear: twice the work takes twice the time. It is the slope between two sizes, both on a log scale;
attention over a clip grows with the square of its length, everything else should not. The last phase, the queue, sings
clips of all the lengths in a batch that is kept full, beside batches that wait for their longest clip.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts import bench_options as given

if TYPE_CHECKING:
    from alignment.db.votes import VoteRow
    from alignment.music.model import MusicModel

SHAPES = ("attune-tiny", "musicgen-small", "nano")
BY_LENGTH = ("rollout", "codec", "log-probabilities", "training")
BY_VOTES = ("snapshot", "leaderboard")
PHASES = (*BY_LENGTH, "batch", *BY_VOTES, "queue")
LEAST = 0.05  # seconds: the slope between shorter times says nothing


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    report = measure(options)
    if options.json:
        print(json.dumps(report))
        return
    for phase, found in report["phases"].items():
        times = "  ".join(f"{size:g}: {seconds:.3g} s" for size, seconds in found["seconds"])
        print(f"{phase} by {found['by']}: {times}  growth {found['growth']}")
    if "queue" in report:
        print("queue: {speedup} times the speed of batches that wait".format(**report["queue"]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = given.Parser(prog="bench_growth", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=given.one_of(SHAPES), default="attune-tiny", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--phases", type=given.names(PHASES), default=list(PHASES), help=f"of {', '.join(PHASES)}")
    parser.add_argument("--lengths", type=given.lengths, default=[5.0, 10.0, 20.0, 30.0], help="seconds, comma between")
    parser.add_argument("--batch", type=given.counts, default=[1, 4, 16, 64, 256], help="clips at a time")
    parser.add_argument("--votes", type=given.counts, default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--clips", type=given.count, default=4, help="clips whose length grows; default 4")
    parser.add_argument("--short", type=given.seconds, default=1.0, help="seconds of the clips whose number grows")
    parser.add_argument("--threads", type=given.count, default=1, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cpu-time", action="store_true", help="time CPU, not wall: steadier on a busy machine")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every phase at every size, and how they grow."""
    import torch

    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    wanted, found = options.phases, {}
    if musical := [phase for phase in wanted if phase in (*BY_LENGTH, "batch", "queue")]:
        from alignment.music.checkpoint import quiet
        from scripts.bench_common import load_shape

        with quiet():
            model = load_shape(options.shape, whole_codec=True)
            model.hf.to(options.device)
            for phase in musical:
                if phase == "batch":
                    found[phase] = _grown("clips", options.batch, _rollout(model, lambda _: options.short), clock)
                elif phase in BY_LENGTH:
                    run = {"rollout": _rollout, "codec": _codec, "log-probabilities": _score, "training": _train}[phase]
                    work = run(model, float, options.clips)
                    found[phase] = _grown("seconds of a clip", options.lengths, work, clock)
    for phase in wanted:
        if phase in BY_VOTES:
            found[phase] = _grown("votes", options.votes, _snapshot if phase == "snapshot" else _leaderboard, clock)
    report = {"shape": options.shape, "phases": found, "clips": options.clips}
    if "queue" in wanted:
        report["queue"] = queue(model, options.lengths, options.clips, clock)
    return report | {"clock": "cpu" if options.cpu_time else "wall", **given.machine()}


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """The steepest slope between two sizes that follow each other, log against log; None where times are too short."""
    slopes = [
        math.log(later / earlier) / math.log(large / small)
        for small, large, earlier, later in zip(sizes[:-1], sizes[1:], seconds[:-1], seconds[1:], strict=True)
        if earlier >= LEAST
    ]
    return round(max(slopes), 2) if slopes else None


def _grown(
    by: str, sizes: Sequence[float], work: Callable[[float], Callable[[], Any]], clock: Callable[[], float]
) -> dict[str, Any]:
    """``work(size)`` prepares, what it returns is timed; the smallest size runs once before, to warm up."""
    sizes, seconds = sorted(sizes), []
    work(sizes[0])()
    for size in sizes:
        run = work(size)
        began = clock()
        run()
        seconds.append(clock() - began)
    return {
        "by": by,
        "seconds": [[size, round(one, 4)] for size, one in zip(sizes, seconds, strict=True)],
        "growth": growth(sizes, seconds),
    }


# Music: each takes a model, what a size means in seconds, and how many clips (none: the size itself) ----------------


def _rollout(
    model: MusicModel, seconds: Callable[[float], float], clips: int | None = None
) -> Callable[[float], Callable[[], Any]]:
    from alignment.domain import GenerationConfig
    from alignment.music.sampler import sample
    from scripts.bench_common import equal_prompts

    def work(size: float) -> Callable[[], Any]:
        count = clips or int(size)
        prompts, generation = equal_prompts(model, count), GenerationConfig(clip_seconds=seconds(size))
        return lambda: sample(model, prompts, generation=generation, seeds=range(count), batch_size=count)

    return work


def _codec(model: MusicModel, seconds: Callable[[float], float], clips: int) -> Callable[[float], Callable[[], Any]]:
    from alignment.music.codec import decode

    def work(size: float) -> Callable[[], Any]:
        codes = _codes(model, clips, seconds(size))
        return lambda: decode(model, codes)

    return work


def _score(model: MusicModel, seconds: Callable[[float], float], clips: int) -> Callable[[float], Callable[[], Any]]:
    import torch

    run = _train(model, seconds, clips, backward=False)

    def work(size: float) -> Callable[[], Any]:
        def scored() -> None:
            with torch.no_grad():
                run(size)()

        return scored

    return work


def _train(
    model: MusicModel, seconds: Callable[[float], float], clips: int, *, backward: bool = True
) -> Callable[[float], Callable[[], Any]]:
    """Log-probabilities with their gradient: what a step of DPO or PPO does to each clip."""
    from alignment.config import LoraSettings
    from alignment.music.text import encode_prompts
    from scripts.bench_common import equal_prompts

    def work(size: float) -> Callable[[], Any]:
        codes, text = _codes(model, clips, seconds(size)), encode_prompts(model, equal_prompts(model, clips))

        def run() -> None:
            if not backward:
                model.logprobs(codes, text)
                return
            model.add_adapter(LoraSettings())
            try:
                model.logprobs(codes, text).sum().backward()
            finally:
                model.remove_adapter()

        return run

    return work


def _codes(model: MusicModel, clips: int, seconds: float) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.codebook_size, (clips, model.codebooks, model.frames(seconds)), generator=generator)


def queue(model: MusicModel, lengths: Sequence[float], rows: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Four rounds of clips of lengths in turn, ``rows`` at a time: by the queue, and by batches in the same order."""
    from alignment.domain import GenerationConfig
    from alignment.music.sampler import Request, sample, sample_queue
    from scripts.bench_common import equal_prompts

    turns = [lengths[n % len(lengths)] for n in range(4 * rows)]
    prompts = equal_prompts(model, len(turns))
    requests = [Request(prompt, seed, length) for seed, (prompt, length) in enumerate(zip(prompts, turns, strict=True))]
    began = clock()
    sung = dict(sample_queue(model, requests, GenerationConfig(), rows=rows))
    kept_full = clock() - began
    began = clock()
    for start in range(0, len(turns), rows):
        part = slice(start, start + rows)
        generation = GenerationConfig(clip_seconds=max(turns[part]))
        sample(model, prompts[part], generation=generation, seeds=range(start, start + len(prompts[part])))
    waiting = clock() - began
    frames = sum(each.codes.shape[2] for each in sung.values())
    return {
        "clips": len(turns), "rows": rows, "lengths": list(lengths), "frames": frames,
        "seconds": round(kept_full, 4), "seconds_waiting": round(waiting, 4), "speedup": round(waiting / kept_full, 2),
    }  # fmt: skip


# Votes ---------------------------------------------------------------------------------------------------------------


def _snapshot(size: float) -> Callable[[], Any]:
    from alignment.preferences import freeze_snapshot, write_snapshot

    rows = vote_rows(int(size))

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_snapshot(freeze_snapshot(rows), Path(folder) / "snapshot.jsonl")

    return run


def vote_rows(count: int) -> list[VoteRow]:
    """Counted votes as they come from the database: six a prompt, on clips of two versions, of 400 raters."""
    from alignment.db.votes import VoteRow
    from alignment.domain import ClipRef, Outcome, RaterKind, Split

    rng = np.random.default_rng(0)
    outcomes = rng.choice([Outcome.A, Outcome.B, Outcome.TIE], count)
    raters, now = rng.integers(400, size=count), datetime.now(UTC)
    splits = [Split.TRAIN, Split.TRAIN, Split.VALID, Split.TEST]

    def clip(version: str, n: int) -> ClipRef:
        return ClipRef(f"{version}-{n}", version, f"{n:063x}{version}", f"{n:063x}{version}")

    return [
        VoteRow(
            f"{n:032x}", "study", outcomes[n], {}, clip("a", n), clip("b", n), f"prompt-{n // 6}", f"prompt {n // 6}",
            splits[n // 6 % 4], f"rater-{raters[n]}", RaterKind.SIMULATED, now,
        )
        for n in range(count)
    ]  # fmt: skip


def _leaderboard(size: float) -> Callable[[], Any]:
    from alignment.evaluation.ratings import rate_votes
    from scripts.bench_ratings import draw_votes

    votes = draw_votes(int(size), 20, raters=max(20, int(size) // 100), prompts=max(20, int(size) // 50), seed=0)
    return lambda: rate_votes(votes)


if __name__ == "__main__":
    main()
