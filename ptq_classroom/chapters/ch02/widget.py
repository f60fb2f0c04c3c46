"""Widget of chapter 02: one outlier against a percentile, and what the bulk pays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.chapters.ch02.figures import BULK, levels
from ptq_classroom.kit.controls import Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, figure, text_number
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize
from ptq_course.grids.metrics import sqnr_db

COUNT = 20_000
OUTLIERS = 10  # of COUNT: 0.05 percent, half of them on each side
DATA = torch.randn(COUNT - OUTLIERS, generator=torch.Generator().manual_seed(2))
MAGNITUDES = np.sort(DATA.abs().numpy())


class OutlierAgainstPercentile:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, (top, bottom) = figure(6.4, 3.9, 2, 1, height_ratios=[1, 1])
        counts, edges = np.histogram(MAGNITUDES, bins=np.geomspace(0.05, 300, 90))
        top.stairs(np.maximum(counts, 0.5), edges, fill=True, color=COLORS[3], alpha=0.5)
        (self.stems,) = top.plot([10, 10], [0.5, OUTLIERS], color=COLORS[2], linewidth=3)
        self.kept = top.axvspan(0.05, 3, color=COLORS[1], alpha=0.2, linewidth=0)
        self.edge = top.axvline(3, color=COLORS[6], linestyle="--", linewidth=1.4)
        top.set(xscale="log", yscale="log", xlim=(0.05, 300), ylim=(0.5, 3000))
        top.set(xlabel="magnitude |x| (red: the outliers, orange: kept)", ylabel="count")
        bulk, where = np.histogram(DATA.numpy(), bins=120, range=(-BULK, BULK))
        bottom.stairs(bulk / bulk.max(), where, fill=True, color=COLORS[3], alpha=0.4)
        self.marks = bottom.vlines([0.0], 0, 0.5, color=COLORS[0], linewidth=1)
        bottom.set(xlim=(-BULK, BULK), ylim=(0, 1.05), yticks=[])
        bottom.set_xlabel("the bulk (grey) and the values that codes stand for (blue)")
        bottom.spines["left"].set_visible(False)

    def frame(self, outlier: float, percentile: float, bits: int) -> tuple[str, str]:
        """Move everything to outliers of this size and the range that keeps this percentile."""
        x = data(outlier)
        threshold = float(
            np.quantile(np.append(MAGNITUDES, [outlier] * OUTLIERS), percentile / 100)
        )
        qparams = choose_qparams(-threshold, threshold, IntGrid(bits, narrow=True), symmetric=True)
        ratio = sqnr_db(DATA, fake_quantize(DATA, qparams))
        clipped = 100 * float((x.abs() > threshold).double().mean())
        marks = levels(qparams)
        inside = int((np.abs(marks) <= BULK).sum())

        self.stems.set_xdata([outlier, outlier])
        self.kept.set_width(threshold - 0.05)
        self.edge.set_xdata([threshold, threshold])
        self.marks.set_segments([[(m, 0), (m, 0.5)] for m in marks if abs(m) <= BULK])
        readout = (
            f"range ±{threshold:.3g}, scale {float(qparams.scale):.3g}: {inside} of {len(marks)} "
            f"marks among the bulk · bulk {ratio:.1f} dB · {clipped:.3f} % of the values clipped"
        )
        n = text_number
        alt = (
            f"{OUTLIERS} of {COUNT} values at {n(outlier)}, percentile {percentile:g}, "
            f"{bits} bits: range up to {n(threshold)}, {inside} of {len(marks)} marks among the "
            f"bulk, which keeps {ratio:.1f} dB; {clipped:.3f} percent of the values are clipped."
        )
        return readout, alt


def data(outlier: float) -> Tensor:
    """The bulk, and OUTLIERS values at plus and minus `outlier`."""
    return torch.cat([DATA, torch.tensor([outlier, -outlier] * (OUTLIERS // 2))])


def explorer() -> Explorer:
    """The widget: size of the outliers, percentile kept, bits."""
    picture = OutlierAgainstPercentile()
    controls = [
        Slider("outlier", 4.0, 250.0, 40.0, 1.0, "size of the outliers"),
        Slider("percentile", 85.0, 100.0, 100.0, 0.05, "percentile kept"),
        Slider("bits", 3, 8, 5),
    ]
    return Explorer(picture.fig, controls, picture.frame, "Ten outliers in twenty thousand values")
