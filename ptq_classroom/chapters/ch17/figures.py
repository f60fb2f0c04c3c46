"""Figures of chapter 17: the camera's pictures, and solutions over size."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.show import COLORS, GREY, figure, ink


def pairs(daylight: Any, dusk: Any, names: Sequence[str]) -> tuple[Figure, str]:
    """Pictures uint8 [n, 3, H, W] of the training set, and the same number of the new camera."""
    fig, axes = figure(1.3 * len(names), 2.9, 2, len(names), squeeze=False)
    for row, (title, pictures) in enumerate((("daylight", daylight), ("dusk", dusk))):
        for ax, picture, name in zip(axes[row], pictures, names, strict=True):
            ax.imshow(np.asarray(picture).transpose(1, 2, 0))
            ax.set_xticks([])
            ax.set_yticks([])
            if row:
                ax.set_xlabel(textwrap.fill(name, 13), fontsize=9)
        axes[row, 0].set_ylabel(title)
    means = [float(np.asarray(p).mean()) for p in (daylight, dusk)]
    told = f"mean byte {means[0]:.0f} by daylight, {means[1]:.0f} at dusk"
    return fig, f"The new camera's pictures are darker: {told}. Classes: {', '.join(names)}."


def over_size(
    solutions: Mapping[str, tuple[float, float]], budgets: Mapping[str, float], fp32: float,
    allowed: float,
) -> tuple[Figure, str]:  # fmt: skip
    """Accuracy (percent) over size (of FP32), with the budgets and the least accuracy allowed."""
    fig, ax = figure(8.2, 4.0)
    for budget in budgets.values():
        ax.axvline(budget, color=GREY, linestyle=":", linewidth=1.2)
    ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2)
    ax.axhspan(allowed, fp32, color=COLORS[0], alpha=0.12, linewidth=0)
    ax.text(0.105, fp32 + 0.2, f"FP32 {fp32:.1f} %", fontsize=9, color=ink(GREY), va="bottom")
    placed: dict[float, list[float]] = {}
    for name, (size, accuracy) in sorted(solutions.items(), key=lambda item: -item[1][1]):
        ax.plot([size], [accuracy], "o", color=COLORS[0], markersize=6)
        height, column = accuracy, placed.setdefault(round(size, 2), [])
        while any(abs(height - other) < 0.75 for other in column):
            height -= 0.1
        column.append(height)
        ax.annotate(
            f"{name}, {accuracy:.1f} %", (size, accuracy), xytext=(size + 0.022, height),
            fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": ink(GREY), "linewidth": 0.7},
        )  # fmt: skip
    for name, budget in budgets.items():
        ax.text(
            budget, 1.0, f"budget {name}", transform=ax.get_xaxis_transform(), fontsize=9,
            ha="center", va="bottom",
        )  # fmt: skip
    ax.set(xlim=(0.1, 0.4), xlabel="checkpoint, of FP32's weights", ylabel="top-1 accuracy (%)")
    told = "; ".join(f"{n} {a:.1f} % at {s:.2f}" for n, (s, a) in solutions.items())
    best = max(solutions, key=lambda n: solutions[n][1])
    return fig, f"{best} is the most accurate, FP32 has {fp32:.1f} %. Accuracy and size: {told}."
