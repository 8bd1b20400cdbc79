"""Times DPO steps on a music model beside TRL's own DPOTrainer on a text decoder of the same size and length.

    python -m scripts.bench_dpo --json
    python -m scripts.bench_dpo --shape musicgen-small --seconds 0.5 --pairs 1 --steps 2

Every contestant runs in a process of its own, so that its memory is its own. docs/performance.md says what is compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import bench_options as given

if TYPE_CHECKING:
    from alignment.music.model import MusicModel

# Ours as it is set up, ours with less memory, ours with a reference scored in every step; TRL set up like ours, and as
# it comes (checkpointing, a reference scored in every step).
CONTESTANTS = ("attune", "attune-checkpointing", "attune-no-cache", "trl", "trl-as-it-comes")
SHAPES = ("attune-tiny", "musicgen-small", "nano")
SECONDS = {"attune-tiny": 5.0, "musicgen-small": 0.5, "nano": 0.2}
RANK = 16


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        print(json.dumps(measure(options.only, options)))
        return
    found = {who: _in_its_own_process(who, options) for who in options.contestants}
    report = {"contestants": found, **compared(found), "pairs": options.pairs, "rank": RANK, "shape": options.shape}
    report |= {"clock": "cpu" if options.cpu_time else "wall", **given.machine(), "threads": options.threads}
    if options.json:
        print(json.dumps(report))
        return
    for who, one in found.items():
        print(
            f"{who}: {one['tokens_per_second']:,.0f} tokens/s, {one['peak_memory_mb']} MB at the peak, "
            f"{one['seconds_a_step']:.3f} s a step"
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; exits with one sentence and status 2 on a bad one."""
    parser = given.Parser(prog="bench_dpo", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=given.one_of(SHAPES), default="attune-tiny", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--seconds", type=given.seconds, help="clip length; default 5 (musicgen-small 0.5)")
    parser.add_argument("--pairs", type=given.count, default=4, help="pairs of an optimizer step")
    parser.add_argument("--steps", type=given.count, default=4, help="optimizer steps timed, after one more")
    parser.add_argument("--threads", type=given.count, default=1, help="torch's threads, the same for all")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cpu-time", action="store_true", help="time CPU, not wall: steadier on a busy machine")
    parser.add_argument("--contestants", type=given.names(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--only", type=given.one_of(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


def compared(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours over TRL's speed, set up alike, and what caching the reference and checkpointing change."""
    speed = {who: one["tokens_per_second"] for who, one in found.items()}
    memory = {who: one["peak_memory_mb"] for who, one in found.items()}
    ratios = {}
    for name, ours, other in (
        ("trl", "attune", "trl"), ("trl_as_it_comes", "attune", "trl-as-it-comes"),
        ("no_cache", "attune", "attune-no-cache"), ("checkpointing", "attune", "attune-checkpointing"),
    ):  # fmt: skip
        if ours in found and other in found:
            ratios[f"ratio_{name}"] = round(speed[ours] / speed[other], 2)
            if memory[ours] and memory[other]:
                ratios[f"memory_{name}"] = round(memory[ours] / memory[other], 2)
    return ratios


def _in_its_own_process(who: str, options: argparse.Namespace) -> dict[str, Any]:
    passed = ["--pairs", options.pairs, "--steps", options.steps, "--threads", options.threads]
    passed += ["--shape", options.shape, "--device", options.device, "--only", who]
    passed += (["--seconds", options.seconds] if options.seconds else []) + ["--cpu-time"] * options.cpu_time
    print(f"{who} ...", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench_dpo", *map(str, passed)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"bench_dpo: {who} failed; its message is above.")
    return json.loads(done.stdout.splitlines()[-1])


def measure(who: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant: seconds of the median step, tokens (decoder positions) a second, memory, losses."""
    import torch

    from alignment.music.checkpoint import quiet
    from scripts import bench_common as common

    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with quiet(), tempfile.TemporaryDirectory() as folder:
        model = common.load_shape(options.shape)
        seconds = options.seconds or SECONDS[options.shape]
        shape = common.describe(model, seconds)
        run = _trl if who.startswith("trl") else _ours
        ticks, losses, memory = run(who, model, shape, options, Path(folder), clock)
    step = statistics.median(later - earlier for earlier, later in zip(ticks[:-1], ticks[1:], strict=True))
    tokens = 2 * options.pairs * shape["steps"]
    found = {"seconds_a_step": step, "tokens_per_second": tokens / step, "peak_memory_mb": memory, "losses": losses}
    return found | {"tokens_a_step": tokens, "seconds": seconds}


def _ours(
    who: str, model: MusicModel, shape: dict[str, Any], options: argparse.Namespace, folder: Path, clock: Any
) -> tuple[list[float], list[float], float | None]:
    import numpy as np
    import peft  # noqa: F401  (imported beforehand, so that it counts as no one's memory)
    import trl  # noqa: F401

    from alignment.config import DpoSettings, LoraSettings
    from alignment.training import dpo
    from scripts.bench_common import equal_prompts

    rng, total = np.random.default_rng(0), options.pairs * (options.steps + 1)
    codes = rng.integers(model.codebook_size, size=(2, total, model.codebooks, shape["frames"]))
    examples = [
        dpo.DpoExample(prompt, *sides)
        for prompt, sides in zip(equal_prompts(model, total), codes.swapaxes(0, 1), strict=True)
    ]
    settings = DpoSettings(
        num_train_epochs=1, per_device_train_batch_size=options.pairs, chosen_floor=0, seed=0,
        gradient_checkpointing=who == "attune-checkpointing", lora=LoraSettings(r=RANK, lora_alpha=2 * RANK),
    )  # fmt: skip
    model.hf.to(options.device)
    ticks: list[float] = []
    losses: list[float] = []

    def told(step: int, steps: int, metrics: dict[str, float]) -> None:
        ticks.append(clock())
        losses.append(metrics["loss"])

    memory = given.PeakMemory(options.device)
    with _reference_in_every_step(enabled=who == "attune-no-cache"):
        dpo.train_dpo(model, examples, settings, folder / "run", on_step=told)
    return ticks, losses, memory.above()


@contextmanager
def _reference_in_every_step(*, enabled: bool) -> Iterator[None]:
    """Inside this block DPO scores its reference anew in every step, as trainers do that keep no cache."""
    import torch

    from alignment.training import dpo

    class WithoutCache(dpo.DpoTrainer):
        def example_losses(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            policy = self.accelerator.unwrap_model(model)
            with torch.no_grad(), policy.music.reference():
                scored = model(inputs["codes"], inputs["frames"], inputs["hidden"], inputs["mask"])
            inputs["ref_chosen"], inputs["ref_rejected"] = scored.chunk(2)
            return super().example_losses(model, inputs)

    kept = dpo.DpoTrainer
    if enabled:
        dpo.DpoTrainer = WithoutCache
    try:
        yield
    finally:
        dpo.DpoTrainer = kept


def _trl(
    who: str, model: MusicModel, shape: dict[str, Any], options: argparse.Namespace, folder: Path, clock: Any
) -> tuple[list[float], list[float], float | None]:
    """TRL on an OPT of the decoder's layers, width, heads and feed-forward width, its one vocabulary a codebook's."""
    import numpy as np
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
    from trl import DPOConfig, DPOTrainer

    from alignment.config import DpoSettings

    set_seed(0)  # the same random weights, with and without its own cache
    vocabulary = {f"w{n}": n for n in range(shape["codebook_size"])} | {"</s>": shape["codebook_size"]}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    text = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(vocabulary), hidden_size=shape["width"], num_hidden_layers=shape["layers"],
            ffn_dim=shape["ffn"], num_attention_heads=shape["heads"], max_position_embeddings=shape["steps"] + 8,
            word_embed_proj_dim=shape["width"], dropout=0.0, activation_function="gelu",
            pad_token_id=len(vocabulary) - 1, bos_token_id=len(vocabulary) - 1, eos_token_id=len(vocabulary) - 1,
        )
    ).to(options.device)  # fmt: skip
    total = options.pairs * (options.steps + 1)
    words = np.random.default_rng(0).integers(shape["codebook_size"], size=(2, total, shape["steps"] - 2))
    lines = [[" " + " ".join(f"w{n}" for n in row) for row in side] for side in words]  # one token before, </s> after
    data = Dataset.from_dict({"prompt": ["w0"] * total, "chosen": lines[0], "rejected": lines[1]})
    alike = who == "trl"
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=options.pairs, max_steps=options.steps + 1,
        learning_rate=DpoSettings().learning_rate, max_length=None, precompute_ref_log_probs=alike,
        gradient_checkpointing=not alike, bf16=False, seed=0, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=options.device == "cpu", dataloader_pin_memory=False,
    )  # fmt: skip
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)", lora_dropout=0.0
    )
    ticks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ticks.append(clock())

    memory = given.PeakMemory(options.device)
    trainer = DPOTrainer(
        model=text, args=arguments, train_dataset=data, processing_class=tokens, peft_config=lora, callbacks=[Clock()]
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return ticks, losses, memory.above()


if __name__ == "__main__":
    main()
