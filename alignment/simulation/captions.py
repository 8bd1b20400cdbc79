"""The little language attune-tiny was taught: attributes of a piece, and captions that ask for some of them.

The renderer composes music from :class:`Attributes`; the caption grammar says part of the same in words; the
judge reads the attributes back from audio alone. A caption carries the attributes it asks for as tags, so that
a simulated listener knows what was asked without reading English.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass, fields

LEADS: dict[str, tuple[int, tuple[str, ...]]] = {
    # name: (General MIDI program, wordings)
    "piano": (0, ("piano", "grand piano", "concert piano")),
    "organ": (19, ("organ", "church organ", "pipe organ")),
    "guitar": (24, ("guitar", "nylon guitar", "acoustic guitar", "classical guitar")),
    "violin": (40, ("violin", "fiddle", "bowed violin")),
    "trumpet": (56, ("trumpet", "brass trumpet", "trumpet horn")),
    "saxophone": (65, ("saxophone", "sax", "alto saxophone", "alto sax")),
    "flute": (73, ("flute", "airy flute", "breathy flute")),
    "marimba": (12, ("marimba", "wooden marimba", "mallet marimba")),
    "music box": (10, ("music box", "tinkling music box", "toy music box")),
    "synth": (81, ("synth", "sawtooth synth", "synthesizer", "analog synth")),
}
TEMPOS: dict[str, tuple[tuple[float, float], tuple[str, ...]]] = {
    # name: (beats per minute, adjectives)
    "slow": ((58.0, 72.0), ("slow", "unhurried", "leisurely", "very calm", "adagio")),
    "medium": ((96.0, 112.0), ("moderate", "medium tempo", "mid-tempo", "walking-pace", "andante")),
    "fast": ((144.0, 168.0), ("fast", "quick", "rapid", "energetic", "presto")),
}
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (adjectives, phrases)
    "major": (("happy", "bright", "cheerful", "sunny"), ("in a major key", "in major", "major key")),
    "minor": (("sad", "dark", "melancholy", "gloomy"), ("in a minor key", "in minor", "minor key")),
}
ACCOMPANIMENTS: dict[str, tuple[str, ...]] = {
    "none": ("alone", "unaccompanied", "with no accompaniment", "on its own"),
    "strings": ("with strings", "over soft strings", "backed by a string section", "strings behind"),
    "chords": ("with piano chords", "over piano chords", "backed by piano chords", "chordal piano behind"),
}
DRUMS: dict[str, tuple[str, ...]] = {
    "yes": ("with drums", "with a drum kit", "with a steady beat", "drums and cymbals"),
    "no": ("no drums", "without drums", "drumless", "without percussion"),
}
ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
    "lead": tuple(LEADS),
    "tempo": tuple(TEMPOS),
    "mode": tuple(MODES),
    "accompaniment": tuple(ACCOMPANIMENTS),
    "drums": tuple(DRUMS),
}
SAID = {"lead": 0.95, "tempo": 0.85, "mode": 0.8, "accompaniment": 0.8, "drums": 0.75}  # shares of captions
NOUNS = ("tune", "melody", "piece", "theme", "line")


@dataclass(frozen=True)
class Attributes:
    """What a piece is (all five given), or what a caption asks for (None where it says nothing)."""

    lead: str | None
    tempo: str | None
    mode: str | None
    accompaniment: str | None
    drums: str | None

    def as_tags(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def draw_attributes(rng: random.Random) -> Attributes:
    """All five, drawn uniformly and independently."""
    return Attributes(**{name: rng.choice(values) for name, values in ATTRIBUTE_VALUES.items()})


def draw_asked(attributes: Attributes, rng: random.Random) -> Attributes:
    """The part of ``attributes`` that a caption will mention: each by its share in SAID, at least two."""
    while True:
        said = {field.name: rng.random() < SAID[field.name] for field in fields(Attributes)}
        if sum(said.values()) >= 2:
            return Attributes(**{name: getattr(attributes, name) if yes else None for name, yes in said.items()})


def write_caption(asked: Attributes, rng: random.Random) -> str:
    """One caption in natural words that asks for what ``asked`` holds; wording, frame and order drawn from ``rng``."""
    lead = rng.choice(LEADS[asked.lead][1]) if asked.lead else ""
    tempo = rng.choice(TEMPOS[asked.tempo][1]) if asked.tempo else ""
    adjective, tails = "", []
    if asked.mode:
        adjectives, phrases = MODES[asked.mode]
        if rng.random() < 0.5:
            adjective = rng.choice(adjectives)
        else:
            tails.append(rng.choice(phrases))
    if asked.accompaniment:
        tails.append(rng.choice(ACCOMPANIMENTS[asked.accompaniment]))
    if asked.drums:
        tails.append(rng.choice(DRUMS[asked.drums]))
    rng.shuffle(tails)
    noun, frame = rng.choice(NOUNS), rng.randrange(3)
    if frame == 0:  # "slow sad piano, with strings, no drums"
        head = " ".join(part for part in (tempo, adjective, lead or noun) if part)
    elif frame == 1:  # "a slow sad tune for piano, with strings, no drums"
        described = " ".join(part for part in (tempo, adjective, noun) if part)
        head = f"{'an' if described[0] in 'aeiou' else 'a'} {described}" + (f" for {lead}" if lead else "")
    else:  # "piano, slow and sad, with strings, no drums"
        manner = " and ".join(part for part in (tempo, adjective) if part)
        head = ", ".join(part for part in (lead or noun, manner) if part)
    return ", ".join([head, *tails])


def is_reserved(text: str) -> bool:
    """True for the tenth of all captions that attune-tiny never saw in training."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def draw_pieces(count: int, seed: int, *, reserved: bool) -> list[tuple[str, Attributes, Attributes]]:
    """``count`` times a caption, what it asks for, and a piece that fits it; all reserved (held out) or all not.

    Reserved captions are also distinct, so that no held-out prompt is asked twice.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    out: list[tuple[str, Attributes, Attributes]] = []
    while len(out) < count:
        attributes = draw_attributes(rng)
        asked = draw_asked(attributes, rng)
        text = write_caption(asked, rng)
        if is_reserved(text) != reserved or (reserved and text in seen):
            continue
        seen.add(text)
        out.append((text, asked, attributes))
    return out


def draw_captions(count: int, seed: int, *, reserved: bool) -> list[tuple[str, Attributes]]:
    """``count`` captions with what they ask for; see :func:`draw_pieces`."""
    return [(text, asked) for text, asked, _ in draw_pieces(count, seed, reserved=reserved)]
