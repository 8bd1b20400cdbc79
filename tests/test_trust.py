"""The trust gate passes a signal, refuses noise, and counts raters and prompts, not votes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from alignment.circle.learn import NamedSnapshot
from alignment.circle.trust import Trust, measure_trust
from alignment.config import RewardSettings
from alignment.domain import Outcome, Split
from alignment.evaluation.intervals import Interval
from alignment.preferences import FrozenSnapshot, _shuffled
from tests.training_support import pair, unit_vectors

WIDTH = 12
QUICK = RewardSettings(hidden=16, epochs=15, batch_size=64, ensemble=2, learning_rate=5e-3, patience=4)


class Encoded:
    """A workspace of given embeddings."""

    def __init__(self, audio: dict, text: dict) -> None:
        self.audio, self.text = audio, text

    def embed_audio(self, shas):
        return {sha: self.audio[sha] for sha in shas}

    def embed_text(self, prompts):
        return {prompt: self.text[prompt] for prompt in prompts}


def voted(votes: int = 400, raters: int = 10, noise: float = 1.0, seed: int = 0) -> tuple[Encoded, list]:
    """Votes for the clip with the larger first coordinate, give or take logistic noise."""
    rng = np.random.default_rng(seed)
    prompts = [f"prompt {n}" for n in range(40)]
    text = unit_vectors(prompts, WIDTH, seed + 1)
    audio = unit_vectors([f"audio-{n}{side}" for n in range(votes) for side in "ab"], WIDTH, seed + 2)
    pairs = []
    for n in range(votes):
        a, b = audio[f"audio-{n}a"], audio[f"audio-{n}b"]
        utility = 4 * float(a[0] - b[0]) + noise * rng.logistic()
        one = pair(n, Outcome.A if utility > 0 else Outcome.B, prompt=prompts[n % 40],
                   split=Split.TRAIN if n % 40 < 32 else Split.VALID)  # fmt: skip
        pairs.append(replace(one, rater_id=f"rater-{n * raters // votes}"))
    return Encoded(audio, text), pairs


def trust(ws: Encoded, pairs: list) -> Trust:
    frozen = FrozenSnapshot(tuple(pairs), "", {}, {})
    return measure_trust(ws, NamedSnapshot("votes", SimpleNamespace(), frozen), QUICK, 4)


def test_votes_that_say_something_pass_and_the_same_votes_shuffled_do_not() -> None:
    ws, pairs = voted()
    found = trust(ws, pairs)
    assert found.passed and found.accuracy["preference"].low > 0.55
    assert (found.accuracy["preference"].n, found.accuracy["preference"].clusters) == (400, 10)
    refused = [not trust(ws, _shuffled(pairs, ("outcome", "preference", "axes"), seed)).passed for seed in range(6)]
    assert sum(refused) >= 5, "noise passes once in forty times, not more"


def test_what_was_said_in_contests_is_neither_learnt_from_nor_asked_about() -> None:
    ws, pairs = voted()
    held = {f"prompt {n}" for n in range(10)}
    mixed = [replace(one, split=Split.LEADERBOARD) if one.prompt_text in held else one for one in pairs]
    alone = [one for one in pairs if one.prompt_text not in held]
    found = trust(ws, mixed)
    assert found.accuracy["preference"].n == len(alone) == 300 and found == trust(ws, alone)


@pytest.mark.parametrize(("low", "passes"), [(0.5001, True), (0.5, False), (0.47, False)])
def test_the_lower_bound_has_to_be_above_one_half(low: float, passes: bool) -> None:
    accuracy = {"preference": Interval(0.6, low, 0.7, 200), "quality": Interval(0.9, 0.8, 1.0, 9)}
    assert Trust(accuracy, 5).passed is passes


def test_votes_of_one_rater_are_no_independent_witnesses() -> None:
    """Seven raters like the first coordinate and three dislike it: ten opinions, and seven of ten is no proof.

    Taken as independent, the 400 votes would pass."""
    ws, pairs = voted(noise=0.0)
    turned = []
    for one in pairs:
        other = Outcome.B if one.outcome == Outcome.A else Outcome.A
        dislikes = one.rater_id in {f"rater-{n}" for n in (1, 4, 7)}
        turned.append(replace(one, outcome=other, preference=1 - one.preference) if dislikes else one)
    found = trust(ws, turned)
    share = found.accuracy["preference"]
    assert share.value - 1.96 * (share.value * (1 - share.value) / 400) ** 0.5 > 0.5
    assert share.low < 0.5 and not found.passed
