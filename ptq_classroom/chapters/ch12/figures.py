"""Figures of chapter 12: attention, loud channels, rules and remedies, alpha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink

SHAPES = "os^Dv"
WORDS = {"minmax": "min-max", "kl": "KL", "mse": "squared error", "percentile": "99.9 %"}


def _named(name: str) -> str:
    """Rules by the words of the text; "smoothed, kl" in two lines."""
    return "\n".join(WORDS.get(word, word) for word in name.split(", "))


def attention(
    weights: Any, words: Sequence[str], head: int, pair: tuple[str, str] | None = None
) -> tuple[Figure, str]:
    """Attention weights [T, T] of one head: which words (columns) each word (row) looks at.

    pair: the words that the text speaks of, who looks and at whom; their cell gets a frame.
    """
    weights = np.asarray(weights, dtype=float)
    fig, ax = figure(0.52 * len(words) + 2.4, 0.42 * len(words) + 1.4)
    ax.imshow(weights, cmap="Blues", vmin=0, vmax=max(0.5, weights.max()))
    ax.set_xticks(range(len(words)), words, rotation=40, ha="right")
    ax.set_yticks(range(len(words)), words)
    for row, column in zip(*np.nonzero(weights >= 0.2), strict=True):
        share = weights[row, column]
        ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
                color="white" if share > 0.4 * max(0.5, weights.max()) else "black")  # fmt: skip
    ax.set(
        title=f"head {head}: attention of each token in percent (numbers from 20 on)",
        xlabel="looks at",
        ylabel="token",
    )
    places = weights.argmax(1)
    told = ", ".join(f"{w} at {words[p]}" for w, p in zip(words, places, strict=True))
    inside = [i for i, w in enumerate(words) if w[0] != "[" and i != places[i]
              and words[int(places[i])][0] != "["]  # fmt: skip
    top = max(inside, key=lambda i: weights[i, places[i]], default=0)
    row, column = int(top), int(places[top])
    if pair is not None:
        row, column = (list(words).index(word) for word in pair)
        corner = (column - 0.47, row - 0.47)
        ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, ec=ink(COLORS[2]), lw=2))
    share = 100 * weights[row, column]
    lead = f'"{words[row]}" looks at "{words[column]}", {share:.0f} %'
    return fig, f"{lead}. Head {head}, where each token looks most: {told}."


def channels(inputs: Mapping[str, Any]) -> tuple[Figure, str]:
    """Largest magnitude of each channel of several activations, in the order of the channels."""
    fig, axes = figure(8.2, 2.0 * len(inputs) + 0.5, len(inputs), 1, squeeze=False)
    told = []
    for ax, (name, values) in zip(axes[:, 0], inputs.items(), strict=True):
        values = np.asarray(values, dtype=float)
        middle = float(np.median(values))
        ax.vlines(np.arange(len(values)), 0, values, color=COLORS[0], linewidth=0.7)
        ax.axhline(middle, color=ink(COLORS[2]), linestyle="--", linewidth=1.2)
        loudest = int(values.argmax())
        ax.annotate(
            f"channel {loudest}: {values[loudest] / middle:.0f} times the median (dashed)",
            (loudest, values[loudest]), xytext=(8 if loudest < 0.6 * len(values) else -8, 0),
            textcoords="offset points", va="bottom", fontsize=9,
            ha="left" if loudest < 0.6 * len(values) else "right",
        )  # fmt: skip
        ax.set(title=name, xlim=(-2, len(values) + 1), ylabel="largest |x|")
        ax.set_ylim(0, 1.2 * values.max())
        told.append(f"{name}: channel {loudest} {values[loudest] / middle:.0f} times the median")
    axes[-1, 0].set_xlabel("channel")
    return fig, "A few channels are far louder than the others. " + "; ".join(told) + "."


def cosines(
    rows: Mapping[str, Mapping[int, float]], guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Mean cosine to FP32 for several versions, a marker for each number of bits."""
    fig, ax = figure(7.6, 1.1 + 0.4 * len(rows))
    names = list(rows)
    bits = list(dict.fromkeys(b for row in rows.values() for b in row))
    for i, b in enumerate(bits):
        at = [n for n, name in enumerate(names) if b in rows[name]]
        values = [rows[names[n]][b] for n in at]
        ax.plot(values, at, SHAPES[i], color=COLORS[2 * i], label=f"{b} bits", markersize=7)
    ax.set_yticks(range(len(names)), [_named(name) for name in names])
    ax.invert_yaxis()
    ax.grid(axis="x", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set(xlabel="mean cosine to the FP32 vector (1: the same)", xlim=(None, 1.01))
    if guess is not None:
        guess.draw(ax, "x")
    ax.legend(fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(bits))
    told = "; ".join(
        f"{name} {', '.join(f'{v:.3f} at {b} bits' for b, v in row.items())}"
        for name, row in rows.items()
    )
    best = max(names, key=lambda name: rows[name].get(bits[0], 0.0))
    return fig, f"At {bits[0]} bits {best} is nearest to FP32. Mean cosines: {told}."


def over_alpha(alphas: Sequence[float], lines: Mapping[str, Sequence[float]]) -> tuple[Figure, str]:
    """Mean cosine to FP32 over alpha; each line is named at its end."""
    fig, ax = figure(7.2, 3.2)
    told = []
    for i, (name, values) in enumerate(lines.items()):
        values = np.asarray(values, dtype=float)
        ax.plot(alphas, values, marker=SHAPES[i], label=name, **color(2 * i))
        best = int(values.argmax())
        told.append(f"{name} {values[best]:.3f} at {alphas[best]:g}, {values[0]:.3f} at alpha 0")
    ax.set(xlabel="alpha (0: all with the activations, 1: all with the weights)")
    ax.set_ylabel("mean cosine to FP32")
    ax.legend(fontsize=9, loc="lower right")
    return fig, "The best alpha lies well above 0. Best: " + "; ".join(told) + "."


def spread(before: Any, after: Any) -> tuple[Figure, str]:
    """Channels of one activation, sorted, before and after a rotation."""
    fig, ax = figure(7.4, 3.0)
    told = []
    for i, (name, values) in enumerate((("as it is", before), ("rotated", after))):
        values = np.sort(np.asarray(values, dtype=float))[::-1]
        ax.plot(np.arange(1, len(values) + 1), values, label=name, **color(2 * i))
        told.append(f"{name} {values[0] / np.median(values):.1f}")
    ax.set(xscale="log", yscale="log", xlabel="channels, loudest first")
    ax.set_ylabel("largest |x| of the channel")
    ax.legend(fontsize=9)
    return fig, "Rotated, no channel stands out. Loudest over median: " + ", ".join(told) + "."


def accuracies(rows: Mapping[str, Mapping[int, float]], fp32: float) -> tuple[Figure, str]:
    """Accuracy (percent) of a network over range rules and bits; FP32 as a line."""
    fig, ax = figure(7.2, 3.0)
    bits = list(dict.fromkeys(b for row in rows.values() for b in row))
    width = 0.8 / len(bits)
    for i, b in enumerate(bits):
        places = np.arange(len(rows)) + (i - (len(bits) - 1) / 2) * width
        values = [row[b] for row in rows.values()]
        bars = ax.bar(places, values, 0.9 * width, color=COLORS[2 * i], label=f"{b} bits",
                      hatch=["", "//"][i % 2], edgecolor="white")  # fmt: skip
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # of the line behind it
        ax.bar_label(bars, [f"{v:.0f}" for v in values], fontsize=9, padding=2, bbox=clear)
    ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_xticks(range(len(rows)), [_named(name) for name in rows])
    ax.set(ylabel="top-1 accuracy (%)", ylim=(0, 105))
    title = f"dashed: FP32 {fp32:.1f} %"
    ax.legend(fontsize=9, ncols=2, title=title, loc="lower left", bbox_to_anchor=(0, 1))
    told = "; ".join(
        f"{name} {', '.join(f'{v:.1f} at {b} bits' for b, v in row.items())}"
        for name, row in rows.items()
    )
    return fig, f"Accuracy in percent, FP32 {fp32:.1f}: {told}."
