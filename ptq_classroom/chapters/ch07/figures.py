"""Figures of chapter 07: what one scale does to quiet rows, and what each scheme costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink, text_number

TENSOR, TOKEN = {"color": COLORS[2], "linestyle": "--"}, {"color": COLORS[0], "linestyle": "-"}


def rows_after(
    x: Tensor, loudness: Tensor, per_tensor: Tensor, per_token: Tensor
) -> tuple[Figure, str]:
    """Some rows of x, each on its own axis, and what two ways of quantizing made of them."""
    fig, axes = figure(7.6, 2.6, 1, len(x), squeeze=False)
    told = []
    for k, ax in enumerate(axes[0]):
        ax.plot(x[k], color=GREY, linewidth=4, alpha=0.35)
        ax.plot(per_tensor[k], linewidth=1.5, **TENSOR)
        ax.plot(per_token[k], linewidth=1.2, **TOKEN)
        levels = len(np.unique(per_tensor[k].numpy()))
        ax.set_title(f"{float(loudness[k]):.0f} dB", fontsize=10)
        ax.set_xlabel("sample")
        top = float(x[k].abs().max()) * 1.25
        ax.set_ylim(-top, top)
        told.append(
            f"{float(loudness[k]):.0f} dB: {levels} different values with one scale for all"
        )
    axes[0, 0].set_ylabel("value")
    fig.supxlabel(
        "grey: the frame   red dashed: one scale for all rows   blue: one scale for each row",
        fontsize=9,
    )
    return fig, "; ".join(told) + ". Curves of frames before and after 8 bits."


def decibels_by_row(loudness: Any, per_tensor: Any, per_token: Any) -> tuple[Figure, str]:
    """Signal-to-noise ratio of each row over its loudness, for both granularities."""
    loudness, per_tensor, per_token = (np.asarray(v) for v in (loudness, per_tensor, per_token))
    fig, ax = figure(6.6, 3.2)
    ax.plot(loudness, per_token, "o", color=COLORS[0], markersize=3)
    ax.plot(loudness, per_tensor, "x", color=COLORS[2], markersize=4)
    order = np.argsort(loudness)
    for values, name, place, shift, side, style in (
        (per_token, "one scale for each row", 0.16, (0, 10), "center", TOKEN),
        (per_tensor, "one scale for all rows", 0.6, (12, -12), "left", TENSOR),
    ):
        k = order[int(place * (len(order) - 1))]
        ax.annotate(
            name, (loudness[k], values[k]), xytext=shift, textcoords="offset points",
            fontsize=9, ha=side, bbox=BEHIND, color=ink(style["color"]),
        )  # fmt: skip
    ax.set(xlabel="loudness of the row (dB)", ylabel="signal-to-noise ratio (dB)")
    ax.set_ylim(min(-6.0, per_tensor.min() - 2), per_token.max() + 8)
    n = text_number
    quiet, loud = order[0], order[-1]
    return fig, (
        f"One scale for each row: {n(per_token.min())} to {n(per_token.max())} dB. One scale for "
        f"all: {n(per_tensor[loud])} dB for the loudest row, {n(per_tensor[quiet])} for the "
        f"quietest. Dots of the signal-to-noise ratio of {len(loudness)} rows over their loudness."
    )


def accuracy_by_loudness(
    edges: Sequence[float], series: Mapping[str, Sequence[float]]
) -> tuple[Figure, str]:
    """Accuracy (percent) in bands of loudness; one line for each scheme, named at its left end."""
    centers = [(a + b) / 2 for a, b in pairwise(edges)]
    fig, ax = figure(6.8, 3.4)
    ends = {name: values[0] for name, values in series.items()}
    places = _apart(ends, 6.5)
    for number, (name, values) in enumerate(series.items()):
        style = color(number)
        wide = {"linewidth": 5.5, "alpha": 0.5} if number == 0 else {}  # seen below the others
        ax.plot(centers, values, marker="o", markersize=4, **style, **wide)
        ax.annotate(
            name, (centers[0], values[0]), xytext=(centers[0] - 1.2, places[name]),
            fontsize=9, ha="right", va="center", color=ink(style["color"]),
        )  # fmt: skip
    ax.set(xlabel="loudness of the frame (dB)", ylabel="right answers (%)")
    ax.set_ylim(0, 118)
    ax.set_yticks(range(0, 101, 20))
    ax.set_xticks(list(edges))
    ax.set_xlim(edges[0] - 0.35 * (edges[-1] - edges[0]), edges[-1])  # room for the names
    ax.spines["bottom"].set_bounds(edges[0], edges[-1])
    told = "; ".join(
        f"{name} {values[0]:.0f} and {values[-1]:.0f}" for name, values in series.items()
    )
    order = sorted(ends, key=lambda name: ends[name])
    return fig, (
        f"On the quietest frames {order[0]} answers {ends[order[0]]:.0f} percent right, "
        f"{order[-1]} {ends[order[-1]]:.0f}. Lines of right answers over loudness, percent of the "
        f"quietest and of the loudest: {told}."
    )


def _apart(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """The values, moved as little as needed so that neighbours are ``gap`` apart."""
    placed, last = {}, -np.inf
    for name, value in sorted(values.items(), key=lambda pair: pair[1]):
        last = placed[name] = max(value, last + gap)
    return placed


def speed_by_rows(
    counts: Sequence[int],
    speed: Mapping[str, Sequence[float]],
    guesses: Mapping[int, Prediction] | None = None,
    what: str = "rows at a time",
) -> tuple[Figure, str]:
    """Speed relative to FP32 over the batch size, on logarithmic axes; guesses in the title."""
    fig, ax = figure(6.6, 3.2)
    lines = {name: list(values) for name, values in speed.items() if name != "FP32"}
    places = _apart({name: np.log2(values[-1]) for name, values in lines.items()}, 0.3)
    for number, (name, values) in enumerate(lines.items()):
        style = color(number)
        ax.plot(counts, values, marker="o", markersize=4, **style)
        ax.annotate(
            f" {name}", (counts[-1], values[-1]), xytext=(counts[-1] * 1.12, 2 ** places[name]),
            fontsize=9, va="center", color=ink(style["color"]),
        )  # fmt: skip
    ax.axhline(1.0, color=GREY, linestyle=":", linewidth=1.3)
    ax.text(1.0, 1.0, "FP32", transform=ax.get_yaxis_transform(), fontsize=9, color=ink(GREY),
            ha="right", va="bottom")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=what, ylabel="speed (FP32 = 1)")
    ticks = [t for t in (0.125, 0.25, 0.5, 1, 2, 4, 8) if _near(t, lines)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xticks(list(counts), [str(c) for c in counts])
    ax.minorticks_off()
    ax.set_xlim(counts[0] * 0.8, counts[-1] ** 1.35 * 2)
    said = [f"{g.guess} at {count}" for count, g in (guesses or {}).items() if g.guess is not None]
    if said:
        ax.set_title("you said: fastest " + ", ".join(said), fontsize=10)
    told = "; ".join(
        f"{name} ~{values[0]:.1f} at {counts[0]} and ~{values[-1]:.1f} at {counts[-1]}"
        for name, values in lines.items()
    )
    return fig, f"Speed over {what}, FP32 = 1. {told}."


def compare_fastest(guess: Prediction, speed: Mapping[str, float]) -> None:
    """Print a guess of the fastest scheme beside what was measured; within a tenth is a tie."""
    if guess.guess is not None:
        near = [s for s, v in speed.items() if v > 0.9 * max(speed.values())]
        guess.compare(guess.guess if guess.guess in near else near[0])


def _near(tick: float, lines: Mapping[str, Sequence[float]]) -> bool:
    values = [v for line in lines.values() for v in line] + [1.0]
    return min(values) / 2 < tick < max(values) * 2
