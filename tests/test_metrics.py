"""Diversity and KL against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.errors import DataError, ShapeError
from alignment.evaluation.metrics import bootstrap_mean, bootstrap_share, diversity, kl_nats_per_clip


def test_diversity_is_the_mean_pairwise_cosine_distance_worked_by_hand():
    # Prompt 1: east, north, west: distances 1, 1, 2. Prompt 2: the same clip thrice, at other lengths: 0.
    first = [[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]
    second = [[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]]
    found = diversity(np.array([first, second]))
    assert found.value == pytest.approx((4 / 3 + 0) / 2, abs=1e-12)
    assert found.n == 2


def test_diversity_equals_the_pair_by_pair_computation_on_random_vectors():
    vectors = np.random.default_rng(0).normal(size=(5, 4, 16))
    expected = []
    for clips in vectors:
        for i in range(4):
            for j in range(i):
                cosine = clips[i] @ clips[j] / (np.linalg.norm(clips[i]) * np.linalg.norm(clips[j]))
                expected.append(1 - cosine)
    assert diversity(vectors).value == pytest.approx(np.mean(expected), abs=1e-12)


def test_kl_is_the_mean_over_clips_of_the_summed_log_ratio():
    policy = np.log(np.array([[[0.5, 0.25]], [[0.5, 0.5]]]))  # (2 clips, 1 codebook, 2 frames)
    reference = np.log(np.array([[[0.25, 0.25]], [[0.25, 0.25]]]))
    found = kl_nats_per_clip(policy, reference)
    assert found.value == pytest.approx((math.log(2) + 2 * math.log(2)) / 2, abs=1e-12)
    assert found.per_token.value == pytest.approx(found.value / 2, abs=1e-12)
    assert found.n == 2


def test_kl_from_samples_is_the_analytic_kl_of_two_categoricals_within_its_interval():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    drawn = np.random.default_rng(2).choice(3, p=p, size=(500, 2, 10))
    found = kl_nats_per_clip(np.log(p)[drawn], np.log(q)[drawn])
    exact = 20 * float((p * np.log(p / q)).sum())
    assert found.low < exact < found.high
    assert found.value == pytest.approx(exact, rel=0.05)


def test_an_untouched_policy_has_no_kl_at_all():
    logprobs = np.random.default_rng(0).normal(size=(6, 4, 5))
    found = kl_nats_per_clip(logprobs, logprobs)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_bootstrap_interval_of_independent_values_is_students():
    values = np.random.default_rng(3).normal(size=400)
    found = bootstrap_mean(values, rounds=6000)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * values.std(ddof=1) / 20, rel=0.03)


def test_repeating_every_value_in_its_cluster_leaves_the_clustered_interval_unchanged():
    values = np.random.default_rng(3).normal(size=60)
    single = bootstrap_mean(values, seed=1)
    repeated = bootstrap_mean(np.repeat(values, 5), np.repeat(np.arange(60), 5).tolist(), seed=1)
    assert (repeated.low, repeated.high) == (pytest.approx(single.low), pytest.approx(single.high))
    assert (repeated.n, repeated.clusters) == (300, 60)


def test_one_cluster_gives_a_value_and_an_interval_that_says_it_is_unknown():
    found = bootstrap_mean(np.array([1.0, 3.0]), ["p", "p"])
    assert found.value == 2.0 and math.isnan(found.low) and math.isnan(found.high)


def test_arrays_that_do_not_fit_are_refused_in_a_sentence():
    with pytest.raises(ShapeError, match=r"\(3, 1, 4\).*clips >= 2"):
        diversity(np.ones((3, 1, 4)))
    with pytest.raises(ShapeError, match="zero or not finite"):
        diversity(np.zeros((3, 2, 4)))
    with pytest.raises(ShapeError, match="must share one shape"):
        kl_nats_per_clip(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ShapeError, match="finite numbers"):
        bootstrap_mean(np.array([1.0, np.nan]))
    with pytest.raises(ShapeError, match="1 cluster labels for 2 values"):
        bootstrap_mean(np.array([1.0, 2.0]), ["a"])
    with pytest.raises(DataError, match="rounds is 3"):
        bootstrap_mean(np.array([1.0, 2.0]), rounds=3)


def test_a_share_stays_within_0_and_1_and_none_of_16_is_not_surely_none():
    # Wilson's interval for 0 of 16: 0 to q2 / (16 + q2), with q = 1.96.
    none = bootstrap_share(np.zeros(16))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1.959964**2 / (16 + 1.959964**2), rel=1e-5)
    # Two clips of each of 8 prompts are 8 answers.
    assert bootstrap_share(np.ones(16), np.repeat(np.arange(8), 2).tolist()).low == pytest.approx(
        8 / (8 + 1.959964**2), rel=1e-5
    )
    some = bootstrap_share(np.array([1.0] + [0.0] * 15))
    assert some.value == 1 / 16 and some.low == 0.0 and 0.15 < some.high < 0.25
    with pytest.raises(ShapeError, match="must lie from 0 to 1"):
        bootstrap_share(np.array([0.5, 1.5]))
