"""Figures of chapter 06: rules over bits, an ablation with intervals, the error of each layer."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, text_number
from ptq_course.diagnosis.comparison import Comparison
from ptq_course.diagnosis.scores import Variants

OFFSET = 0.12  # of the rules beside each other, in bits


def rules_over_bits(
    tables: dict[str, dict[tuple[str, int], tuple[float, float, float]]],
) -> tuple[Figure, str]:
    """Change of accuracy against FP32 for each (rule, bits) of each network, in points.

    tables: network -> (rule, bits) -> (change, low, high) as shares, from a paired bootstrap.
    """
    fig, axes = figure(7.4, 3.3, 1, len(tables), sharey=True, squeeze=False)
    told = []
    for ax, (network, table) in zip(axes[0], tables.items(), strict=True):
        rules = list(dict.fromkeys(rule for rule, _ in table))
        for number, rule in enumerate(rules):
            bits = sorted((b for r, b in table if r == rule), reverse=True)
            values = 100 * np.array([table[rule, b] for b in bits])
            x = np.array(bits) + OFFSET * (number - (len(rules) - 1) / 2)
            error = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
            ax.errorbar(
                x, values[:, 0], yerr=error, marker="os^D"[number % 4], markersize=5, capsize=3,
                label=rule, **color(number),
            )  # fmt: skip
            listed = ", ".join(
                f"{text_number(v)} at {b} bits" for b, v in zip(bits, values[:, 0], strict=True)
            )
            told.append(f"{network}, {rule}: {listed}")
        ax.axhline(0, color=GREY, linestyle=":", linewidth=1.2)
        ax.set(xlabel="bits of weights and activations", xticks=bits)
        ax.invert_xaxis()
        ax.set_title(network, fontsize=10)
    axes[0, 0].set_ylabel("top-1 against FP32 (points)")
    axes[0, 0].legend(loc="lower left", fontsize=9)
    return fig, "Change of top-1 accuracy in points. " + "; ".join(told) + "."


def ablation(table: Variants, guess: Prediction | None = None) -> tuple[Figure, str]:
    """Change of each version against FP32 with its interval, one row a version."""
    rows = [row for row in table.rows if row.difference is not None]
    fig, ax = figure(6.8, 0.9 + 0.36 * len(rows))
    place = np.arange(len(rows))
    values = 100 * np.array([[r.difference, r.low, r.high] for r in rows])
    error = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
    ax.errorbar(
        values[:, 0], place, xerr=error, fmt="o", color=COLORS[0], ecolor="black", capsize=3
    )
    ax.axvline(0, color=GREY, linestyle=":", linewidth=1.3)
    for y, row in zip(place, values, strict=True):
        lost = row[0] <= 0  # on the side of the interval that lies away from the line of zero
        ax.annotate(
            f"{row[0]:+.1f}", (row[1] if lost else row[2], y), xytext=(-8 if lost else 8, 0),
            textcoords="offset points", ha="right" if lost else "left", va="center", fontsize=9,
            bbox=BEHIND,
        )  # fmt: skip
    ax.set_yticks(place, [row.name for row in rows])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel("top-1 against FP32 (points), 95 % interval, same pictures")
    if guess is not None:
        guess.draw(ax)
    told = "; ".join(
        f"{row.name} {text_number(v[0])} [{text_number(v[1])}, {text_number(v[2])}]"
        for row, v in zip(rows, values, strict=True)
    )
    return fig, f"Change of top-1 in points against FP32: {told}."


def layer_errors(comparisons: dict[str, Comparison]) -> tuple[Figure, str]:
    """Isolated (bars) and cumulative (line) signal-to-noise ratio, one panel a comparison."""
    first = next(iter(comparisons.values()))
    fig, axes = figure(
        7.6, 1.1 + 0.23 * len(first.layers), 1, len(comparisons), sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    told = []
    for ax, (name, comparison) in zip(axes[0], comparisons.items(), strict=True):
        rows = comparison.layers
        place = np.arange(len(rows))
        isolated = np.array([_number(row.isolated_db) for row in rows])
        piled = np.array([_number(row.cumulative_db) for row in rows])
        ax.barh(place, isolated, color=COLORS[0], alpha=0.75, height=0.65)
        ax.plot(piled, place, "o--", color=COLORS[2], markersize=4)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("dB, shorter is worse: isolated (bar),\ncumulative (dots)")
        worst = comparison.worst(1)[0]
        told.append(
            f"{name}: worst by itself {worst.name} with {text_number(worst.isolated_db)} dB, "
            f"at the end {text_number(piled[-1])} dB"
        )
    axes[0, 0].set_yticks(place, [row.name for row in first.layers], fontsize=8)
    axes[0, 0].invert_yaxis()
    return fig, "Signal-to-noise ratio of each layer. " + "; ".join(told) + "."


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value
