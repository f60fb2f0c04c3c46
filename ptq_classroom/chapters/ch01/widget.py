"""Widget of chapter 01: a number line with its range, bits and kind under the learner's hands."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ptq_classroom.chapters.ch01.figures import levels
from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, figure, ink, text_number
from ptq_course.grids.affine import IntGrid, QParams, choose_qparams, fake_quantize, quantize
from ptq_course.grids.metrics import sqnr_db

VIEW = 6.0  # the number line is shown from -VIEW to VIEW
KINDS = ("affine", "symmetric")
DATA = torch.randn(10_000, generator=torch.Generator().manual_seed(1))


class NumberLine:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, (top, bottom) = figure(6.2, 3.7, 2, 1, sharex=True, height_ratios=[1.1, 1])
        self.x = np.linspace(-VIEW, VIEW, 1201)
        counts, edges = np.histogram(DATA.numpy(), bins=80)
        top.stairs(counts / counts.max(), edges, fill=True, color=COLORS[3], alpha=0.35)
        self.kept = top.axvspan(-1, 1, color=COLORS[1], alpha=0.18, linewidth=0)
        self.marks = top.vlines([0.0], 0, 0.3, color=COLORS[0], linewidth=1)
        self.zero = top.vlines([0.0], 0, 0.42, color=COLORS[2], linewidth=2.2)
        (self.moved,) = top.plot([0, 0], [0.8, 0.3], color=COLORS[2], linewidth=1.2)
        (self.value,) = top.plot([0], [0.8], "o", color=COLORS[2], clip_on=False, zorder=5)
        self.caption = top.text(0, 0.88, "", ha="center", fontsize=9, color=ink(COLORS[2]))
        top.set(ylim=(0, 1.12), yticks=[], title="Marks (blue), the mark of 0 (red), data (grey)")
        top.spines["left"].set_visible(False)
        self.band = bottom.axhspan(-1, 1, color=COLORS[3], alpha=0.3, linewidth=0)
        (self.error,) = bottom.plot(self.x, self.x, color=COLORS[0], linewidth=1.1)
        bottom.set(xlim=(-VIEW, VIEW), xlabel="real value x", ylabel="error (x_hat - x)")
        bottom.yaxis.set_major_formatter("{x:.2f}")  # one width, for the layout is computed once
        self.band_text = bottom.text(
            0.995, 0.0, "± scale / 2", transform=bottom.get_yaxis_transform(), ha="right",
            va="bottom", fontsize=8, color=ink(GREY),
        )  # fmt: skip
        self.bottom = bottom

    def frame(self, low: float, high: float, bits: int, kind: str, x: float) -> tuple[str, str]:
        """Move everything to this range, number of bits and kind; x is the value followed."""
        qparams = parameters(low, high, bits, kind)
        marks, scale = levels(qparams).numpy(), float(qparams.scale)
        grid = torch.from_numpy(self.x)
        error = fake_quantize(grid, qparams).numpy() - self.x
        one = torch.tensor([x])
        code, back = int(quantize(one, qparams)), float(fake_quantize(one, qparams))
        ratio = sqnr_db(DATA, fake_quantize(DATA, qparams))

        self.marks.set_segments([[(m, 0), (m, 0.3)] for m in marks])
        self.marks.set_linewidth(1.4 if len(marks) <= 64 else 0.4)
        self.kept.set_x(marks[0] - scale / 2)
        self.kept.set_width(marks[-1] - marks[0] + scale)
        self.moved.set_xdata([x, back])
        self.value.set_xdata([x])
        self.caption.set_x(min(max(x, -0.68 * VIEW), 0.68 * VIEW))
        self.caption.set_text(f"x = {x:.2f} → code {code} → {back:.3f}")
        self.error.set_ydata(error)
        self.band.set_y(-scale / 2)
        self.band.set_height(scale)
        self.band_text.set_y(scale / 2)
        reach = float(np.clip(3 * scale, 0.02, 3))
        self.bottom.set_ylim(-reach, reach)

        inside = marks[0] <= x <= marks[-1]
        place = "inside" if inside else "beyond the last mark"
        readout = (
            f"scale {scale:.4g}, zero point {int(qparams.zero_point)}, "
            f"codes {qparams.grid.qmin} to {qparams.grid.qmax} · x {place}: error {back - x:+.4f} "
            f"(scale / 2 = {scale / 2:.4f}) · grey data: {ratio:.1f} dB"
        )
        n = text_number
        alt = (
            f"{n(x)} comes back as {n(back)}, and the data keep {ratio:.1f} dB. Number line, "
            f"{bits} bits, {kind}: {len(marks)} marks from {n(marks[0])} to {n(marks[-1])}, scale "
            f"{n(scale)}, code {int(qparams.zero_point)} at 0."
        )
        return readout, alt


def parameters(low: float, high: float, bits: int, kind: str) -> QParams:
    """Affine on unsigned codes, symmetric on narrow signed ones; crossed ends are swapped."""
    low, high = min(low, high), max(low, high)
    symmetric = kind == "symmetric"
    grid = IntGrid(bits, signed=symmetric, narrow=symmetric)
    return choose_qparams(low, high, grid, symmetric=symmetric)


def explorer() -> Explorer:
    """The widget: range, bits, kind, and one value to follow."""
    line = NumberLine()
    controls: list[Slider | Choice] = [
        Slider("low", -6.0, 3.0, -3.0, 0.1, "low end of the range"),
        Slider("high", -3.0, 6.0, 3.0, 0.1, "high end of the range"),
        Slider("bits", 2, 8, 3),
        Choice("kind", KINDS, "affine"),
        Slider("x", -6.0, 6.0, 1.3, 0.05, "the value x"),
    ]
    return Explorer(line.fig, controls, line.frame, "A number line with few marks")


def figure_of(values: dict[str, Any]) -> tuple[Figure, str]:
    """The same picture at fixed settings, without a widget."""
    line = NumberLine()
    return line.fig, line.frame(**values)[1]
