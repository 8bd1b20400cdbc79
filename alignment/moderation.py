"""Whether a typed prompt may be sung: a study's own blocked words and artist names, found through usual disguises.

Text and list are folded alike (Unicode NFKC, case, accents, look-alike letters). A listed word or phrase counts only
as whole words, so Scunthorpe may be sung about. These disguises are seen through: digits and signs for letters
(b4d), letters drawn out (baaad), dots or dashes inside a word (b.a-d), single letters apart (b a d), words run
together (taylorswift), invisible characters, letters of other alphabets that look Latin.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
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
_DIGITS = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "6": "g", "7": "t", "8": "b", "9": "g"}
_SIGNS = {"@": "a", "$": "s", "!": "i", "|": "i", "+": "t", "€": "e", "£": "l", "¡": "i", "(": "c"}
_SHORTEST_SPELT = 3  # "a d" is a chord and a key more often than a disguise


def check_prompt(text: str, rules: ArenaRules) -> str:
    """The prompt as it is stored and sung: invisible characters gone, white space single.

    Raises PromptRefused with one sentence for the rater, which repeats nothing of the study's lists."""
    if any(unicodedata.category(c) in ("Cs", "Co") or (_is_control(c) and not c.isspace()) for c in text):
        raise PromptRefused(UNREADABLE)
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    clean = unicodedata.normalize("NFC", " ".join(visible.split()))
    if not any(c.isalnum() for c in clean):
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
    listed = _compiled(tuple(phrases))
    return bool(listed.phrases) and any(listed.found_in(view) for view in _views(fold(text)))


def fold(text: str) -> str:
    """The text in small plain letters: compatibility forms, accents and look-alikes resolved, nothing invisible."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    kept = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return "".join(_unboxed(c) for c in kept).translate(_ALIKE)


def words(text: str) -> list[str]:
    """The folded text's words, without what stands between them."""
    return [word for word, _ in _tokens(fold(text))]


# A view is one reading of a text: (word, what stands before it) in order.
_View = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Listed:
    """Phrases by their letters run together: where the words begin in each, and every way a phrase may start."""

    phrases: dict[str, frozenset[frozenset[int]]]
    starts: frozenset[str]

    def found_in(self, view: _View) -> bool:
        return any(self._begins_at(view, index) for index in range(len(view)))

    def _begins_at(self, view: _View, index: int) -> bool:
        """Whether a phrase begins with this word. Gaps between words of the text are allowed between words of the
        phrase; inside a word only when they are signs without white space, or when all stand letter by letter."""
        letters, loose, spelt = "", [], True
        for word, gap in view[index:]:
            if letters and not _is_tight(gap):
                loose.append(len(letters))
            letters, spelt = letters + word, spelt and len(word) == 1
            if letters not in self.starts:
                return False
            for begins in self.phrases.get(letters, ()):
                if begins.issuperset(loose) or (spelt and len(letters) >= _SHORTEST_SPELT):
                    return True
        return False


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


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(word, what stands before it): runs of letters and digits."""
    gap = ""
    for is_word, run in itertools.groupby(text, str.isalnum):
        if is_word:
            yield "".join(run), gap
        else:
            gap = "".join(run)


def _views(text: str) -> set[_View]:
    """The readings of a folded text: as it is, with digits and signs as letters, with drawn-out letters shortened."""
    readings = {text}
    for one, signs in itertools.product(("i", "l"), ("none", "inside", "all")):
        readings.add(" ".join(_unleet(chunk, one, signs) for chunk in text.split()))
    for reading in list(readings):
        readings |= {_shortened(reading, 1), _shortened(reading, 2)}
    return {tuple(_tokens(reading)) for reading in readings}


def _unleet(chunk: str, one: str, signs: str) -> str:
    """Digits and signs among letters read as letters. A chunk without letters is a number and stays one."""
    if not any(c.isalpha() for c in chunk):
        return chunk
    end = len(chunk.rstrip("!+|()")) if signs == "inside" else len(chunk)
    out = []
    for place, c in enumerate(chunk):
        if c in "1|" and (c == "1" or signs != "none"):
            out.append(one)
        elif c in _DIGITS:
            out.append(_DIGITS[c])
        elif c in _SIGNS and signs != "none" and place < end:
            out.append(_SIGNS[c])
        else:
            out.append(c)
    return "".join(out)


def _shortened(text: str, most: int) -> str:
    """Letters that stand three times or more in a row, ``most`` times. No ordinary word has three."""
    out = []
    for c, run in itertools.groupby(text):
        length = sum(1 for _ in run)
        out.append(c * (most if length >= 3 and c.isalpha() else length))
    return "".join(out)


def _is_tight(gap: str) -> bool:
    """Whether a gap has no white space in it: a disguise, or a compound, rather than two words."""
    return not any(c.isspace() for c in gap)


def _unboxed(c: str) -> str:
    for first, count in _BOXED:
        if first <= ord(c) < first + count:
            return chr(ord("a") + ord(c) - first)
    return c


def _is_control(c: str) -> bool:
    return unicodedata.category(c) == "Cc"


def sentences() -> Sequence[str]:
    """Every sentence without figures that a rater may get, for whoever checks their wording."""
    return EMPTY, UNREADABLE, WORD, ARTIST
