"""Typed prompts: what a study's lists catch through disguises, and what they leave alone."""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config import REPOSITORY, load_recipe
from alignment.errors import DataError, PromptRefused
from alignment.moderation import ARTIST, EMPTY, UNREADABLE, WORD, check_prompt, names_any
from alignment.studies import ArenaRules, StudyRecipe

RULES = ArenaRules(blocked_words=("darn", "white noise machine"), blocked_artists=("Taylor Swift", "Beyoncé", "P!nk"))
SHIPPED = load_recipe(REPOSITORY / "configs" / "arena.yaml", StudyRecipe)
LOOKALIKES = str.maketrans("aeopcyx", "аеорсух")  # Cyrillic
LEET = str.maketrans("aeiost", "431057")


def refusal(text: str, rules: ArenaRules = RULES) -> str | None:
    try:
        check_prompt(text, rules)
    except PromptRefused as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "text",
    [
        "a darn song", "DARN", "Darn!", "d a r n", "d.a.r.n", "d-a-r-n", "da-rn", "d_a_r_n", "d4rn", "d@rn", "d4rn!!",
        "daaaaarn", "dárn", "da\u0301rn", "da\u200brn", "da\u00adrn", "d\u2060arn", "ｄａｒｎ", "𝓭𝓪𝓻𝓷", "ⓓⓐⓡⓝ", "dаrn",
        "🅳🅰🆁🅽", "ᴅᴀʀɴ", "rock/darn", "(darn)", "darn's", "d  a   r  n", "white-noise machine", "WhiteNoiseMachine",
        "white\nnoise\tmachine", "wh1te n0ise m4chine",
    ],
)  # fmt: skip
def test_a_blocked_word_is_found_in_every_disguise(text: str) -> None:
    assert refusal(text) == WORD


@pytest.mark.parametrize(
    "text",
    [
        "like Taylor Swift", "taylor  swift's band", "TAYLORSWIFT", "t a y l o r s w i f t", "Tay1or Sw1ft",
        "taylor-swift", "Beyonce", "beyoncé", "BEYONCE\u0301", "b3yonc3", "P!nk", "in the style of p!nk",
    ],
)  # fmt: skip
def test_an_artist_is_found_in_every_spelling_and_the_rater_is_told_what_to_do(text: str) -> None:
    assert refusal(text) == ARTIST


@pytest.mark.parametrize(
    "text",
    [
        "darning needles", "a dar ness", "in D a r", "dar n", "white noise", "the noise machine is white",
        "a tailor, swift and quick", "a swift taylor", "pink noise", "un-darned socks", "ad arn", "a d minor", "1984",
        "da rn", "piano 4/4 at 120 bpm", "808 drums, 80s synths, 7th chords", "ein lustiges Stück für Flöte",
        "静かなピアノ", "тихое пианино", "موسيقى هادئة", "C A G E D chords",
    ],
)  # fmt: skip
def test_other_words_are_left_alone(text: str) -> None:
    assert refusal(text) is None


def test_a_word_inside_another_word_is_left_alone() -> None:
    for text, inside in [
        ("Scunthorpe", "cunt"),
        ("a classic bass assembly", "ass"),
        ("Essex", "sex"),
        ("tit-bit", "it"),
    ]:
        listed = () if inside == "it" else (inside,)
        assert not names_any(text, listed)
    assert not names_any("cocktail jazz in Penistone", ["cock", "penis"])
    assert not names_any("455 and 1055", ["ass", "loss"])  # numbers
    assert not names_any("moto rhead", ["Motörhead"]) and names_any("motorhead", ["Motörhead"])
    assert not names_any("good", ["god"]) and not names_any("goood", ["lod"])


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "...", "!!??", "🎵🎶", "\u200b\u200d", "—"])
def test_a_prompt_without_words_is_refused(text: str) -> None:
    assert refusal(text) == EMPTY


@pytest.mark.parametrize("text", ["piano\x00", "pi\x1b[31mano", "\ud800 piano", "piano \x7f", "\ue000 piano"])
def test_control_characters_and_broken_text_are_refused(text: str) -> None:
    assert refusal(text) == UNREADABLE


def test_a_prompt_may_be_as_long_as_the_study_says_and_not_longer() -> None:
    rules = ArenaRules(longest_prompt=10)
    assert check_prompt("a" * 10, rules) == "a" * 10
    assert check_prompt("  a" + " " * 50 + "b  ", rules) == "a b"
    said = refusal("a" * 11, rules)
    assert said is not None and "11 characters" in said and "10" in said


def test_what_is_stored_has_single_spaces_and_nothing_invisible() -> None:
    assert check_prompt("  slow\u200b \u202epiano\r\n with\tcello\u00a0 ", RULES) == "slow piano with cello"
    assert check_prompt("cafe\u0301", RULES) == "caf\u00e9"


def test_a_refusal_is_one_sentence_that_repeats_nothing_of_the_lists_or_the_prompt() -> None:
    for text in ("darn", "taylor swift", "p!nk"):
        said = refusal(text)
        assert said is not None and said.count(".") == 1 and said.endswith(".")
        for phrase in (*RULES.blocked_words, *RULES.blocked_artists, text):
            assert phrase.lower() not in said.lower()
    assert issubclass(PromptRefused, DataError)


def test_the_shipped_lists_block_what_they_name_and_no_ordinary_caption() -> None:
    from alignment.simulation.captions import draw_captions

    assert SHIPPED.mode == "arena" and len(SHIPPED.versions) == 2
    for phrase in (*SHIPPED.arena.blocked_words, *SHIPPED.arena.blocked_artists):
        assert refusal(f"a song like {phrase} please", SHIPPED.arena), phrase
    for text, _ in draw_captions(400, 3, reserved=True):
        assert refusal(text, SHIPPED.arena) is None, text


def test_empty_lists_block_nothing_and_lists_without_letters_do_no_harm() -> None:
    assert refusal("anything at all", ArenaRules()) is None
    assert not names_any("anything", ["", "  ", "!!", "\u200b"])


WORDS = st.text(string.ascii_lowercase, min_size=3, max_size=12).filter(lambda w: not _drawn_out(w))


def _drawn_out(word: str) -> bool:
    return any(word[i] == word[i + 1] == word[i + 2] for i in range(len(word) - 2))


def disguised(word: str, rng: random.Random) -> str:
    """The word as someone writes it who wants to get past a list: one trick, drawn at random."""
    place = rng.randrange(1, len(word))
    tricks = [
        word.upper(),
        word.translate(LOOKALIKES),
        word.translate(LEET),
        word.title().translate(LEET),
        " ".join(word),
        ".".join(word),
        rng.choice(["*", "-", "_", "~", "."]).join((word[:place], word[place:])),
        word[:place] + rng.choice(["\u200b", "\u200d", "\u00ad", "\ufeff", "\u2066"]) + word[place:],
        word[:place] + word[place - 1] * rng.randrange(2, 5) + word[place:],
        "".join(c + rng.choice(["", "\u0301", "\u0308"]) for c in word),
        "".join(chr(ord(c) + 0xFEE0) for c in word),
        "".join(chr(0x1D4B6 + ord(c) - 97) if c not in "ego" else c for c in word),
    ]
    hidden = rng.choice(tricks)
    return word if hidden.isdigit() else hidden  # "445" is a number, whatever it may stand for


@settings(max_examples=300, deadline=None)
@given(
    WORDS,
    st.integers(0, 2**32),
    st.sampled_from(["", "slow piano ", "(", "la la, "]),
    st.sampled_from(["", " now", "!", ", la"]),
)
def test_whatever_word_is_listed_no_single_disguise_gets_past(word: str, seed: int, before: str, after: str) -> None:
    hidden = disguised(word, random.Random(seed))
    assert names_any(before + hidden + after, [word]), ascii(hidden)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), WORDS, WORDS)
def test_plain_words_are_found_only_if_they_are_listed(text: list[str], listed: str, joined: str) -> None:
    expected = listed in text
    assert names_any(" ".join(text), [listed]) == expected
    # Neither as part of a longer word nor across two words.
    assert names_any(f"{joined}{listed}{joined}", [listed]) == (joined + listed + joined == listed)
    assert not names_any(f"x{listed[0]} {listed[1:]}x", [listed])


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_accepted_cleanly_or_refused_with_a_sentence(text: str) -> None:
    try:
        clean = check_prompt(text, SHIPPED.arena)
    except PromptRefused as error:
        assert str(error).endswith(".")
    else:
        assert clean == check_prompt(clean, SHIPPED.arena)  # cleaning again changes nothing
        assert clean.isprintable() or any(not c.isprintable() for c in text)
        clean.encode()


def test_a_hostile_prompt_costs_little_time() -> None:
    rules = ArenaRules(longest_prompt=2000, blocked_words=tuple(f"assassin {i} {'as' * i}" for i in range(1, 300)))
    began = time.process_time()
    for text in ("@$" * 1000, "a s " * 500, "as-" * 600, "1!|" * 600, "a" * 2000, "𝓪$" * 900):
        refusal(text, rules)
    assert time.process_time() - began < 5
