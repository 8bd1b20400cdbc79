"""Whether a typed prompt may be sung: a study's own blocked words and artist names, found through usual disguises.

Text and list are folded alike (Unicode NFKC, case, accents, look-alike letters). A listed word or phrase counts only
as whole words, so Scunthorpe may be sung about. These disguises are seen through: digits and signs for letters
(b4d), letters drawn out (baaad), dots or dashes inside a word (b.a-d), single letters apart (b a d), words run
together (taylorswift), invisible characters, letters of other alphabets that look Latin.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from alignment.errors import PromptRefused
from alignment.studies import ArenaRules

EMPTY = "Please type a few words about the music that you would like to hear."
UNREADABLE = "The prompt has characters in it that cannot be shown; please type it again in plain letters."
WORD = "A word in this prompt is not used in this study; please say it in other words."
ARTIST = "Please describe how the music should sound instead of naming an artist or a band."

# Letters that look Latin; everything is in lower case and without accents by then.
_ALIKE = str.maketrans(
    "абвгеёзікмнорстухѕјһԁӏѵԛԝ"
    "αβγεηικνορτυχωϲϳ"
    "ıɩɪʟɢʀɴʙʜʏɑɡɾᴀᴄᴅᴇꜰᴊᴋᴍᴏᴘꜱᴛᴜᴠᴡᴢłøđħŧ",
    "a6bree3ikmhopctyxsjhdlvqw"
    "abyenikvoptuxwcj"
    "iiilgrnbhyagracdefjkmopstuvwzlodht",
)  # fmt: skip
# Boxed and flag letters that NFKC leaves alone: first code point, how many.
_BOXED = ((0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))
_DIGITS = {"0": "o", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g"}
_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "1", "+": "t", "€": "e", "£": "l", "¡": "i"}
_FINAL_SIGNS = "!|+"  # at a word's end more often what they are
_MOST_ONES = 4
_SHORTEST_SPELT = 3  # "a d" is a chord and a key more often than a disguise


def check_prompt(text: str, rules: ArenaRules) -> str:
    """The prompt as it is stored and sung: invisible characters gone, white space single.

    Raises PromptRefused with one sentence for the rater, which repeats nothing of the study's lists."""
    if any(unicodedata.category(c) in ("Cs", "Co") or (_is_control(c) and not c.isspace()) for c in text):
        raise PromptRefused(UNREADABLE)
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    clean = unicodedata.normalize("NFC", " ".join(visible.split()))
    if not words(clean):
        raise PromptRefused(EMPTY)
    if len(clean) > rules.longest_prompt:
        raise PromptRefused(
            f"The prompt has {len(clean)} characters and at most {rules.longest_prompt} fit; please shorten it."
        )
    if names_any(clean, rules.blocked_words):
        raise PromptRefused(WORD)
    if names_any(clean, rules.blocked_artists):
        raise PromptRefused(ARTIST)
    return clean


def names_any(text: str, phrases: Iterable[str]) -> bool:
    """Whether the text has one of the words or phrases in it, plainly or in disguise."""
    return _compiled(tuple(phrases)).is_in(fold(text).split())


def fold(text: str) -> str:
    """The text in small plain letters: compatibility forms, accents and look-alikes resolved, nothing invisible."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    kept = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return "".join(_unboxed(c) for c in kept).translate(_ALIKE)


def words(text: str) -> list[str]:
    """The folded text's words, without what stands between them."""
    return _split(fold(text))


@dataclass(frozen=True)
class _Begun:
    """A phrase that may have begun: its letters so far, where white space stood in them, whether letter by letter."""

    letters: str
    loose: frozenset[int]
    spelt: bool


@dataclass(frozen=True)
class _Listed:
    """Phrases by their letters run together: where the words begin in each, and every way a phrase may start."""

    phrases: dict[str, frozenset[frozenset[int]]]
    starts: frozenset[str]

    def is_in(self, chunks: Iterable[str]) -> bool:
        """Whether a phrase is in the text, given as what stands between white space, under any reading of it."""
        if not self.phrases:
            return False
        begun: set[_Begun] = set()
        for chunk in chunks:
            after: set[_Begun] = set()
            for reading in _readings(chunk):
                going = {_Begun(b.letters, b.loose | {len(b.letters)}, b.spelt) for b in begun}
                for word in reading:
                    going = {
                        b
                        for b in (_Begun(g.letters + word, g.loose, g.spelt and len(word) == 1) for g in going)
                        if b.letters in self.starts
                    }
                    if word in self.starts:
                        going.add(_Begun(word, frozenset(), len(word) == 1))
                    if any(self._is_whole(b) for b in going):
                        return True
                after |= going
            begun = after
        return False

    def _is_whole(self, begun: _Begun) -> bool:
        """White space may stand between the words of a phrase; inside a word only when all is letter by letter."""
        if begun.spelt and len(begun.letters) >= _SHORTEST_SPELT and begun.letters in self.phrases:
            return True
        return any(words_begin >= begun.loose for words_begin in self.phrases.get(begun.letters, ()))


@lru_cache(maxsize=64)
def _compiled(phrases: tuple[str, ...]) -> _Listed:
    by_letters: dict[str, set[frozenset[int]]] = {}
    for phrase in phrases:
        parts = words(phrase)
        if parts:
            begins = frozenset(itertools.accumulate(len(part) for part in parts[:-1]))
            by_letters.setdefault("".join(parts), set()).add(begins)
    starts = frozenset(letters[:end] for letters in by_letters for end in range(1, len(letters) + 1))
    return _Listed({letters: frozenset(begins) for letters, begins in by_letters.items()}, starts)


def _split(text: str) -> list[str]:
    """Runs of letters and digits."""
    return ["".join(run) for is_word, run in itertools.groupby(text, str.isalnum) if is_word]


def _readings(chunk: str) -> set[tuple[str, ...]]:
    """The words that a folded chunk may stand for: as it is, with digits and signs as letters, each also with
    drawn-out letters shortened."""
    readings = {chunk}
    if any(c.isalpha() for c in chunk):  # without letters it is a number
        readings.add("".join(_DIGITS.get(c, c) for c in chunk))
        for end in {len(chunk.rstrip(_FINAL_SIGNS)), len(chunk)}:
            signs = "".join(_SIGNS.get(c, _DIGITS.get(c, c)) for c in chunk[:end]) + chunk[end:]
            readings.add(signs)
        # A 1 is an i or an l, each for itself unless there are too many.
        for reading in list(readings):
            ones = reading.count("1")
            options = itertools.product("il", repeat=ones) if ones <= _MOST_ONES else ("i" * ones, "l" * ones)
            pieces = reading.split("1")
            readings |= {
                "".join(itertools.chain.from_iterable(zip(pieces, (*letters, ""), strict=True))) for letters in options
            }
    readings |= {_shortened(reading, most) for reading in readings for most in (1, 2)}
    return {tuple(_split(reading)) for reading in readings}


def _shortened(text: str, most: int) -> str:
    """Letters that stand three times or more in a row, ``most`` times. No ordinary word has three."""
    out = []
    for c, run in itertools.groupby(text):
        length = sum(1 for _ in run)
        out.append(c * (most if length >= 3 and c.isalpha() else length))
    return "".join(out)


def _unboxed(c: str) -> str:
    for first, count in _BOXED:
        if first <= ord(c) < first + count:
            return chr(ord("a") + ord(c) - first)
    return c


def _is_control(c: str) -> bool:
    return unicodedata.category(c) == "Cc"
