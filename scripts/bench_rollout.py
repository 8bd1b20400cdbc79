"""Times Attune's rollouts against transformers' and audiocraft's own ``generate``, in one process on the same weights.

    python -m scripts.bench_rollout --json
    python -m scripts.bench_rollout --shape attune-tiny --batch 1,16 --seconds 2 --repeats 5 --threads 1

Contestants take turns (ours, transformers, audiocraft, ours ...) and medians are compared, so that a busy machine is
busy for all. Only codes are sampled: nobody decodes audio. docs/performance.md says what is timed and what is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from scripts import bench_options as given

PEERS = ("transformers", "audiocraft")
SHAPES = ("attune-tiny", "musicgen-small", "nano")  # scripts.bench_common makes them; nano is for tests
SECONDS = {"attune-tiny": 5.0, "musicgen-small": 0.4, "nano": 0.2}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    import torch

    from alignment.errors import AttuneError
    from alignment.music.checkpoint import quiet

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with quiet():
            shapes = {name: race_shape(name, options) for name in options.shape}
    except AttuneError as error:
        sys.exit(f"bench_rollout: {error}")
    ratios = {key: value for key, value in shapes[options.shape[0]].items() if key.startswith("ratio_")}
    report = {**ratios, "shapes": shapes, **_conditions(options)}
    if options.json:
        print(json.dumps(report))
    else:
        print(_table(shapes))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = given.Parser(prog="bench_rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=given.names(SHAPES), default=list(SHAPES[:2]), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=given.counts, default=[1, 16, 64], help="clips at a time, such as 1,16,64")
    parser.add_argument("--seconds", type=given.seconds, help="clip length; default 5 (musicgen-small 0.4)")
    parser.add_argument("--repeats", type=given.count, default=3, help="turns of each contestant")
    parser.add_argument("--threads", type=given.count, help="torch's threads, the same for all; default torch's own")
    parser.add_argument("--peers", type=given.names(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--guidance", type=given.from_one, default=3.0, help="1 for none; default 3")
    parser.add_argument("--top-k", type=given.count_or_none, default=250, help="0 for all codes; default 250")
    parser.add_argument("--full-precision", action="store_true", help="weights that float16 does not hold exactly")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16; greedy codes then differ a little")
    parser.add_argument("--cpu-time", action="store_true", help="time CPU, not wall: steadier on a busy machine")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def race_shape(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios, frames a second and greedy agreement on one shape."""
    import torch

    from alignment.domain import GenerationConfig
    from alignment.errors import DataError
    from scripts import bench_common as common

    def now() -> float:
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.process_time() if options.cpu_time else time.perf_counter()

    model = common.load_shape(name, full_precision=options.full_precision)
    model.hf.decoder.to(torch.bfloat16 if options.bf16 else torch.float32)
    model.hf.enc_to_dec_proj.to(model.dtype)
    model.hf.text_encoder.to(model.dtype)
    model.hf.to(options.device)
    if options.top_k > model.codebook_size:
        raise DataError(
            f"{name} has {model.codebook_size} codes a book; top-k is {options.top_k} and may not be above."
        )
    makers = {"transformers": common.transformers_generate, "audiocraft": common.audiocraft_generate}
    contestants = {"attune": common.ours(model)} | {peer: makers[peer](model) for peer in options.peers}
    seconds = options.seconds or SECONDS[name]
    generation = GenerationConfig(top_k=options.top_k, guidance=options.guidance, clip_seconds=seconds)
    result: dict[str, Any] = common.describe(model, seconds)

    # Warms every contestant up, and shows that they compute the same.
    greedy = GenerationConfig(top_k=1, guidance=options.guidance, clip_seconds=min(seconds, 20 / model.frame_rate_hz))
    prompts = common.equal_prompts(model, 2)
    codes = {who: run(prompts, greedy) for who, run in contestants.items()}
    result["greedy_codes_equal"] = {peer: bool((codes[peer] == codes["attune"]).all()) for peer in options.peers}

    result["frames_per_second"] = {}
    bandwidth = common.read_bandwidth(options.device, now)
    result["read_gb_per_second"] = round(bandwidth / 1e9, 1)
    for batch in options.batch:
        prompts = common.equal_prompts(model, batch)
        turns = {who: partial(run, prompts, generation) for who, run in contestants.items()}
        medians = race(turns, options.repeats, now)
        speeds = {who: batch * result["frames"] / median for who, median in medians.items()}
        faster = max(speeds[peer] for peer in options.peers)
        result["frames_per_second"][f"batch_{batch}"] = {who: round(speed, 1) for who, speed in speeds.items()}
        result[f"ratio_batch_{batch}"] = round(speeds["attune"] / faster, 2)
        floor = common.bytes_read(model, batch, result["frames"], generation.guidance) / bandwidth
        result[f"share_of_floor_batch_{batch}"] = round(floor / medians["attune"], 3)
        print(f"{name} batch {batch}: {result[f'ratio_batch_{batch}']} times the faster peer", file=sys.stderr)
    return result


def race(turns: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each contestant, all taking turns ``repeats`` times."""
    seconds: dict[str, list[float]] = {who: [] for who in turns}
    for _ in range(repeats):
        for who, run in turns.items():
            began = clock()
            run()
            seconds[who].append(clock() - began)
    return {who: statistics.median(times) for who, times in seconds.items()}


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "guidance": options.guidance,
        "top_k": options.top_k,
        "repeats": options.repeats,
        "dtype": "bfloat16" if options.bf16 else "float32",
        "clock": "cpu" if options.cpu_time else "wall",
        "weights": "float32" if options.full_precision else "float32, each a float16 number",
        **given.machine(),
    }


def _table(shapes: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, result in shapes.items():
        lines.append(f"{name}, {result['frames']} frames; frames a second:")
        for batch, speeds in result["frames_per_second"].items():
            numbers = "  ".join(f"{who} {speed:,.1f}" for who, speed in speeds.items())
            lines.append(f"  {batch.replace('_', ' ')}: {numbers}  ratio {result[f'ratio_{batch}']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
