"""Figures of chapter 09, first part: how many calibration pictures, and what a small set misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from ptq_classroom.kit.names import rule_name
from ptq_classroom.kit.pieces import image_grid
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, LINES, color, figure, ink, text_number
from ptq_classroom.pictures.brighten import developed, gain_of, light_of

MARKERS = ("o", "s", "^")


def pictures(images: Any, titles: Sequence[str]) -> tuple[Figure, str]:
    """Pictures uint8 [N, 3, H, W] in one row, each with its title underneath."""
    fig = image_grid(images, list(titles), columns=len(titles))
    light = np.asarray(images).mean(axis=(1, 2, 3))
    told = ", ".join(f"{t} (mean byte {b:.0f})" for t, b in zip(titles, light, strict=True))
    return fig, f"{len(titles)} pictures of the calibration split: {told}."


def examples(split: Any, peaks: NDArray[Any]) -> tuple[Figure, str]:
    """Pictures of each rare mode, an ordinary one with a large value, a dim one, and their peaks.

    peaks: [pictures] largest input value of each picture of the split. Beside a dark picture stands
    a brightened copy.
    """
    chosen = [
        *np.flatnonzero(split.modes == "flash")[:3],
        *np.flatnonzero((peaks > 100) & (split.modes == "normal"))[:1],
        *np.flatnonzero(peaks < 4)[:1],
        *np.flatnonzero(split.modes == "night")[:2],
    ]
    images, titles = [], []
    for i in chosen:
        images.append(split.images[i])
        titles.append(f"{split.modes[i]}, {peaks[i]:.3g}")
        gain = gain_of(light_of(split.images[i]))
        if gain > 1:
            images.append(developed(light_of(split.images[i]) * gain))
            titles.append(f"{gain}x the light")
    high, low = (max(chosen, key=lambda i: sign * peaks[i]) for sign in (1, -1))
    fig, told = pictures(torch.stack(images), titles)
    return fig, (
        f"The largest value is {peaks[high]:.3g} in a {split.modes[high]} picture, and only "
        f"{peaks[low]:.3g} in a {split.modes[low]} picture. {told}"
    )


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
    told, highest = [], np.zeros(len(sizes))
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
            f"{name}, {100 * shares[name]:.3g} percent of the pictures: "
            + ", ".join(f"{100 * f:.1f}" for f in found)
        )
        highest = np.maximum(highest, found)
    ax.axhline(100 * risk, color=GREY, linestyle=":", linewidth=1.3)
    ax.text(
        sizes[0], 100 * risk, f"{100 * risk:g} % risk", va="bottom", fontsize=9, color=ink(GREY)
    )
    ax.set(xscale="log", xlabel="calibration pictures", ylabel="sets without it (%)")
    ax.set_ylim(-3, 105)
    plain_ticks(ax, sizes)
    enough = [f"{n:g}" for n, chance in zip(sizes, highest, strict=True) if chance <= risk]
    finding = (
        f"Sets of {enough[0]} pictures miss each mode with a chance of at most"
        if enough
        else "At none of these sizes is the chance to miss each mode at most"
    )
    return fig, (
        f"{finding} {100 * risk:g} percent. Curves of the chance to miss a mode, in percent, for "
        f"sets of {', '.join(f'{n:g}' for n in sizes)}: {'; '.join(told)}."
    )


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
    fig, axes = figure(8.2, 1.9 * len(kinds) + 0.5, len(kinds), len(accuracy), squeeze=False,
                       sharex=True, sharey="row")  # fmt: skip
    at = np.asarray(sizes, dtype=float)
    told, fell = [], []
    for row, kind in zip(axes, kinds, strict=True):
        means = {rule: np.nanmean(np.asarray(v[kind], float), 0) for rule, v in accuracy.items()}
        for number, (ax, (rule, found)) in enumerate(zip(row, accuracy.items(), strict=True)):
            values = np.asarray(found[kind], dtype=float)
            mean = means[rule]
            ends = np.stack([mean - np.nanmin(values, 0), np.nanmax(values, 0) - mean])
            ax.errorbar(
                at, mean, ends, color=COLORS[NUMBERS[number]], linestyle=LINES[number],
                marker=MARKERS[number], markersize=4.5, elinewidth=1, capsize=2, linewidth=1.3,
                label=rule_name(rule), zorder=4,
            )  # fmt: skip
            for other in (means[name] for name in means if name != rule):
                ax.plot(at, other, color=COLORS[3], linewidth=1, alpha=0.7)
            ax.axhline(fp32[kind], color=GREY, linestyle=":", linewidth=1.3)
            ax.set(xscale="log")
            ax.set_title(f"{kind}, {rule_name(rule)}", fontsize=10)
            plain_ticks(ax, sizes[::2])
            fell.append((mean.max() - mean[-1], f"{rule_name(rule)} on {kind}"))
        listed = ", ".join(
            f"{rule_name(rule)} {m[0]:.1f}, {m.max():.1f}, {m[-1]:.1f}" for rule, m in means.items()
        )
        told.append(f"{kind}: {listed}")
        row[0].set_ylabel("top-1 accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel("calibration pictures")
    for size, guess in (guesses or {}).items():
        if isinstance(guess.guess, int | float):
            axes[0, 0].plot(size, guess.guess, "x", color="black", markersize=8, zorder=7)
            axes[0, 0].annotate("you", (size, guess.guess), xytext=(4, 4),
                                textcoords="offset points", fontsize=8)  # fmt: skip
    fig.suptitle(
        f"marks: mean of {len(values)} orders; bars: worst to best; pale: the other rules; "
        f"dotted: FP32; axes do not start at 0",
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    points, where = max(fell)
    return fig, (
        f"More pictures do not always help: {where} falls by {points:.1f} points from its best "
        f"size to the largest. Panels by kind of picture and rule; mean accuracy with {sizes[0]}, "
        f"at best, with {sizes[-1]}: {'; '.join(told)}."
    )


NUMBERS = (2, 0, 4)  # colours of three rules: red, blue, purple


def plain_ticks(ax: Any, sizes: ArrayLike) -> None:
    """The sizes themselves along a logarithmic x axis."""
    ax.set_xticks(np.asarray(sizes, dtype=float), [f"{n:g}" for n in np.asarray(sizes)])
    ax.set_xticks([], minor=True)
