"""Figure of chapter 16: what each exhibit costs, and what its repair brings back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.show import COLORS, figure


def symptoms(rows: Mapping[str, tuple[float, float, str]]) -> tuple[Figure, str]:
    """rows: exhibit -> (broken, repaired, unit), as bars that begin at the broken pipeline's."""
    fig, ax = figure(7.6, 0.9 + 0.42 * len(rows))
    names = list(rows)
    broken, repaired = (np.array([row[i] for row in rows.values()]) for i in (0, 1))
    places = np.arange(len(rows))
    ax.barh(places, repaired - broken, left=broken, height=0.5, color=COLORS[0])
    ax.plot(broken, places, "x", color=COLORS[2], markersize=8, markeredgewidth=2, label="broken")
    ax.plot(repaired, places, "o", color=COLORS[0], markersize=7, label="repaired")
    for place, (low, high, unit) in enumerate(rows.values()):
        ax.text(
            max(low, high) + 2, place, f"{low:.1f} to {high:.1f} {unit}", va="center", fontsize=9
        )
    ax.set_yticks(places, names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 125), xlabel="accuracy in percent, or signal-to-noise ratio in dB")
    ax.legend(fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    told = "; ".join(f"{n} {low:.1f} to {high:.1f} {unit}" for n, (low, high, unit) in rows.items())
    return fig, f"Each repair brings back what its exhibit had lost: {told}."
