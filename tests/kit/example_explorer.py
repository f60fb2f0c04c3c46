"""An explorer as a chapter would have one: the staircase of a quantizer."""

from __future__ import annotations

import numpy as np

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import figure

X = np.linspace(-4, 4, 801)


class Staircase:
    """The figure and its one moving line; `frame` is a plain function of the control values."""

    def __init__(self):
        self.fig, self.ax = figure(5, 2.6)
        self.ax.plot(X, X, color="#94a4a2", linestyle=":")
        (self.line,) = self.ax.plot(X, X)
        self.ax.set(xlabel="x", ylabel="x after quantization", xlim=(-4, 4), ylim=(-4, 4))

    def frame(self, bits: int, high: float, rounding: str) -> tuple[str, str]:
        top = 2 ** (bits - 1) - 1
        scale = high / top
        codes = np.floor(X / scale) if rounding == "floor" else np.rint(X / scale)
        y = np.clip(codes, -top, top) * scale
        self.line.set_ydata(y)
        error = float(np.sqrt(np.mean((y - X) ** 2)))
        readout = f"scale {scale:.4f}, root mean square error {error:.4f}"
        return readout, f"Staircase of {2 * top + 1} steps from {-high:.3g} to {high:.3g}."


def explorer() -> Explorer:
    stairs = Staircase()
    controls = [
        Slider("bits", 2, 8, 4, label="bits"),
        Slider("high", 0.5, 4.0, 2.0, step=0.1, label="largest value"),
        Choice("rounding", ("nearest", "floor"), "nearest"),
    ]
    return Explorer(stairs.fig, controls, stairs.frame, title="Staircase")
