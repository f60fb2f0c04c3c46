"""Widget of chapter 05: the weights of one channel on the grid of its tensor, channel or group."""

from __future__ import annotations

from functools import cache

import numpy as np
from torch import Tensor, nn

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, figure, text_number
from ptq_classroom.pictures.models import load_model
from ptq_course.graph import trace
from ptq_course.graph.fusion import fuse
from ptq_course.grids.affine import IntGrid, QParams, fake_quantize
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.layers import weight_qparams

LAYER = "layer1.conv1"  # of the residual network: [32, 32, 3, 3]
GROUP = 8  # input channels that share a scale: 72 weights
GRANULARITIES: dict[str, str | int] = {
    "per tensor": "per_tensor",
    "per channel": "per_channel",
    f"groups of {GROUP} inputs": GROUP,
}
BITS = range(2, 9)


@cache
def layer() -> nn.Module:
    """The folded convolution."""
    return fuse(trace(load_model("resnet"))).get_submodule(LAYER)


def channel_weights(channel: int) -> Tensor:
    """Weights [32 / GROUP, GROUP * 9] of one channel, a row for each group."""
    w = layer().weight.detach()
    return w[channel].reshape(w.shape[1] // GROUP, -1)


@cache
def parameters(bits: int, granularity: str) -> tuple[QParams, np.ndarray]:
    """QParams of the layer, and the decibels of every channel."""
    q = weight_qparams(layer(), IntGrid(bits, narrow=True), GRANULARITIES[granularity])
    w = layer().weight.detach()
    rounded = fake_quantize(w, q)
    return q, np.array([sqnr_db(a, b) for a, b in zip(w, rounded, strict=True)])


class ChannelOnItsGrid:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        for bits in BITS:  # a frame only looks them up
            for name in GRANULARITIES:
                parameters(bits, name)
        ranges = layer().weight.detach().flatten(1).abs().amax(1)
        self.view = 1.05 * float(ranges.max())
        self.fig, (top, bottom) = figure(6.6, 4.4, 2, 1, height_ratios=[2, 1])
        self.rows = len(channel_weights(0))
        self.dots = [
            top.plot([], [], "|", color=COLORS[0], markersize=9, markeredgewidth=0.8)[0]
            for _ in range(self.rows)
        ]
        self.marks = top.vlines([0.0], 0, 0, color=COLORS[2], linewidth=0.8)
        top.set(xlim=(-self.view, self.view), ylim=(-0.6, self.rows - 0.2))
        top.set_yticks(range(self.rows), [f"group {i}" for i in range(self.rows)])
        top.set_title(
            "upper ticks, blue: the channel's weights; lower, red: what codes stand for", fontsize=9
        )
        top.set_xlabel(f"weight of {LAYER} (the picture is as wide as its loudest channel)")
        self.bars = bottom.barh(range(len(GRANULARITIES)), [0] * len(GRANULARITIES), height=0.6)
        bottom.set_yticks(range(len(GRANULARITIES)), list(GRANULARITIES))
        bottom.invert_yaxis()
        bottom.set(xlim=(0, 50), xlabel="SQNR of this channel's weights (dB)")

    def frame(self, channel: int, bits: int, granularity: str) -> tuple[str, str]:
        """Show this channel with the marks of this grid, and its error for every granularity."""
        weights = channel_weights(channel)
        q, _ = parameters(bits, granularity)
        scales = np.broadcast_to(_scales(q, channel), self.rows)
        for i, (line, row) in enumerate(zip(self.dots, weights, strict=True)):
            line.set_data(row.numpy(), np.full(row.numel(), i + 0.16))
        self.marks.set_segments(_marks(scales, q.grid.qmax, self.view))
        decibels = {name: parameters(bits, name)[1][channel] for name in GRANULARITIES}
        for bar, (name, value) in zip(self.bars, decibels.items(), strict=True):
            bar.set_width(max(value, 0.0))
            bar.set(facecolor=COLORS[2] if name == granularity else GREY, edgecolor="black")
            bar.set_linewidth(2.0 if name == granularity else 0.0)  # not by colour alone

        largest = float(weights.abs().max())
        used = round(largest / float(scales[0])) if granularity == "per tensor" else q.grid.qmax
        readout = (
            f"channel {channel} reaches ±{largest:.3g} and uses codes up to ±{used} of "
            f"±{q.grid.qmax} · " + ", ".join(f"{n} {v:.1f} dB" for n, v in decibels.items())
        )
        alt = (
            f"Channel {channel} of {LAYER} at {bits} bits, {granularity}: weights up to "
            f"{text_number(largest)}, codes up to {used} of {q.grid.qmax}. "
            + ", ".join(f"{n} {v:.1f} dB" for n, v in decibels.items())
            + "."
        )
        return readout, alt


def _scales(q: QParams, channel: int) -> np.ndarray:
    """The scale, or the scales of the groups, of one channel."""
    scale = q.scale.numpy()
    return scale.reshape(1) if scale.ndim == 0 else scale[channel].reshape(-1)


def _marks(scales: np.ndarray, qmax: int, view: float) -> list[list[tuple[float, float]]]:
    """A short vertical line for each code of each group, inside the view."""
    return [
        [(code * scale, row - 0.32), (code * scale, row - 0.02)]
        for row, scale in enumerate(scales)
        for code in range(-qmax, qmax + 1)
        if abs(code * scale) <= view
    ]


def explorer() -> Explorer:
    """The widget: channel, bits, granularity."""
    picture = ChannelOnItsGrid()
    channels = len(layer().weight)
    quiet = int(layer().weight.detach().flatten(1).abs().amax(1).argmin())
    controls = [
        Slider("channel", 0, channels - 1, quiet),
        Slider("bits", BITS[0], BITS[-1], 4),
        Choice("granularity", tuple(GRANULARITIES), "per tensor"),
    ]
    return Explorer(picture.fig, controls, picture.frame, "One channel, three granularities")
