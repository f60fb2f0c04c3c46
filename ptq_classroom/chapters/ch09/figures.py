"""Figures of chapter 09, first part: how many calibration pictures, and what a small set misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ptq_classroom.kit.pieces import image_grid
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, LINES, color, figure, ink, text_number

MARKERS = ("o", "s", "^")
RULES = {"minmax": "min-max", "kl": "KL"}  # how a rule is called in text and figures


def rule_name(rule: str) -> str:
    """The name of a range rule for readers."""
    return RULES.get(rule, rule)


def pictures(images: Any, titles: Sequence[str]) -> tuple[Figure, str]:
    """Pictures uint8 [N, 3, H, W] in one row, each with its title underneath."""
    fig = image_grid(images, list(titles), columns=len(titles))
    light = np.asarray(images).mean(axis=(1, 2, 3))
    told = ", ".join(f"{t} (mean byte {b:.0f})" for t, b in zip(titles, light, strict=True))
    return fig, f"{len(titles)} pictures of the calibration split: {told}."


def examples(split: Any, peaks: NDArray[Any]) -> tuple[Figure, str]:
    """Pictures of each rare mode, an ordinary one with a large value, a dim one, and their peaks.

    peaks: [pictures] largest input value of each picture of the split.
    """
    chosen = [
        *np.flatnonzero(split.modes == "flash")[:3],
        *np.flatnonzero((peaks > 100) & (split.modes == "normal"))[:1],
        *np.flatnonzero(peaks < 4)[:1],
        *np.flatnonzero(split.modes == "night")[:3],
    ]
    titles = [f"{split.modes[i]}, {peaks[i]:.3g}" for i in chosen]
    return pictures(split.images[chosen], titles)


def coverage(sizes: ArrayLike, highs: ArrayLike, clipped: ArrayLike) -> tuple[Figure, str]:
    """Upper end of the range and share of live values clipped (percent) over the set's size.

    highs, clipped: [draws, sizes]; the line is the median, the band holds 90 % of the draws.
    """
    sizes = np.asarray(sizes, dtype=float)
    fig, axes = figure(7.2, 3.1, 1, 2)
    told = []
    names = ("upper end of the range", "live values clipped (%)")
    for number, (ax, values, name) in enumerate(zip(axes, (highs, clipped), names, strict=True)):
        low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.05, 0.5, 0.95), axis=0)
        ax.fill_between(sizes, low, high, color=COLORS[2 * number], alpha=0.25, linewidth=0)
        ax.plot(sizes, middle, marker="o", markersize=4, color=COLORS[2 * number])
        ax.set(xscale="log", xlabel="calibration pictures", ylabel=name)
        plain_ticks(ax, sizes)
        told.append(
            f"{name}: median {text_number(middle[0])} with {sizes[0]:g} picture, "
            f"{text_number(middle[-1])} with {sizes[-1]:g}"
        )
    axes[0].set_yscale("log")
    axes[0].set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axes[0].set_yticks([], minor=True)
    axes[1].set_yscale("symlog", linthresh=0.01)
    axes[1].set(ylim=(0, None), yticks=[0, 0.01, 0.1, 1, 10])
    axes[1].set_yticklabels(["0", "0.01", "0.1", "1", "10"])
    axes[0].set_title("median, and 90 % of the draws", fontsize=9, color=ink(GREY))
    return fig, "; ".join(told) + "."


def missing(
    sizes: ArrayLike,
    measured: Mapping[str, ArrayLike],
    shares: Mapping[str, float],
    risk: float = 0.05,
) -> tuple[Figure, str]:
    """Chance that a set of n pictures misses a mode: measured (marks) and (1 - share)^n (lines)."""
    sizes = np.asarray(sizes, dtype=float)
    fig, ax = figure(6.6, 3.2)
    fine = np.geomspace(sizes[0], sizes[-1], 200)
    told = []
    for number, (name, found) in enumerate(measured.items()):
        found = np.asarray(found, dtype=float)
        style = color(2 * number)
        ax.plot(fine, 100 * (1 - shares[name]) ** fine, **style)
        ax.plot(sizes, 100 * found, MARKERS[number], color=style["color"], markersize=6)
        ax.text(
            0.97, 0.95 - 0.1 * number, f"{MARKS[number]} {name}, {100 * shares[name]:.3g} %",
            transform=ax.transAxes, color=ink(style["color"]), ha="right", va="top", fontsize=9,
        )  # fmt: skip
        told.append(
            f"{name} ({100 * shares[name]:.3g} percent of the pictures): "
            + ", ".join(f"{100 * f:.1f} % at {n:g}" for n, f in zip(sizes, found, strict=True))
        )
    ax.axhline(100 * risk, color=GREY, linestyle=":", linewidth=1.3)
    ax.text(
        sizes[0], 100 * risk, f"{100 * risk:g} % risk", va="bottom", fontsize=9, color=ink(GREY)
    )
    ax.set(xscale="log", xlabel="calibration pictures", ylabel="sets without it (%)")
    ax.set_ylim(-3, 105)
    plain_ticks(ax, sizes)
    return fig, "Chance to miss a mode. " + "; ".join(told) + "."


MARKS = ("●", "■", "▲")


def by_samples(
    sizes: Sequence[int],
    accuracy: Mapping[str, Mapping[str, ArrayLike]],
    fp32: Mapping[str, float],
    guesses: Mapping[int, Prediction] | None = None,
) -> tuple[Figure, str]:
    """Accuracy (percent) over the number of calibration pictures, a panel for each kind of picture.

    accuracy: {rule: {kind: [draws, sizes]}}, NaN where a draw does not exist. Bars reach from the
    worst draw to the best, marks stand at the mean. guesses, by size, are drawn into the first one.
    """
    kinds = list(fp32)
    fig, axes = figure(7.6, 3.5, 1, len(kinds), squeeze=False)
    told = []
    for ax, kind in zip(axes[0], kinds, strict=True):
        for number, (rule, found) in enumerate(accuracy.items()):
            values = np.asarray(found[kind], dtype=float)
            mean = np.nanmean(values, axis=0)
            ends = np.stack([mean - np.nanmin(values, 0), np.nanmax(values, 0) - mean])
            at = np.asarray(sizes, dtype=float) * 1.3 ** (number - 1)  # whiskers apart
            ax.errorbar(
                at, mean, ends, color=COLORS[NUMBERS[number]], linestyle=LINES[number],
                marker=MARKERS[number], markersize=4.5, elinewidth=1, capsize=2, linewidth=1.3,
                label=rule_name(rule),
            )  # fmt: skip
            told.append(
                f"{kind}, {rule_name(rule)}: "
                + ", ".join(f"{m:.1f} at {n}" for n, m in zip(sizes, mean, strict=True))
            )
        ax.axhline(fp32[kind], color=GREY, linestyle=":", linewidth=1.3)
        ax.set(xscale="log", xlabel="calibration pictures", title=f"{kind} (FP32 {fp32[kind]:.1f})")
        plain_ticks(ax, sizes[::2])
    for size, guess in (guesses or {}).items():
        if isinstance(guess.guess, int | float):
            axes[0, 0].plot(size, guess.guess, "x", color="black", markersize=8, zorder=7)
            axes[0, 0].annotate("you", (size, guess.guess), xytext=(4, 4),
                                textcoords="offset points", fontsize=8)  # fmt: skip
    axes[0, 0].set_ylabel("top-1 accuracy (%)")
    fig.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3,
        title=f"marks: mean of {len(values)} orders; bars: worst to best; axes do not start at 0",
        title_fontsize=9,
    )  # fmt: skip
    return fig, "Mean accuracy in percent over calibration pictures. " + "; ".join(told) + "."


NUMBERS = (2, 0, 4)  # colours of three rules: red, blue, purple


def plain_ticks(ax: Any, sizes: ArrayLike) -> None:
    """The sizes themselves along a logarithmic x axis."""
    ax.set_xticks(np.asarray(sizes, dtype=float), [f"{n:g}" for n in np.asarray(sizes)])
    ax.set_xticks([], minor=True)
