"""Widget of chapter 03: one threshold under the hand; P, Q, divergence and accuracy follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ptq_classroom.chapters.ch03.figures import plain_log_ticks
from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.show import COLORS, GREY, figure, ink, text_number
from ptq_course.errors import QuantizationError
from ptq_course.ranges import kl
from ptq_course.ranges.histograms import DyadicHistogram, halve

BINS = (128, 512, 2048)
CURVE = 300  # candidates of a divergence curve: more would not be seen
FLOOR, CEILING = 1e-4, 5.0  # nats shown
BLUE, ORANGE, RED = COLORS[0], COLORS[6], COLORS[2]


@dataclass(frozen=True, eq=False)
class Curve:
    """The divergence over the threshold for one number of bits and of bins."""

    counts: NDArray[np.int64]  # [bins] of the histogram that was searched
    width: float
    thresholds: NDArray[np.float64]  # [candidates]
    divergences: NDArray[np.float64]  # [candidates] nats
    best: float  # the threshold that KL chooses


class ThresholdFigure:
    """The figure and its pure `frame`; the artists are made once and then changed.

    hist: of one-sided data. accuracy: {bits: (thresholds [n], percent [n])}, measured beforehand.
    reference: accuracy of the FP32 network in percent.
    """

    def __init__(
        self,
        hist: DyadicHistogram,
        accuracy: Mapping[int, tuple[ArrayLike, ArrayLike]],
        reference: float,
    ) -> None:
        if hist.min_val < 0:
            raise QuantizationError(f"the widget shows data >= 0, the minimum is {hist.min_val:g}")
        self.hist, self.curve = hist, cache(self._curve)
        self.accuracy = {
            bits: (np.asarray(t, np.float64), np.asarray(percent, np.float64))
            for bits, (t, percent) in accuracy.items()
        }
        everywhere = np.concatenate([t for t, _ in self.accuracy.values()])
        self.low, self.high = float(everywhere.min()), float(everywhere.max())
        self.fig, (top, bottom) = figure(6.4, 4.7, 2, 1, height_ratios=[1.1, 1])
        self.top, self.bottom, right = top, bottom, bottom.twinx()

        self.p = top.stairs([1.0], [0, 1], baseline=1e-7, fill=True, color=COLORS[0], alpha=0.5)
        self.q = top.stairs([1.0], [0, 1], baseline=1e-7, color=ORANGE, linewidth=1.8)
        self.edge = top.axvline(1, color="black", linewidth=1, linestyle=":")
        top.set(yscale="log", ylim=(1e-6, 30), xlabel="value", ylabel="share in a bin")
        top.xaxis.set_major_locator(MaxNLocator(5))
        _few_ticks(top, (1e-6, 1e-4, 1e-2, 1))
        words = {"ha": "right", "va": "top", "fontsize": 9}
        top.text(
            0.92,
            0.97,
            "P: the clipped histogram",
            color=ink(BLUE),
            transform=top.transAxes,
            **words,
        )
        top.text(
            0.92,
            0.84,
            "Q: what the levels keep",
            color=ink(ORANGE),
            transform=top.transAxes,
            **words,
        )

        (self.divergence,) = bottom.plot([1], [1], color=BLUE)
        (self.here,) = bottom.plot([1], [1], "o", color=BLUE, markersize=8, zorder=6)
        (self.chosen,) = bottom.plot([1], [1], "v", color=BLUE, markersize=9, clip_on=False)
        bottom.set(xscale="log", yscale="log", ylim=(FLOOR, CEILING))
        bottom.set_xlim(self.low * 0.9, self.high * 1.1)
        bottom.set_xlabel("clipping threshold T")
        bottom.set_ylabel("KL divergence (nats)", color=ink(BLUE))
        _few_ticks(bottom, (1e-4, 1e-2, 1))
        plain_log_ticks(bottom, self.low, self.high)
        for y, text, tint in ((0.13, "▼ smallest KL", BLUE), (0.03, "▼ most accurate", RED)):
            bottom.text(0.02, y, text, color=ink(tint), transform=bottom.transAxes, fontsize=9,
                        bbox={**BEHIND, "alpha": 1.0})  # fmt: skip
        (self.right,) = right.plot([1], [1], "s--", color=RED, markersize=4)
        (self.right_here,) = right.plot([1], [1], "s", color=RED, markersize=9, zorder=6)
        (self.most,) = right.plot([1], [103], "v", color=RED, markersize=9, clip_on=False)
        right.axhline(reference, color=GREY, linewidth=1, linestyle=":")
        right.set(ylim=(0, 103), yticks=(0, 25, 50, 75, 100))
        right.set_ylabel("top-1 accuracy (%)", color=ink(RED))
        self.cursor = bottom.axvline(1, color="black", linewidth=1, linestyle=":")

    def frame(self, threshold: float, bits: int, bins: int) -> tuple[str, str]:
        """Show the window [0, threshold], cut into 2^bits levels, of a histogram of `bins` bins."""
        curve = self.curve(bits, bins)
        stop = int(np.clip(round(threshold / curve.width), 1, len(curve.counts)))
        end = min(stop * curve.width, self.hist.max_val)
        p = kl.clipped_histogram(curve.counts, stop)
        q = kl.requantized_histogram(curve.counts, 2**bits, stop)
        divergence = kl.kl_divergence(p, q)
        measured, accuracy = self.accuracy[bits]
        nearest = int(np.abs(np.log(measured / threshold)).argmin())
        most = float(measured[accuracy.argmax()])

        edges = curve.width * np.arange(stop + 1)
        self.p.set_data(np.maximum(p / p.sum(), 1e-7), edges)
        self.q.set_data(np.where(q > 0, q / max(q.sum(), 1), np.nan), edges)
        self.edge.set_xdata([edges[-1]] * 2)
        self.top.set_xlim(0, 1.06 * edges[-1])
        finite = np.where(np.isfinite(curve.divergences), curve.divergences, np.nan)
        self.divergence.set_data(curve.thresholds, np.maximum(finite, FLOOR))
        self.here.set_data([end], [np.clip(divergence, FLOOR, CEILING)])
        self.here.set_marker("o" if np.isfinite(divergence) else "x")
        self.chosen.set_data([curve.best], [CEILING])
        self.right.set_data(measured, accuracy)
        self.right_here.set_data([measured[nearest]], [accuracy[nearest]])
        self.most.set_xdata([most])
        self.cursor.set_xdata([end] * 2)

        outside = float(curve.counts[stop:].sum() / curve.counts.sum())
        n = text_number
        searched = (
            f"KL chooses {n(curve.best)}"
            if len(curve.thresholds) > 1
            else "no more bins than levels: nothing to search"
        )
        nats = f"{divergence:.4f} nats" if np.isfinite(divergence) else "infinite"
        readout = (
            f"T = {n(end)}: {100 * outside:.2g} % of the values land in the last bin · KL "
            f"{nats} ({searched}) · top-1 {accuracy[nearest]:.1f} % measured at "
            f"{n(measured[nearest])} (best measured: {accuracy.max():.1f} % at {n(most)})"
        )
        alt = (
            f"Histogram cut at {n(end)}, {2**bits} levels, {len(curve.counts)} bins: divergence "
            f"{nats}, {searched}; top-1 accuracy {accuracy[nearest]:.1f} percent, "
            f"best {accuracy.max():.1f} at {n(most)}."
        )
        return readout, alt

    def _curve(self, bits: int, bins: int) -> Curve:
        counts, width = self.hist.magnitudes()
        counts = np.trim_zeros(counts, "b")
        while len(counts) > bins:
            counts, width = halve(counts, 0)[0], 2 * width
        stops = kl.candidate_stops(len(counts), 2**bits, CURVE)
        divergences = kl.kl_divergences(counts, 2**bits, stops)
        thresholds = np.minimum(stops * width, self.hist.max_val)
        best = float(thresholds[kl.best_candidate(divergences)])
        return Curve(counts, width, thresholds, divergences, best)


def _few_ticks(ax: Any, ticks: tuple[float, ...]) -> None:
    """Plain text at a few places: each label costs about a millisecond a frame."""
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)


def explorer(
    hist: DyadicHistogram,
    accuracy: Mapping[int, tuple[ArrayLike, ArrayLike]],
    reference: float,
    bits: int | None = None,
) -> Explorer:
    """The widget: threshold, bits (at first `bits`) and bins. Other arguments: ThresholdFigure."""
    made = ThresholdFigure(hist, accuracy, reference)
    controls = [
        Slider("threshold", made.low, made.high, made.high, label="clipping threshold", log=True),
        Choice("bits", tuple(made.accuracy), bits or next(iter(made.accuracy))),
        Choice("bins", BINS, BINS[-1]),
    ]
    return Explorer(made.fig, controls, made.frame, "Move the threshold")
