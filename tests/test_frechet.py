"""Fréchet audio distance against numbers worked by hand and against scipy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.errors import ShapeError
from alignment.evaluation.frechet import frechet_distance, nearest_distance


def test_a_shifted_set_is_as_far_as_the_square_of_its_shift() -> None:
    clips = np.random.default_rng(0).standard_normal((50, 3))
    assert frechet_distance(clips, clips) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(clips, clips + [3.0, 4.0, 0.0]) == pytest.approx(25.0)


def test_one_dimension_gives_the_difference_of_deviations_squared() -> None:
    """N(0, s1) and N(0, s2): (s1 - s2)^2; here the deviations are 2 sqrt(2) and 6 sqrt(2)."""
    assert frechet_distance(np.array([[-2.0], [2.0]]), np.array([[-6.0], [6.0]])) == pytest.approx(32.0)


def test_it_agrees_with_the_matrix_square_root_of_scipy() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5)), rng.standard_normal((150, 5)) + 0.5
    s, t, gap = np.cov(a, rowvar=False), np.cov(b, rowvar=False), a.mean(0) - b.mean(0)
    assert frechet_distance(a, b) == pytest.approx(gap @ gap + np.trace(s + t - 2 * np.real(sqrtm(s @ t))), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


@pytest.mark.parametrize("second", [np.zeros((4, 2)), np.zeros((1, 3)), np.full((4, 3), np.nan), np.zeros(3)])
def test_sets_that_cannot_be_compared_are_refused(second: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        frechet_distance(np.zeros((4, 3)), second)


def test_the_nearest_neighbour_is_the_one_at_the_smallest_angle() -> None:
    others = np.array([[1.0, 0.0], [0.0, 1.0]])
    clips = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert nearest_distance(clips, others) == pytest.approx([0.0, 0.2, 1.0])
