"""Distances to a reference set: values worked by hand, by a slow independent loop, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignment.errors import ShapeError
from alignment.evaluation.fidelity import frechet_figure, kernel_distance, nearest_other, weighted_frechet
from alignment.evaluation.frechet import frechet_distance


def slowly(ours, prompts, theirs, other_prompts) -> float:
    """The unbiased squared MMD with KID's kernel on unit vectors of length sqrt(D), pair by pair."""

    def kernel(x, y):
        width = len(x)
        x, y = x * np.sqrt(width) / np.linalg.norm(x), y * np.sqrt(width) / np.linalg.norm(y)
        return (x @ y / width + 1) ** 3

    def mean(first, labels, second, other_labels):
        pairs = [
            kernel(x, y) for x, a in zip(first, labels, strict=True) for y, b in zip(second, other_labels, strict=True)
            if a != b
        ]  # fmt: skip
        return sum(pairs) / len(pairs)

    own, other = mean(ours, prompts, ours, prompts), mean(theirs, other_prompts, theirs, other_prompts)
    return own + other - 2 * mean(ours, prompts, theirs, other_prompts)


def test_the_kernel_distance_worked_by_hand() -> None:
    # East twice against north twice: (1 + 1)^3 within each, (1 + 0)^3 across: 8 + 8 - 2.
    east, north = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 5.0]])
    assert kernel_distance(east, "ab", north, "cd", rounds=100).value == pytest.approx(14.0)
    # Two of each, the same on both sides: 1 within, and across (8 + 1 + 1 + 8) / 4: 1 + 1 - 9.
    mixed = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert kernel_distance(mixed, "ab", mixed, "cd", rounds=100).value == pytest.approx(-7.0)
    # Of the same prompts the two pairs of one prompt are left out: 1 + 1 - 2.
    assert kernel_distance(mixed, "ab", mixed, "ab", rounds=100).value == pytest.approx(0.0)


def test_the_kernel_distance_equals_the_pair_by_pair_computation() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(12, 6)), rng.normal(size=(9, 6)) + 0.5
    prompts, others = [i // 2 for i in range(12)], [i // 3 for i in range(9)]
    found = kernel_distance(ours, prompts, theirs, others, rounds=100)
    assert found.value == pytest.approx(slowly(ours, prompts, theirs, others), rel=1e-9)
    assert (found.n, found.clusters) == (12, 3)


def test_the_kernel_distance_of_equal_sources_is_zero_in_the_mean_and_frechets_is_not() -> None:
    rng = np.random.default_rng(1)
    kernels, frechets = [], []
    for _ in range(300):
        # Clips of a prompt resemble each other; with pairs of one prompt counted, the mean is 0.48.
        a, b = (np.repeat(rng.normal(size=(10, 4)), 2, axis=0) + 0.3 * rng.normal(size=(20, 4)) for _ in range(2))
        labels = [i // 2 for i in range(20)]
        kernels.append(kernel_distance(a, labels, b, [f"r{i}" for i in labels], rounds=100).value)
        frechets.append(frechet_distance(a, b))
    error = np.std(kernels) / math.sqrt(len(kernels))
    assert abs(np.mean(kernels)) < 4 * error < 0.2
    assert np.mean(frechets) > 0.5


def test_intervals_cover_what_many_more_clips_say() -> None:
    """Nominal 95%; 100 studies of 40 prompts against a shifted source, the truth from 800 prompts."""
    rng = np.random.default_rng(2)

    def draw(prompts: int, shift: float):
        centre = np.repeat(rng.normal(size=(prompts, 4)), 2, axis=0)
        return centre + 0.5 * rng.normal(size=(2 * prompts, 4)) + [shift, 0, 0, 0]

    labels = lambda count, mark: [f"{mark}{i // 2}" for i in range(2 * count)]  # noqa: E731
    truth = kernel_distance(draw(800, 1.0), labels(800, "a"), draw(800, 0.0), labels(800, "b"), rounds=100).value
    held = 0
    for _ in range(100):
        found = kernel_distance(draw(40, 1.0), labels(40, "a"), draw(40, 0.0), labels(40, "b"), rounds=200).interval()
        held += found.low <= truth <= found.high
    assert 90 <= held


def test_the_weighted_frechet_distance_is_that_of_the_repeated_clips() -> None:
    rng = np.random.default_rng(3)
    for shape in ((30, 4), (6, 40)):  # more clips than dimensions, and fewer
        a, b = rng.normal(size=shape), rng.normal(size=shape) + 0.3
        plain = weighted_frechet(a, np.ones(len(a)), b, np.ones(len(b)))
        assert plain == pytest.approx(frechet_distance(a, b), rel=1e-6)
        times = np.array([2.0, 0.0, 3.0] + [1.0] * (len(a) - 3))
        repeated = np.repeat(a, times.astype(int), axis=0)
        assert weighted_frechet(a, times, b, np.ones(len(b))) == pytest.approx(frechet_distance(repeated, b), rel=1e-6)


def test_the_bootstrap_error_of_frechet_is_near_the_spread_of_many_studies() -> None:
    rng = np.random.default_rng(4)
    values, halves = [], []
    for _ in range(60):
        a, b = rng.normal(size=(60, 3)) + 1.0, rng.normal(size=(60, 3))
        found = frechet_figure(a, range(60), b, range(60, 120), rounds=100)
        values.append(found.value)
        halves.append((found.interval().high - found.value) / 2.0)
    assert 0.7 < np.mean(halves) / np.std(values) < 1.5


def test_differences_are_drawn_in_pairs() -> None:
    rng = np.random.default_rng(5)
    reference, own = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 1.0
    first = frechet_figure(own, range(40), reference, range(40), rounds=200)
    other = frechet_figure(own + 1e-6, range(40), reference, range(40), rounds=200)
    gap = first.minus(other)
    assert abs(gap.value) < 1e-4 and gap.high - gap.low < 1e-3 < first.interval().high - first.interval().low


def test_two_prompts_give_a_value_and_say_that_the_interval_is_unknown() -> None:
    sets = np.array([[1.0, 0.0], [0.5, 1.0]])
    found = kernel_distance(sets, "ab", sets + 1, "cd", rounds=100).interval()
    assert math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)


def test_a_set_that_cannot_be_measured_is_refused() -> None:
    one = np.ones((4, 2))
    with pytest.raises(ShapeError, match="two prompts at least"):
        kernel_distance(one, "aaaa", one, "bcde", rounds=100)
    with pytest.raises(ShapeError, match="finite and none of them zero"):
        kernel_distance(np.zeros((4, 2)), "abcd", one, "efgh", rounds=100)
    with pytest.raises(ShapeError, match="3 and 4 labels for 4 and 4 clips"):
        kernel_distance(one, "abc", one, "efgh", rounds=100)


def test_the_nearest_other_clip_is_never_the_very_same() -> None:
    clips, training = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert nearest_other(clips, ["x", "y"], training, ["p", "q"]) == pytest.approx([0.0, 0.2])
    assert nearest_other(clips, ["p", "y"], training, ["p", "q"]) == pytest.approx([1.0, 0.2])
    assert np.isnan(nearest_other(clips[:1], ["p"], training[:1], ["p"])).all()
