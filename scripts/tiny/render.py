"""Compose and render the music attune-tiny learns from.

    python scripts/tiny/render.py --out build/tiny/data

Needs Debian's ``fluid-soundfont-gm`` (FluidR3, MIT licence) and ``pip install --no-deps tinysoundfont``.
Every clip is composed from known attributes (lead, tempo, mode, accompaniment, drums), so its caption is
true by construction. Splits share no clip: ``train`` for codec, decoder and CLAP, ``judge`` for the gold
judge alone, ``valid`` and ``test`` for cards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np

from alignment.simulation.captions import LEADS, TEMPOS, Attributes, draw_captions

SAMPLE_RATE_HZ = 16_000
CLIP_SECONDS = 4.0
RENDER_RATE_HZ = 32_000  # rendered above the target rate, then low-passed, against aliasing
SPLITS = {"train": (8000, 11), "judge": (3000, 12), "valid": (400, 13), "test": (600, 14)}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 6, 0), (0, 5, 3, 4), (0, 6, 5, 6)),
}
CENTRES = {"piano": 69, "organ": 67, "guitar": 62, "violin": 74, "trumpet": 69, "saxophone": 64,
           "flute": 79, "marimba": 69, "music box": 81, "synth": 67}


def compose(attributes: Attributes, rng: random.Random) -> list[tuple[float, int, int, int, float]]:
    """Notes as (start s, channel, key, velocity, length s); channel 0 lead, 1 accompaniment, 9 drums."""
    low, high = TEMPOS[attributes.tempo][0]
    beat = 60.0 / rng.uniform(low, high)
    root = rng.randrange(12)
    scale = SCALES[attributes.mode]
    progression = rng.choice(PROGRESSIONS[attributes.mode])
    total_beats = int(CLIP_SECONDS / beat) + 2
    notes: list[tuple[float, int, int, int, float]] = []

    def pitch(degree: int, centre: int) -> int:
        octave, step = divmod(degree, 7)
        base = root + scale[step] + 12 * octave
        lowest = centre - 6
        return base + 12 * ((lowest - root + 11) // 12)

    degree = rng.choice((0, 2, 4))
    position = 0.0
    while position < total_beats:
        chord = progression[int(position // 2) % 4]
        if position % 1 == 0 and rng.random() < 0.6:
            degree = min((chord + d + 7 * o for d in (0, 2, 4) for o in (-1, 0, 1)),
                         key=lambda d: abs(d - degree) + rng.random())
        else:
            degree += rng.choice((-2, -1, -1, 1, 1, 2))
        degree = max(-3, min(8, degree))
        length = 0.5 if rng.random() < 0.6 or position % 1 else 1.0
        velocity = rng.randint(84, 112)
        notes.append((position * beat, 0, pitch(degree, CENTRES[attributes.lead]), velocity, 0.92 * length * beat))
        position += length
    if attributes.accompaniment != "none":
        for start in range(0, total_beats, 2):
            chord = progression[(start // 2) % 4]
            keys = [pitch(chord + d, 54) for d in (0, 2, 4)]
            hits = (0.0,) if attributes.accompaniment == "strings" else (0.0, 1.0)
            for hit in hits:
                span = (2.0 if attributes.accompaniment == "strings" else 0.9) * beat
                for key in keys:
                    notes.append(((start + hit) * beat, 1, key, rng.randint(58, 72), span))
    if attributes.drums == "yes":
        for eighth in range(2 * total_beats):
            start = eighth * beat / 2
            notes.append((start, 9, 42, rng.randint(60, 85), 0.1))
            if eighth % 4 == 0:
                notes.append((start, 9, 36, rng.randint(95, 115), 0.1))
            if eighth % 4 == 2:
                notes.append((start, 9, 38, rng.randint(90, 110), 0.1))
    return notes


class Renderer:
    """Renders notes with FluidR3 to mono float32 at 16 kHz, peak at -3 dBFS."""

    def __init__(self, soundfont: str) -> None:
        import tinysoundfont

        self.synth = tinysoundfont.Synth(samplerate=RENDER_RATE_HZ)
        self.font = self.synth.sfload(soundfont)

    def __call__(self, attributes: Attributes, seed: int) -> np.ndarray:
        from scipy.signal import resample_poly

        rng = random.Random(seed)
        self.synth.program_select(0, self.font, 0, LEADS[attributes.lead][0])
        self.synth.program_select(1, self.font, 0, 48 if attributes.accompaniment == "strings" else 0)
        self.synth.program_select(9, self.font, 128, 0, True)
        events: list[tuple[float, int, int, int]] = []
        for start, channel, key, velocity, length in compose(attributes, rng):
            events.append((start, channel, key, velocity))
            events.append((start + length, channel, key, 0))
        events.sort(key=lambda e: (e[0], e[3] != 0))
        total = int(CLIP_SECONDS * RENDER_RATE_HZ)
        pieces, done = [], 0
        for at, channel, key, velocity in events:
            until = min(total, int(at * RENDER_RATE_HZ))
            if until > done:
                pieces.append(np.frombuffer(self.synth.generate(until - done), dtype=np.float32).copy())
                done = until
            if velocity:
                self.synth.noteon(channel, key, velocity)
            else:
                self.synth.noteoff(channel, key)
        if done < total:
            pieces.append(np.frombuffer(self.synth.generate(total - done), dtype=np.float32).copy())
        self.synth.sounds_off()
        self.synth.generate(RENDER_RATE_HZ // 4)  # let the released voices die before the next clip
        stereo = np.concatenate(pieces).reshape(-1, 2)
        mono = resample_poly(stereo.mean(axis=1), SAMPLE_RATE_HZ, RENDER_RATE_HZ).astype(np.float32)
        return mono * (0.708 / max(1e-4, float(np.abs(mono).max())))


_renderer: Renderer | None = None


def _start(soundfont: str) -> None:
    global _renderer  # one synthesizer a worker process
    _renderer = Renderer(soundfont)


def _render(job: tuple[Attributes, int]) -> np.ndarray:
    assert _renderer is not None
    return (_renderer(*job) * 32767).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/tiny/data"))
    parser.add_argument("--soundfont", default="/usr/share/sounds/sf2/FluidR3_GM.sf2")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(args.workers, _start, (args.soundfont,)) as pool:
        for split, (count, seed) in SPLITS.items():
            began = time.time()
            captions = draw_captions(count, seed, reserved=split in ("valid", "test"))
            jobs = [(attributes, seed * 1_000_000 + i) for i, (_, attributes) in enumerate(captions)]
            audio = np.stack(list(pool.imap(_render, jobs, chunksize=50)))
            np.save(args.out / f"{split}.npy", audio)
            with (args.out / f"{split}.jsonl").open("w") as handle:
                for text, attributes in captions:
                    handle.write(json.dumps({"text": text, "tags": attributes.as_tags()}) + "\n")
            print(f"{split}: {count} clips in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
