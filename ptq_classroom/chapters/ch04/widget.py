"""Widget of chapter 04: gamma / sigma of one channel, and what the other channels pay for it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from torch import Tensor

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.show import COLORS, figure, ink, text_number
from ptq_classroom.pictures.models import load_model
from ptq_course.grids.affine import IntGrid, QParams, block_minmax, choose_qparams, fake_quantize
from ptq_course.grids.metrics import sqnr_db

CHANNELS = 12  # of the depthwise layer that are shown
LOUD = 4  # the channel whose gamma / sigma the slider sets; the others have 1
SHARED, OWN = "one for all channels", "one for each channel"
VIEW = 1.45  # the picture ends here, in units of a channel's range


@lru_cache(maxsize=1)
def weights() -> Tensor:
    """First channels of the depthwise network's first depthwise layer, [12, 9], each up to 1."""
    layer = load_model("mobilenet").blocks[0].layers[0]
    w = layer.weight.detach()[:CHANNELS].flatten(1)
    return w / w.abs().amax(dim=1, keepdim=True)


def folded(ratio: float) -> Tensor:
    """The weights [12, 9] after folding: the loud channel times gamma / sigma, the others as is."""
    w = weights().clone()
    w[LOUD] *= ratio
    return w


def grid_of(w: Tensor, bits: int, scales: str) -> QParams:
    """Symmetric parameters of w [channels, weights] with one scale, or one for each row."""
    block = None if scales == SHARED else (1, -1)
    low, high = block_minmax(w, block)
    return choose_qparams(low, high, IntGrid(bits, narrow=True), symmetric=True, block_size=block)


class GammaOverSigma:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, (top, bottom) = figure(6.6, 4.4, 2, 1, height_ratios=[2, 1], sharex=True)
        self.place = np.arange(CHANNELS)
        x = np.repeat(self.place, weights().shape[1])
        self.ticks = top.hlines([0.0], 0, 0, color=COLORS[3], linewidth=0.7)
        (self.dots,) = top.plot(x - 0.12, np.zeros(len(x)), "o", color=COLORS[0], markersize=4)
        (self.moved,) = top.plot(x + 0.12, np.zeros(len(x)), "x", color=COLORS[2], markersize=4)
        # where the loud channel leaves the picture, triangles point at what is cut
        edge = 0.93 * VIEW
        beyond = {"linestyle": "none", "markersize": 7, "zorder": 7, "visible": False}
        (self.up,) = top.plot(LOUD, edge, "^", color=COLORS[6], **beyond)
        (self.down,) = top.plot(LOUD, -edge, "v", color=COLORS[6], **beyond)
        self.reach = top.text(
            LOUD + 0.3, edge, "", ha="left", va="center", fontsize=9, color=ink(COLORS[6]),
            bbox=BEHIND, zorder=6,
        )  # fmt: skip
        top.set(ylim=(-VIEW, VIEW), ylabel="weight", xlim=(-0.6, CHANNELS - 0.4))
        top.set_title("dots: weights, crosses: rounded, lines: what codes stand for", fontsize=9)
        self.bars = bottom.bar(self.place, np.zeros(CHANNELS), color=COLORS[0], width=0.7)
        self.bars[LOUD].set_color(COLORS[6])
        bottom.set(ylim=(0, 55), ylabel="SQNR (dB)", xticks=self.place)
        self.name = bottom.text(CHANNELS - 0.45, 54, "", ha="right", va="top", fontsize=9)
        bottom.set_xlabel(f"channel (the slider sets gamma / sigma of channel {LOUD})")

    def frame(self, ratio: float, bits: int, scales: str) -> tuple[str, str]:
        """Fold channel LOUD with this ratio, round to `bits`, and show each channel's error."""
        w = folded(ratio)
        qparams = grid_of(w, bits, scales)
        rounded = fake_quantize(w, qparams)
        decibels = np.array([_capped(sqnr_db(a, b)) for a, b in zip(w, rounded, strict=True)])
        steps = np.broadcast_to(qparams.scale.numpy().reshape(-1), CHANNELS)

        self.dots.set_ydata(w.flatten().numpy())
        self.moved.set_ydata(rounded.flatten().numpy())
        self.ticks.set_segments(_ticks(steps, qparams.grid.qmax))
        for bar, height in zip(self.bars, decibels, strict=True):
            bar.set_height(height)
        self.name.set_text(f"scales: {scales}")
        self.up.set_visible(float(w[LOUD].max()) > VIEW)
        self.down.set_visible(float(w[LOUD].min()) < -VIEW)
        self.reach.set_text(f"axis cut: up to ±{ratio:g}" if ratio > VIEW else "")

        others = np.delete(decibels, LOUD)
        levels = 2 * int(min(qparams.grid.qmax, 1 / steps[0] + 1e-6)) + 1
        readout = (
            f"channel {LOUD} reaches ±{ratio:g}, step of the others {steps[0]:.3g}: "
            f"{levels} codes within ±1 · the others keep {others.mean():.1f} dB on average, "
            f"at worst {others.min():.1f} dB"
        )
        n = text_number
        alt = (
            f"The other channels keep {others.mean():.1f} dB on average, channel {LOUD} "
            f"{decibels[LOUD]:.1f} dB. Weights and their rounded values of {CHANNELS} channels, "
            f"channel {LOUD} with gamma over sigma {n(ratio)}, {bits} bits, scales: {scales}, step "
            f"of the others {n(steps[0])}."
        )
        return readout, alt


def _capped(decibels: float) -> float:
    """Without infinities: an exact channel would have no height."""
    return 60.0 if math.isinf(decibels) and decibels > 0 else max(decibels, 0.0)


def _ticks(steps: np.ndarray, qmax: int) -> list[list[tuple[float, float]]]:
    """A short horizontal line for each value inside the view that a code stands for."""
    lines = []
    for channel, step in enumerate(steps):
        last = min(qmax, int(VIEW / step))
        for code in range(-last, last + 1):
            y = code * step
            lines.append([(channel - 0.35, y), (channel + 0.35, y)])
    return lines


def explorer() -> Explorer:
    """The widget: gamma / sigma of one channel, bits, one scale or one for each channel."""
    picture = GammaOverSigma()
    controls = [
        Slider("ratio", 0.1, 40.0, 1.0, 0.1, "gamma / sigma"),
        Slider("bits", 3, 8, 5),
        Choice("scales", (SHARED, OWN), SHARED),
    ]
    return Explorer(picture.fig, controls, picture.frame, "One loud channel among twelve")
