"""Train the gold judge on renders of its own, their reconstructions and corrupted codes.

    python scripts/tiny/train_judge.py --epochs 14

The judge hears each clip clean, through the codec, and with a share of its codes replaced at random, which is
how a music model fails; cleanliness is one minus twice that share. Its accuracy on held-out renders and on
their reconstructions is the gate of the codec: what is lost here no decoder can learn.
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
from alignment.simulation.judge import WEIGHTS, Judge, JudgeNetwork, read_share, spectrogram
from scripts.tiny.common import BUILD, load_split, to_float

MOST_CORRUPTED = 0.5
GATE = 0.6


@torch.no_grad()
def through_codec(codec: EncodecModel, audio: np.ndarray, corrupted: np.ndarray, seed: int) -> np.ndarray:
    """Audio (N, samples) int16 encoded and decoded, ``corrupted`` (N,) of each clip's codes replaced."""
    generator = torch.Generator().manual_seed(seed)
    out = np.empty(audio.shape, dtype=np.int16)
    for start in range(0, len(audio), 32):
        clip = to_float(audio[start : start + 32])[:, None]
        codes = codec.encode(clip, bandwidth=2.0).audio_codes
        noise = torch.randint(0, 512, codes.shape, generator=generator)
        share = torch.tensor(corrupted[start : start + 32], dtype=torch.float32)[None, :, None, None]
        codes = torch.where(torch.rand(codes.shape, generator=generator) < share, noise, codes)
        back = codec.decode(codes, [None]).audio_values[:, 0, : audio.shape[1]]
        out[start : start + 32] = (back.clamp(-1, 1) * 32767).to(torch.int16).numpy()
    return out


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
    heard = torch.cat([spectra(audio), spectra(through_codec(codec, audio, share, args.seed))])
    clean = torch.tensor(np.concatenate([np.ones(len(audio)), 1 - share / MOST_CORRUPTED]), dtype=torch.float32)
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
            logits, cleanliness = network(spectrum.roll(2 * shift, 1))
            loss = sum(
                nn.functional.cross_entropy(logits[n], labels[n][rows_now], label_smoothing=0.05) for n in labels
            )
            loss = loss + 4 * nn.functional.mse_loss(cleanliness, clean[rows_now])
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
    for name, level in (("real", None), ("reconstructed", 0.0), ("corrupted_20", 0.2), ("corrupted_50", 0.5)):
        wave = np.asarray(test) if level is None else through_codec(codec, test, np.full(len(test), level), 99)
        judged = judge(to_float(wave).numpy())
        facts[name] = {**read_share(judged, tags), "cleanliness": float(np.mean([j.cleanliness for j in judged]))}
        print(name, facts[name], flush=True)
    facts["train_seconds"] = round(time.time() - began)
    (WEIGHTS / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")
    lost = lost_in_codec(facts["real"], facts["reconstructed"])
    if lost:
        raise SystemExit(
            f"The codec loses {', '.join(lost)}: the judge reads less than {GATE:.0%} of it, above chance, from "
            "reconstructions. Train the codec longer before the decoder."
        )


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
