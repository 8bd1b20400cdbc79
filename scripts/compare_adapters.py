"""Adapters side by side: kinds and places, trained by DPO on one and the same set of pairs, in one table.

    python -m scripts.compare_adapters --out data/adapters --json

attune-tiny sings N clips of each training prompt once; the best against the worst of each by a CLAP cosine are the
pairs that every adapter trains on. Then it sings held-out prompts with the base's random numbers. No judge and no
listener takes part: the held-out reward is the same cosine on prompts and clips that nothing was trained on. Run again
with the same --out, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLACES = {
    "self": ("self_attention",),
    "cross": ("cross_attention",),
    "feed-forward": ("feed_forward",),
    "heads": ("heads",),
    "layers": ("self_attention", "cross_attention", "feed_forward"),
}
# Each kind at the rate that suits it: IA3's factors start at 1 and have to move far, LoHa's start as products of four.
RATES = {"lora": 2e-3, "loha": 1e-2, "ia3": 3e-2}
COLUMNS = ("adapter", "rate", "parameters", "held_out_reward", "gain", "interval", "kl", "cpu_seconds")


def sing(model: Any, prompts: Sequence[str], seconds: float, first_seed: int) -> Any:
    """One clip a prompt, from seeds that count up from the first."""
    from alignment.domain import GenerationConfig
    from alignment.music.sampler import sample

    seeds = range(first_seed, first_seed + len(prompts))
    return sample(model, prompts, generation=GenerationConfig(clip_seconds=seconds), seeds=seeds, batch_size=64)


def rewards(model: Any, encoder: Any, prompts: Sequence[str], codes: Any) -> Any:
    """CLAP's cosine of each clip with its prompt, (B,)."""
    from alignment.music.codec import decode

    return (encoder.audio(decode(model, codes), model.sample_rate_hz) * encoder.text(prompts)).sum(axis=1)


def paired_interval(differences: Any, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the mean of per-prompt differences."""
    import numpy as np

    rows = np.random.default_rng(seed).integers(len(differences), size=(draws, len(differences)))
    return tuple(float(x) for x in np.quantile(differences[rows].mean(axis=1), [0.025, 0.975]))


class Bench:
    """What all adapters share: the pairs to train on, and what the base sings of the held-out prompts."""

    def __init__(self, args: argparse.Namespace) -> None:
        from alignment.music.model import MusicModel
        from alignment.rewards.encoder import ClapEncoder
        from alignment.simulation.captions import draw_captions
        from alignment.training.best_of_n import best_worst_pairs

        self.args, self.model, self.encoder = args, MusicModel.load("tiny"), ClapEncoder()
        train = [text for text, _ in draw_captions(args.prompts, args.seed, reserved=False)]
        self.held_out = [text for text, _ in draw_captions(args.held_out, args.seed, reserved=True)]
        repeated = [prompt for prompt in train for _ in range(args.clips)]
        codes = sing(self.model, repeated, args.seconds, 10_000 + args.seed).codes
        scores = rewards(self.model, self.encoder, repeated, codes).reshape(args.prompts, args.clips)
        self.pairs = best_worst_pairs(train, codes.numpy().reshape(*scores.shape, *codes.shape[1:]), scores)
        self.base = self.measure()[0]

    def measure(self) -> tuple[Any, float]:
        """Rewards of the held-out prompts (B,) as the model sings now, and KL to the base in nats a clip."""
        import torch

        from alignment.music.text import encode_prompts

        rollout = sing(self.model, self.held_out, self.args.seconds, 900_000 + self.args.seed)
        with torch.no_grad(), self.model.reference():
            text = encode_prompts(self.model, self.held_out)
            base = torch.cat([
                self.model.logprobs(rollout.codes[i : i + 16], text.rows(slice(i, i + 16)))
                for i in range(0, len(self.held_out), 16)
            ])  # fmt: skip
        kl = float((rollout.logprobs - base).sum(dim=(1, 2)).mean())
        return rewards(self.model, self.encoder, self.held_out, rollout.codes), kl

    def row(self, kind: str, place: str, rate: float) -> dict[str, Any]:
        """One line of the table: an adapter trained and measured; the model is left without it."""
        from alignment.config import DpoSettings, LoraSettings
        from alignment.training.dpo import train_dpo

        lora = LoraSettings(kind=kind, r=self.args.rank, lora_alpha=2 * self.args.rank, target_modules=PLACES[place])
        settings = DpoSettings(
            learning_rate=rate, num_train_epochs=1, per_device_train_batch_size=16, lora=lora, seed=self.args.seed
        )
        run_dir = self.args.out / f"run-{kind}-{place}-{rate:g}"
        shutil.rmtree(run_dir, ignore_errors=True)
        started = time.process_time()
        train_dpo(self.model, self.pairs, settings, run_dir)
        seconds = time.process_time() - started
        found, kl = self.measure()
        parameters = sum(value.numel() for value in self.model.trainable_parameters())
        self.model.remove_adapter()
        shutil.rmtree(run_dir)
        rank = "" if kind == "ia3" else f", rank {self.args.rank}"
        return {
            "adapter": f"{kind}{rank}, {place}", "kind": kind, "place": place, "rate": rate, "parameters": parameters,
            "held_out_reward": float(found.mean()), "gain": float((found - self.base).mean()),
            "interval": paired_interval(found - self.base), "kl": kl, "cpu_seconds": seconds,
        }  # fmt: skip


def table(base: float, rows: Sequence[dict[str, Any]]) -> str:
    """The comparison as a table in Markdown, the base first."""
    lines = ["| " + " | ".join(COLUMNS).replace("_", " ") + " |", "|" + "---|" * len(COLUMNS)]
    lines.append(f"| base | | 0 | {base:.4f} | | | 0 | |")
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['adapter']} | {row['rate']:g} | {row['parameters']:,} | {row['held_out_reward']:.4f} | "
            f"{row['gain']:+.4f} | [{low:+.4f}, {high:+.4f}] | {row['kl']:.1f} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows; one that is there goes on")
    parser.add_argument("--kinds", default=",".join(RATES), help="of " + ", ".join(RATES))
    parser.add_argument("--places", default=",".join(PLACES), help="of " + ", ".join(PLACES))
    parser.add_argument("--rates", default="", help="learning rates for all kinds, instead of each kind's own")
    parser.add_argument("--prompts", type=int, default=128, help="training prompts")
    parser.add_argument("--clips", type=int, default=4, help="clips of each; the best meets the worst")
    parser.add_argument("--held-out", type=int, default=96, help="held-out prompts, one clip each")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a clip")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    args = parser.parse_args(arguments)
    for name, known in (("kinds", RATES), ("places", PLACES)):
        wrong = [part for part in getattr(args, name).split(",") if part not in known]
        if wrong:
            parser.error(f"--{name}: {', '.join(wrong)} is none of {', '.join(known)}.")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    about = {k: v for k, v in vars(args).items() if k in ("prompts", "clips", "held_out", "seconds", "rank", "seed")}
    file = args.out / "rows.json"
    known = json.loads(file.read_text()) if file.is_file() else {"about": about, "rows": []}
    if known["about"] != about:
        sys.exit(f"{args.out} holds a comparison with other sizes or seed ({known['about']}); give another folder.")
    bench = Bench(args)
    known["base"] = float(bench.base.mean())
    done = {(row["kind"], row["place"], row["rate"]) for row in known["rows"]}
    for kind in args.kinds.split(","):
        for rate in [float(rate) for rate in args.rates.split(",") if rate] or [RATES[kind]]:
            for place in args.places.split(","):
                if (kind, place, rate) in done:
                    continue
                known["rows"].append(bench.row(kind, place, rate))
                file.write_text(json.dumps(known, indent=1))
                print(known["rows"][-1]["adapter"], f"{known['rows'][-1]['gain']:+.4f}", file=sys.stderr)
    print(json.dumps(known) if args.json else table(known["base"], known["rows"]))


if __name__ == "__main__":
    main()
