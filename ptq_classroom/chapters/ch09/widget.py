"""Widget of chapter 09: how many calibration pictures, and how far live pictures are from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptq_classroom.chapters.ch09.figures import plain_ticks, rule_name
from ptq_classroom.kit.controls import Choice
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, figure, ink, text_number
from ptq_classroom.pictures.camera import MEAN, STD
from ptq_course.errors import QuantizationError

EDGES = np.geomspace(0.004, 48.5, 27)  # of the light, in units of diffuse white (at most 48)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured for one rule on one kind of live picture, over the sizes of the set."""

    highs: ArrayLike  # [sizes] upper end of the range of the network's input
    clipped: ArrayLike  # [sizes] percent of the live input values
    accuracy: ArrayLike  # [sizes] percent


class SamplesAndShift:
    """The figure and its pure `frame`; everything was measured before, artists are only moved.

    live: {shift: input values, any shape}. fp32: {shift: accuracy in percent}.
    measured: {(rule, shift): Measured}; sizes: how many calibration pictures.
    Raises QuantizationError where a rule was not measured on every shift.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        live: Mapping[str, ArrayLike],
        fp32: Mapping[str, float],
        measured: Mapping[tuple[str, str], Measured],
    ) -> None:
        self.rules = tuple(dict.fromkeys(rule for rule, _ in measured))
        self.shifts = tuple(live)
        wanted = {(rule, shift) for rule in self.rules for shift in self.shifts}
        if set(measured) != wanted or set(fp32) != set(live):
            raise QuantizationError(
                "the widget needs every rule measured on every shift, and FP32 on each; missing: "
                f"{sorted(wanted - set(measured)) or sorted(set(live) ^ set(fp32))}"
            )
        self.sizes, self.fp32, self.measured = tuple(sizes), dict(fp32), dict(measured)
        self.heights = {shift: _shares(np.asarray(values)) for shift, values in live.items()}

        self.fig, (top, bottom) = figure(6.6, 4.5, 2, 1, height_ratios=[1, 1.1])
        self.top = top
        self.live = top.stairs(
            np.ones(len(EDGES) - 1), EDGES, fill=True, color=COLORS[3], alpha=0.6
        )
        self.kept = top.axvspan(EDGES[0], 1, color=COLORS[1], alpha=0.25, linewidth=0)
        self.edge = top.axvline(1, color=COLORS[6], linestyle="--", linewidth=1.6)
        top.set(xscale="log", yscale="log", xlim=(EDGES[0], 64), ylim=(1e-4, 60))
        top.set_yticks([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"])
        top.set_yticks([], minor=True)
        top.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        top.set_xticks([], minor=True)
        top.set_xlabel("light of a live pixel (1: diffuse white; orange: inside the range)")
        top.set_ylabel("values (%)")

        (self.curve,) = bottom.plot([1], [1], "o-", color=COLORS[0], markersize=4)
        (self.here,) = bottom.plot([1], [1], "o", color=COLORS[2], markersize=9, zorder=6)
        self.reference = bottom.axhline(1, color=GREY, linestyle=":", linewidth=1.4)
        self.word = bottom.text(
            self.sizes[-1], 1, "FP32", color=ink(GREY), fontsize=9, va="bottom", ha="right"
        )
        bottom.set(xscale="log", ylim=(0, 110), xlabel="calibration pictures")
        bottom.set_xlim(self.sizes[0] / 1.3, self.sizes[-1] * 1.3)
        bottom.set_ylabel("top-1 accuracy (%)")
        plain_ticks(bottom, self.sizes)

    def frame(self, samples: int, shift: str, rule: str) -> tuple[str, str]:
        """The live pictures of `shift` against a range from `samples`, one of the sizes."""
        found = self.measured[rule, shift]
        number = self.sizes.index(samples)
        high, clipped, accuracy = (
            float(np.asarray(values)[number])
            for values in (found.highs, found.clipped, found.accuracy)
        )
        light = max(high * STD + MEAN, EDGES[0])
        fp32 = self.fp32[shift]
        self.live.set_data(self.heights[shift])
        self.kept.set_width(light - EDGES[0])
        self.edge.set_xdata([light, light])
        self.curve.set_data(self.sizes, np.asarray(found.accuracy))
        self.here.set_data([samples], [accuracy])
        self.reference.set_ydata([fp32, fp32])
        self.word.set_y(fp32 + 1.5)
        noun = "picture" if samples == 1 else "pictures"
        self.top.set_title(f"{shift} live pictures, {rule_name(rule)} from {samples} {noun}")
        readout = (
            f"{rule_name(rule)} from {samples} {noun}: light up to {text_number(light)} · on "
            f"{shift} pictures {clipped:.2f} % of the input values clipped · top-1 "
            f"{accuracy:.1f} % (FP32 {fp32:.1f} %)"
        )
        alt = (
            f"Light of {shift} live pictures and the {rule_name(rule)} range of {samples} "
            f"calibration {noun}, which ends at {text_number(light)} times white paper: "
            f"{clipped:.2f} percent of the values are clipped; top-1 accuracy {accuracy:.1f} "
            f"percent, FP32 {fp32:.1f}."
        )
        return readout, alt


def _shares(values: NDArray) -> NDArray[np.float64]:
    """Percent of the values in each bin of light, nothing drawn as the axis's floor."""
    light = np.clip(values.ravel() * STD + MEAN, EDGES[0], EDGES[-1] * 0.999)
    counts, _ = np.histogram(light, EDGES)
    return np.maximum(100 * counts / counts.sum(), 1e-4)


def explorer(
    sizes: Sequence[int],
    live: Mapping[str, ArrayLike],
    fp32: Mapping[str, float],
    measured: Mapping[tuple[str, str], Measured],
) -> Explorer:
    """The widget: number of calibration pictures, shift of the live pictures, range rule."""
    made = SamplesAndShift(sizes, live, fp32, measured)
    first = min(made.sizes, key=lambda count: abs(count - 10))
    controls = [
        Choice("samples", made.sizes, first, "calibration pictures"),
        Choice("shift", made.shifts, made.shifts[0], "live pictures"),
        Choice("rule", tuple((rule_name(r), r) for r in made.rules), made.rules[0], "range rule"),
    ]
    return Explorer(made.fig, controls, made.frame, "Samples and shift")
