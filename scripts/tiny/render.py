"""Compose and render the music attune-tiny learns from.

    python scripts/tiny/render.py --out build/tiny/data

Needs Debian's ``fluid-soundfont-gm`` (FluidR3, MIT licence) and ``pip install --no-deps tinysoundfont``.
Every clip is composed from known attributes (lead, tempo, mode, accompaniment, drums), so its caption is
true by construction. Seven in ten of the recordings to learn from are flawed (noise, clipping, muffled sound, hum),
and captions never say so: the model learns to sing flawed recordings too, which leaves listeners something to
improve. Splits share no clip: ``train`` for codec, decoder and CLAP, ``judge`` for the gold judge alone,
``valid`` and ``test`` for cards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np

from alignment.simulation.captions import LEADS, TEMPOS, Attributes, draw_pieces
from scripts.tiny.faults import apply_faults, draw_faults

SAMPLE_RATE_HZ = 16_000
CLIP_SECONDS = 5.0
RENDER_RATE_HZ = 32_000  # rendered above the target rate, then low-passed, against aliasing
SPLITS = {"train": (9000, 11), "judge": (3500, 12), "valid": (400, 13), "test": (600, 14)}
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 6, 0), (0, 5, 3, 4), (0, 6, 5, 6)),
}
CENTRES = {
    "piano": 69,
    "organ": 67,
    "guitar": 62,
    "violin": 74,
    "trumpet": 69,
    "saxophone": 64,
    "flute": 79,
    "marimba": 69,
    "music box": 81,
    "synth": 67,
}


# One bar of rhythm each, in beats; a melody repeats its rhythm, which is what makes a tempo audible.
RHYTHMS = (
    (1, 1, 1, 1),
    (1, 1, 2),
    (0.5, 0.5, 1, 1, 1),
    (1, 0.5, 0.5, 1, 1),
    (1.5, 0.5, 1, 1),
    (0.5, 0.5, 0.5, 0.5, 1, 1),
    (1, 0.5, 0.5, 0.5, 0.5, 1),
    (2, 1, 1),
    (1, 1, 0.5, 0.5, 1),
)
COMPING = {"chords": ((0, 1), (0, 1), (0, 0.5, 1), (0, 1.5)), "strings": ((0,),)}  # hits in two beats
DRUM_BARS = (  # hi-hat step in beats, kick and snare beats of a bar of four
    (0.5, (0, 2), (1, 3)),
    (0.5, (0, 1.5, 2), (1, 3)),
    (1.0, (0, 2), (1, 3)),
    (0.5, (0, 2, 2.5), (1, 3)),
)


def compose(attributes: Attributes, rng: random.Random) -> list[tuple[float, int, int, int, float]]:
    """Notes as (start s, channel, key, velocity, length s); channel 0 lead, 1 accompaniment, 9 drums."""
    low, high = TEMPOS[attributes.tempo][0]
    beat = 60.0 / rng.uniform(low, high)
    root, scale = rng.randrange(12), SCALES[attributes.mode]
    progression = rng.choice(PROGRESSIONS[attributes.mode])
    bars = int(CLIP_SECONDS / beat / 4) + 2
    articulation = rng.choice((0.5, 0.85, 0.85, 0.98))  # staccato, plain, legato
    swell = rng.choice((0.0, 0.0, 0.25, -0.25))  # dynamics over the clip, as a share of the velocity
    notes: list[tuple[float, int, int, int, float]] = []

    def pitch(degree: int, centre: int) -> int:
        octave, step = divmod(degree, 7)
        return root + scale[step] + 12 * octave + 12 * ((centre - 6 - root + 11) // 12)

    def velocity(base: int, position: float) -> int:
        accent = 6 if position % 4 == 0 else 0 if position % 1 == 0 else -6
        share = position * beat / CLIP_SECONDS - 0.5
        return max(30, min(120, round(base * (1 + swell * share)) + accent + rng.randint(-4, 4)))

    centre, doubled = CENTRES[attributes.lead], rng.random() < 0.2
    # Phrases: a motif and its answer (A A' B A'), each a rhythm and a contour of steps around the chord.
    motifs = [(rng.choice(RHYTHMS), [rng.choice((-2, -1, 0, 1, 1, 2)) for _ in range(8)]) for _ in range(2)]
    for bar in range(bars):
        rhythm, contour = motifs[1 if bar % 4 == 2 else 0]
        position, wander = 4.0 * bar, 0
        for number, length in enumerate(rhythm):
            chord = progression[int(position // 2) % 4]
            wander = max(-3, min(5, wander + contour[number]))
            degree = chord + wander
            if position % 1 == 0:  # on the beat: the nearest note of the chord
                tones = (chord + d + 7 * o for d in (0, 2, 4) for o in (-1, 0, 1))
                degree = min(tones, key=lambda tone: abs(tone - degree))
            degree = max(-3, min(8, degree))
            span = articulation * length * beat
            notes.append((position * beat, 0, pitch(degree, centre), velocity(96, position), span))
            if doubled:
                notes.append((position * beat, 0, pitch(degree - 2, centre), velocity(78, position), span))
            position += length
    if attributes.accompaniment != "none":
        hits, sevenths = rng.choice(COMPING[attributes.accompaniment]), rng.random() < 0.2
        for number in range(2 * bars):
            chord = progression[number % 4]
            keys = [pitch(chord + d, 54) for d in ((0, 2, 4, 6) if sevenths else (0, 2, 4))]
            if attributes.accompaniment == "chords":
                keys.append(pitch(chord, 54) - 12)
            for at, until in zip(hits, (*hits[1:], 2), strict=True):
                for key in keys:
                    position = 2.0 * number + at
                    notes.append((position * beat, 1, key, velocity(66, position), 0.95 * (until - at) * beat))
    if attributes.drums == "yes":
        hat, kicks, snares = rng.choice(DRUM_BARS)
        for bar in range(bars):
            for step in range(int(4 / hat)):
                notes.append(((4 * bar + step * hat) * beat, 9, 42, velocity(72, step * hat), 0.1))
            notes += [((4 * bar + at) * beat, 9, 36, velocity(105, at), 0.1) for at in kicks]
            notes += [((4 * bar + at) * beat, 9, 38, velocity(100, at), 0.1) for at in snares]
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


def _render(job: tuple[Attributes, dict[str, float], int]) -> np.ndarray:
    assert _renderer is not None
    attributes, faults, seed = job
    return (apply_faults(_renderer(attributes, seed), faults, seed) * 32767).astype(np.int16)


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
            pieces = draw_pieces(count, seed, reserved=split in ("valid", "test"))
            faults = draw_faults(count, seed, training=split == "train")
            jobs = [(piece[2], faults[i], seed * 1_000_000 + i) for i, piece in enumerate(pieces)]
            audio = np.stack(list(pool.imap(_render, jobs, chunksize=50)))
            np.save(args.out / f"{split}.npy", audio)
            with (args.out / f"{split}.jsonl").open("w") as handle:
                for (text, asked, attributes), fault in zip(pieces, faults, strict=True):
                    row = {"text": text, "asked": asked.as_tags(), "tags": attributes.as_tags(), "faults": fault}
                    handle.write(json.dumps(row) + "\n")
            print(f"{split}: {count} clips in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
