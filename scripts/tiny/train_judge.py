"""Train the gold judge on renders of its own, their reconstructions and corrupted codes.

    python scripts/tiny/train_judge.py --epochs 14

The judge hears each clip as rendered and through the codec with a share of its codes replaced (at random, or by
codes from elsewhere in the clip), which is how a music model fails; twice that share is the clip's roughness, and
noise, clipping and muffling are those the renderer put in. Its accuracy on held-out renders and on their
reconstructions is the gate of the codec: what is lost here no decoder can learn.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import EncodecModel

from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import HEARD_FAULTS, WEIGHTS, Judge, JudgeNetwork, read_share, spectrogram
from scripts.tiny.common import BUILD, corrupt, decode_codes, load_split, to_float
from scripts.tiny.train_decoder import encode_split

MOST_CORRUPTED = 0.5
GATE = 0.6


def spectra(audio: np.ndarray) -> torch.Tensor:
    return torch.cat([spectrogram(to_float(audio[i : i + 64])).half() for i in range(0, len(audio), 64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    codec = EncodecModel.from_pretrained(BUILD / "codec").eval()
    audio, rows = load_split("judge")
    began = time.time()
    share = np.where(rng.random(len(audio)) < 0.4, 0.0, rng.uniform(0, MOST_CORRUPTED, len(audio)))
    codes = encode_split(codec, "judge", BUILD / "codes_judge.npy")
    heard = torch.cat([spectra(audio), spectra(decode_codes(codec, corrupt(codes, share, rng)))])
    recorded = np.array([[row["faults"].get(name, 0.0) for name in HEARD_FAULTS[:3]] for row in rows])
    rough = np.concatenate([np.zeros(len(audio)), share / MOST_CORRUPTED])
    faults = torch.tensor(np.column_stack([np.tile(recorded, (2, 1)), rough]), dtype=torch.float32)
    labels = {
        name: torch.tensor([values.index(row["tags"][name]) for row in rows] * 2)
        for name, values in ATTRIBUTE_VALUES.items()
    }
    print(f"spectra {tuple(heard.shape)} in {time.time() - began:.0f} s", flush=True)
    network = JudgeNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    batches = (len(heard) + 63) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=batches * args.epochs)
    for epoch in range(args.epochs):
        order, total = torch.randperm(len(heard)), 0.0
        network.train()
        for rows_now in order.split(64):
            spectrum = heard[rows_now].float()
            shift = int(torch.randint(-3, 4, (1,)))  # a few quarter-tones either way
            logits, flawed = network(spectrum.roll(2 * shift, 1))
            loss = sum(
                nn.functional.cross_entropy(logits[n], labels[n][rows_now], label_smoothing=0.05) for n in labels
            )
            loss = loss + 16 * nn.functional.mse_loss(flawed, faults[rows_now])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} {time.time() - began:.0f}s loss {total / batches:.4f}", flush=True)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    network.eval()
    save_file(
        {k: v.half().contiguous() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        WEIGHTS / "judge.safetensors",
    )
    (WEIGHTS / "judge.json").write_text("{}\n")
    judge = Judge()
    test, test_rows = load_split("test")
    tags = [row["tags"] for row in test_rows]
    facts: dict[str, object] = {
        "seed": args.seed,
        "epochs": args.epochs,
        "training_clips": len(audio),
        "test_clips": len(test),
    }
    codes = encode_split(codec, "test", BUILD / "codes_test.npy")
    clean = np.array([not row["faults"] for row in test_rows])
    for name, level in (("real", None), ("reconstructed", 0.0), ("corrupted_20", 0.2), ("corrupted_50", 0.5)):
        changed = codes if not level else corrupt(codes, np.full(len(codes), level), rng)
        judged = judge(to_float(np.asarray(test) if level is None else decode_codes(codec, changed)).numpy())
        heard_of = np.array([j.cleanliness for j in judged])
        facts[name] = {
            **read_share(judged, tags),
            "cleanliness": float(heard_of[clean].mean()),  # of recordings without a flaw
            "tells_flawed": area_under_curve(heard_of[clean], heard_of[~clean]),
        }
        print(name, facts[name], flush=True)
    facts["train_seconds"] = round(time.time() - began)
    (WEIGHTS / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")
    lost = lost_in_codec(facts["real"], facts["reconstructed"])
    if lost:
        raise SystemExit(
            f"The codec loses {', '.join(lost)}: the judge reads less than {GATE:.0%} of it, above chance, from "
            "reconstructions. Train the codec longer before the decoder."
        )


def area_under_curve(higher: np.ndarray, lower: np.ndarray) -> float:
    """Chance that a clip of the first group scores above one of the second (Mann and Whitney 1947)."""
    return float(np.mean(higher[:, None] > lower) + 0.5 * np.mean(higher[:, None] == lower))


def lost_in_codec(real: dict[str, float], reconstructed: dict[str, float]) -> list[str]:
    """Attributes of which less than GATE of the judge's accuracy above chance survives the codec."""
    out = []
    for name, values in ATTRIBUTE_VALUES.items():
        chance = 1 / len(values)
        if reconstructed[name] - chance < GATE * (real[name] - chance):
            out.append(name)
    return out


if __name__ == "__main__":
    main()
