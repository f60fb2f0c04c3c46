"""Figures of chapter 14: a gradient that is let through, what a teacher says, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.chapters.ch14.recorded import band
from ptq_classroom.kit.pieces import accuracy_bars
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink

SHAPES = "os^D"


def through(x: Any, rounded: Any, gradient: Any) -> tuple[Figure, str]:
    """Rounding as a staircase, and the gradient that the estimator takes in its place."""
    fig, axes = figure(7.4, 3.4, 2, 1, sharex=True, height_ratios=(2, 1))
    x, rounded, gradient = (np.asarray(v, dtype=float) for v in (x, rounded, gradient))
    axes[0].plot(x, rounded, label="rounded and clipped", **color(0))
    axes[0].plot(x, x, color=GREY, linewidth=1, linestyle=":", label="x")
    axes[0].set(ylabel="value", ylim=(rounded.min() - 0.4, rounded.max() + 0.6))
    axes[0].legend(fontsize=9, loc="upper left")
    axes[1].plot(x, gradient, **color(2))
    axes[1].set(xlabel="x", ylabel="gradient", yticks=(0, 1), ylim=(-0.15, 1.25))
    inside = x[gradient > 0]
    return fig, (
        f"The gradient is 1 from {inside.min():.2g} to {inside.max():.2g} and 0 outside, while the "
        f"rounded value is a staircase of {len(np.unique(rounded))} steps."
    )


def answers(classes: Sequence[str], shares: Mapping[str, Any], label: str) -> tuple[Figure, str]:
    """What a label says of one picture, and what the teacher says, at several temperatures."""
    fig, axes = figure(8.2, 3.0, 1, len(shares), sharey=True, squeeze=False)
    places = np.arange(len(classes))
    told = []
    for ax, (title, values) in zip(axes[0], shares.items(), strict=True):
        values = 100 * np.asarray(values, dtype=float)
        bars = ax.barh(places, values, color=COLORS[0], height=0.7)
        ax.bar_label(bars, [f"{v:.0f}" for v in values], fontsize=9, padding=2)
        ax.set(title=title, xlim=(0, 118), xlabel="percent")
        told.append(
            f"{title} {', '.join(f'{c} {v:.0f}' for c, v in zip(classes, values, strict=True))}"
        )
    axes[0, 0].set_yticks(places, classes)
    axes[0, 0].invert_yaxis()
    tops = [100 * np.asarray(values, dtype=float).max() for values in shares.values()]
    lead = f"The largest share of {label} falls from {tops[0]:.0f} to {tops[-1]:.0f} %"
    return fig, f"{lead}, so that the small ones can be seen. In percent: {'; '.join(told)}."


def learning(
    steps: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    bands: Mapping[str, Sequence[tuple[float, float]]],
    start: float,
    fp32: float,
) -> tuple[Figure, str]:
    """Accuracy over steps: the curves just measured, and (low, high) of one more draw for each."""
    fig, ax = figure(7.6, 3.6)
    told = []
    at = [0, *steps]
    for i, (name, values) in enumerate(curves.items()):
        ax.plot(at, [start, *values], marker=SHAPES[i], markersize=5, label=name, **color(2 * i))
        if name in bands:
            low, high = np.asarray(bands[name], dtype=float).T
            ax.fill_between(steps, low, high, color=COLORS[2 * i], alpha=0.2, linewidth=0)
        told.append(f"{name} {values[-1]:.1f}")
    ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(at[-1], fp32 - 0.3, "FP32", ha="right", va="top", fontsize=9, color=ink(GREY))
    ax.set(xlabel="steps of training, 64 pictures each", ylabel="top-1 accuracy (%)")
    ax.legend(fontsize=9, loc="lower right")
    return fig, (
        f"Training lifts 2 bits from {start:.1f} % to {', '.join(told)} after {at[-1]} steps; FP32 "
        f"{fp32:.1f} %. Shaded: where one more draw lies in 95 of 100 cases."
    )


def over_seconds(
    spent: Mapping[str, tuple[float, Sequence[float]]], live: Mapping[str, float], fp32: float
) -> tuple[Figure, str]:
    """Accuracy over time: the recorded draws, the band of one more, and what was just measured.

    spent: effort -> (mean seconds, accuracy of each draw in percent), the least effort first.
    """
    fig, ax = figure(7.6, 4.2)
    told = []
    for i, (name, (seconds, values)) in enumerate(spent.items()):
        low, high = band(values)
        ax.plot([seconds, seconds], [low, high], color=GREY, linewidth=7, alpha=0.35, zorder=1)
        ax.plot([seconds] * len(values), values, SHAPES[i % 4], color=COLORS[i], markersize=6)
        if name in live:
            ax.plot([seconds], [live[name]], "D", color="black", markersize=11, fillstyle="none")
        above = name in live
        ax.annotate(
            name, (seconds, high if above else low), (0, 8 if above else -16), fontsize=9,
            textcoords="offset points", ha="center", color=ink(COLORS[i]),
        )  # fmt: skip
        told.append(f"{name} {np.mean(values):.1f} % after {seconds:.0f} s")
    ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(0.01, fp32 - 0.2, "FP32", transform=ax.get_yaxis_transform(), fontsize=9, va="top",
            color=ink(GREY))  # fmt: skip
    ax.plot([], [], "D", color="black", fillstyle="none", markersize=9, label="the run above")
    ax.plot([], [], color=GREY, alpha=0.35, linewidth=7, label="95 % band of one more draw")
    ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 0.62))
    last = max(seconds for seconds, _ in spent.values())
    ax.set(xlabel="seconds of one core", ylabel="top-1 accuracy (%)", xlim=(0, 1.15 * last))
    return fig, (
        f"Training brings more than rounding, and takes longer; FP32 {fp32:.1f} %. Means of the "
        f"draws: {'; '.join(told)}."
    )


def accuracies(
    rows: Mapping[str, tuple[float, float, float]], fp32: float, guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Accuracy (a share) with its 95 % interval for each effort; FP32 as a line."""
    fig, ax = figure(7.6, 0.9 + 0.42 * len(rows))
    middle, low, high = (100 * np.array(column) for column in zip(*rows.values(), strict=True))
    accuracy_bars(ax, list(rows), middle, low, high)
    ax.axvline(100 * fp32, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    ax.set(xlim=(0, 108), xlabel=f"top-1 accuracy (%), dashed: FP32 {100 * fp32:.1f} %")
    if guess is not None:
        guess.draw(ax, "x")
    told = ", ".join(f"{name} {value:.1f} %" for name, value in zip(rows, middle, strict=True))
    first, *_, last = rows
    return fig, (
        f"The least effort, {first}, keeps {middle[0]:.1f} %, the most, {last}, "
        f"{middle[-1]:.1f} %; FP32 {100 * fp32:.1f} %. All: {told}."
    )
