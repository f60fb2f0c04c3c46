"""Widget of chapter 11: the factor of one channel, and what both of its sides keep."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.controls import Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import color, figure, ink
from ptq_classroom.pictures.models import load_model
from ptq_course.grids.affine import IntGrid, choose_qparams, fake_quantize
from ptq_course.improve.equalization import equalize
from ptq_course.improve.pairs import with_limits

FIRST, SECOND = "stem.0", "blocks.0.layers.0"
GRID = IntGrid(6, narrow=True)
EXPONENTS = np.linspace(-4, 4, 33)
SIDES = (f"made by {FIRST}", f"read by {SECOND}", "both together")


@cache
def weights() -> tuple[Tensor, Tensor]:
    """Weights of the two equalized layers, a row for each channel between them: [32, n] each."""
    net = equalize(with_limits(load_model("mobilenet")))
    return tuple(net.get_submodule(name).weight.detach().flatten(1) for name in (FIRST, SECOND))


def _noise(side: Tensor, channel: int, factor: float) -> float:
    """Noise over signal of one channel times ``factor``, with one scale for the layer."""
    changed = side.clone()
    changed[channel] *= factor
    top = changed.abs().max()
    rounded = fake_quantize(changed, choose_qparams(-top, top, GRID, symmetric=True))
    error = (rounded - changed)[channel].square().sum() / changed[channel].square().sum()
    return max(error.item(), 1e-12)


@cache
def curves(channel: int) -> np.ndarray:
    """Decibels [3, exponents] of the channel: where it is made, where it is read, and both."""
    made, read = weights()
    noise = np.array(
        [[_noise(made, channel, 2.0**-e), _noise(read, channel, 2.0**e)] for e in EXPONENTS]
    ).T
    return -10 * np.log10(np.vstack([noise, noise.sum(0)]))


class OneFactor:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, ax = figure(6.8, 3.6)
        self.lines = [
            ax.plot(EXPONENTS, EXPONENTS, label=side, **color(2 * i))[0]
            for i, side in enumerate(SIDES)
        ]
        self.here = ax.axvline(0, ymax=0.88, color=ink("#717581"), linewidth=1.2)
        self.dot = ax.plot([], [], "ko", markersize=7)[0]
        ax.set(xlabel="factor of the channel, as a power of two (0: equalized)", ylim=(0, 55))
        ax.set_ylabel("SQNR of the channel's weights (dB)")
        ax.legend(fontsize=9, loc="upper center", ncols=3)

    def frame(self, channel: int, exponent: float) -> tuple[str, str]:
        """Show the curves of this channel, and where this factor stands on them."""
        values = curves(channel)
        for line, row in zip(self.lines, values, strict=True):
            line.set_ydata(row)
        at = int(np.abs(EXPONENTS - exponent).argmin())
        self.here.set_xdata([EXPONENTS[at]] * 2)
        self.dot.set_data([EXPONENTS[at]], [values[2, at]])
        made, read, both = values[:, at]
        best = EXPONENTS[values[2].argmax()]
        readout = (
            f"channel {channel} divided by 2^{EXPONENTS[at]:g}: made {made:.1f} dB, read "
            f"{read:.1f} dB, together {both:.1f} dB (the most, {values[2].max():.1f} dB, at "
            f"2^{best:g})"
        )
        alt = (
            f"Both sides together keep {both:.1f} dB at 2^{EXPONENTS[at]:g} and at most "
            f"{values[2].max():.1f} dB, at 2^{best:g}. {SIDES[0]} falls from {values[0, 0]:.0f} to "
            f"{values[0, -1]:.0f} dB, {SIDES[1]} rises from {values[1, 0]:.0f} to "
            f"{values[1, -1]:.0f} dB."
        )
        return readout, alt


def explorer() -> Explorer:
    """The widget: channel and factor."""
    picture = OneFactor()
    controls = [
        Slider("channel", 0, len(weights()[0]) - 1, 5),
        Slider("exponent", -4.0, 4.0, 0.0, 0.25, label="factor, as a power of two"),
    ]
    with torch.no_grad():
        curves(5)
    return Explorer(picture.fig, controls, picture.frame, "The factor of one channel")
