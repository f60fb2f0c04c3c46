"""Figures and widget of chapter 13: the plotted arrays, the pure frame, what is recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from torch import nn

from ptq_classroom.chapters.ch13 import exercises, figures, widget
from ptq_classroom.chapters.ch13.recorded import (
    accuracy,
    bits_per_weight,
    by_bits,
    entry,
    in_band,
    recorded,
)
from ptq_classroom.kit.examine import examine
from ptq_course.deploy.checkpoint.packing import pack
from ptq_course.grids.affine import IntGrid
from ptq_course.improve.clustering import cluster
from ptq_course.improve.gptq import gptq
from ptq_course.improve.rounding import Rounding
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def places_of(ax: Axes) -> list[float]:
    """Where the first collection of upright lines stands."""
    (lines, *_) = [c for c in ax.collections if isinstance(c, LineCollection)]
    return [float(segment[0][0]) for segment in lines.get_segments()]


def rectangles(ax: Axes) -> list[Rectangle]:
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def test_two_weights_names_nearest_and_best():
    fig, alt = figures.two_weights([0.4, 0.4], [[1.0, 0.4], [0.5, 1.0], [1.0, 1.0]])
    said = [text.get_text() for text in fig.axes[0].texts]
    assert "nearest\nerror 1.31" in said
    assert any(text.startswith("best") for text in said)
    assert "(0, 0), has 1.31" in alt


def test_a_codebook_is_drawn_with_its_decibels():
    fig, alt = figures.codebook([0.0, 1.0, 1.0, -1.0], {"a": [-1.0, 0.0, 1.5]}, "fc")
    assert places_of(fig.axes[1]) == [-1.0, 0.0, 1.5]
    assert "a, 3 values: 7.8 dB" in alt  # 3 of signal over 0.5 of error


def test_price_of_bits_draws_a_line_for_each_technique():
    table = {"net": {"nearest": {8: 90.0, 4: 80.0, 2: 3.0}, "GPTQ": {8: 90.0, 4: 89.0, 2: 60.0}}}
    fig, alt = figures.price_of_bits(table, {"net": 91.0})
    drawn = [np.asarray(line.get_ydata()).tolist() for line in fig.axes[0].lines[:2]]
    assert drawn == [[90.0, 80.0, 3.0], [90.0, 89.0, 60.0]]
    assert "net, GPTQ: 89.0 and 60.0 % at 4 and 2 bits" in alt


def test_formats_and_widths():
    fig, alt = figures.formats({"x": [-2.0, 0.0, 2.0]}, {"x": [10.0, 12.0, 14.0]}, {"x": 4.5})
    assert places_of(fig.axes[0]) == [-1.0, 0.0, 1.0]
    assert "x 12.0 dB at 4.50 bits" in alt
    fig, alt = figures.widths({"mixed": {"a": 2, "b": 8}}, {"a": 300, "b": 100})
    sizes = [list(bar.get_bbox().size) for bar in rectangles(fig.axes[0])]
    assert sizes == [[75.0, 2.0], [25.0, 8.0]]
    assert "mixed: 2 bits x 1, 8 bits x 1; 8 bits go to b" in alt


def test_the_widget_shows_what_was_recorded():
    picture = widget.BitsAndGroups()
    readout, alt = picture.frame(bits=3, group="8 inputs")
    known, size = recorded()["groups"]["GPTQ 3 8"]
    assert f"GPTQ {100 * known:.1f} %" in readout
    assert f"{size:.2f} bits a weight" in readout
    assert picture.here[1].get_ydata() == pytest.approx([100 * known])
    assert list(picture.lines[0].get_xdata()) == sorted(picture.lines[0].get_xdata())
    assert "FP32" in alt
    assert picture.frame(bits=3, group="one for each row")[0] != readout


def test_every_setting_of_the_widget_is_recorded():
    for bits in widget.BITS:
        for group in widget.GROUPS:
            sizes = {widget.point(way, bits, group)[0] for way in widget.WAYS}
            assert len(sizes) == 1, "GPTQ stores what rounding to nearest stores"
            assert bits < sizes.pop() < bits + 1.2


def test_the_record_is_complete_and_its_intervals_are_ordered():
    for network in ("resnet", "mobilenet"):
        for way in ("nearest", "groups", "clustering", "AWQ", "GPTQ", "AdaRound",
                    "groups, AdaRound"):  # fmt: skip
            assert list(by_bits(network, way, (8, 4, 3, 2))) == [8, 4, 3, 2]
            found = entry(network, way, 3)
            mean, low, high = found["gain"]
            assert low <= mean <= high
            assert mean == pytest.approx(
                found["accuracy"][0] - accuracy(network, "nearest", 3), abs=1e-9
            )
            assert in_band(found["accuracy"][0], network, way, 3)
        assert not in_band(0.5, network, "GPTQ", 8)


def test_the_third_network_is_recorded_without_groups():
    for way in ("nearest", "clustering", "AWQ", "GPTQ", "AdaRound"):
        assert list(by_bits("efficientnet", way, (8, 4, 3, 2))) == [8, 4, 3, 2]
    names = [name for name in recorded()["techniques"] if name.startswith("efficientnet")]
    assert not [name for name in names if "groups" in name]
    assert len(entry("efficientnet", "GPTQ", 4, 4)["accuracy"]) == 3


def test_stored_bits_count_scales():
    model = nn.Sequential(nn.Linear(32, 4, bias=False))
    config = QConfig(weight_bits=4, activation_bits=None, weight_granularity=8)
    found = PTQQuantizer(model, config=config).quantize_weights()
    assert bits_per_weight(found) == 4 + 16 / 8


def test_the_exercises_and_the_course_agree():
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (21,), generator=g).to(torch.int8)
    assert torch.equal(exercises.pack_int4(codes), pack(codes, 4))
    w = torch.randn(150, generator=g)
    book = cluster(w, 2).codebook
    assert book is not None
    least = exercises.least_error(w, 4)
    for found in (exercises.kmeans_1d(w, 4), book):
        assert least * 0.999 <= exercises.codebook_error(w, found) <= exercises.NEAR * least


def test_one_column_after_the_other_is_gptq():
    g = torch.Generator().manual_seed(0)
    row, x = 2 * torch.randn(6, generator=g).double(), torch.randn(30, 6, generator=g).double()
    moments = x.T @ x
    one = torch.ones(1, 1, 6).double()
    grid = IntGrid(8, narrow=True)
    problem = Rounding(row[None, None], moments[None], one, torch.zeros_like(one), grid)
    moved = row
    for j in range(6):
        moved = exercises.compensate(moved, moments, j)
    assert np.array_equal(moved.round(), gptq(problem, ordered=False)[0, 0])


def test_brute_force_is_the_bound_of_one_after_the_other():
    for label, case in exercises._layers():
        w, x = case["w"], case["x"]
        best, other = exercises.best_rounding(w, x), exercises._one_after_the_other(w, x)
        errors = [(x @ (v - w)).square().sum() for v in (best, other)]
        assert errors[0] <= errors[1] + 1e-5, label


def test_a_list_of_bytes_holds_whole_numbers():
    exercise = exercises.PACK_INT4
    fractions = examine(exercise, lambda q: exercises.pack_int4(q).float().tolist()).failure
    assert fractions is not None
    assert fractions.cause == exercises.FLOATING
    assert examine(exercise, lambda q: exercises.pack_int4(q).tolist()).status == "passed"
