"""Pieces that several chapters draw: number line, histogram with its range, sweep, bars, images.

Each draws into a given Axes and returns the arrays it plotted, so that tests can look at them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.show import COLORS, GREY, figure, ink

BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # of labels


def histogram(
    ax: Any,
    values: Any = None,
    *,
    counts: Any = None,
    edges: Any = None,
    bins: int = 100,
    low: float | None = None,
    high: float | None = None,
    label: str = "value",
    log: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Histogram of `values` (or of given counts and edges) with a band over the range kept."""
    if counts is None:
        counts, edges = np.histogram(np.asarray(values, dtype=np.float64).ravel(), bins=bins)
    counts, edges = np.asarray(counts), np.asarray(edges, dtype=np.float64)
    ax.stairs(counts, edges, fill=True, color=COLORS[0], alpha=0.8)
    if low is not None and high is not None:
        range_band(ax, low, high)
    ax.set(xlabel=label, ylabel="count", yscale="log" if log else "linear")
    return counts, edges


def range_band(ax: Any, low: float, high: float, text: str = "kept range") -> Any:
    """Shade [low, high]; what lies outside is clipped."""
    band = ax.axvspan(low, high, color=COLORS[1], alpha=0.18, zorder=0, linewidth=0)
    for edge in (low, high):
        ax.axvline(edge, color=COLORS[6], linestyle="--", linewidth=1.2)
    ax.text(
        high,
        0.97,
        f" {text}",
        transform=ax.get_xaxis_transform(),
        va="top",
        fontsize=9,
        color=ink(COLORS[6]),
    )
    return band


def number_line(
    ax: Any, levels: Any, values: Any = (), *, unit: str = "", name: str = "representable values"
) -> tuple[np.ndarray, np.ndarray]:
    """The values that a grid can represent as ticks, and `values` moved to their nearest level.

    Returns (values, the level each one goes to).
    """
    levels = np.sort(np.asarray(levels, dtype=np.float64).ravel())
    values = np.asarray(values, dtype=np.float64).ravel()
    ax.vlines(levels, -0.25, 0.25, color=COLORS[0], linewidth=1.2 if levels.size < 80 else 0.5)
    ax.axhline(0, color=GREY, linewidth=0.8)
    nearest = (
        levels[np.abs(values[:, None] - levels[None]).argmin(axis=1)] if values.size else values
    )
    for value, level in zip(values, nearest, strict=True):
        ax.annotate(
            "",
            xy=(level, 0.25),
            xytext=(value, 0.75),
            arrowprops={"arrowstyle": "->", "color": COLORS[2]},
        )
    ax.plot(values, np.full(values.shape, 0.75), "o", color=COLORS[2], markersize=5)
    ax.set(ylim=(-0.6, 1.1), yticks=[], xlabel=f"{name}{f' ({unit})' if unit else ''}")
    ax.spines["left"].set_visible(False)
    return values, nearest


def sweep_curve(
    ax: Any,
    x: Any,
    y: Any,
    *,
    x_label: str,
    y_label: str,
    best: int | None = None,
    text: str = "best",
    style: dict | None = None,
    name: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """A curve with its optimum (index `best`) marked, and `name` written at its right end."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    (line,) = ax.plot(x, y, **(style or {"color": COLORS[0]}))
    if best is not None:
        ax.plot(x[best], y[best], "o", color=line.get_color(), markersize=7, zorder=6)
        ax.annotate(
            f"{text}: {x[best]:.3g}",
            (x[best], y[best]),
            xytext=(6, 10),
            textcoords="offset points",
            fontsize=9,
            bbox=BEHIND,
        )
    if name:
        end = np.flatnonzero(np.isfinite(y))[-1]
        ax.annotate(
            name,
            (x[end], y[end]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=ink(line.get_color()),
        )
    ax.set(xlabel=x_label, ylabel=y_label)
    return x, y


def accuracy_bars(
    ax: Any,
    labels: list[str],
    accuracy: Any,
    low: Any = None,
    high: Any = None,
    *,
    reference: float | None = None,
    unit: str = "top-1 accuracy (%)",
) -> np.ndarray:
    """Horizontal bars with values written at them; low/high are the ends of 95 % intervals.

    For a comparison on the same images, give differences and their paired intervals.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    place = np.arange(len(labels))
    error = None
    if low is not None and high is not None:
        error = np.stack([values - np.asarray(low), np.asarray(high) - values])
    ax.barh(
        place,
        values,
        color=COLORS[0],
        xerr=error,
        capsize=3,
        height=0.6,
        error_kw={"ecolor": "black", "elinewidth": 1},
    )
    ends = values if error is None else values + error[1]
    for i, (value, end) in enumerate(zip(values, ends, strict=True)):
        ax.annotate(
            f"{value:.1f}",
            (max(end, 0.0), i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox=BEHIND,
        )
    if reference is not None:
        ax.axvline(reference, color=GREY, linestyle="--", linewidth=1.2)
        ax.text(
            reference,
            1.0,
            f"FP32 {reference:.1f}",
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
            color=ink(GREY),
        )
    ax.set_yticks(place, labels)
    ax.invert_yaxis()
    ax.margins(x=0.08)
    ax.set(xlabel=unit)
    return values


def image_grid(
    images: Any, labels: list[str] | None = None, columns: int = 8, inches: float = 0.9
) -> Figure:
    """A figure of small images, uint8 [N, 3, H, W] or [N, H, W, 3], with labels underneath."""
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    rows = -(-len(images) // columns)
    extra = 0.25 if labels else 0.0
    fig, axes = figure(columns * inches, rows * (inches + extra), rows, columns, squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(images[i])
            if labels:
                ax.set_title(labels[i], fontsize=8, loc="center", y=-0.28)
    return fig


def small_multiples(
    draw: Any,
    settings: list[dict],
    columns: int = 3,
    width: float = 2.6,
    height: float = 2.0,
    **options: Any,
) -> tuple[Figure, list[Any]]:
    """One figure with `draw(ax, **setting)` in each panel, and what each draw returned."""
    rows = -(-len(settings) // columns)
    fig, axes = figure(columns * width, rows * height, rows, columns, squeeze=False, **options)
    for ax in axes.flat[len(settings) :]:
        ax.axis("off")
    return fig, [draw(ax, **s) for ax, s in zip(axes.flat, settings, strict=False)]
