"""Figures and widget of chapter 05: the plotted arrays and the pure frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch05 import exercises as checks
from ptq_classroom.chapters.ch05 import figures, widget
from ptq_classroom.chapters.ch05.exercises import bits_per_weight, channel_scales, group_quantize
from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import ink
from ptq_course.grids.affine import IntGrid, dequantize, quantize
from ptq_course.simulation.layers import weight_qparams


def test_codes_in_use_are_shares_of_the_loudest_channel():
    fig, alt = figures.codes_in_use({"conv": [2.0, 0.5, 1.0]})
    assert [bar.get_height() for bar in fig.axes[0].patches] == pytest.approx([31.75, 63.5, 127])
    assert "conv from 31.8 to 127, median 64" in alt


def test_channel_errors_are_sorted_by_the_first_series():
    fig, alt = figures.channel_errors({"tensor": [30.0, 10.0, 20.0], "channel": [40, 41, 42]}, "x")
    first, second = fig.axes[0].lines
    assert list(first.get_ydata()) == [10, 20, 30]
    assert list(second.get_ydata()) == [41, 42, 40]
    assert "tensor 10 to 30 dB; channel 40 to 42 dB" in alt


def test_accuracy_over_bits_draws_every_line_and_the_guess():
    table = {"a": {"per tensor": {8: 90.0, 4: 20.0}}, "b": {"per tensor": {8: 95.0, 4: 30.0}}}
    guess = Prediction("05.0", 50.0, "%")
    fig, alt = figures.accuracy_over_bits(table, {"a": 91.0, "b": 96.0}, guess)
    left, right = fig.axes
    assert list(left.lines[0].get_ydata()) == [90, 20]
    assert [line.get_ydata()[0] for line in right.lines] == [95, 96, 50]
    assert left.get_xlim()[0] > left.get_xlim()[1], "fewer bits to the right"
    assert "b per tensor 95.0, 30.0" in alt
    assert alt.startswith("At 4 bits the granularities lie apart: 20.0 to 20.0 on a")


def test_accuracy_over_bits_names_its_lines_apart():
    ends = {"per tensor": 30.0, "per channel": 86.0, "groups of 8": 86.5}
    table = {"a": {name: {8: 90.0, 4: end} for name, end in ends.items()}}
    fig, _ = figures.accuracy_over_bits(table, {"a": 91.0})
    (ax,) = fig.axes
    places = {t.get_text(): t.xy[1] for t in ax.texts}
    assert list(places) == ["per tensor", "per channel", "groups of 8"]
    assert places["groups of 8"] - places["per channel"] >= 7
    assert all(abs(places[name] - end) <= 7 for name, end in ends.items())
    assert [t.get_color() for t in ax.texts] == [ink(line.get_color()) for line in ax.lines[:3]]
    assert ax.lines[1].get_linewidth() > 2 * ax.lines[2].get_linewidth()


def test_accuracy_over_size_places_points_by_bits_per_weight():
    points = {"a": {"groups": {4: (4.5, 92.0), 3: (3.5, 80.0)}}}
    fig, alt = figures.accuracy_over_size(points)
    (line,) = fig.axes[0].lines
    assert list(line.get_xdata()) == [4.5, 3.5]
    assert [text.get_text() for text in fig.axes[0].texts] == ["4", "3"]
    assert "a: groups 4.5 bits 92.0 percent" in alt
    assert alt.startswith(
        "Fewest bits per weight within 2 points of a network's best: a 4.5 (groups)"
    )


def test_accuracy_over_size_has_a_panel_for_each_line_and_shows_what_lies_below():
    points = {
        "a": {
            "tensor": {8: (8.0, 94.0), 3: (3.0, 20.0)},
            "groups": {8: (8.5, 94.5), 3: (3.5, 80.0)},
        }
    }
    fig, _ = figures.accuracy_over_size(points)
    assert [[t.get_text() for t in ax.texts] for ax in fig.axes] == [["8", "3\n▼"], ["8", "3"]]
    for ax, name in zip(fig.axes, points["a"], strict=True):
        assert ax.get_title(loc="left") == f"a, {name}"
        sizes = [size for size, _ in points["a"][name].values()]
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), sizes)
        fig.canvas.draw()
        boxes = [t.get_window_extent() for t in ax.texts]
        assert not boxes[0].overlaps(boxes[1])


def test_buying_decibels_draws_both_ways():
    groups = {"64": (4.25, 20.0), "32": (4.5, 21.0)}
    fig, alt = figures.buying_decibels(groups, {"4 bits": (4.25, 20.0), "5 bits": (5.25, 26.0)})
    shorter, more = fig.axes[0].lines
    assert list(shorter.get_ydata()) == [20, 21]
    assert list(more.get_xdata()) == [4.25, 5.25]
    assert "5 bits 5.25 bits 26.0 dB" in alt


@pytest.mark.parametrize("tiny", [1e-4, 1e-8, 1e-12, 1e-30])
def test_a_tiny_scale_of_any_size_is_named(tiny: float):
    def answer(w, axis):
        return w.abs().transpose(0, axis).flatten(1).amax(1).clamp(min=tiny) / 127

    assert examine(exercises.get("05.1"), answer).failure.cause == checks.TINY


def test_another_scale_is_not_called_tiny():
    def three_sigma(w, axis):
        return 3 * w.transpose(0, axis).flatten(1).std(1) / 127

    def two(w, axis):
        return torch.where(checks._zeros(w, axis), 2.0, channel_scales(w, axis))

    for wrong in (three_sigma, two):
        failure = examine(exercises.get("05.1"), wrong).failure
        assert failure.cause != checks.TINY


@pytest.fixture(scope="module")
def picture():
    return widget.ChannelOnItsGrid()


def test_a_quiet_channel_has_few_codes_and_gets_them_back(picture):
    quiet = int(widget.layer().weight.detach().flatten(1).abs().amax(1).argmin())
    readout, _ = picture.frame(channel=quiet, bits=4, granularity="per tensor")
    widths = [bar.get_width() for bar in picture.bars]
    assert "codes up to ±1 of ±7" in readout
    assert widths[0] + 10 < widths[1] < widths[2]
    readout, alt = picture.frame(channel=quiet, bits=4, granularity="per channel")
    assert "codes up to ±7 of ±7" in readout
    assert f"Channel {quiet}" in alt


@pytest.mark.parametrize("granularity", list(widget.GRANULARITIES))
def test_marks_are_the_values_that_codes_stand_for(picture, granularity):
    picture.frame(channel=3, bits=4, granularity=granularity)
    marks = np.array([segment[0] for segment in picture.marks.get_segments()])
    layer = widget.layer()
    value = widget.GRANULARITIES[granularity]
    q = weight_qparams(layer, IntGrid(4, narrow=True), value)
    decoded = dequantize(quantize(layer.weight.detach(), q), q)[3].reshape(picture.rows, -1)
    for row, values in enumerate(decoded.numpy()):
        drawn = marks[np.abs(marks[:, 1] - (row - 0.32)) < 1e-6, 0]
        assert (np.abs(values[:, None] - drawn[None]).min(axis=1) < 1e-6).all()
    largest = [line.get_xdata().max() for line in picture.dots]
    assert largest == pytest.approx(widget.channel_weights(3).amax(1).tolist())


def test_the_explorer_answers_to_its_controls():
    explorer = widget.explorer()
    first = explorer.set(channel=27, bits=4, granularity="per tensor")
    assert explorer.set(granularity="per channel") != first
    assert explorer.redraws >= 2


def test_the_exercises_agree_with_the_package():
    layer = widget.layer()
    w = layer.weight.detach()
    q = weight_qparams(layer, IntGrid(8, narrow=True), "per_channel")
    torch.testing.assert_close(channel_scales(w, 0), q.scale.flatten())
    fc = torch.nn.Linear(32, 4)
    codes, scales = group_quantize(fc.weight.detach(), 8)
    q = weight_qparams(fc, IntGrid(4, narrow=True), 8)
    torch.testing.assert_close(scales, q.scale)
    assert torch.equal(codes, quantize(fc.weight.detach(), q).float())
    assert bits_per_weight(4, 8, 32) == 8.0
