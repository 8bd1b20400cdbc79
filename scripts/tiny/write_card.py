"""Measure the installed attune-tiny on captions and renders never trained on, and write its model card.

python -m scripts.tiny.write_card
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib import metadata

import numpy as np
import torch

from alignment.domain import GenerationConfig
from alignment.evaluation.intervals import wilson
from alignment.evaluation.metrics import bootstrap_mean
from alignment.music.codec import decode
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import Judge
from scripts.tiny.build import TARGET
from scripts.tiny.common import BUILD, load_split
from scripts.tiny.train_codec import MelDistance, si_sdr


def codec_facts(model: MusicModel, audio: np.ndarray) -> dict[str, float]:
    """SI-SDR in dB, log-mel L1 and used share of each codebook over held-out renders (N, samples) int16."""
    from alignment.music.codec import encode

    wave = torch.from_numpy(audio.astype(np.float32) / 32768)
    codes = encode(model, wave)
    back = torch.from_numpy(decode(model, codes))[:, : wave.shape[1]]
    mel = MelDistance()
    used = [len(torch.unique(codes[:, k])) / model.codebook_size for k in range(model.codebooks)]
    return {"si_sdr_db": float(si_sdr(back, wave).mean()), "log_mel_l1": float(mel(back, wave)[0]),
            **{f"codes_used_book_{k}": share for k, share in enumerate(used)}}  # fmt: skip


def followed(model: MusicModel, judge: Judge, rows: list[dict], guidance: float) -> dict[str, list[float]]:
    """Share [value, low, high] of generated clips that have what the caption asks for, and their cleanliness."""
    generation = GenerationConfig(guidance=guidance)
    rollout = sample(model, [row["text"] for row in rows], generation=generation, seeds=list(range(len(rows))))
    heard = judge(decode(model, rollout.codes))
    out = {}
    for name in ATTRIBUTE_VALUES:
        share = float(np.mean([j.has(name, r["tags"][name]) for j, r in zip(heard, rows, strict=True)]))
        out[name] = [round(v, 3) for v in (share, *wilson(share, len(rows), 1.96))]
    clean = bootstrap_mean(np.array([j.cleanliness for j in heard]))
    out["cleanliness"] = [round(v, 3) for v in (clean.value, clean.low, clean.high)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    args = parser.parse_args()
    began = time.time()
    model, judge = MusicModel.load("tiny"), Judge()
    audio, rows = load_split("test")
    rows = rows[: args.clips]
    codec = codec_facts(model, np.asarray(audio[:200]))
    songs = {guidance: followed(model, judge, rows, guidance) for guidance in (1.0, 3.0)}
    trained = {
        name: json.loads((BUILD / f"{name}.json").read_text()) for name in ("codec", "decoder", "clap")
        if (BUILD / f"{name}.json").exists()
    }  # fmt: skip
    facts = {
        "codec": codec,
        "guidance_1": songs[1.0],
        "guidance_3": songs[3.0],
        "judge": judge.facts,
        "training": trained,
    }
    (TARGET / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    (TARGET / "README.md").write_text(card(facts, len(rows)), encoding="utf-8")
    print(f"card in {time.time() - began:.0f} s", flush=True)


def card(facts: dict, clips: int) -> str:
    judge, one, three = facts["judge"], facts["guidance_1"], facts["guidance_3"]

    def share(values: list[float]) -> str:
        return f"{values[0]:.0%} [{values[1]:.0%}, {values[2]:.0%}]"

    lines = [
        "| caption asks for | chance | renders | reconstructions | generated, guidance 1 | guidance 3 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {1 / len(values):.0%} | {judge['real'][name]:.0%} | {judge['reconstructed'][name]:.0%} "
            f"| {share(one[name])} | {share(three[name])} |"
            for name, values in ATTRIBUTE_VALUES.items()
        ),
        f"| cleanliness (0 to 1) | | {judge['real']['cleanliness']:.2f} | {judge['reconstructed']['cleanliness']:.2f} "
        f"| {one['cleanliness'][0]:.2f} | {three['cleanliness'][0]:.2f} |",
    ]
    codec, used = facts["codec"], [v for k, v in facts["codec"].items() if k.startswith("codes_used")]
    training = "\n".join(
        f"- {name}: " + ", ".join(f"{k} {v}" for k, v in values.items()) for name, values in facts["training"].items()
    )
    size = sum(p.stat().st_size for p in TARGET.rglob("*") if p.is_file()) / 1e6
    return f"""---
license: mit
library_name: transformers
tags: [text-to-music, musicgen]
---
# attune-tiny

A real but very small MusicGen (`MusicgenForConditionalGeneration`): a T5 text encoder, a delay-pattern decoder of
4 layers and width 192, and a 16 kHz EnCodec of 50 frames a second and 4 codebooks of 512 codes. Everything, tokenizer
included, was trained from nothing by `scripts/tiny/`, on music composed by `scripts/tiny/render.py` and rendered with
FluidR3 (MIT licence). Beside it lies a small CLAP (`clap/`), trained on the same captions. {size:.1f} MB in all, in
half precision. Licence: MIT.

It exists so that the whole of Attune runs on a laptop: it is **not** good music. It knows ten lead instruments, three
tempo classes, two modes, three accompaniments and drums, in clips of four seconds, and it follows captions imperfectly.

## Measured

On {clips} captions and renders it never saw. Intervals are 95% (Wilson for shares). "Judge" is the gold judge of the
simulation, trained on renders of its own: what it cannot read from a reconstruction, the decoder cannot have learnt.

{chr(10).join(lines)}

Codec on held-out renders: SI-SDR {codec["si_sdr_db"]:.1f} dB, log-mel L1 {codec["log_mel_l1"]:.2f}, codes in use
{", ".join(f"{v:.0%}" for v in used)} of books 1 to 4.

## Training

{training or "- see scripts/tiny/"}

Card measured with torch {metadata.version("torch")}, transformers {metadata.version("transformers")}, Python
{platform.python_version()}. Rebuild everything with `make tiny`.
"""


if __name__ == "__main__":
    main()
