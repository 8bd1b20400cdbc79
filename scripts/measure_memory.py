"""Peak memory of singing or training beside what alignment.music.memory estimates, in MiB beside the model.

    python scripts/measure_memory.py tiny generate --clips 32 --seconds 10
    python scripts/measure_memory.py medium-size train --clips 2 --seconds 5 --checkpointing --json

``medium-size`` has 6 layers of width 512, the published codec and random weights. Resident memory of this process on a
CPU in float32, read every 3 ms; the last line with --json is one object.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import torch

from alignment.config import LoraSettings
from alignment.domain import GenerationConfig
from alignment.music import memory
from alignment.music.codec import render
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.music.text import TextBatch
from alignment.training.batches import PolicyModule

MIB = 2**20
GUIDANCE, TEXT_TOKENS = 3.0, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["tiny", "medium-size"])
    parser.add_argument("run", choices=["generate", "train"])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = MusicModel.load("tiny") if args.model == "tiny" else _medium_size()
    shape, held = memory.Shape.of_model(model), memory.held_by(model)
    how = {"clips": args.clips, "seconds": args.seconds, "dtype": torch.float32}
    if args.run == "generate":
        estimate = memory.generation(shape, **how, guidance=GUIDANCE, text_tokens=TEXT_TOKENS)
    else:
        estimate = memory.training(shape, **how, lora=LoraSettings(), checkpointing=args.checkpointing)
    measured = _peak(lambda: (_generate if args.run == "generate" else _train)(model, args))
    found = {
        **vars(args), "measured_mib": round(measured / MIB), "estimated_mib": round((estimate.total - held) / MIB),
        "parts_mib": {name: round(size / MIB) for name, size in estimate.parts.items()},
    }  # fmt: skip
    print(f"measured {found['measured_mib']} MiB, estimated {found['estimated_mib']} MiB beside the model")
    if args.json:
        print(json.dumps(found))


def _text(model: MusicModel, clips: int) -> TextBatch:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(clips, TEXT_TOKENS, model.width, generator=generator)
    return TextBatch(hidden, torch.ones(clips, TEXT_TOKENS, dtype=torch.int64))


def _generate(model: MusicModel, args: argparse.Namespace) -> None:
    prompts = ["calm piano with strings over drums"] * args.clips
    model.text_cache[prompts[0]] = _text(model, 1).hidden[0]
    asked = GenerationConfig(top_k=250, guidance=GUIDANCE, clip_seconds=args.seconds)
    render(model, sample(model, prompts, generation=asked, seeds=range(args.clips), batch_size=args.clips).codes)


def _train(model: MusicModel, args: argparse.Namespace) -> None:
    model.add_adapter(LoraSettings())
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    codes, text = torch.randint(
        model.codebook_size, (args.clips, model.codebooks, model.frames(args.seconds))
    ), _text(model, args.clips)  # fmt: skip
    with PolicyModule(model).checkpointing(enabled=args.checkpointing):
        for _ in range(2):
            optimizer.zero_grad()
            model.logprobs(codes, text).sum().backward()
            optimizer.step()


def _medium_size() -> MusicModel:
    from transformers import AutoTokenizer, MusicgenForConditionalGeneration

    from alignment.music.checkpoint import TINY
    from alignment.music.published import published_config

    config = published_config(
        "facebook/musicgen-small", num_hidden_layers=6, hidden_size=512, num_attention_heads=8, ffn_dim=2048
    )
    config.text_encoder.num_layers = 2
    torch.manual_seed(0)
    return MusicModel(MusicgenForConditionalGeneration(config), AutoTokenizer.from_pretrained(TINY))


def _peak(run) -> int:
    """The highest resident memory while ``run`` runs, in bytes above that before it."""
    before, peak, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _resident())
            time.sleep(0.003)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        run()
    finally:
        done.set()
        watching.join()
    return peak[0] - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
