"""Chapter 01: what its figures plot, and the number line widget as the function it is."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from ptq_classroom.chapters.ch01 import figures, widget
from ptq_classroom.kit.prediction import Prediction
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize

U4, U8, S8 = IntGrid(4, signed=False), IntGrid(8, signed=False), IntGrid(8)
VALUES = torch.tensor([-1.0, -0.5, 0.0, 0.7, 1.3, 2.2, 3.0])


# figures ---------------------------------------------------------------------------------------


def test_levels_are_all_the_decoded_codes():
    qparams = choose_qparams(-1.0, 3.0, U4)
    marks = figures.levels(qparams)
    assert len(marks) == 16
    assert marks[int(qparams.zero_point)] == 0
    torch.testing.assert_close(marks.diff(), torch.full((15,), qparams.scale.item()))


def test_ruler_labels_every_code_and_moves_values_to_marks():
    qparams = choose_qparams(-1.0, 3.0, U4)
    fig, alt = figures.ruler(VALUES, qparams)
    (ax,) = fig.axes
    codes = {t.get_text(): t for t in ax.texts if t.get_text().isdigit()}
    assert list(codes) == [str(code) for code in range(16)]
    assert [text for text, t in codes.items() if t.get_fontweight() == "bold"] == ["4"]
    ends = [a.xy[0] for a in ax.texts if hasattr(a, "arrow_patch") and a.arrow_patch]
    np.testing.assert_allclose(ends, fake_quantize(VALUES, qparams).numpy(), atol=1e-6)
    assert "16 marks" in alt
    assert "code 4 stands at 0" in alt


def test_saturation_clamps_on_the_left_and_wraps_on_the_right():
    fig, alt = figures.saturation(1 / 127, S8, at=1.02)
    left, right = (ax.lines[0].get_xydata() for ax in fig.axes)
    assert left[:, 1].max() == pytest.approx(1.0)
    assert left[:, 1].min() == pytest.approx(-128 / 127)
    wrapped = torch.round(torch.tensor(right[:, 0]) * 127).long().to(torch.int8) / 127
    drawn = ~np.isnan(right[:, 1])
    assert drawn.sum() > 0.98 * len(drawn)
    np.testing.assert_allclose(right[drawn, 1], wrapped.numpy()[drawn], atol=1e-6)
    assert alt.startswith("1.02 comes back as 1 where")
    assert "as -0.992 where" in alt


def test_padding_maps_errors_and_draws_the_guess():
    off, fine = torch.full((24, 24), 0.001), torch.full((24, 24), -0.002)
    off[0] = off[-1] = off[:, 0] = off[:, -1] = -0.5
    fig, alt = figures.padding(off, fine, Prediction("01.3", 40.0))
    maps, profile = fig.axes[:2], fig.axes[2]
    for ax, error in zip(maps, (off, fine), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), error.abs())
    assert maps[0].images[0].get_clim() == maps[1].images[0].get_clim()
    heights = [line.get_ydata() for line in profile.lines]
    np.testing.assert_allclose(heights[0], off[12].abs())
    np.testing.assert_allclose(heights[1], fine[12].abs())
    assert heights[-1][0] == pytest.approx(0.04)  # 40 times the error inside
    assert "500 times the 0.001 inside" in alt
    without, _ = figures.padding(off, fine, Prediction("01.3", None))
    assert len(without.axes[2].lines) == len(profile.lines) - 1


def test_border_is_the_outermost_frame_once():
    numbers = np.arange(20).reshape(4, 5)
    assert sorted(figures.border(numbers)) == [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    assert figures.rms([3.0, 4.0]) == pytest.approx(np.sqrt(12.5))


def test_codes_used_counts_codes():
    x = torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0])
    choices = {
        "symmetric": choose_qparams(0.0, 4.0, S8, symmetric=True),
        "affine": choose_qparams(0.0, 4.0, U8),
    }
    fig, alt = figures.codes_used(x, choices)
    for ax, name, first in zip(fig.axes, choices, (-128, 0), strict=True):
        counts, edges, _ = ax.patches[0].get_data()
        assert counts.sum() == 5
        assert counts[-first] == 2  # the two zeros
        assert edges[0] == first - 0.5
        assert ax.get_title(loc="left") == f"{name}: 4 of 256 codes"
    texts = [[t.get_text() for t in ax.texts] for ax in fig.axes]
    assert texts == [["never used"], []]
    assert "symmetric uses 4 codes; affine uses 4 codes" in alt


def test_decibels_plots_curves_and_their_gains():
    curves = {"a": [10.0, 16.0, 22.0, 28.0], "b": [10.0, 12.0, 12.5, 12.5]}
    fig, alt = figures.decibels(range(2, 6), curves)
    left, right = fig.axes
    for line, gain, values in zip(left.lines, right.lines[:2], curves.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), values)
        np.testing.assert_allclose(gain.get_ydata(), np.diff(values))
        assert line.get_color() == gain.get_color()
        assert line.get_linestyle() == gain.get_linestyle()
    names = [t.get_text() for t in left.texts]
    assert sorted(names) == ["a", "b"]
    assert "a 10.0 dB at 2 bits, 28.0 at 5, last bit 6.0" in alt


def test_labels_at_the_ends_do_not_overlap():
    fig, _ = figures.decibels(
        range(2, 6), {n: [1.0, 2, 3, 4 + i / 100] for i, n in enumerate("abcd")}
    )
    heights = sorted(t.xy[1] for t in fig.axes[0].texts)
    low, high = fig.axes[0].get_ylim()
    assert min(np.diff(heights)) > 0.05 * (high - low)


def test_weights_shows_the_marks_of_each_grid():
    w = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    grids = {"8 bits": IntGrid(8, narrow=True), "4 bits": IntGrid(4, narrow=True)}
    choices = {n: choose_qparams(w.min(), w.max(), g, symmetric=True) for n, g in grids.items()}
    fig, alt = figures.weights(w, choices, {"8 bits": 40.04, "4 bits": 15.0})
    for ax, (name, marks), db in zip(
        fig.axes, (("8 bits", 255), ("4 bits", 15)), (40, 15), strict=True
    ):
        few = ax if marks == 15 else ax.child_axes[0]  # 255 marks: a band, and some in a window
        lines = next(c for c in few.collections if isinstance(c, LineCollection))
        drawn = torch.tensor([float(segment[0][0]) for segment in lines.get_segments()])
        assert len(drawn) == (15 if marks == 15 else 11)
        assert torch.isin(drawn, figures.levels(choices[name])).all()
        assert ax.get_title(loc="left") == f"{name}: {marks} marks, {db}.0 dB"
        assert ax.patches[0].get_data().values.sum() == w.numel()
        assert min(ax.get_yticks()) == 0
    assert "576 weights" in alt


# widget ----------------------------------------------------------------------------------------

START = {"low": -3.0, "high": 3.0, "bits": 3, "kind": "affine", "x": 1.3}


def numbers(readout: str) -> list[float]:
    return [float(n) for n in re.findall(r"[-+]?\d+\.?\d*(?:e-?\d+)?", readout)]


def test_readout_says_what_the_quantizer_does():
    line = widget.NumberLine()
    readout, alt = line.frame(**START)
    qparams = choose_qparams(-3.0, 3.0, IntGrid(3, signed=False))
    error = fake_quantize(torch.tensor([1.3]), qparams).item() - 1.3
    assert (
        f"scale {qparams.scale:.4g}, zero point {int(qparams.zero_point)}, codes 0 to 7" in readout
    )
    assert f"error {error:+.4f}" in readout
    assert "x inside" in readout
    assert "8 marks" in alt


def test_artists_hold_the_marks_and_the_error():
    line = widget.NumberLine()
    line.frame(**START)
    qparams = widget.parameters(-3.0, 3.0, 3, "affine")
    marks = [segment[0][0] for segment in line.marks.get_segments()]
    np.testing.assert_allclose(marks, figures.levels(qparams), atol=1e-6)
    x, error = line.error.get_xdata(), line.error.get_ydata()
    near = (x >= marks[0]) & (x <= marks[-1])
    assert np.abs(error[near]).max() <= float(qparams.scale) / 2 + 1e-5
    assert np.abs(error[~near]).max() > float(qparams.scale)
    assert line.band.get_height() == pytest.approx(float(qparams.scale))


def test_a_range_without_zero_is_widened():
    line = widget.NumberLine()
    readout, _ = line.frame(**START | {"low": 2.0, "high": 6.0})
    assert line.marks.get_segments()[0][0][0] == 0
    assert "zero point 0" in readout


def test_symmetric_puts_code_0_in_the_middle():
    line = widget.NumberLine()
    readout, _ = line.frame(**START | {"low": 0.0, "bits": 4, "kind": "symmetric"})
    marks = [segment[0][0] for segment in line.marks.get_segments()]
    assert len(marks) == 15
    assert marks[0] == pytest.approx(-marks[-1])
    assert "zero point 0, codes -7 to 7" in readout


def test_tighter_is_better_at_few_bits_and_worse_at_many():
    line = widget.NumberLine()

    def decibels(**values: float) -> float:
        return numbers(line.frame(**START | values)[0])[-1]

    tight, wide = {"low": -2.2, "high": 2.2}, {"low": -4.0, "high": 4.0}
    assert decibels(bits=3, **tight) > decibels(bits=3, **wide) + 2
    assert decibels(bits=8, **wide) > decibels(bits=8, **tight) + 2


def test_frame_does_not_depend_on_what_came_before():
    first, second = widget.NumberLine(), widget.NumberLine()
    first.frame(**START | {"bits": 8, "low": -6.0, "kind": "symmetric", "x": -6.0})
    assert first.frame(**START) == second.frame(**START)
    np.testing.assert_array_equal(first.error.get_ydata(), second.error.get_ydata())


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    list(itertools.product((-6.0, 0.0, 3.0), (-3.0, 0.0, 6.0), widget.KINDS)),
)
def test_every_corner_of_the_controls_has_a_picture(low: float, high: float, kind: str):
    line = widget.NumberLine()
    for bits, x in ((2, -6.0), (8, 6.0)):
        readout, alt = line.frame(low=low, high=high, bits=bits, kind=kind, x=x)
        assert all(np.isfinite(numbers(readout)))
        assert "nan" not in readout + alt


def test_the_label_stays_in_the_picture():
    line = widget.NumberLine()
    for x in (-6.0, 6.0):
        line.frame(**START | {"x": x})
        line.fig.canvas.draw()
        box = line.caption.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= line.fig.bbox.x1


def test_the_explorer_moves_from_its_controls():
    made = widget.explorer()
    before = made.picture.value
    readout, _ = made.set(bits=6)
    assert "codes 0 to 63" in readout
    assert made.picture.value != before


def test_one_operator_is_run_by_the_runtime():
    from onnx import TensorProto

    from ptq_classroom.chapters.ch01.one_operator import onnx_run

    x, scale, zero = np.array([-1.0, 0.25, 9.0], "float32"), np.float32(0.5), np.uint8(3)
    codes = onnx_run("QuantizeLinear", [x, np.array(scale), np.array(zero)], TensorProto.UINT8)
    assert codes.tolist() == [1, 3, 21]
    ones = np.ones((1, 1, 2, 2), "uint8")
    signed = np.ones((1, 1, 1, 1), "int8")
    sums = onnx_run("ConvInteger", [ones, signed], TensorProto.INT32, pads=[1] * 4)
    assert sums.sum() == 4
