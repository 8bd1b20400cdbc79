"""The delay pattern, by hand."""

from __future__ import annotations

import pytest
import torch

from alignment.errors import ShapeError
from alignment.music.delay import apply_delay, delay_labels, delay_values, delayed_steps, prediction_mask, undo_delay

P = 9
CODES = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8], [0, 1, 2, 3]]])  # (1, 3, 4)


def test_three_books_of_four_frames_are_read_as_worked_by_hand():
    by_hand = torch.tensor([[[P, 1, 2, 3, 4, P], [P, P, 5, 6, 7, 8], [P, P, P, 0, 1, 2]]])
    assert torch.equal(apply_delay(CODES, P), by_hand)


def test_three_books_of_four_frames_are_predicted_as_worked_by_hand():
    by_hand = torch.tensor(
        [[[1, -100, -100], [2, 5, -100], [3, 6, 0], [4, 7, 1], [-100, 8, 2], [-100, -100, 3]]]
    )  # (1, S, K)
    assert torch.equal(delay_labels(CODES), by_hand)


def test_a_clip_of_one_frame_reads_its_books_one_after_the_other():
    by_hand = torch.tensor([[[P, 1, P], [P, P, 5], [P, P, P]]])
    assert torch.equal(apply_delay(CODES[..., :1], P), by_hand)


def test_the_mask_marks_exactly_the_steps_that_predict_a_code():
    by_hand = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    assert torch.equal(prediction_mask(4, 3), by_hand)
    assert delayed_steps(4, 3) == 6


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_undoing_the_delay_gives_the_codes_back(frames: int):
    codes = torch.randint(50, (2, 4, frames))
    assert torch.equal(undo_delay(delay_values(codes, -1)), codes)
    assert torch.equal(undo_delay(delay_labels(codes).transpose(1, 2)), codes)


def test_codes_without_a_frame_axis_are_refused():
    with pytest.raises(ShapeError, match=r"\(B, K, T\)"):
        apply_delay(torch.zeros(3, 4, dtype=torch.int64), P)
    with pytest.raises(ShapeError, match="S at least K"):
        undo_delay(torch.zeros(1, 4, 3))
