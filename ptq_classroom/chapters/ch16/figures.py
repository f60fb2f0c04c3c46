"""Figure of chapter 16: what each exhibit costs, and what its repair brings back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.show import COLORS, GREY, figure, ink

AXES = {"%": ("accuracy (%)", 110), "dB": ("signal-to-noise ratio (dB)", 65)}


def symptoms(rows: Mapping[str, tuple[float, float, str]]) -> tuple[Figure, str]:
    """rows: exhibit -> (broken, repaired, unit); a line leads from one to the other."""
    units = [unit for unit in AXES if any(row[2] == unit for row in rows.values())]
    groups = {
        unit: {name: row[:2] for name, row in rows.items() if row[2] == unit} for unit in units
    }
    heights = [len(group) + 1 for group in groups.values()]
    fig, axes = figure(
        7.6, 1.2 + 0.42 * sum(heights), len(units), 1, squeeze=False, height_ratios=heights
    )
    for ax, (unit, group) in zip(axes[:, 0], groups.items(), strict=True):
        title, end = AXES[unit]
        places = np.arange(len(group))
        broken, repaired = (np.array(column) for column in zip(*group.values(), strict=True))
        ax.hlines(places, broken, repaired, color=GREY, linewidth=3)
        ax.plot(broken, places, "X", color=COLORS[1], markersize=9, label="broken")
        ax.plot(repaired, places, "o", color=COLORS[0], markersize=9, label="repaired")
        for place, low, high in zip(places, broken, repaired, strict=True):
            for value, side in ((low, -1), (high, 1)):
                ax.annotate(
                    f"{value:.1f}", (value, place), (9 * side, 0), textcoords="offset points",
                    ha="left" if side > 0 else "right", va="center", fontsize=9, color=ink(GREY),
                )  # fmt: skip
        ax.set_yticks(places, list(group))
        ax.set(xlim=(-end * 0.08, end), xlabel=title, ylim=(len(group) - 0.4, -0.6))
    axes[0, 0].legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    told = "; ".join(f"{n} {low:.1f} to {high:.1f} {unit}" for n, (low, high, unit) in rows.items())
    return fig, f"Each repair brings back what its exhibit had lost: {told}."
