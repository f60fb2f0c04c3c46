"""Widget of chapter 12: alpha, and where the difficulty goes."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import color, figure
from ptq_classroom.text.phrases import load_phrases, tokens
from ptq_classroom.text.weights import load_encoder
from ptq_course.grids.affine import IntGrid, block_minmax, choose_qparams, fake_quantize
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.smoothquant import smoothing_factors

LAYERS = {"feed-forward, first": "layers.0.up", "feed-forward, second": "layers.0.down"}
GRID, WEIGHTS = IntGrid(8, signed=False), IntGrid(8, narrow=True)


@cache
def layer(title: str) -> tuple[Tensor, Tensor, Tensor]:
    """What one layer reads for some sentences, [tokens, in], its weight, [out, in], and output."""
    encoder, seen = load_encoder(), []
    part = encoder.get_submodule(LAYERS[title])
    part.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach().flatten(0, -2)))
    with torch.no_grad():
        encoder(tokens(load_phrases("calibration").first[:16])[0])
    weight = part.get_parameter("weight").detach()
    return seen[0], weight, seen[0] @ weight.T


@cache
def sides(title: str, alpha: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Largest magnitude of each channel of x / s and of w * s, over its median; the output's dB."""
    x, w, output = layer(title)
    factors = smoothing_factors(x.abs().amax(0), w.abs().amax(0), alpha)
    small, large = x / factors, w * factors
    left, right = ((v.abs().amax(0) / v.abs().amax(0).median()).numpy() for v in (small, large))
    rounded = fake_quantize(small, choose_qparams(*block_minmax(small), GRID))
    rows = choose_qparams(*block_minmax(large, (1, -1)), WEIGHTS, True, (1, -1))
    return left, right, snr_pooled(output, rounded @ fake_quantize(large, rows).T)


class Smoothing:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, axes = figure(7.6, 3.2, 1, 2, sharey=True)
        self.lines = []
        for i, (ax, title) in enumerate(zip(axes, ("activation / s", "weights * s"), strict=True)):
            self.lines.append(ax.plot([1], [1], **color(2 * i))[0])
            ax.set(xscale="log", yscale="log", title=title, ylim=(0.02, 100))
            ax.set_xlabel("channels, loudest first")
        axes[0].set_ylabel("largest magnitude,\nover the median channel's")

    def frame(self, layer: str, alpha: float) -> tuple[str, str]:
        """Show both sides of this layer with this exponent."""
        alpha = round(alpha, 2)
        activation, weights, decibels = sides(layer, alpha)
        for line, values in zip(self.lines, (activation, weights), strict=True):
            line.set_data(np.arange(1, len(values) + 1), np.sort(values)[::-1])
        for ax in self.fig.axes:
            ax.set_xlim(0.9, 1.1 * len(activation))
        readout = (
            f"alpha {alpha:g}: loudest channel {activation.max():.1f} times the median in the "
            f"activation, {weights.max():.1f} times in the weights; output {decibels:.1f} dB"
        )
        return readout, f"{layer}, {readout}."


def explorer() -> Explorer:
    """The widget: layer and alpha."""
    controls = [
        Choice("layer", tuple(LAYERS), next(iter(LAYERS)), label="layer of block 0"),
        Slider("alpha", 0.0, 1.0, 0.0, 0.05),
    ]
    picture = Smoothing()
    for title, step in itertools.product(LAYERS, range(21)):
        sides(title, round(step / 20, 2))
    return Explorer(picture.fig, controls, picture.frame, "Where the difficulty goes")
