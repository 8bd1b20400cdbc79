"""Best-of-N: choosing, pairing, and its KL."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.errors import DataError
from alignment.training.best_of_n import best_of_n_kl, best_worst_pairs, choose_best, kept_clips


def test_the_best_clip_of_each_prompt_is_chosen_and_the_first_among_equals() -> None:
    assert choose_best(np.array([[0.1, 0.9, 0.3], [2.0, 1.0, 2.0]])).tolist() == [1, 0]


def test_pairs_hold_the_best_and_the_worst_clip_and_skip_prompts_that_say_nothing() -> None:
    codes = np.arange(3 * 3 * 2 * 4).reshape(3, 3, 2, 4)
    scores = np.array([[0.5, -1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.3, 0.1]])
    made = best_worst_pairs(["a", "b", "c"], codes, scores, weight=0.5)
    assert [example.prompt for example in made] == ["a", "c"]
    assert (made[0].chosen == codes[0, 2]).all() and (made[0].rejected == codes[0, 1]).all()
    assert (made[1].chosen == codes[2, 1]).all() and (made[1].rejected == codes[2, 0]).all()
    assert made[0].weight == 0.5
    assert [e.prompt for e in best_worst_pairs(["a", "b", "c"], codes, scores, min_margin=0.3)] == ["a"]


def test_a_constant_reward_is_refused_and_a_prompt_it_says_nothing_of_is_left_out() -> None:
    codes = np.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    constant, one = np.ones((2, 3)), np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    for choose in (
        lambda s: best_worst_pairs(["a", "b"], codes, s),
        lambda s: kept_clips(["a", "b"], codes, s, keep=1),
    ):
        with pytest.raises(DataError, match="same for all clips of each of 2 prompts; a constant reward"):
            choose(constant)
        assert [example.prompt for example in choose(one)] == ["b"]


def test_the_best_k_meet_the_worst_k_best_against_worst() -> None:
    codes = np.arange(5)[None, :, None, None]  # clip n holds the code n
    scores = np.array([[0.2, 0.9, 0.5, 0.1, 0.4]])
    made = best_worst_pairs(["a"], codes, scores, per_prompt=2)
    assert [(int(e.chosen[0, 0]), int(e.rejected[0, 0])) for e in made] == [(1, 3), (2, 0)]
    with pytest.raises(DataError, match="3 pairs of 5 clips"):
        best_worst_pairs(["a"], codes, scores, per_prompt=3)


def test_a_pair_needs_a_difference_that_the_ensemble_agrees_on() -> None:
    codes = np.zeros((2, 2, 1, 1), dtype=int)
    # Differences of the three members: 3, 2, 1 (mean 2, deviation 0.816) and 5, 2, -1 (mean 2, deviation 2.449).
    members = np.array([[[6.0, 3.0], [5.0, 0.0]], [[4.0, 2.0], [2.0, 0.0]], [[2.0, 1.0], [-1.0, 0.0]]])
    scores = members.mean(0)

    def kept(margin: float) -> list[str]:
        return [e.prompt for e in best_worst_pairs(["sure", "unsure"], codes, scores, members=members,
                                                   min_margin=margin)]  # fmt: skip

    assert kept(0.0) == ["sure", "unsure"]
    assert kept(0.81) == ["sure", "unsure"] and kept(0.82) == ["sure"]
    assert kept(2.44) == ["sure"] and kept(2.46) == []
    with pytest.raises(DataError, match=r"\(M, 2, 2\) is needed"):
        best_worst_pairs(["a", "b"], codes, scores, members=members[:, :1])


def test_expert_iteration_keeps_the_best_clips_and_never_all() -> None:
    codes = np.arange(6).reshape(2, 3, 1, 1)
    scores = np.array([[0.2, 0.9, 0.5], [3.0, 1.0, 2.0]])
    found = [(e.prompt, int(e.codes[0, 0])) for e in kept_clips(["a", "b"], codes, scores, keep=2)]
    assert found == [("a", 1), ("a", 2), ("b", 3), ("b", 5)]
    with pytest.raises(DataError, match="3 of 3 clips kept"):
        kept_clips(["a", "b"], codes, scores, keep=3)


def test_the_kl_of_best_of_n_is_that_of_the_largest_of_n_uniforms() -> None:
    # The score's rank among samples is uniform; the best of n has density n u^(n-1). Integrate its KL numerically.
    for n in (1, 4, 16):
        u = (np.arange(2_000_000) + 0.5) / 2_000_000
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-5)
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75, abs=1e-15)


def test_scores_that_are_no_numbers_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 scores are not finite"):
        choose_best(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match="at least one clip"):
        choose_best(np.zeros((2, 0)))
    with pytest.raises(DataError, match="do not fit"):
        best_worst_pairs(["a"], np.zeros((1, 3, 2, 4)), np.zeros((1, 2)))
    with pytest.raises(DataError, match="n is 0"):
        best_of_n_kl(0)
