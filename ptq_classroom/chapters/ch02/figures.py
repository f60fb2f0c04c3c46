"""Figures of chapter 02: what an outlier does to a range, and what calibrators make of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink, text_number
from ptq_course.grids.affine import QParams
from ptq_course.ranges.histograms import DyadicHistogram

BULK = 4.7  # the bulk of the examples is a standard normal: shown from -BULK to BULK


def levels(qparams: QParams) -> np.ndarray:
    """The reals that the codes of per-tensor parameters stand for."""
    codes = np.arange(qparams.grid.qmin, qparams.grid.qmax + 1)
    return (codes - int(qparams.zero_point)) * float(qparams.scale)


def marks_over_bulk(x: Tensor, ranges: dict[str, QParams]) -> tuple[Figure, str]:
    """The bulk of x with the values that each range can represent, one panel each."""
    fig, axes = figure(7.2, 1.1 + 1.25 * len(ranges), len(ranges), 1, sharex=True, squeeze=False)
    counts, edges = np.histogram(x.numpy(), bins=120, range=(-BULK, BULK))
    told = []
    for ax, (name, qparams) in zip(axes[:, 0], ranges.items(), strict=True):
        marks = levels(qparams)
        inside = int(((marks >= -BULK) & (marks <= BULK)).sum())
        ax.stairs(counts / counts.max(), edges, fill=True, color=COLORS[3], alpha=0.4)
        ax.vlines(marks, 0, 0.45, color=COLORS[0], linewidth=1.6)
        ax.set(ylim=(0, 1.1), yticks=[], xlim=(-BULK, BULK))
        ax.spines["left"].set_visible(False)
        ax.set_title(f"{name}: {inside} of {len(marks)} marks stand among the bulk", fontsize=10)
        told.append(f"{name}, {inside} of {len(marks)}")
    axes[-1, 0].set_xlabel("value (grey: how often it occurs; blue: what a code can stand for)")
    return fig, "Marks that stand among the bulk of the data: " + "; ".join(told) + ". Histograms."


def loss_of_the_bulk(
    sizes: Any, decibels: Any, before: float, guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Signal-to-noise ratio of the bulk over the size of one outlier, and the 20 log10 rule."""
    sizes, decibels = np.asarray(sizes, dtype=float), np.asarray(decibels, dtype=float)
    fig, ax = figure(6.4, 3.2)
    rule = before - 20 * np.log10(np.maximum(sizes, sizes[0]) / sizes[0])
    ax.plot(sizes, rule, color=GREY, linestyle="--", linewidth=1.3)
    ax.plot(sizes, decibels, "o-", color=COLORS[0])
    ax.text(sizes[-1], decibels[-1], " measured", va="bottom", fontsize=9, color=ink(COLORS[0]))
    ax.text(
        sizes[-1], rule[-1], " -20 dB for a factor of 10", va="top", fontsize=9, color=ink(GREY)
    )
    ax.set(xscale="log", xlabel="largest value (standard deviations of the bulk)")
    ax.set_ylabel("signal-to-noise ratio of the bulk (dB)")
    ax.margins(x=0.42)
    ax.set_ylim(bottom=min(rule[-1], 0) - 6)  # room for the label below the end of the rule
    if guess is not None and isinstance(guess.guess, int | float):
        Prediction(guess.id, before - guess.guess, guess.unit).draw(ax, "y")
    n = text_number
    return fig, (
        f"The bulk keeps {n(decibels[0])} dB with a largest value of {n(sizes[0])} and "
        f"{n(decibels[-1])} dB with one of {n(sizes[-1])}; "
        f"the dashed line of 20 dB a factor of ten ends at {n(rule[-1])}."
    )


def percentile_sweep(
    clipped: Any,
    accuracy: Any,
    minmax: float,
    fp32: float,
    by_mode: dict[str, Any] | None = None,
    fp32_by_mode: dict[str, float] | None = None,
) -> tuple[Figure, str]:
    """Accuracy (percent) over the share of values clipped (percent), with min-max and FP32.

    by_mode: the same curve for the pictures of one kind; fp32_by_mode: what FP32 reaches on them.
    """
    clipped, accuracy = np.asarray(clipped, dtype=float), np.asarray(accuracy, dtype=float)
    fig, ax = figure(6.6, 3.4)
    series = {"all pictures": accuracy, **(by_mode or {})}
    for number, (name, values) in enumerate(series.items()):
        ax.plot(clipped, values, marker="o", markersize=4, **color(number))
        peak = int(np.argmax(values))
        ax.annotate(
            name, (clipped[peak], values[peak]), xytext=(0, -14), textcoords="offset points",
            ha="center", fontsize=9, color=ink(COLORS[number]),
        )  # fmt: skip
    lines = [(fp32, "FP32, all pictures", GREY)]
    lines += [(minmax, "min-max: nothing clipped, all pictures", GREY)]
    for number, (name, value) in enumerate((fp32_by_mode or {}).items(), start=1):
        lines.append((value, f"FP32, {name} {value:.0f}", COLORS[number]))
    for value, name, tint in lines:
        ax.axhline(value, color=tint, linestyle=":", linewidth=1.3)
        ax.text(
            0.56, value, name, transform=ax.get_yaxis_transform(),
            va="bottom", ha="center", fontsize=8, color=ink(tint),
        )  # fmt: skip
    ax.set(xscale="log", xlabel="values beyond the range, each side (percent)")
    ax.set(ylabel="top-1 accuracy (%)", ylim=(0, 105))
    best = int(accuracy.argmax())
    n = text_number
    kinds = ""
    for name, values in (by_mode or {}).items():
        pairs = ", ".join(f"{n(v)} at {n(c)}" for c, v in zip(clipped, values, strict=True))
        kinds += f" On {name} pictures: {pairs}"
        kinds += f"; FP32 {n(fp32_by_mode[name])}." if fp32_by_mode else "."
    return fig, (
        f"Best is {n(accuracy[best])} percent, with {n(clipped[best])} percent clipped on each "
        f"side. Lines of accuracy over the share clipped: {n(accuracy[0])} at {n(clipped[0])}, "
        f"{n(accuracy[-1])} at {n(clipped[-1])}; min-max {n(minmax)}, FP32 {n(fp32)}." + kinds
    )


def trace_average(calibrator: Any, batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """Feed `batches` to a calibrator; the maximum of each, and what it holds after each."""
    maxima, held = [], []
    for batch in batches:
        calibrator.update(batch)
        maxima.append(batch.max().item())
        held.append(calibrator.max_val)
    return maxima, held


def moving_average(
    maxima: dict[str, Any], averages: dict[str, Any], guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Each batch's maximum (dots) and the moving average (line), one panel an order of batches.

    guess: by which factor the largest end exceeds the smallest; drawn where the largest is.
    """
    ends = {name: float(average[-1]) for name, average in averages.items()}
    fig, axes = figure(7.2, 2.9, 1, len(maxima), sharey=True, squeeze=False)
    told = []
    for ax, name in zip(axes[0], maxima, strict=True):
        seen, average = np.asarray(maxima[name]), np.asarray(averages[name])
        ax.plot(np.arange(1, len(seen) + 1), seen, "o", color=COLORS[3], markersize=4)
        ax.plot(np.arange(1, len(average) + 1), average, color=COLORS[2])
        falls = seen[0] > seen[-1]  # the lower left corner is empty, otherwise the upper one
        ax.text(
            0.04, 0.05 if falls else 0.95, f"the line ends at {average[-1]:.3g}",
            transform=ax.transAxes, va="bottom" if falls else "top", fontsize=9,
            color=ink(COLORS[2]),
        )  # fmt: skip
        if name == max(ends, key=ends.get) and guess and isinstance(guess.guess, int | float):
            Prediction(guess.id, guess.guess * min(ends.values()), guess.unit).draw(ax, "y")
        ax.set(xlabel="batch", yscale="log", yticks=[20, 50, 100], yticklabels=["20", "50", "100"])
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_title(name, fontsize=10)
        told.append(f"{name}: ends at {text_number(average[-1])}")
    axes[0, 0].set_ylabel("maximum (dots), average (line)")
    return fig, "; ".join(told) + ". Lines of the moving average of the batch maxima."


def dyadic_growth(steps: dict[str, DyadicHistogram]) -> tuple[Figure, str]:
    """The same lattice after more and more data: when the range grows, pairs of bins become one."""
    fig, axes = figure(6.6, 1.3 * len(steps) + 0.6, len(steps), 1, sharex=True, squeeze=False)
    told = []
    for ax, (name, hist) in zip(axes[:, 0], steps.items(), strict=True):
        edges = hist.edges()
        ax.stairs(hist.counts, edges, fill=True, color=COLORS[0], alpha=0.5)
        ax.vlines(edges, 0, max(hist.counts.max(), 1), color=COLORS[0], linewidth=0.7)
        ax.set_title(f"{name}: {len(hist.counts)} bins of width {hist.width:g}", fontsize=10)
        ax.set_ylabel("count")
        told.append(f"{name}: {len(hist.counts)} bins of width {hist.width:g}")
    axes[-1, 0].set_xlabel("value")
    return fig, "; ".join(told) + ". Histograms on a lattice of powers of two."


def over_shuffles(ends: Any, cousin: float, largest: float) -> tuple[Figure, str]:
    """Where the moving average ends for many orders of the same batches, and its cousin."""
    ends = np.asarray(ends, dtype=float)
    fig, ax = figure(6.4, 2.8)
    ax.hist(ends, bins=30, color=COLORS[0], alpha=0.8)
    for value, name, place in ((cousin, "mean of batch maxima", 0.95), (largest, "min-max", 0.8)):
        ax.axvline(value, color=COLORS[2], linestyle="--")
        ax.text(value, place, f" {name} ", transform=ax.get_xaxis_transform(), fontsize=9,
                ha="right" if value == largest else "left", bbox=BEHIND)  # fmt: skip
    ax.set(xlabel="upper end of the range after all batches", ylabel="orders of the batches")
    n = text_number
    return fig, (
        f"{len(ends)} orders of the same batches: the moving average ends between {n(ends.min())} "
        f"and {n(ends.max())}; the mean of batch maxima is always {n(cousin)}, "
        f"the maximum {n(largest)}."
    )
