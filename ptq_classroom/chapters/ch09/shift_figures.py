"""Figures of chapter 09, second part: other calibration pictures, and shifted live data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ptq_classroom.kit.names import rule_name
from ptq_classroom.kit.show import COLORS, GREY, figure, ink

LOSS = LinearSegmentedColormap.from_list("loss", ["#ffffff", COLORS[1], COLORS[2]])
WORST = 30.0  # points lost at which the colour is darkest


def losses(
    rows: Sequence[str], columns: Mapping[str, Sequence[str]], lost: ArrayLike
) -> tuple[Figure, str]:
    """A table of points lost against FP32: one row a calibration set.

    columns: {group: names}, in the order of the columns of lost [rows, columns].
    """
    lost = np.asarray(lost, dtype=float)
    names = [name for group in columns.values() for name in group]
    fig, ax = figure(7.4, 0.9 + 0.27 * len(rows))
    ax.imshow(np.clip(lost, 0, WORST), cmap=LOSS, vmin=0, vmax=WORST, aspect="auto")
    for y, x in np.ndindex(lost.shape):
        dark = lost[y, x] > 0.7 * WORST
        ax.text(
            x, y, f"{lost[y, x]:.1f}", ha="center", va="center", fontsize=8.5,
            color="white" if dark else "black",
        )  # fmt: skip
    at = -0.5
    for group, inside in columns.items():
        ax.text(at + len(inside) / 2, -1.25, group, ha="center", va="bottom", fontsize=9.5,
                fontweight="bold")  # fmt: skip
        at += len(inside)
        if at < lost.shape[1] - 1:
            ax.axvline(at, color="white", linewidth=4)
    ax.set_xticks(range(len(names)), names, fontsize=8.5)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.set_xlabel("points of top-1 accuracy lost against FP32", fontsize=9)
    ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    flat = [(g, n) for g, inside in columns.items() for n in inside]
    highest = lost.max(axis=1)
    order = np.argsort(-highest, kind="stable")
    worst, at = np.unravel_index(int(lost.argmax()), lost.shape)
    told = ", ".join(f"{rows[i]} {highest[i]:.1f}" for i in order)
    return fig, (
        f"Most is lost with {rows[worst]}, {' '.join(flat[at])}: {lost[worst, at]:.1f} points of "
        f"accuracy against FP32. A table; {int((lost > 1).sum())} of {lost.size} numbers are above "
        f"1. The largest in each row: {told}."
    )


def noticed(
    shifts: Sequence[str],
    clipped: Mapping[str, ArrayLike],
    lost: Mapping[str, Mapping[str, tuple[float, float, float]]],
) -> tuple[Figure, str]:
    """What a monitor sees (percent of the values clipped) beside what it costs (points lost).

    clipped: {rule: [shifts]}. lost: {rule: {shift: (loss, low, high)}}, shares of 1, the same rules
    in the same order; the interval is drawn as a line.
    """
    costs = {rule: 100 * np.array([row[shift] for shift in shifts]) for rule, row in lost.items()}
    fig, (left, right) = figure(7.4, 0.9 + 0.42 * len(shifts), 1, 2, sharey=True)
    place = np.arange(len(shifts))
    height = 0.8 / len(clipped)
    tints, hatches = (COLORS[2], COLORS[0]), (None, "////")
    for number, rule in enumerate(clipped):
        at = place + (number - (len(clipped) - 1) / 2) * height
        loss, low, high = costs[rule].T
        right.hlines(at, low, high, color="black", linewidth=1.1, zorder=4)
        for ax, values, reach in ((left, clipped[rule], 0), (right, loss, high)):
            values = np.asarray(values, dtype=float)
            reach = np.maximum(np.maximum(values, reach), 0)
            ax.barh(at, values, height * 0.9, color=tints[number], alpha=(0.95, 0.6)[number],
                    hatch=hatches[number], edgecolor="white", linewidth=0)  # fmt: skip
            for y, value, edge in zip(at, values, reach, strict=True):
                digits = f"{value:.2f}" if ax is left else f"{value:+.1f}"
                ax.annotate(
                    digits, (edge, y), xytext=(4, 0), textcoords="offset points",
                    va="center", fontsize=8,
                )  # fmt: skip
        right.text(
            0.98, 0.10 - 0.09 * number, f"{rule_name(rule)}{(' (plain)', ' (hatched)')[number]}",
            transform=right.transAxes, ha="right",
            va="bottom", color=ink(tints[number]), fontsize=9,
        )  # fmt: skip
    left.set_yticks(place, shifts)
    left.invert_yaxis()
    left.set(xlabel="input values clipped (%)", title="what the monitor sees")
    right.set(xlabel="points lost against FP32 (line: 95 % interval)", title="what it costs")
    right.axvline(0, color=GREY, linewidth=0.8)
    for ax in (left, right):
        ax.margins(x=0.2)
    said = {
        (rule, i): f"{shifts[i]} with {rule_name(rule)}: "
        f"{np.asarray(clipped[rule])[i]:.2f} percent clipped and "
        "{:.1f} points lost (from {:.1f} to {:.1f})".format(*costs[rule][i])
        for rule in clipped
        for i in range(len(shifts))
    }
    dearest = max(said, key=lambda key: costs[key[0]][key[1], 0])
    loudest = max(said, key=lambda key: np.asarray(clipped[key[0]])[key[1]])
    count = sum(bool(costs[rule][i, 1] > 0) for rule, i in said)
    return fig, (
        f"Most is lost on {said[dearest]}. Most is clipped on {said[loudest]}. Bars for "
        f"{len(shifts)} kinds of live pictures and {len(clipped)} rules; {count} of {len(said)} "
        f"intervals of the loss lie above 0."
    )
