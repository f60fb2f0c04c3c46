"""Figures and widget of chapter 11: the plotted arrays, the pure frame, what the exercises say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch11 import figures, widget
from ptq_classroom.chapters.ch11.exercises import bias_shift, equalize


def test_two_sides_are_sorted_by_the_first_range():
    pairs = {"a": ([4.0, 1.0, 2.0], [1.0, 2.0, 4.0]), "b": ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])}
    fig, alt = figures.two_sides(pairs, ("one", "two"))
    made, read = fig.axes[0].lines
    assert list(made.get_ydata()) == [1, 2, 4]
    assert list(read.get_ydata()) == [2, 4, 1]
    assert "a: made by one 4.0, read by two 4.0" in alt


def test_cut_off_names_the_largest_share():
    fig, alt = figures.cut_off({"a": 0.001, "b": 0.02, "c": 0.0})
    assert [bar.get_height() for bar in fig.axes[0].patches] == pytest.approx([0.1, 2.0, 0.0])
    assert "2.0 % of the values at most (b)" in alt


def test_moved_means_draws_each_version():
    fig, alt = figures.moved_means({"before": [0.5, -0.2], "after": [0.0, 0.01]}, "conv")
    assert list(fig.axes[0].lines[0].get_ydata()) == [-0.2, 0.5]
    assert list(fig.axes[0].lines[1].get_ydata()) == [0.01, 0.0]
    assert "after at most 0.01; before at most 0.50" in alt


def test_accuracies_are_drawn_in_percent():
    fig, alt = figures.accuracies({"a": (0.5, 0.4, 0.6), "b": (0.9, 0.88, 0.92)}, 0.95)
    widths = [bar.get_width() for bar in fig.axes[0].patches]
    assert widths == pytest.approx([50, 90])
    assert "FP32 has 95.0 %, inside the interval of: none. a 50.0 %, b 90.0 %." in alt


def test_over_data_draws_means_and_draws():
    lines = {"pictures": {1: [80.0, 90.0], 8: [92.0, 94.0]}, "noise": {1: [20.0], 8: [25.0]}}
    fig, alt = figures.over_data(lines, 95.0)
    assert list(fig.axes[0].lines[0].get_ydata()) == [85, 93]
    assert "noise 20.0 % at 1, 25.0 % at 8" in alt


def test_the_widget_moves_one_channel_between_its_sides():
    picture = widget.OneFactor()
    readout, alt = picture.frame(channel=5, exponent=0.0)
    made, read, both = (np.asarray(line.get_ydata()) for line in picture.lines)
    assert made[0] > made[-1] + 10
    assert read[-1] > read[0] + 10
    assert (both <= np.minimum(made, read) + 1e-6).all()
    assert abs(widget.EXPONENTS[both.argmax()]) <= 1, "equalized is best, or nearly"
    assert "divided by 2^0" in readout
    assert "keep" in alt
    other, _ = picture.frame(channel=5, exponent=3.0)
    assert other != readout


def test_the_exercise_and_the_course_agree():
    from ptq_course.improve.bias_correction import mean_shift
    from ptq_course.improve.equalization import equalizing_factors

    torch.manual_seed(0)
    w1, b1, w2 = torch.randn(5, 3), torch.randn(5), torch.randn(4, 5)
    factors = equalizing_factors(w1.abs().amax(1), w2.abs().amax(0))
    assert torch.allclose(equalize(w1, b1, w2)[0], w1 / factors[:, None])
    y, yq = torch.randn(6, 5, 4, 4), torch.randn(6, 5, 4, 4)
    shift = bias_shift(y, yq, 1)
    assert torch.allclose(shift.double(), -mean_shift([y], [yq], 1), atol=1e-6)
