"""Figures of chapter 11: two sides of a channel, what ReLU6 cut off, means that moved, remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.pieces import accuracy_bars
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink

SIDES = ("made by", "read by")


def two_sides(pairs: Mapping[str, tuple[Any, Any]], names: tuple[str, str]) -> tuple[Figure, str]:
    """Ranges of each channel in the layer that makes it and in the one that reads it, log axis.

    pairs: title -> (largest |w| of each row of the first, of each column of the second), [c] each.
    Channels are sorted by the first range of the first panel.
    """
    fig, axes = figure(8.2, 3.4, 1, len(pairs), sharey=True, squeeze=False)
    order = np.argsort(np.asarray(next(iter(pairs.values()))[0], dtype=float))
    told = []
    for ax, (title, sides) in zip(axes[0], pairs.items(), strict=True):
        spreads = []
        for i, (values, side) in enumerate(zip(sides, SIDES, strict=True)):
            values = np.asarray(values, dtype=float)[order]
            shape = {"marker": "os"[i], "markersize": 4 - i, "linewidth": 0}
            ax.plot(np.arange(len(values)), values, color=COLORS[2 * i], **shape)
            spreads.append(f"{side} {names[i]} {values.max() / values.min():.1f}")
        ax.set(yscale="log", xticks=[], xlabel="channels, sorted by the first range", title=title)
        told.append(f"{title}: {', '.join(spreads)}")
    told.reverse()  # what was done comes first
    axes[0, 0].set_ylabel("largest |w| of the channel")
    handles = axes[0, 0].lines
    labels = [f"{side} {name}" for side, name in zip(SIDES, names, strict=True)]
    axes[0, -1].legend(handles, labels, fontsize=9)
    return fig, f"The loudest over the quietest of {len(order)} channels. " + "; ".join(told) + "."


def cut_off(shares: Mapping[str, float], limit: float = 6.0) -> tuple[Figure, str]:
    """Share of the values in front of each clip that lie above it (percent), in network order."""
    fig, ax = figure(7.4, 3.0)
    values = [100 * share for share in shares.values()]
    ax.bar(range(len(values)), values, color=COLORS[0], width=0.7)
    most = int(np.argmax(values))
    ax.annotate(
        f"{list(shares)[most]}\n{values[most]:.1f} %", (most, values[most]), xytext=(20, -2),
        textcoords="offset points", va="top", fontsize=9,
    )  # fmt: skip
    ax.set(xticks=[], xlabel="clips of the network, from input to output")
    ax.set_ylabel(f"values above {limit:g} (%)")
    told = f"{values[most]:.1f} % of the values at most ({list(shares)[most]}), "
    told += f"{np.median(values):.2f} % in the middle of {len(values)} clips"
    return fig, f"What lies above {limit:g} and is cut off: {told}. A bar for each clip."


def moved_means(shifts: Mapping[str, Any], layer: str) -> tuple[Figure, str]:
    """Mean error of each channel of a layer's output, for several versions of it.

    shifts: version -> mean error of each channel, in standard deviations of the channel.
    """
    fig, ax = figure(7.4, 3.2)
    order = np.argsort(np.asarray(next(iter(shifts.values())), dtype=float))
    told = []
    for i, (name, values) in enumerate(shifts.items()):
        values = np.asarray(values, dtype=float)[order]
        ax.plot(
            np.arange(len(values)),
            values,
            marker="os^"[i],
            markersize=4,
            label=name,
            **color(2 * i),
        )
        told.append(f"{name} at most {np.abs(values).max():.2f}")
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set(xticks=[], xlabel=f"channels of {layer}, sorted")
    ax.set_ylabel("mean error\n(standard deviations of the channel)")
    ax.legend(fontsize=9)
    told.reverse()  # what was done comes first
    moved = "; ".join(told)
    return fig, f"How far the means of {len(order)} channels of {layer} have moved: {moved}."


def accuracies(
    rows: Mapping[str, tuple[float, float, float]],
    fp32: float,
    guess: Prediction | None = None,
) -> tuple[Figure, str]:
    """Accuracy (a share) with its 95 % interval for each version, in percent; FP32 as a line."""
    fig, ax = figure(7.6, 0.9 + 0.42 * len(rows))
    middle, low, high = (100 * np.array(column) for column in zip(*rows.values(), strict=True))
    accuracy_bars(ax, list(rows), middle, low, high)
    ax.axvline(100 * fp32, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    ax.set(xlim=(0, 108), xlabel=f"top-1 accuracy (%), dashed: FP32 {100 * fp32:.1f} %")
    if guess is not None:
        guess.draw(ax, "x")
    told = ", ".join(f"{name} {value:.1f} %" for name, value in zip(rows, middle, strict=True))
    inside = [name for name, top in zip(rows, high, strict=True) if top >= 100 * fp32]
    return fig, (
        f"FP32 has {100 * fp32:.1f} %, inside the interval of: {'; '.join(inside) or 'none'}. "
        f"{told}."
    )


def over_data(
    lines: Mapping[str, Mapping[int, Sequence[float]]], fp32: float
) -> tuple[Figure, str]:
    """Accuracy (percent) over the number of pictures that a correction was measured on.

    lines: kind of pictures -> count -> accuracies of several draws; the mean is drawn, and a dot
    for each draw.
    """
    fig, ax = figure(7.4, 3.3)
    told = []
    for i, (name, by_count) in enumerate(lines.items()):
        counts = list(by_count)
        means = [float(np.mean(by_count[n])) for n in counts]
        ax.plot(counts, means, marker="os"[i % 2], markersize=4, label=name, **color(2 * i))
        for n in counts:
            ax.plot([n] * len(by_count[n]), by_count[n], ".", color=COLORS[2 * i], markersize=5)
        told.append(f"{name} {means[0]:.1f} % at {counts[0]}, {means[-1]:.1f} % at {counts[-1]}")
    ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(
        1, fp32, f"FP32 {fp32:.1f}", transform=ax.get_yaxis_transform(), fontsize=9,
        color=ink(GREY), ha="right", va="bottom",
    )  # fmt: skip
    ax.set(xscale="log", xlabel="pictures that the means were measured on", ylabel="accuracy (%)")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.legend(fontsize=9, loc="center right", title="line: mean, dots: draws", title_fontsize=9)
    ends = {name: float(np.mean(list(by_count.values())[-1])) for name, by_count in lines.items()}
    best = max(ends, key=lambda name: ends[name])
    return fig, f"{best} serve best; FP32 has {fp32:.1f} %. " + "; ".join(told) + "."
