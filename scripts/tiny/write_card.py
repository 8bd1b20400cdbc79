"""Measure the installed attune-tiny on captions and renders never trained on, and write its model card.

python -m scripts.tiny.write_card
"""

from __future__ import annotations

import argparse
import json
import platform
import textwrap
import time
from importlib import metadata

import numpy as np
import torch

from alignment.domain import GenerationConfig
from alignment.evaluation.frechet import frechet_distance, nearest_distance
from alignment.evaluation.intervals import wilson
from alignment.evaluation.metrics import bootstrap_mean
from alignment.music.codec import decode, encode
from alignment.music.model import MusicModel
from alignment.music.sampler import sample
from alignment.rewards.encoder import ClapEncoder
from alignment.simulation.captions import ATTRIBUTE_VALUES
from alignment.simulation.judge import Judge
from scripts.tiny.build import TARGET
from scripts.tiny.common import BUILD, SAMPLE_RATE_HZ, load_split, to_float
from scripts.tiny.faults import apply_faults
from scripts.tiny.train_codec import MelDistance, si_sdr

SAME = 0.5  # two clips that share this part of the first codebook, frame by frame, count as duplicates
GUIDANCES = (1.0, 3.0)


def codec_facts(model: MusicModel, wave: torch.Tensor, codes: torch.Tensor, back: torch.Tensor) -> dict[str, float]:
    """SI-SDR in dB, log-mel L1 and used share of each codebook over held-out renders (N, samples)."""
    used = [len(torch.unique(codes[:, k])) / model.codebook_size for k in range(model.codebooks)]
    return {"si_sdr_db": float(si_sdr(back, wave).mean()), "log_mel_l1": float(MelDistance()(back, wave)[0]),
            **{f"codes_used_book_{k}": share for k, share in enumerate(used)}}  # fmt: skip


def followed(judge: Judge, audio: np.ndarray, rows: list[dict]) -> dict[str, list[float]]:
    """Share [value, low, high, n] of generated clips that have what the caption asks for, and their cleanliness."""
    heard, out = judge(audio), {}
    for name in ATTRIBUTE_VALUES:
        hits = [j.has(name, row["asked"][name]) for j, row in zip(heard, rows, strict=True) if name in row["asked"]]
        share = float(np.mean(hits))
        out[name] = [round(v, 3) for v in (share, *wilson(share, len(hits), 1.96))] + [len(hits)]
    clean = bootstrap_mean(np.array([j.cleanliness for j in heard]))
    out["cleanliness"] = [round(v, 3) for v in (clean.value, clean.low, clean.high)] + [len(heard)]
    out["flawed"] = [round(float(np.mean([j.cleanliness < 0.5 for j in heard])), 3)]
    return out


def shared_codes(codes: np.ndarray, others: np.ndarray, *, apart: bool) -> np.ndarray:
    """Largest share of equal first-book codes of each clip (n, T) with any of ``others`` (m, T).

    ``apart`` leaves a clip's own row out, when both are one set."""
    best = np.zeros(len(codes))
    for number, own in enumerate(codes):
        same = (others == own).mean(1)
        if apart:
            same[number] = 0.0
        best[number] = same.max()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    args = parser.parse_args()
    began = time.time()
    model, judge, clap = MusicModel.load("tiny"), Judge(), ClapEncoder()
    audio, rows = load_split("test")
    rows, wave = rows[: args.clips], to_float(audio[: args.clips])
    codes = encode(model, wave)
    back = torch.from_numpy(decode(model, codes))[:, : wave.shape[1]]
    clean = [number for number, row in enumerate(rows) if not row["faults"]]
    facts: dict[str, object] = {
        "codec": codec_facts(model, wave, codes, back),
        "codec_clean": {"si_sdr_db": float(si_sdr(back[clean], wave[clean]).mean())},
    }

    def embed(sounds: np.ndarray) -> np.ndarray:
        return clap.audio(sounds, SAMPLE_RATE_HZ)

    reference_audio = load_split("judge")[0]
    reference = embed(to_float(reference_audio).numpy())
    trained = embed(to_float(load_split("train")[0]).numpy())
    trained_codes = np.load(BUILD / "codes_train.npy")[:, 0]
    noisy = np.stack([apply_faults(w, {"noise": 1.0}, n) for n, w in enumerate(wave.numpy())])
    real = embed(wave.numpy())
    distances = {"real": real, "reconstructed": embed(back.numpy()), "real, hiss 6 dB below": embed(noisy)}
    facts["nearest_real"] = float(np.median(nearest_distance(real, trained)))
    facts["shared_real"] = float(np.median(shared_codes(codes[:, 0].numpy(), trained_codes, apart=False)))
    for guidance in GUIDANCES:
        rollout = sample(
            model, [row["text"] for row in rows], generation=GenerationConfig(guidance=guidance, clip_seconds=5.0),
            seeds=list(range(len(rows))),
        )  # fmt: skip
        sounds, first = decode(model, rollout.codes), rollout.codes[:, 0].numpy()
        distances[f"generated, guidance {guidance:g}"] = vectors = embed(sounds)
        own = shared_codes(first, first, apart=True)
        facts[f"guidance_{guidance:g}"] = {
            **followed(judge, sounds, rows),
            "duplicates": float(np.mean(own >= SAME)),
            "copied": float(np.mean(shared_codes(first, trained_codes, apart=False) >= SAME)),
            "nearest_training": float(np.median(nearest_distance(vectors, trained))),
            "shared_training": float(np.median(shared_codes(first, trained_codes, apart=False))),
        }
    facts["fad"] = {name: round(frechet_distance(vectors, reference), 4) for name, vectors in distances.items()}
    facts["clap"] = clap.name
    facts["judge"] = judge.facts
    facts["training"] = {
        "judge": {"epochs": judge.facts["epochs"], "seconds": judge.facts["train_seconds"],
                  "clips": judge.facts["training_clips"], "seed": judge.facts["seed"]},
    } | {
        name: json.loads((BUILD / f"{name}.json").read_text()) for name in ("codec", "codec_polish", "decoder", "clap")
        if (BUILD / f"{name}.json").exists()
    }  # fmt: skip
    (TARGET / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    (TARGET / "README.md").write_text(card(facts, len(rows), len(reference)), encoding="utf-8")
    print(f"card in {time.time() - began:.0f} s", flush=True)


def card(facts: dict, clips: int, reference: int) -> str:
    judge, one, three = facts["judge"], facts["guidance_1"], facts["guidance_3"]

    def share(values: list[float], name: str) -> str:
        ratio = values[0] / judge["reconstructed"][name]
        return f"{values[0]:.0%} [{values[1]:.0%}, {values[2]:.0%}], n {values[3]}, {ratio:.0%} of the judge's"

    lines = [
        "| caption asks for | chance | judge on renders | on reconstructions | generated, guidance 1 | guidance 3 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {1 / len(values):.0%} | {judge['real'][name]:.0%} | {judge['reconstructed'][name]:.0%} "
            f"| {share(one[name], name)} | {share(three[name], name)} |"
            for name, values in ATTRIBUTE_VALUES.items()
        ),
        f"| cleanliness (0 to 1) | | {judge['real']['cleanliness']:.2f} (flawless renders) | "
        f"{judge['reconstructed']['cleanliness']:.2f} | "
        f"{one['cleanliness'][0]:.2f} | {three['cleanliness'][0]:.2f} |",
        f"| cleanliness below 0.5 | | | | {one['flawed'][0]:.0%} | {three['flawed'][0]:.0%} |",
    ]
    distances = ["| clips | FAD |", "|---|---|", *(f"| {name} | {d:.3f} |" for name, d in facts["fad"].items())]
    codec, used = facts["codec"], [v for k, v in facts["codec"].items() if k.startswith("codes_used")]
    training = "\n".join(
        f"- {name}: " + ", ".join(f"{k} {v}" for k, v in values.items()) for name, values in facts["training"].items()
    )
    config = json.loads((TARGET / "config.json").read_text())
    decoder, encoder = config["decoder"], config["audio_encoder"]
    hop = int(np.prod(encoder["upsampling_ratios"]))
    size = sum(p.stat().st_size for p in TARGET.rglob("*") if p.is_file()) / 1e6
    return wrapped(f"""---
license: mit
library_name: transformers
tags: [text-to-music, musicgen]
---
# attune-tiny

A real but very small MusicGen (`MusicgenForConditionalGeneration`): a T5 text encoder, a delay-pattern decoder of
{decoder["num_hidden_layers"]} layers and width {decoder["hidden_size"]}, and a {encoder["sampling_rate"] // 1000} kHz
EnCodec of {encoder["sampling_rate"] // hop} frames a second and {decoder["num_codebooks"]} codebooks of
{encoder["codebook_size"]} codes. Everything, tokenizer included, was trained from nothing by `scripts/tiny/`, on music
composed by `scripts/tiny/render.py` and rendered with FluidR3 (MIT licence). Beside it lies a small CLAP (`clap/`),
trained on the same captions. {size:.1f} MB in all, in half precision. Licence: MIT.

It exists so that the whole of Attune runs on a laptop: it is **not** good music. It knows ten lead instruments, three
tempo classes, two modes, three accompaniments and drums, in clips of five seconds. It follows captions imperfectly, and
since seven in ten of the recordings it learnt from last were overdriven, noisy or muffled, which no caption says, it
sings such clips too: there is room for listeners to improve it.

## Measured

On {clips} captions and renders it never saw. Intervals are 95% (Wilson for shares). The judge is the gold judge of the
simulation, trained on renders of its own: what it cannot read from a reconstruction, the decoder cannot have learnt.
Told apart flawed from flawless recordings (area under the curve): {judge["real"]["tells_flawed"]:.2f} on renders,
{judge["reconstructed"]["tells_flawed"]:.2f} on reconstructions.

{chr(10).join(lines)}

Codec on held-out renders: SI-SDR {codec["si_sdr_db"]:.1f} dB ({facts["codec_clean"]["si_sdr_db"]:.1f} dB on flawless
ones), log-mel L1 {codec["log_mel_l1"]:.2f}, codes in use {", ".join(f"{v:.0%}" for v in used)} of books 1 to
{len(used)}.

Fréchet audio distance of {clips} clips each to {reference} renders never trained on, on the embeddings of
`{facts["clap"]}` (which attune-tiny's own CLAP gives; it is no other paper's FAD):

{chr(10).join(distances)}

Memorisation: the median clip's nearest training clip is {one["nearest_training"]:.3f} away in CLAP space at guidance 1
({three["nearest_training"]:.3f} at 3; held-out renders {facts["nearest_real"]:.3f}) and shares
{one["shared_training"]:.0%} of its first-book codes ({three["shared_training"]:.0%}; held-out renders
{facts["shared_real"]:.0%}). Clips sharing at least half with a training clip: {one["copied"]:.1%}
({three["copied"]:.1%}); with another generated clip: {one["duplicates"]:.1%} ({three["duplicates"]:.1%}).

## Training

{training or "- see scripts/tiny/"}

Card measured with torch {metadata.version("torch")}, transformers {metadata.version("transformers")}, Python
{platform.python_version()}. Rebuild everything, data to card, with `make tiny`; training is bounded by minutes, so
another machine takes other numbers of steps.
""")


def wrapped(text: str) -> str:
    """Running text in lines of at most 118 characters; tables, lists, headings and front matter as they are."""

    def wrap(block: str) -> str:
        return block if block.startswith(("|", "-", "#")) else textwrap.fill(block, 118, break_long_words=False)

    return "\n\n".join(wrap(block) for block in text.split("\n\n")) + "\n"


if __name__ == "__main__":
    main()
