"""Figures of chapter 13: two weights, a codebook, what bits cost, formats of equal size, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink


def two_weights(w: Any, x: Any) -> tuple[Figure, str]:
    """The plane of two weights with the four points around w [2], and the output's error on x.

    x: inputs [N, 2]. Ellipses join weights with the same squared error of the output.
    """
    w, x = np.asarray(w, dtype=float), np.asarray(x, dtype=float)
    moments = x.T @ x
    low = np.floor(w)
    points = np.array([low + np.array([i, j]) for i in (0, 1) for j in (0, 1)])
    errors = np.einsum("pi,ij,pj->p", points - w, moments, points - w)
    nearest = int(np.abs(points - w).sum(1).argmin())
    best = int(errors.argmin())
    fig, ax = figure(5.6, 4.2)
    span = np.linspace(-0.45, 1.45, 200)
    a, b = np.meshgrid(low[0] + span, low[1] + span)
    d = np.stack([a - w[0], b - w[1]], -1)
    height = np.einsum("hwi,ij,hwj->hw", d, moments, d)
    ax.contour(a, b, height, levels=np.sort(errors)[:3] * 1.0001, colors=GREY, linewidths=0.9)
    ax.plot(*w, "x", color="black", markersize=9, markeredgewidth=2)
    ax.annotate("w", w, xytext=(-9, -3), textcoords="offset points", fontsize=10, ha="right")
    for i, (point, error) in enumerate(zip(points, errors, strict=True)):
        chosen = {nearest: (COLORS[2], "s"), best: (COLORS[0], "o")}.get(i, (GREY, "D"))
        ax.plot(*point, chosen[1], color=chosen[0], markersize=10 if i in (nearest, best) else 6)
        name = {nearest: "nearest\n", best: "best\n"}.get(i, "")
        above = point[1] > low[1] or i == nearest  # a contour runs down from the nearest
        ax.annotate(
            f"{name}error {error:.2f}", point, xytext=(9, 5 if above else -5), fontsize=9,
            textcoords="offset points", va="bottom" if above else "top", color=ink(chosen[0]),
            bbox=BEHIND,
        )  # fmt: skip
    ax.set(xlabel="first weight (steps)", ylabel="second weight (steps)")
    ax.set(xlim=(low[0] - 0.35, low[0] + 1.55), ylim=(low[1] - 0.4, low[1] + 1.35))
    ax.set_xticks([low[0], low[0] + 1])
    ax.set_yticks([low[1], low[1] + 1])
    names = [f"({a:.0f}, {b:.0f})" for a, b in points]
    told = "; ".join(f"{name} {e:.2f}" for name, e in zip(names, errors, strict=True))
    return fig, (
        f"The best rounding is {names[best]} with an output error of {errors[best]:.2f}; the "
        f"nearest, {names[nearest]}, has {errors[nearest]:.2f}. All four: {told}."
    )


def codebook(weights: Any, books: Mapping[str, Any], layer: str) -> tuple[Figure, str]:
    """Histogram of a layer's weights; below it the values of each book, a row of ticks each."""
    weights = np.asarray(weights, dtype=float).ravel()
    fig, (ax, rows) = figure(7.4, 3.6, 2, 1, sharex=True, height_ratios=[2.2, 1])
    ax.hist(weights, bins=120, color=COLORS[0])
    ax.set(ylabel="weights", yscale="log")
    told, labels = [], []
    for i, (name, book) in enumerate(books.items()):
        values = np.sort(np.asarray(book, dtype=float))
        rows.vlines(values, -i - 0.35, -i + 0.35, color=COLORS[2 * i], linewidth=2.2)
        error = np.abs(weights[:, None] - values).min(1)
        decibels = 10 * np.log10((weights**2).sum() / (error**2).sum())
        told.append(f"{name}, {len(values)} values: {decibels:.1f} dB")
        labels.append(f"{name}\n{decibels:.1f} dB")
    rows.set_yticks([-i for i in range(len(books))], labels)
    rows.set(ylim=(-len(books) + 0.4, 0.6), xlabel=f"weight of {layer}")
    rows.spines["left"].set_visible(False)
    rows.tick_params(axis="y", length=0)
    return fig, f"{'; '.join(told)}. {len(weights)} weights of {layer} and what codes stand for."


def price_of_bits(
    table: Mapping[str, Mapping[str, Mapping[int, float]]],
    fp32: Mapping[str, float],
    guess: Prediction | None = None,
) -> tuple[Figure, str]:
    """Accuracy (percent) over the bits of the weights: a panel a network, a line a technique.

    table: network -> technique -> bits -> accuracy. guess: drawn in the first panel.
    """
    fig, axes = figure(8.4, 3.9, 1, len(table), sharey=True, squeeze=False)
    told = []
    for ax, (network, lines) in zip(axes[0], table.items(), strict=True):
        for i, (name, by_bits) in enumerate(lines.items()):
            places = np.arange(len(by_bits))
            values = list(by_bits.values())
            ax.plot(places, values, marker="osD^v"[i % 5], markersize=5, label=name, **color(i))
            last = list(by_bits)[-1]
            told.append(f"{network}, {name}: {values[-2]:.1f} and {values[-1]:.1f} % at "
                        f"{list(by_bits)[-2]} and {last} bits")  # fmt: skip
        ax.axhline(fp32[network], color=GREY, linestyle="--", linewidth=1.2)
        ax.text(
            len(by_bits) - 1, fp32[network] + 1.5, f"FP32 {fp32[network]:.1f}", fontsize=9,
            color=ink(GREY), ha="right",
        )  # fmt: skip
        ax.set_xticks(places, [str(b) for b in by_bits])
        ax.set(xlabel="bits of the weights", title=network, ylim=(0, 106))
    if guess is not None:
        guess.draw(axes[0, 0], "y")
    axes[0, 0].set_ylabel("top-1 accuracy (%)")
    axes[0, 0].legend(fontsize=9, loc="lower left")
    least = {}  # technique -> its mean over the networks at the fewest bits
    for lines in table.values():
        for name, by_bits in lines.items():
            least.setdefault(name, []).append(list(by_bits.values())[-1])
    first, second, *_ = sorted(least, key=lambda name: -float(np.mean(least[name])))
    lead = f"At the fewest bits {first} keeps the most, then {second}"
    return fig, f"{lead}. Accuracy: {'; '.join(told)}."


def formats(
    grids: Mapping[str, Any], decibels: Mapping[str, Sequence[float]], bits: Mapping[str, float]
) -> tuple[Figure, str]:
    """What each format's codes stand for, the largest put at 1, beside its error layer by layer.

    grids: format -> its values. decibels: format -> of each layer. bits: stored bits a weight.
    """
    fig, (left, right) = figure(8.6, 1.0 + 0.5 * len(grids), 1, 2, sharey=True, width_ratios=[2, 1])
    told = []
    for i, (name, values) in enumerate(grids.items()):
        values = np.asarray(values, dtype=float)
        values = values / np.abs(values).max()
        left.vlines(values, -i - 0.3, -i + 0.3, color=COLORS[0], linewidth=1.0)
        row = np.asarray(decibels[name], dtype=float)
        right.plot(row, np.full(len(row), -i), "|", color=GREY, markersize=11)
        right.plot(np.median(row), -i, "o", color=COLORS[2], markersize=6)
        told.append(f"{name} {np.median(row):.1f} dB at {bits[name]:.2f} bits")
    labels = [f"{name}\n{bits[name]:.2f} bits" for name in grids]
    left.set_yticks([-i for i in range(len(grids))], labels)
    left.set(xlabel="value, largest at 1", ylim=(-len(grids) + 0.4, 0.6), xlim=(-1.05, 1.05))
    left.tick_params(axis="y", length=0)
    right.set(xlabel="SQNR of the weights (dB)\nticks: layers, dot: median")
    best = max(grids, key=lambda name: np.median(np.asarray(decibels[name], dtype=float)))
    return fig, f"{best} loses least. Median over the layers' weights: " + "; ".join(told) + "."


def widths(bits: Mapping[str, Mapping[str, int]], weights: Mapping[str, int]) -> tuple[Figure, str]:
    """Bits of each layer, a bar as wide as its share of the weights; version -> layer -> bits."""
    fig, axes = figure(8.2, 1.5 * len(bits) + 0.9, len(bits), 1, sharex=True, squeeze=False)
    total, told = sum(weights.values()), []
    for ax, (version, by_layer) in zip(axes[:, 0], bits.items(), strict=True):
        start = 0.0
        for layer, width in by_layer.items():
            share = 100 * weights[layer] / total
            ax.bar(start, width, share, align="edge", color=COLORS[0], edgecolor="white")
            if share > 2.5:
                ax.annotate(str(width), (start + share / 2, width), ha="center", va="bottom",
                            fontsize=9)  # fmt: skip
            start += share
        ax.set(title=version, ylim=(0, 9.8), yticks=[2, 4, 8], ylabel="bits")
        counts = {b: sum(w == b for w in by_layer.values()) for b in sorted({*by_layer.values()})}
        told.append(f"{version}: " + ", ".join(f"{b} bits x {n}" for b, n in counts.items()))
        wide = [n for n, b in by_layer.items() if b == max(counts)]
        if len(counts) > 1:
            told[-1] += f"; {max(counts)} bits go to {', '.join(wide)}"
    axes[-1, 0].set_xlabel("share of the network's weights (%), layers from input to output")
    told.reverse()  # the version of the lesson comes first
    return fig, ". ".join(told) + ". Bars: bits of each layer, as wide as its share of weights."
