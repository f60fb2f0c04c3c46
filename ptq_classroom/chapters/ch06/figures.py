"""Figures of chapter 06: rules over bits, an ablation with intervals, the error of each layer."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.names import network_name, rule_name
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, figure, text_number
from ptq_course.diagnosis.comparison import Comparison
from ptq_course.diagnosis.scores import Variants


def rules_over_bits(
    tables: dict[str, dict[tuple[str, int], tuple[float, float, float]]],
) -> tuple[Figure, str]:
    """Change of accuracy against FP32 for each (rule, bits) of each network, in points.

    tables: network -> (rule, bits) -> (change, low, high) as shares, from a paired bootstrap.
    """
    first = next(iter(tables.values()))
    rules = list(dict.fromkeys(rule for rule, _ in first))
    widths = sorted({bits for _, bits in first}, reverse=True)
    fig, axes = figure(8.2, 0.6 + 0.42 * len(rules) * len(tables), len(tables), len(widths),
                       sharex="col", sharey=True, squeeze=False)  # fmt: skip
    place = np.arange(len(rules))
    told = {rule: [] for rule in rules}
    for row, (network, table) in zip(axes, tables.items(), strict=True):
        for ax, bits in zip(row, widths, strict=True):
            values = 100 * np.array([table[rule, bits] for rule in rules])
            error = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
            ax.errorbar(values[:, 0], place, xerr=error, fmt="o", color=COLORS[0], markersize=4,
                        ecolor="black", elinewidth=1, capsize=2)  # fmt: skip
            for y, value in enumerate(values[:, 0]):
                ax.annotate(f"{value:+.1f}", (value, y), xytext=(0, 5), ha="center", fontsize=8,
                            textcoords="offset points", bbox=BEHIND)  # fmt: skip
            ax.axvline(0, color=GREY, linestyle=":", linewidth=1.2)
            ax.margins(x=0.16)
            ax.set_title(f"{network_name(network)}, {bits} bits", fontsize=10)
        row[0].set_yticks(place, [rule_name(rule) for rule in rules])
        row[0].set_ylim(len(rules) - 0.5, -0.8)
        for rule in rules:
            listed = ", ".join(f"{100 * table[rule, bits][0]:.1f}" for bits in widths)
            told[rule].append(f"{network_name(network)} {listed}")
    fig.supxlabel("top-1 against FP32 (points), 95 % interval; an axis for each number of bits",
                  fontsize=9)  # fmt: skip
    fewest = widths[-1]
    best = {n: max(rules, key=lambda rule: t[rule, fewest][0]) for n, t in tables.items()}
    finding = ", ".join(
        f"{rule_name(rule)} on {network_name(n)} ({100 * tables[n][rule, fewest][0]:.1f})"
        for n, rule in best.items()
    )
    listed = "; ".join(f"{rule_name(rule)}: {', '.join(rows)}" for rule, rows in told.items())
    return fig, (
        f"At {fewest} bits the least is lost with {finding}. Change of top-1 in points, a panel "
        f"for each network and number of bits, {', '.join(map(str, widths))}. {listed}."
    )


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
    worst = rows[int(values[:, 0].argmin())]
    return fig, (
        f"Most is lost with {worst.name}, {text_number(values[:, 0].min())} points. "
        f"Change of top-1 in points against FP32, with intervals: {told}."
    )


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
        ax.set_title(rule_name(name), fontsize=10)
        ax.set_xlabel("dB, shorter is worse: isolated (bar),\ncumulative (dots)")
        worst = comparison.worst(1)[0]
        told.append(
            f"{rule_name(name)}: worst by itself {worst.name} with "
            f"{text_number(worst.isolated_db)} dB, at the end {text_number(piled[-1])} dB"
        )
    axes[0, 0].set_yticks(place, [row.name for row in first.layers], fontsize=8)
    axes[0, 0].invert_yaxis()
    return fig, "; ".join(told) + ". Bars and dots of each layer's signal-to-noise ratio."


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value
