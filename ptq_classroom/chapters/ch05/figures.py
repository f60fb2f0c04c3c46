"""Figures of chapter 05: codes that channels use, accuracy over bits, bits per weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.names import network_name
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink, text_number

FLOOR = 75  # percent: where the axis of `accuracy_over_size` begins; triangles stand for less
NEAR = 2  # points below the best accuracy that its alt text still calls near


def codes_in_use(ranges: Mapping[str, Any], bits: int = 8) -> tuple[Figure, str]:
    """Largest code that each channel reaches when its layer has one scale; sorted, log axis.

    ranges: layer -> largest |w| of each channel.
    """
    top = 2 ** (bits - 1) - 1
    fig, axes = figure(7.6, 3.1, 1, len(ranges), sharey=True, squeeze=False)
    told = []
    for ax, (name, values) in zip(axes[0], ranges.items(), strict=True):
        values = np.sort(np.asarray(values, dtype=float))
        reach = values / values.max() * top
        ax.bar(np.arange(len(reach)), reach, color=COLORS[0], width=0.8)
        ax.axhline(top, color=GREY, linestyle="--", linewidth=1.2)
        ax.set(yscale="log", ylim=(1, 2 * top), xticks=[], xlabel=f"channels of {name}, sorted")
        ax.set_yticks([1, 3, 10, 30, 127], ["1", "3", "10", "30", "127"])
        ax.minorticks_off()
        ax.set_xlim(-3, len(reach))
        for i, offset, va in ((0, (-6, 2), "top"), (len(reach) - 1, (4, 3), "bottom")):
            ax.annotate(f"{reach[i]:.0f}", (i, reach[i]), xytext=offset, va=va, ha="right",
                        textcoords="offset points", fontsize=9)  # fmt: skip
        told.append(f"{name} from {reach[0]:.1f} to {reach[-1]:.0f}, median {np.median(reach):.0f}")
    axes[0, 0].set_ylabel("largest code used")
    return fig, f"Largest of {top} codes that a channel uses: " + "; ".join(told) + ". Sorted bars."


def channel_errors(decibels: Mapping[str, Any], layer: str) -> tuple[Figure, str]:
    """Signal-to-noise ratio of each channel of a layer for several granularities, sorted."""
    fig, ax = figure(7.0, 3.2)
    first = np.asarray(next(iter(decibels.values())), dtype=float)
    order = np.argsort(first)
    told = []
    for number, (name, values) in enumerate(decibels.items()):
        values = np.asarray(values, dtype=float)[order]
        ax.plot(np.arange(len(values)), values, marker="o", markersize=3, **color(number))
        place = 2 * len(values) // 3
        ax.annotate(
            name, (place, values[place]), xytext=(0, 18 if number else -22), fontsize=9,
            textcoords="offset points",
            color=ink(COLORS[number]), bbox=BEHIND,
        )  # fmt: skip
        told.append(f"{name} {values.min():.0f} to {values.max():.0f} dB")
    ax.set(xticks=[], xlabel=f"channels of {layer}, worst first", ylabel="SQNR of the weights (dB)")
    ax.margins(y=0.15)
    return fig, f"{len(order)} channels of {layer}: " + "; ".join(told) + "."


def accuracy_over_bits(
    table: Mapping[str, Mapping[str, Mapping[int, float]]],
    fp32: Mapping[str, float],
    guess: Prediction | None = None,
) -> tuple[Figure, str]:
    """Accuracy (percent) over the bits of the weights, a panel a network, a line a granularity.

    table: network -> granularity -> bits -> accuracy. The guess is drawn in the last panel.
    """
    fig, axes = figure(8.2, 3.6, 1, len(table), sharey=True, squeeze=False)
    told = []
    for ax, (network, lines) in zip(axes[0], table.items(), strict=True):
        for number, (name, by_bits) in enumerate(lines.items()):
            bits, values = list(by_bits), list(by_bits.values())
            wide = {"linewidth": 4.5, "alpha": 0.7} if number == 1 else {}  # seen below the next
            ax.plot(bits, values, marker="o", markersize=4, **color(number), **wide)
            told.append(f"{network_name(network)} {name} {', '.join(f'{v:.1f}' for v in values)}")
        ax.axhline(fp32[network], color=GREY, linestyle=":", linewidth=1.2)
        ax.set(xlabel="bits of the weights", ylim=(0, 102), xticks=sorted(bits))
        ax.set_xlim(max(bits) + 0.3, min(bits) - 1.9)
        _name_ends(ax, min(bits), {name: by_bits[min(bits)] for name, by_bits in lines.items()})
        ax.set_title(f"{network_name(network)} (dotted: FP32, {fp32[network]:.1f} %)", fontsize=10)
    axes[0, 0].set_ylabel("top-1 accuracy (%)")
    if guess is not None:
        guess.draw(axes[0, -1], "y")
    fewest = min(bits)
    worst = [
        f"{min(lines.values(), key=lambda row: row[fewest])[fewest]:.1f} to "
        f"{max(lines.values(), key=lambda row: row[fewest])[fewest]:.1f} on {network_name(network)}"
        for network, lines in table.items()
    ]
    return fig, (
        f"At {fewest} bits the granularities lie apart: {', '.join(worst)}. Lines of the accuracy "
        f"in percent at {', '.join(map(str, bits))} bits: {'; '.join(told)}."
    )


def _name_ends(ax: Any, x: float, ends: Mapping[str, float], gap: float = 7) -> None:
    """Names of lines to the right of their last values, at least `gap` percent apart."""
    height = -gap
    for name, value in sorted(ends.items(), key=lambda item: item[1]):
        height = max(value - 5, 2, height + gap)
        ax.annotate(name, (x, height), xytext=(8, 0), textcoords="offset points", va="center",
                    fontsize=9, color=ink(COLORS[list(ends).index(name)]))  # fmt: skip


def accuracy_over_size(
    points: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]],
) -> tuple[Figure, str]:
    """Accuracy (percent) over bits per weight with scales; the number of bits at each point.

    points: network -> granularity -> bits -> (bits per weight, accuracy). A row a network, a panel
    a granularity, with the others pale behind it: their points lie too close for one panel.
    """
    names = list(next(iter(points.values())))
    fig, axes = figure(8.2, 2.1 * len(points) + 0.5, len(points), len(names), squeeze=False,
                       sharex=True, sharey=True)  # fmt: skip
    told, found = [], []
    for row, (network, lines) in zip(axes, points.items(), strict=True):
        for number, (ax, (name, by_bits)) in enumerate(zip(row, lines.items(), strict=True)):
            x, y = np.array(list(by_bits.values()), dtype=float).T
            ax.plot(x, y, marker="o", markersize=5, zorder=4, **color(number))
            for other in (line for key, line in lines.items() if key != name):
                ax.plot(*np.array(list(other.values())).T, color=COLORS[3], linewidth=1, alpha=0.6)
            for bits, (a, b) in by_bits.items():
                seen = b > FLOOR
                ax.annotate(
                    str(bits) if seen else f"{bits}\n▼", (a, b if seen else FLOOR),
                    xytext=(0, 6 if seen else 2), ha="center", textcoords="offset points",
                    fontsize=8, color=ink(COLORS[number]), bbox=BEHIND, zorder=5,
                )  # fmt: skip
            ax.set_title(f"{network_name(network)}, {name}", fontsize=10)
        row[0].set_ylabel("top-1 accuracy (%)")
        row[0].set_ylim(FLOOR, 99)
        shown = min({*next(iter(lines.values()))}, key=lambda bits: abs(bits - 4))
        listed = ", ".join(
            f"{name} {text_number(line[shown][0])} bits {line[shown][1]:.1f} percent"
            for name, line in lines.items()
        )
        told.append(f"{network_name(network)}: {listed}")
        best = max(accuracy for line in lines.values() for _, accuracy in line.values())
        size, name = min(
            (size, name)
            for name, line in lines.items()
            for size, accuracy in line.values()
            if accuracy >= best - NEAR
        )
        found.append(f"{network_name(network)} {text_number(size)} ({name})")
    for ax in axes[-1]:
        ax.set_xlabel("bits per weight, scales counted")
    return fig, (
        f"Fewest bits per weight within {NEAR} points of a network's best: {', '.join(found)}. "
        f"Panels of the accuracy over bits per weight. With codes of {shown} bits: "
        f"{'; '.join(told)}."
    )


def buying_decibels(
    groups: Mapping[str, tuple[float, float]], more_bits: Mapping[str, tuple[float, float]]
) -> tuple[Figure, str]:
    """SQNR of one layer over bits per weight: shorter groups against one more bit.

    Both: label -> (bits per weight, decibels); the two begin at the same point.
    """
    fig, ax = figure(6.8, 3.4)
    told = []
    both = {"shorter groups (length)": groups, "more bits": more_bits}
    for number, (title, line) in enumerate(both.items()):
        x, y = np.array(list(line.values()), dtype=float).T
        ax.plot(x, y, marker="o", markersize=4, **color(number))
        for label, a, b in list(zip(line, x, y, strict=True))[number:]:
            below = number == 0
            ax.annotate(
                label, (a, b), xytext=(3, -14) if below else (-5, 5), textcoords="offset points",
                ha="left" if below else "right", fontsize=8, color=ink(COLORS[number]),
            )  # fmt: skip
        told.append(
            f"{title}: " + ", ".join(f"{n} {a:.2f} bits {b:.1f} dB" for n, (a, b) in line.items())
        )
        ax.annotate(
            title, (x[-1], y[-1]), xytext=(0, 8) if number == 0 else (8, 0), fontsize=9,
            ha="right" if number == 0 else "left", textcoords="offset points",
            color=ink(COLORS[number]),
        )  # fmt: skip
    ax.set(xlabel="bits per weight, scales counted", ylabel="SQNR of the weights (dB)")
    ax.margins(x=0.14, y=0.16)
    last = {title: list(line.values())[-1] for title, line in both.items()}
    found = " and ".join(f"{b:.1f} dB for {a:.2f} bits by {name}" for name, (a, b) in last.items())
    return fig, f"{found}. Lines of decibels over bits per weight. {'; '.join(told)}."
