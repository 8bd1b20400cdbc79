"""Simulated listeners: each parameter of a profile does what it says, and populations mix as told."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from listener_support import TAGS, heard, random_pairs

from alignment.domain import Axis, Outcome
from alignment.errors import ConfigError
from alignment.simulation.agreement import CastVote, PerfectScorer, agreement
from alignment.simulation.listeners import Listener, ListenerProfile, draw_population, load_listeners

VOTES = 4000  # a share of one half then has a standard error of 0.8 points


def shares(profile: ListenerProfile, left, right, votes: int = VOTES, seed: int = 3) -> dict[Outcome, float]:
    """Share of each outcome when one listener of the profile hears the same two clips again and again."""
    listener, rng = Listener(profile, seed=1), random.Random(seed)
    counts = Counter(listener.vote(left, right, TAGS, rng)[0] for _ in range(votes))
    return {outcome: counts[outcome] / votes for outcome in Outcome}


def cast(profile: ListenerProfile, count: int = 600, listeners: int = 6) -> list[CastVote]:
    """Votes of a few listeners on random pairs."""
    panel = [Listener(profile, seed) for seed in range(listeners)]
    rng = random.Random(8)
    pairs = random_pairs(count)
    return [
        CastVote(pair, i % listeners, panel[i % listeners].vote(pair.left, pair.right, TAGS, rng)[0])
        for i, pair in enumerate(pairs)
    ]


def test_the_utility_runs_from_nothing_to_the_sum_of_the_weights() -> None:
    listener = Listener(ListenerProfile(adherence_weight=6, cleanliness_weight=4), seed=1)
    assert listener.utility(heard(0.0, 0.0), TAGS) == 0
    assert listener.utility(heard(1.0, 1.0), TAGS) == pytest.approx(10)
    assert listener.utility(heard(0.5, 0.25), TAGS) == pytest.approx(6 * 0.5 + 4 * 0.25)


def test_a_listener_of_which_all_is_off_always_takes_what_it_finds_better() -> None:
    votes = cast(ListenerProfile())
    assert len(votes) == 600 and all(vote.outcome.is_decisive for vote in votes)
    assert agreement(votes, PerfectScorer.of_profile(ListenerProfile())).value == 1.0


def test_likes_are_the_only_thing_between_a_noiseless_listener_and_the_perfect_scorer() -> None:
    profile = ListenerProfile(likes=2.0)
    votes = cast(profile)
    assert 0.6 < agreement(votes, PerfectScorer.of_profile(profile)).value < 0.95
    panel = [Listener(profile, seed) for seed in range(6)]
    for vote in votes:  # with its own utility every listener agrees
        u_left, u_right = (panel[vote.listener].utility(clip, TAGS) for clip in (vote.pair.left, vote.pair.right))
        assert vote.outcome is (Outcome.A if u_left > u_right else Outcome.B)


def test_likes_have_the_deviation_that_is_asked_for() -> None:
    drawn = [liking for seed in range(60) for liking in Listener(ListenerProfile(likes=0.3), seed).taste.values()]
    assert np.std(drawn) == pytest.approx(0.3, rel=0.08)  # 1,200 draws: a standard error of 2%
    assert np.mean(drawn) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("profile", "votes"),
    [
        (ListenerProfile(adherence_weight=6, cleanliness_weight=0), (Outcome.A, Outcome.TIE)),
        (ListenerProfile(adherence_weight=0, cleanliness_weight=4), (Outcome.TIE, Outcome.B)),
    ],
)
def test_each_weight_weighs_its_own_part(profile: ListenerProfile, votes: tuple[Outcome, Outcome]) -> None:
    listener, rng = Listener(profile, 1), random.Random(0)
    follows, clean, neither = heard(0.9, 0.2), heard(0.2, 0.9), heard(0.2, 0.2)
    assert listener.vote(follows, neither, TAGS, rng)[0] is votes[0]
    assert listener.vote(neither, clean, TAGS, rng)[0] is votes[1]


def test_a_vote_is_won_as_often_as_the_logistic_model_says() -> None:
    """P(A) with ties impossible is 1 / (1 + exp(-difference / noise)): 6 * 0.1 / 0.5 = 1.2 gives 0.7685."""
    found = shares(ListenerProfile(noise=0.5), heard(0.6), heard(0.5))
    assert found[Outcome.A] == pytest.approx(0.7685, abs=0.02)  # three standard errors
    assert found[Outcome.TIE] == 0


def test_ties_come_as_often_as_rao_and_kupper_say() -> None:
    """theta = exp(0.5 / 0.5) = e, pi = exp(1.2): P(A) = pi / (pi + e), P(B) = 1 / (1 + e * pi) = 0.0998."""
    found = shares(ListenerProfile(noise=0.5, indifference=0.5, floor=-1), heard(0.6), heard(0.5))
    assert found[Outcome.A] == pytest.approx(np.exp(1.2) / (np.exp(1.2) + np.e), abs=0.024)  # 0.5498
    assert found[Outcome.B] == pytest.approx(0.0998, abs=0.015)
    assert found[Outcome.TIE] == pytest.approx(1 - 0.5498 - 0.0998, abs=0.023)


def test_a_wider_indifference_gives_more_ties() -> None:
    ties = []
    for zone in (0.0, 0.3, 0.9, 2.7):
        votes = cast(ListenerProfile(noise=0.6, indifference=zone))
        ties.append(np.mean([vote.outcome is Outcome.TIE for vote in votes]))
    assert ties[0] == 0 and ties[3] > 0.7
    assert all(wider > narrower + 0.05 for narrower, wider in zip(ties, ties[1:], strict=False))


def test_more_noise_agrees_less_with_the_perfect_scorer() -> None:
    profiles = [ListenerProfile(noise=noise) for noise in (0.1, 1.0, 10.0, 1000.0)]
    found = [agreement(cast(p, 3000), PerfectScorer.of_profile(p)).value for p in profiles]
    assert found[0] > 0.95 > found[1] + 0.05 > found[2] + 0.1
    assert found[3] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_the_side_bias_moves_the_left_share_by_the_logistic_amount(bias: float) -> None:
    """Equal clips: 1 / (1 + exp(-0.5 / 0.5)) = 0.7311 to the favoured side."""
    found = shares(ListenerProfile(side_bias=bias, noise=0.5), heard(0.5), heard(0.5))
    assert found[Outcome.A if bias > 0 else Outcome.B] == pytest.approx(0.7311, abs=0.021)


def test_the_floor_turns_ties_of_two_poor_clips_into_both_bad_and_nothing_else() -> None:
    profile = ListenerProfile(indifference=1.0, floor=5.0)
    listener, rng = Listener(profile, 1), random.Random(0)
    assert listener.vote(heard(0.4), heard(0.4), TAGS, rng)[0] is Outcome.BOTH_BAD  # 6 * 0.4 + 4 * 0.5 = 4.4
    assert listener.vote(heard(0.6), heard(0.6), TAGS, rng)[0] is Outcome.TIE  # 5.6
    assert listener.vote(heard(0.45), heard(0.55), TAGS, rng)[0] is Outcome.TIE  # 4.7 and 5.3: one is above
    assert listener.vote(heard(0.1), heard(0.4), TAGS, rng)[0] is Outcome.B  # both poor, one clearly less so
    with_floor = [vote.outcome for vote in cast(ListenerProfile(noise=0.5, indifference=1.0, floor=5.0))]
    without = [vote.outcome for vote in cast(ListenerProfile(noise=0.5, indifference=1.0, floor=0.0))]
    assert Outcome.BOTH_BAD in with_floor and Outcome.TIE in with_floor and Outcome.BOTH_BAD not in without
    assert [Outcome.TIE if o is Outcome.BOTH_BAD else o for o in with_floor] == without


def test_a_careless_vote_is_a_coin_toss() -> None:
    """Half careless: 0.5 * 0.5 + 0.5 * 1 go to a clip that is clearly better."""
    found = shares(ListenerProfile(carelessness=0.5), heard(0.9), heard(0.1))
    assert found[Outcome.A] == pytest.approx(0.75, abs=0.021)
    assert found[Outcome.B] == pytest.approx(0.25, abs=0.021)


def test_an_adversarial_listener_votes_against_its_taste_for_its_share_of_votes() -> None:
    profile = ListenerProfile(contrary=0.8)
    found = shares(profile, heard(0.9), heard(0.1))
    assert found[Outcome.B] == pytest.approx(0.8, abs=0.02)
    assert agreement(cast(profile, 3000), PerfectScorer.of_profile(profile)).value == pytest.approx(0.2, abs=0.025)
    listener = Listener(ListenerProfile(contrary=1.0), seed=1)
    outcome, axes = listener.vote(heard(0.2, 0.9), heard(0.9, 0.2), TAGS, random.Random(0))
    assert outcome is Outcome.A  # its taste says B: 6 * 0.7 > 4 * 0.7
    assert axes == {Axis.TEXT_ADHERENCE: -2, Axis.QUALITY: 2}


def test_the_axes_say_which_clip_follows_the_caption_and_which_is_cleaner() -> None:
    listener = Listener(ListenerProfile(indifference=0.5), seed=1)
    rng = random.Random(0)
    assert listener.vote(heard(0.2, 0.9), heard(0.9, 0.9), TAGS, rng)[1] == {Axis.TEXT_ADHERENCE: 2, Axis.QUALITY: 0}
    assert listener.vote(heard(0.5, 0.8), heard(0.3, 0.6), TAGS, rng)[1] == {
        Axis.TEXT_ADHERENCE: -1, Axis.QUALITY: -1,  # 6 * 0.2 and 4 * 0.2, from one to three times the zone
    }  # fmt: skip


def test_a_population_is_fixed_by_its_seed_and_mixes_its_profiles_in_their_shares() -> None:
    listeners = load_listeners()
    once, again = (draw_population(listeners, "default", 200, 5) for _ in range(2))
    assert [name for name, _ in once] == [name for name, _ in again]
    assert once[0][1].taste == again[0][1].taste
    assert once[0][1].taste != once[1][1].taste
    assert Counter(name for name, _ in once) == {"default": 170, "expert": 20, "careless": 10}
    assert all(listener.profile == listeners.profiles[name] for name, listener in once)
    # 24 listeners: 20.4, 2.4 and 1.2, and one place left over for the largest remainder, the first of two equals.
    assert Counter(name for name, _ in draw_population(listeners, "default", 24, 5)) == {
        "default": 21, "expert": 2, "careless": 1,
    }  # fmt: skip
    orders = {tuple(name for name, _ in draw_population(listeners, "default", 24, seed)) for seed in range(4)}
    assert len(orders) == 4
    with pytest.raises(ConfigError, match="no population nobody; configs/listeners.yaml has default"):
        draw_population(listeners, "nobody", 2, 0)


def test_the_shipped_profiles_and_populations_are_the_documented_ones() -> None:
    listeners = load_listeners()
    assert set(listeners.profiles) == {"default", "musicrl", "expert", "careless", "adversarial"}
    assert {"default", "musicrl"} <= set(listeners.populations)
    noise = {name: profile.noise for name, profile in listeners.profiles.items()}
    assert noise["expert"] < noise["default"] < noise["musicrl"]
    assert listeners.profiles["adversarial"].contrary > 0.5
    assert len({(p.adherence_weight, p.cleanliness_weight) for p in listeners.profiles.values()}) == 1


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("profiles: {a: {}}\npopulations: {p: {b: 1.0}}", "population p names b; the profiles are a."),
        ("profiles: {a: {}}\npopulations: {p: {a: 0.7}}", "population p has the shares 0.7; they must be 0 or more"),
        ("profiles: {a: {}, b: {}}\npopulations: {p: {a: 1.5, b: -0.5}}", "population p has the shares 1.5, -0.5;"),
        ("profiles: {a: {}}\npopulations: {p: {}}", "population p has the shares none;"),
        ("profiles: {a: {noize: 1}}\npopulations: {p: {a: 1}}", "unknown key profiles.a.noize; did you mean noise?"),
        ("profiles: {a: {noise: -1}}\npopulations: {p: {a: 1}}", "profiles.a.noise is -1: "),
        ("profiles: {a: {contrary: 2}}\npopulations: {p: {a: 1}}", "profiles.a.contrary is 2: "),
    ],
)
def test_a_fault_in_the_yaml_is_one_clear_sentence(tmp_path: Path, yaml: str, sentence: str) -> None:
    path = tmp_path / "listeners.yaml"
    path.write_text(yaml)
    with pytest.raises(ConfigError) as raised:
        load_listeners(path)
    assert str(raised.value).startswith(f"{path}: ") and sentence in str(raised.value)
    assert "\n" not in str(raised.value)
