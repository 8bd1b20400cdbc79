"""Times the phases of a PPO iteration: rollout, codec, scoring, log-probabilities, update.

    python -m scripts.bench_ppo --json
    python -m scripts.bench_ppo --shape musicgen-small --clips 2 --seconds 1 --steps 1

What is timed is ``train_ppo`` itself, with a clock around its parts; the reward is the CLAP that ships with Attune.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import bench_options as given

if TYPE_CHECKING:
    from alignment.music.model import MusicModel
    from alignment.training.trainer import TrainResult

SHAPES = ("attune-tiny", "musicgen-small", "nano")
SECONDS = {"attune-tiny": 5.0, "musicgen-small": 0.5, "nano": 0.5}
PHASES = ("rollout", "codec", "scoring", "log-probabilities", "policy update", "value update", "rest")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    report = measure(options)
    if options.json:
        print(json.dumps(report))
        return
    whole = report["seconds_an_iteration"]
    print(f"{report['clips']} clips of {report['seconds']} s: {whole:.2f} s an iteration")
    for phase, seconds in report["phases"].items():
        print(f"  {phase}: {seconds:.3f} s, {seconds / whole:.0%}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = given.Parser(prog="bench_ppo", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=given.one_of(SHAPES), default="attune-tiny", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=given.seconds, help="clip length; default 5 (musicgen-small 0.5)")
    parser.add_argument("--clips", type=given.count, default=32, help="of a rollout, four of each prompt if they fit")
    parser.add_argument("--steps", type=given.count, default=2, help="iterations timed, after one more")
    parser.add_argument("--threads", type=given.count, default=1, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cpu-time", action="store_true", help="time CPU, not wall: steadier on a busy machine")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an iteration's phases, medians over the iterations after the first."""
    import torch

    from alignment.music.checkpoint import quiet
    from scripts import bench_common as common

    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = common.load_shape(options.shape, whole_codec=True)
        model.hf.to(options.device)
        seconds = options.seconds or SECONDS[options.shape]
        memory = given.PeakMemory(options.device)
        iterations, result = timed(model, options.clips, seconds, options.steps + 1, Path(folder), clock)
        shape = common.describe(model, seconds)
    phases = {name: statistics.median(one[name] for one in iterations[1:]) for name in PHASES}
    return {
        "shape": options.shape, "clips": options.clips, **shape, "phases": phases,
        "seconds_an_iteration": sum(phases.values()), "peak_memory_mb": memory.above(),
        "drift": result.history[-1]["drift"], "clock": "cpu" if options.cpu_time else "wall", **given.machine(),
    }  # fmt: skip


def timed(
    model: MusicModel, clips: int, seconds: float, steps: int, folder: Path, clock: Callable[[], float]
) -> tuple[list[dict[str, float]], TrainResult]:
    """``steps`` iterations of PPO and, for each, the seconds of its phases, which sum to the iteration."""
    import torch

    from alignment.config import PpoSettings
    from alignment.music.codec import decode
    from alignment.rewards.encoder import ClapEncoder
    from alignment.rewards.of_codes import CodesReward
    from alignment.rewards.scorers import ClapCosine, WeightedScorer
    from alignment.training import experience, ppo
    from scripts.bench_common import equal_prompts

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    group = 4 if clips % 4 == 0 else 1
    prompts = list(dict.fromkeys(equal_prompts(model, clips)))
    settings = PpoSettings(
        max_steps=steps, rollout_prompts=clips // group, num_generations=group, num_ppo_epochs=1, num_mini_batches=1,
        per_device_train_batch_size=min(clips, 8), generation={"clip_seconds": seconds}, value={"warmup_steps": 0},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    heard = torch.randint(model.codebook_size, (8, model.codebooks, model.frames(seconds)), generator=generator)
    texts = (prompts * 8)[:8]
    parts = [(ClapCosine(ClapEncoder()), 1.0)]
    scorer = WeightedScorer.on_base_clips(parts, texts, decode(model, heard), model.sample_rate_hz)
    spent: dict[str, float] = defaultdict(float)
    iterations: list[dict[str, float]] = []

    def ended(*_: object) -> None:
        nonlocal began
        whole = now() - began
        spent["scoring"] -= spent["codec"]  # which runs inside it
        spent["rest"] = whole - sum(spent.values())
        iterations.append({name: spent[name] for name in PHASES})
        spent.clear()
        began = now()

    reward = CodesReward(model, scorer)
    with ExitStack() as stack:
        for owner, name, phase in (
            (experience, "sample", "rollout"), (model.hf.audio_encoder, "decode", "codec"),
            (experience, "_score", "log-probabilities"), (ppo.PpoTrainer, "_update_policy", "policy update"),
            (ppo.PpoTrainer, "_fit_values", "value update"), (CodesReward, "__call__", "scoring"),
        ):  # fmt: skip
            stack.enter_context(_clocked(owner, name, phase, spent, now))
        began = now()
        result = ppo.train_ppo(model, prompts, reward, settings, folder / "run", on_step=ended)
    return iterations, result


@contextmanager
def _clocked(owner: Any, name: str, phase: str, spent: dict[str, float], now: Callable[[], float]) -> Iterator[None]:
    """Inside this block, what ``owner.name`` takes is added to ``spent[phase]``."""
    own = getattr(owner, name)
    stood = vars(owner).get(name)

    def clocked(*arguments: Any, **named: Any) -> Any:
        began = now()
        try:
            return own(*arguments, **named)
        finally:
            spent[phase] += now() - began

    setattr(owner, name, clocked)
    try:
        yield
    finally:
        if stood is None:
            delattr(owner, name)
        else:
            setattr(owner, name, stood)


if __name__ == "__main__":
    main()
