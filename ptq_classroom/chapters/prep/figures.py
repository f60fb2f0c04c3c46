"""Figures of the prep self-test: one small picture for an idea, each drawn from real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ptq_classroom.kit.pieces import histogram
from ptq_classroom.kit.show import COLORS, GREY, LINES, describe_histogram, figure, ink

Shown = tuple[Figure, str]


def dial(bits: int = 4) -> Shown:
    """The integers of a two's-complement number around a clock, and the step that wraps."""
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    angle = np.pi / 2 - 2 * np.pi * codes / len(codes)
    x, y = np.cos(angle), np.sin(angle)
    fig, ax = figure(3.3, 3.3)
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1)
    ax.plot(x, y, "o", color=COLORS[0], markersize=6)
    for code, a, b in zip(codes, x, y, strict=True):
        end = code in (codes[0], codes[-1])
        style = {"color": COLORS[2], "fontweight": "bold"} if end else {"color": "black"}
        ax.text(1.2 * a, 1.2 * b, str(code), ha="center", va="center", fontsize=10, **style)
    ax.annotate(
        "", (0.82 * x[0], 0.82 * y[0]), xytext=(0.82 * x[-1], 0.82 * y[-1]),
        arrowprops={"arrowstyle": "->", "color": COLORS[2], "connectionstyle": "arc3,rad=-0.2"},
    )  # fmt: skip
    ax.text(0, -0.48, f"{codes[-1]} + 1 = {codes[0]}", ha="center", color=ink(COLORS[2]))
    ax.text(
        0, 0.12, f"{bits} bits\n{len(codes)} integers", ha="center", va="center", color=ink(GREY)
    )
    ax.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    ax.axis("off")
    return fig, (
        f"A dial with the {len(codes)} integers of {bits} bits, {codes[0]} to {codes[-1]}. "
        f"One step beyond {codes[-1]} stands {codes[0]}."
    )


def tails(values: Any, label: str = "value") -> Shown:
    """The same histogram with a linear and with a logarithmic count."""
    fig, axes = figure(7.2, 2.6, 1, 2)
    for ax, log, title in zip(axes, (False, True), ("linear", "logarithmic"), strict=True):
        counts, edges = histogram(ax, values, bins=60, label=label, log=log)
        ax.set_title(f"{title} count")
    filled = np.flatnonzero(counts)
    beyond = filled[int(np.diff(filled).argmax()) + 1] if len(filled) > 1 else len(counts)
    alone = int(counts[beyond:].sum())
    return fig, (
        describe_histogram(counts, edges, label)
        + f" Drawn twice; only the logarithmic count shows the {alone} beyond the widest gap."
    )


def noisy_waves(levels: Sequence[float] = (10, 20, 40), seed: int = 0) -> Shown:
    """A sine wave with noise of several signal-to-noise ratios (dB)."""
    t = np.linspace(0, 1, 240)
    wave = np.sin(4 * np.pi * t)
    noise = np.random.default_rng(seed).standard_normal(len(t))
    noise *= np.sqrt((wave**2).sum() / (noise**2).sum())
    fig, axes = figure(7.2, 2.1, 1, len(levels), sharey=True)
    errors = []
    for ax, level in zip(axes, levels, strict=True):
        error = noise * 10 ** (-level / 20)
        ax.plot(t, wave + error, color=COLORS[0], linewidth=1)
        ax.plot(t, wave, color="black", linestyle=LINES[3], linewidth=1)
        ax.set(title=f"{level:g} dB", xlabel="time (s)")
        errors.append(np.sqrt((error**2).mean() / (wave**2).mean()))
    axes[0].set_ylabel("signal")
    fig.supxlabel("dotted: the wave itself; blue: with noise", fontsize=9)
    listed = ", ".join(f"{level:g} dB" for level in levels)
    share = ", ".join(f"{100 * e:.2g} %" for e in errors)
    return (
        fig,
        f"A sine wave with noise at {listed}: the noise's amplitude is {share} of the wave's.",
    )


def kernel_places(size: int = 8, kernel: int = 3, stride: int = 2, padding: int = 1) -> Shown:
    """Every place where a kernel stands on a padded row of `size` values."""
    total = size + 2 * padding
    starts = list(range(0, total - kernel + 1, stride))
    fig, ax = figure(6.4, 0.75 + 0.42 * len(starts))
    for i in range(total):
        padded = i < padding or i >= size + padding
        face = "white" if padded else COLORS[0]
        ax.add_patch(Rectangle((i, 0), 0.94, 0.8, facecolor=face, edgecolor=GREY, linestyle=":"))
        text = "0" if padded else str(i - padding)
        ax.text(i + 0.47, 0.4, text, ha="center", va="center",
                color=ink(GREY) if padded else "black", fontsize=10)  # fmt: skip
    for row, start in enumerate(starts):
        y = -0.55 * (row + 1)
        ax.add_patch(Rectangle((start, y), kernel - 0.06, 0.4, color=COLORS[1], alpha=0.85))
        ax.text(start + kernel / 2, y + 0.2, f"output {row}", ha="center", va="center", fontsize=9)
    ax.set(xlim=(-0.1, total + 0.1), ylim=(-0.55 * len(starts) - 0.15, 0.95))
    ax.axis("off")
    return fig, (
        f"A row of {size} values with {padding} zero at each end. A kernel of {kernel} moves by "
        f"{stride} and stands in {len(starts)} places, so the output has {len(starts)} values."
    )
