"""Widget of chapter 07: how far the ranges of tokens lie apart, and what that costs one scale."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.controls import Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.show import COLORS, figure, ink, text_number
from ptq_course.grids.affine import IntGrid
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.dynamic_layers import DynamicQuantizer

TOKENS, LENGTH = 24, 64
BASE = torch.randn(TOKENS, LENGTH, generator=torch.Generator().manual_seed(7))
FLOOR = -3.0  # dB shown at least; a token that became all zeros keeps 0 dB


def tokens(spread: float) -> Tensor:
    """24 tokens of 64 values; the last one's range lies ``spread`` dB below the first one's."""
    loudness = torch.linspace(0.0, -spread, TOKENS).unsqueeze(1)
    return BASE * 10 ** (loudness / 20)


def decibels(x: Tensor, bits: int, granularity: str) -> tuple[np.ndarray, int]:
    """Signal-to-noise ratio of each token after rounding, and how many became all zeros."""
    quantizer = DynamicQuantizer(IntGrid(bits, narrow=True), True, granularity)
    rounded = quantizer(x)
    ratios = [sqnr_db(row, got) for row, got in zip(x, rounded, strict=True)]
    return np.array(ratios), int((rounded == 0).all(1).sum())


def first_silence(bits: int) -> float:
    """Smallest whole spread (dB) at which one scale for all makes some token all zeros."""
    spreads = range(100)
    return float(next(s for s in spreads if decibels(tokens(s), bits, "per_tensor")[1] > 0))


class TokenSpread:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, (top, bottom) = figure(6.4, 4.6, 2, 1, sharex=True)
        place = np.arange(1, TOKENS + 1)
        (self.reach,) = top.plot(place, np.ones(TOKENS), "o", color=COLORS[0], markersize=4)
        self.half = top.axhline(0.01, color=COLORS[2], linestyle="--", linewidth=1.4)
        self.label = top.text(
            1, 0.01, "half a step of the one scale: below it everything rounds to 0",
            color=ink(COLORS[2]), fontsize=8, va="top", bbox=BEHIND,
        )  # fmt: skip
        top.set(yscale="log", ylim=(1e-4, 30), ylabel="largest |x| of the token")
        (self.per_token,) = bottom.plot(place, np.zeros(TOKENS), "-o", color=COLORS[0], ms=3)
        (self.per_tensor,) = bottom.plot(place, np.zeros(TOKENS), "--x", color=COLORS[2], ms=4)
        bottom.set(ylim=(FLOOR, 48), ylabel="signal-to-noise ratio (dB)")
        bottom.set_xlabel("token (blue: a scale for each, red dashed: one scale for all)")

    def frame(self, spread: float, bits: int) -> tuple[str, str]:
        """Move everything to tokens that lie ``spread`` dB apart, rounded to ``bits``."""
        x = tokens(spread)
        reach = x.abs().amax(1).numpy()
        half = float(reach.max()) / (2 ** (bits - 1) - 1) / 2
        per_token, _ = decibels(x, bits, "per_token")
        per_tensor, silent = decibels(x, bits, "per_tensor")
        self.reach.set_ydata(reach)
        self.half.set_ydata([half, half])
        self.label.set_y(half * 0.8)
        self.per_token.set_ydata(per_token)
        self.per_tensor.set_ydata(np.maximum(per_tensor, FLOOR))
        readout = (
            f"last token: {per_token[-1]:.1f} dB with its own scale, {per_tensor[-1]:.1f} dB with "
            f"the one scale · {silent} of {TOKENS} tokens became all zeros"
        )
        n = text_number
        alt = (
            f"{TOKENS} tokens whose ranges lie {n(spread)} dB apart, {bits} bits. A scale for "
            f"each: {n(per_token.min())} to {n(per_token.max())} dB. One scale for all: "
            f"{n(per_tensor[0])} dB for the first, {n(per_tensor[-1])} dB for the last token; "
            f"{silent} became all zeros."
        )
        return readout, alt


def explorer() -> Explorer:
    """The widget: spread between the tokens' ranges, bits."""
    picture = TokenSpread()
    controls = [
        Slider("spread", 0.0, 80.0, 20.0, 1.0, "spread of the tokens' ranges (dB)"),
        Slider("bits", 3, 8, 8),
    ]
    return Explorer(picture.fig, controls, picture.frame, "One scale for all tokens, or one each")
