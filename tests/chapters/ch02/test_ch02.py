"""Figures and widget of chapter 02: the plotted arrays and the pure frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptq_classroom.chapters.ch02 import figures, widget
from ptq_classroom.kit.prediction import Prediction
from ptq_course.grids.affine import IntGrid, choose_qparams
from ptq_course.ranges.calibrators import MinMaxCalibrator
from ptq_course.ranges.histograms import DyadicHistogram


def test_levels_are_what_codes_stand_for():
    qparams = choose_qparams(-1.0, 3.0, IntGrid(4, signed=False))
    marks = figures.levels(qparams)
    assert len(marks) == 16
    assert 0.0 in marks
    assert marks[-1] - marks[0] == pytest.approx(4.0, rel=1e-6)


def test_marks_over_the_bulk_are_counted():
    x = torch.linspace(-4, 4, 101)
    wide = choose_qparams(-40.0, 40.0, IntGrid(4, narrow=True), symmetric=True)
    fig, alt = figures.marks_over_bulk(x, {"wide": wide})
    assert "wide, 1 of 15" in alt
    assert "1 of 15 marks" in fig.axes[0].get_title(loc="left")


def test_loss_of_the_bulk_draws_the_rule_and_the_guess():
    fig, alt = figures.loss_of_the_bulk([4, 40], [40.0, 20.5], 40.0, Prediction("02.0", 30.0, "dB"))
    rule, measured, guess = fig.axes[0].lines
    assert rule.get_ydata() == pytest.approx([40, 20])
    assert list(measured.get_ydata()) == [40, 20.5]
    assert guess.get_ydata()[0] == 10.0
    assert "20.5 dB" in alt


def test_percentile_sweep_plots_every_series():
    fig, alt = figures.percentile_sweep(
        [0.1, 1, 10], [80, 85, 60], 13, 90, by_mode={"flash": [70, 60, 20]}
    )
    drawn = [list(line.get_ydata()) for line in fig.axes[0].lines]
    assert [80, 85, 60] in drawn
    assert [70, 60, 20] in drawn
    assert alt.startswith("Best is 85 percent, with 1 percent clipped on each side")
    assert "min-max 13, FP32 90" in alt


def test_percentile_sweep_tells_each_kind_of_picture():
    fig, alt = figures.percentile_sweep(
        [0.1, 1, 10], [80, 85, 60], 13, 90, {"flash": [70, 60, 20]}, {"flash": 62.0}
    )
    plain, plain_alt = figures.percentile_sweep([0.1, 1, 10], [80, 85, 60], 13, 90)
    assert alt == plain_alt + " On flash pictures: 70 at 0.1, 60 at 1, 20 at 10; FP32 62."
    assert "FP32, flash 62" in [t.get_text() for t in fig.axes[0].texts]
    assert [62.0, 62.0] in [list(line.get_ydata()) for line in fig.axes[0].lines]
    assert len(fig.axes[0].lines) == len(plain.axes[0].lines) + 2


def test_the_label_of_the_rule_is_inside_the_axes():
    fig, _ = figures.loss_of_the_bulk([4.6, 46, 456], [39.7, 19.7, 1.0], 39.7)
    fig.canvas.draw()
    (ax,) = fig.axes
    (label,) = [t for t in ax.texts if "factor of 10" in t.get_text()]
    assert label.get_window_extent().y0 >= ax.bbox.y0


def test_the_moving_average_shows_the_guess_and_hides_no_dot():
    rising = np.geomspace(19, 136, 63)
    maxima = {"brightest last": rising, "brightest first": rising[::-1]}
    averages = {}
    for name, values in maxima.items():
        averages[name] = [values[0]]
        for value in values[1:]:
            averages[name].append(0.9 * averages[name][-1] + 0.1 * value)
    guess = Prediction("02.3", 2.0, "times")
    fig, _ = figures.moving_average(maxima, averages, guess)
    fig.canvas.draw()
    for ax in fig.axes:
        (label,) = [t for t in ax.texts if "ends at" in t.get_text()]
        box = label.get_window_extent()
        for line in ax.lines[:2]:
            places = ax.transData.transform(np.stack(line.get_data(), 1))
            assert not any(box.contains(x, y) for x, y in places)
    left, right = fig.axes
    assert left.lines[-1].get_ydata()[0] == pytest.approx(2 * averages["brightest first"][-1])
    assert len(right.lines) == 2
    unguessed, _ = figures.moving_average(maxima, averages, Prediction("02.3", None))
    assert [len(ax.lines) for ax in unguessed.axes] == [2, 2]


def test_moving_average_and_shuffles():
    fig, alt = figures.moving_average({"one": [1, 2, 3]}, {"one": [1, 1.5, 2]})
    dots, line = fig.axes[0].lines
    assert list(dots.get_ydata()) == [1, 2, 3]
    assert list(line.get_ydata()) == [1, 1.5, 2]
    assert "one: ends at 2" in alt
    _, alt = figures.over_shuffles([1.0, 3.0, 2.0], 2.5, 5.0)
    assert "between 1 and 3" in alt
    assert "2.5" in alt


def test_dyadic_growth_shows_each_lattice():
    small, large = DyadicHistogram(max_bins=8), DyadicHistogram(max_bins=8)
    small.update(torch.tensor([0.1, 0.9]))
    large.update(torch.tensor([0.1, 7.9]))
    fig, alt = figures.dyadic_growth({"a": small, "b": large})
    assert [len(ax.patches) for ax in fig.axes] == [1, 1]
    assert f"a: {len(small.counts)} bins of width {small.width:g}" in alt


@pytest.fixture(scope="module")
def picture():
    return widget.OutlierAgainstPercentile()


def test_minmax_follows_the_outlier(picture):
    readout, alt = picture.frame(outlier=100.0, percentile=100.0, bits=5)
    assert "range ±100" in readout
    assert "range up to 100" in alt
    assert list(picture.stems.get_xdata()) == [100.0, 100.0]
    assert list(picture.edge.get_xdata()) == [100.0, 100.0]
    assert len(picture.marks.get_segments()) == 1


def test_a_percentile_below_the_outliers_brings_the_bulk_back(picture):
    def decibels(percentile):
        readout, _ = picture.frame(outlier=100.0, percentile=percentile, bits=5)
        return float(readout.split("bulk ")[-1].split(" dB")[0])

    assert decibels(99.9) > decibels(100.0) + 15
    readout, _ = picture.frame(outlier=100.0, percentile=99.9, bits=5)
    assert "0.100 % of the values clipped" in readout


def test_the_outliers_are_where_the_slider_says():
    x = widget.data(50.0)
    assert len(x) == widget.COUNT
    assert int((x.abs() == 50.0).sum()) == widget.OUTLIERS


def test_the_explorer_answers_to_its_sliders():
    explorer = widget.explorer()
    first = explorer.set(outlier=40.0, percentile=100.0, bits=5)
    second = explorer.set(percentile=99.0)
    assert first != second
    assert np.isclose(explorer.artists.edge.get_xdata()[0], 2.6, atol=0.2)


def test_the_average_is_traced_batch_by_batch():
    batches = [torch.tensor([1.0, 2.0]), torch.tensor([10.0]), torch.tensor([4.0])]
    maxima, held = figures.trace_average(MinMaxCalibrator(), batches)
    assert maxima == [2.0, 10.0, 4.0]
    assert held == [2.0, 10.0, 10.0]
