"""Figures and widget of chapter 12: the plotted arrays, the pure frame, what the exercises say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch12 import figures, widget
from ptq_classroom.chapters.ch12.exercises import outlier_ratio, smooth_scales


def axes_of(fig: Any) -> list[Any]:
    """The panels; what they hold has more attributes than matplotlib's types say."""
    return list(fig.axes)


def test_attention_says_who_looks_at_whom():
    fig, alt = figures.attention([[0.9, 0.1], [0.7, 0.3]], ["it", "cat"], head=3)
    assert np.array_equal(axes_of(fig)[0].images[0].get_array(), [[0.9, 0.1], [0.7, 0.3]])
    assert alt.startswith('"cat" looks at "it", 70 %. Head 3')
    assert "cat at it" in alt
    fig, alt = figures.attention([[0.9, 0.1], [0.7, 0.3]], ["it", "cat"], 3, ("it", "cat"))
    assert alt.startswith('"it" looks at "cat", 10 %. Head 3')
    (frame,) = axes_of(fig)[0].patches
    assert (frame.get_x(), frame.get_y()) == (1 - 0.47, 0 - 0.47)
    assert {t.get_text() for t in axes_of(fig)[0].texts} == {"90", "70", "30"}


def test_channels_name_the_loudest_and_its_ratio():
    fig, alt = figures.channels({"a": [1.0, 1.0, 20.0, 1.0], "b": [2.0, 8.0, 2.0]})
    assert "a: channel 2 20 times the median" in alt
    assert "b: channel 1 4 times" in alt
    assert axes_of(fig)[0].texts[0].get_text().startswith("channel 2: 20 times")


def test_cosines_are_plotted_for_each_number_of_bits():
    fig, alt = figures.cosines({"minmax": {8: 0.9, 6: 0.5}, "kl": {8: 0.7, 6: 0.4}})
    eight, six = axes_of(fig)[0].lines[:2]
    assert list(eight.get_xdata()) == [0.9, 0.7]
    assert list(six.get_xdata()) == [0.5, 0.4]
    assert alt.startswith("At 8 bits minmax is nearest to FP32.")
    assert [t.get_text() for t in axes_of(fig)[0].get_yticklabels()] == ["min-max", "KL"]


def test_over_alpha_and_spread_tell_the_best():
    _, alt = figures.over_alpha([0.0, 0.5, 1.0], {"here": [0.7, 0.9, 0.8]})
    assert "here 0.900 at 0.5, 0.700 at alpha 0" in alt
    fig, alt = figures.spread([1.0, 1.0, 9.0], [3.0, 3.0, 3.0])
    assert list(axes_of(fig)[0].lines[0].get_ydata()) == [9, 1, 1]
    assert "as it is 9.0, rotated 1.0" in alt


def test_accuracies_have_a_bar_for_each():
    fig, alt = figures.accuracies({"kl": {8: 77.0, 6: 70.0}, "smoothed, kl": {8: 76, 6: 71}}, 77.3)
    assert [bar.get_height() for bar in axes_of(fig)[0].patches] == [77, 76, 70, 71]
    assert [t.get_text() for t in axes_of(fig)[0].get_xticklabels()] == ["KL", "smoothed\nKL"]
    assert "kl 77.0 at 8 bits, 70.0 at 6 bits" in alt


def test_the_widget_moves_the_difficulty_from_one_side_to_the_other():
    picture = widget.Smoothing()
    first = next(iter(widget.LAYERS))
    decibels = {}
    for alpha in (0.0, 0.75, 1.0):
        readout, alt = picture.frame(layer=first, alpha=alpha)
        decibels[alpha] = widget.sides(first, alpha)[2]
        assert f"alpha {alpha:g}:" in readout
        assert readout in alt
    activation, weights = (np.asarray(line.get_ydata()) for line in picture.lines)
    assert activation == pytest.approx(np.ones_like(activation), rel=1e-3), "alpha 1: all alike"
    assert weights[0] > 10
    assert decibels[0.75] > max(decibels[0.0], decibels[1.0])


def test_the_exercises_and_the_course_agree():
    from ptq_course.improve.smoothquant import smoothing_factors

    torch.manual_seed(0)
    act, w = torch.rand(7) + 0.1, torch.rand(7) + 0.1
    assert torch.allclose(smooth_scales(act, w, 0.3), smoothing_factors(act, w, 0.3))
    assert outlier_ratio(torch.tensor([[1.0, -6.0, 2.0]])) == 3.0
