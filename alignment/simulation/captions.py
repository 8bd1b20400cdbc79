"""The little language attune-tiny was taught: attributes of a render, and captions that ask for them.

The renderer composes music from :class:`Attributes`; the caption grammar says the same in words; the
judge reads the attributes back from audio alone. A caption carries its attributes as tags, so that a
simulated listener knows what was asked without reading English.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass

LEADS: dict[str, tuple[int, tuple[str, ...]]] = {
    # name: (General MIDI program, wordings)
    "piano": (0, ("piano", "grand piano", "a piano melody")),
    "organ": (19, ("organ", "church organ", "pipe organ")),
    "guitar": (24, ("guitar", "nylon guitar", "acoustic guitar")),
    "violin": (40, ("violin", "solo violin", "fiddle")),
    "trumpet": (56, ("trumpet", "brass trumpet", "trumpet line")),
    "saxophone": (65, ("saxophone", "sax", "alto saxophone")),
    "flute": (73, ("flute", "airy flute", "flute melody")),
    "marimba": (12, ("marimba", "wooden marimba", "mallets")),
    "music box": (10, ("music box", "tinkling music box", "toy music box")),
    "synth": (81, ("synth", "sawtooth synth", "synth lead")),
}
TEMPOS: dict[str, tuple[tuple[float, float], tuple[str, ...]]] = {
    # name: (beats per minute, wordings)
    "slow": ((58.0, 72.0), ("slow", "unhurried", "calm slow tempo")),
    "medium": ((96.0, 112.0), ("medium tempo", "moderate", "walking pace")),
    "fast": ((144.0, 168.0), ("fast", "quick", "rapid tempo")),
}
MODES: dict[str, tuple[str, ...]] = {
    "major": ("in a major key", "major, bright", "happy major"),
    "minor": ("in a minor key", "minor, dark", "sad minor"),
}
ACCOMPANIMENTS: dict[str, tuple[str, ...]] = {
    "none": ("alone", "unaccompanied", "no accompaniment"),
    "strings": ("with strings", "over soft strings", "string ensemble behind"),
    "chords": ("with piano chords", "over piano chords", "chordal piano behind"),
}
DRUMS: dict[str, tuple[str, ...]] = {
    "yes": ("with drums", "drum kit", "a steady beat"),
    "no": ("no drums", "without drums", "drumless"),
}
ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
    "lead": tuple(LEADS),
    "tempo": tuple(TEMPOS),
    "mode": tuple(MODES),
    "accompaniment": tuple(ACCOMPANIMENTS),
    "drums": tuple(DRUMS),
}


@dataclass(frozen=True)
class Attributes:
    """What a render is, and what a caption asks for."""

    lead: str
    tempo: str
    mode: str
    accompaniment: str
    drums: str

    def as_tags(self) -> dict[str, str]:
        return asdict(self)


def draw_attributes(rng: random.Random) -> Attributes:
    """Attributes drawn uniformly and independently."""
    return Attributes(**{name: rng.choice(values) for name, values in ATTRIBUTE_VALUES.items()})


def write_caption(attributes: Attributes, rng: random.Random) -> str:
    """One sentence that asks for every attribute, wording and order drawn from ``rng``."""
    lead = rng.choice(LEADS[attributes.lead][1])
    tempo = rng.choice(TEMPOS[attributes.tempo][1])
    rest = [
        rng.choice(MODES[attributes.mode]),
        rng.choice(ACCOMPANIMENTS[attributes.accompaniment]),
        rng.choice(DRUMS[attributes.drums]),
    ]
    rng.shuffle(rest)
    head = rng.choice((f"{tempo} {lead}", f"{lead}, {tempo}", f"{tempo}, {lead}"))
    return ", ".join([head, *rest])


def is_reserved(text: str) -> bool:
    """True for the tenth of all captions that attune-tiny never saw in training."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def draw_captions(count: int, seed: int, *, reserved: bool) -> list[tuple[str, Attributes]]:
    """``count`` captions with their attributes, all reserved (held out) or all not.

    Reserved captions are also distinct, so that no held-out prompt is asked twice.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    out: list[tuple[str, Attributes]] = []
    while len(out) < count:
        attributes = draw_attributes(rng)
        text = write_caption(attributes, rng)
        if is_reserved(text) != reserved or (reserved and text in seen):
            continue
        seen.add(text)
        out.append((text, attributes))
    return out
