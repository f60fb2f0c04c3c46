"""Figures of chapter 08: codes of one patch, agreement layer by layer, bits of accumulators."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink, text_number
from ptq_course.integer.accumulators import AccumulatorTable
from ptq_course.integer.agreement import Agreement

CHANNELS = ("red", "green", "blue")
LOWEST_SHARE = 1e-7  # of codes: what "none" is drawn at on a logarithmic axis


def patch(xq: Tensor, wq: Tensor, zx: int) -> tuple[Figure, str]:
    """Codes [C, 3, 3] of a patch, its differences from zx, the weight codes, their products."""
    x, w = xq.int().numpy(), wq.int().numpy()
    rows = {
        "input codes": x,
        f"less zero point {zx}": x - zx,
        "weight codes": w,
        "products": (x - zx) * w,
    }
    fig, axes = figure(7.0, 5.4, len(rows), len(x), squeeze=False)
    for line, (name, values) in zip(axes, rows.items(), strict=True):
        limit = max(np.abs(values).max(), 1)
        for channel, ax in enumerate(line):
            ax.imshow(values[channel], cmap="PuOr", vmin=-2 * limit, vmax=2 * limit, aspect="auto")
            for (i, j), value in np.ndenumerate(values[channel]):
                ax.text(j, i, str(value), ha="center", va="center", fontsize=9)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9)
    for ax, name in zip(axes[0], CHANNELS, strict=False):
        ax.set_title(name, fontsize=10)
    total = int(rows["products"].sum())
    return fig, (
        f"{x.size} products of codes add up to {total}. A table of the patch's codes in "
        f"{x.shape[0]} channels, from {x.min()} to {x.max()}, their differences from the zero "
        f"point {zx}, the weight codes from {w.min()} to {w.max()}, and the products."
    )


def disagreement(table: Agreement) -> tuple[Figure, str]:
    """Share of codes that differ from the simulation, each operation alone and the whole network.

    Shares of 0 are drawn at LOWEST_SHARE, where the axis says "none".
    """
    names = list(table.isolated)
    alone, whole = (
        np.array([1 - rows[n].equal / rows[n].codes for n in names])
        for rows in (table.isolated, table.cumulative)
    )
    fig, ax = figure(6.6, 0.22 * len(names) + 1.2)
    place = np.arange(len(names))
    for number, (values, label) in enumerate(((alone, "each alone"), (whole, "whole network"))):
        style = color(number)
        ax.plot(np.maximum(values, LOWEST_SHARE), place, "os"[number], markersize=5, **style)
        last = len(names) - 1
        ax.annotate(
            label, (max(values[last], LOWEST_SHARE), last), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9, color=ink(COLORS[number]),
            bbox=BEHIND,
        )  # fmt: skip
    ax.set_yticks(place, names, fontsize=8)
    ax.invert_yaxis()
    largest = max(alone.max(), whole.max())
    ax.set(xscale="log", xlim=(LOWEST_SHARE * 0.7, max(1e-2, 1.5 * largest)), ylabel="operation")
    powers = [p for p in range(-6, 1) if 10.0**p <= ax.get_xlim()[1]]
    names_of_ticks = ["none", *(f"$10^{{{p}}}$" for p in powers)]
    ax.set_xticks([LOWEST_SHARE, *(10.0**p for p in powers)], names_of_ticks)
    ax.set_xticks([], minor=True)
    ax.axvline(LOWEST_SHARE, color=GREY, linestyle=":", linewidth=1)
    ax.set_xlabel("share of codes that differ from the simulation")
    worst = int(whole.argmax())
    n = text_number
    return fig, (
        f"Alone, each of {len(names)} operations differs from the simulation in at most "
        f"{n(100 * alone.max())} percent of its codes; in the whole network from "
        f"{n(100 * whole[0])} percent at {names[0]} to {n(100 * whole[-1])} percent at "
        f"{names[-1]}, most at {names[worst]} with {n(100 * whole[worst])} percent. Two lines "
        f"over the operations."
    )


def accumulator_bits(
    table: AccumulatorTable, guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Bits that each layer's accumulator needs; 16 and 32 bits are what hardware offers."""
    rows = [row for row in table.rows if row.kind in ("Linear", "Conv1d", "Conv2d")]
    bits = np.array([row.bits for row in rows])
    fig, ax = figure(6.6, 0.25 * len(rows) + 1.3)
    place = np.arange(len(rows))
    ax.barh(place, bits, color=COLORS[0], height=0.65)
    for i, row in enumerate(rows):
        ax.text(0.4, i, f"{row.terms} products", fontsize=8, va="center", color="black")
        ax.text(row.bits + 0.3, i, str(row.bits), fontsize=9, va="center")
    for width in (16, 32):
        ax.axvline(width, color=GREY, linestyle="--", linewidth=1.2)
        ax.text(width, 1.0, f"int{width}", transform=ax.get_xaxis_transform(), ha="center",
                va="bottom", fontsize=9, color=ink(GREY))  # fmt: skip
    ax.set_yticks(place, [row.name for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set(xlim=(0, 34), xlabel="bits that the accumulator needs", ylabel="layer")
    if guess is not None:
        guess.draw(ax, "x")
    widest = int(bits.argmax())
    return fig, (
        f"16 bits are too few for {int((bits > 16).sum())} of {len(bits)} layers, 32 are enough "
        f"for {int((bits <= 32).sum())}. Bars of the accumulator's bits by layer: from "
        f"{bits.min()} to {bits.max()}, the widest {rows[widest].name} with "
        f"{rows[widest].terms} products."
    )


def wrong_codes(roundings: dict[str, Any]) -> tuple[Figure, str]:
    """Histogram of code differences from exact rounding, one panel a rounding rule."""
    fig, axes = figure(7.0, 2.4, 1, len(roundings), sharey=True, squeeze=False)
    told = []
    for ax, (name, difference) in zip(axes[0], roundings.items(), strict=True):
        difference = np.asarray(difference).ravel()
        values, counts = np.unique(difference, return_counts=True)
        share = 100 * counts / len(difference)
        ax.bar(values, share, color=COLORS[0], width=0.6)
        for value, height in zip(values, share, strict=True):
            ax.text(value, height, f"{height:.4g} %", ha="center", va="bottom", fontsize=8)
        ax.set(xticks=[-1, 0, 1], xlim=(-1.6, 1.6), ylim=(0, 115), xlabel="steps off")
        ax.set_title(name, fontsize=10)
        wrong = 100 * float((difference != 0).mean())
        told.append(f"{name} {text_number(wrong)} percent")
    axes[0, 0].set_ylabel("share of codes (%)")
    return fig, "Codes that are not the nearest: " + ", ".join(told) + "."
