"""Figures of chapter 03: P and Q by hand, a real activation, the sweep, other objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, LINES, figure, ink, text_number
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.ranges.kl import clipped_histogram, kl_divergence, requantized_histogram
from ptq_course.ranges.sweeps import Sweep

Shown = tuple[Figure, str]
BLUE, ORANGE, RED = COLORS[0], COLORS[6], COLORS[2]  # P, Q and accuracy
DARK = "#333333"  # what belongs to no rule
RULE_STYLE = {  # each rule looks the same in every figure
    "KL": {"color": BLUE, "linestyle": "-"},
    "min-max": {"color": COLORS[4], "linestyle": "--"},
    "99.9 %": {"color": COLORS[5], "linestyle": "-."},
    "MSE": {"color": COLORS[1], "linestyle": ":"},
}


def four_bins(p: ArrayLike, q: ArrayLike) -> Shown:
    """P and Q [bins] side by side, and what each bin adds to the divergence."""
    p, q = (np.asarray(a, np.float64) / np.sum(a) for a in (p, q))
    terms = p * np.log(p / q)
    place = np.arange(len(p))
    fig, (left, right) = figure(7.2, 2.8, 1, 2)
    left.bar(place - 0.2, p, 0.38, color=BLUE, label="P")
    left.bar(place + 0.2, q, 0.38, color=ORANGE, hatch="///", edgecolor="white", label="Q")
    left.set(xticks=place, xlabel="bin", ylabel="share of the values", title="Two histograms")
    left.legend(loc="upper right")
    right.bar(place, terms, 0.6, color=[BLUE if t >= 0 else ORANGE for t in terms])
    right.axhline(0, color=GREY, linewidth=0.8)
    for x, term in zip(place, terms, strict=True):
        above = term >= 0
        right.annotate(
            f"{term:+.3f}",
            (x, term),
            xytext=(0, 3 if above else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
        )
    right.margins(y=0.25)
    right.set(xticks=place, xlabel="bin", ylabel="p log(p / q)  (nats)")
    right.set_title(f"They add up to {terms.sum():.4f} nats")
    n = text_number
    return fig, (
        f"The divergence is {terms.sum():.4f} nats, the sum of {', '.join(map(n, terms))}, one "
        f"term p log(p / q) for each of {len(p)} bins. Bars of P ({', '.join(map(n, p))}) beside Q "
        f"({', '.join(map(n, q))}), and bars of the terms."
    )


def windows(counts: ArrayLike, levels: int, stops: Sequence[int]) -> Shown:
    """P and Q of a few windows of a small histogram [bins], each with its divergence."""
    counts = np.asarray(counts)
    fig, axes = figure(7.2, 2.6, 1, len(stops), sharey=True)
    said = []
    for ax, stop in zip(axes, stops, strict=True):
        p = clipped_histogram(counts, stop)
        q = requantized_histogram(counts, levels, stop)
        divergence = kl_divergence(p, q)
        edges = np.arange(stop + 1)
        ax.stairs(p / p.sum(), edges, fill=True, color=BLUE, alpha=0.55)
        ax.stairs(q / q.sum(), edges, color=ORANGE, linewidth=2.2, linestyle="--")
        for g in range(1, levels):
            ax.axvline(g * stop // levels, color=GREY, linestyle=":", linewidth=1)
        ax.set(xlim=(0, len(counts)), xticks=range(len(counts) + 1), xlabel="bin")
        ax.set_title(f"keep {stop}: {divergence:.3f}", fontsize=10)
        said.append((divergence, f"{stop} bins {divergence:.3f}"))
    axes[0].set_ylabel("share of the values")
    for height, label, hue in ((0.95, "P (filled)", BLUE), (0.83, "Q (dashed)", ORANGE)):
        axes[0].text(
            0.97, height, label, fontsize=9, color=ink(hue), transform=axes[0].transAxes,
            ha="right", va="top",
        )  # fmt: skip
    return fig, (
        f"The divergence is smallest with {min(said)[1]} nats. P (filled) and Q (dashed, {levels} "
        f"groups) of a histogram of {len(counts)} bins for {len(stops)} windows: "
        f"{', '.join(text for _, text in said)}."
    )


def activation(hist: DyadicHistogram, marks: Mapping[str, float]) -> Shown:
    """A histogram of one-sided data on a logarithmic count axis, with named thresholds."""
    counts, width = hist.magnitudes()
    edges = width * np.arange(len(counts) + 1)
    fig, ax = figure(7.2, 2.8)
    ax.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=BLUE, alpha=0.8)
    ax.set(yscale="log", ylim=(0.5, 3 * counts.max()), xlim=(0, edges[-1] * 1.02))
    _named_lines(ax, marks)
    ax.set(xlabel="value of the activation", ylabel="count in a bin")
    ax.set_title(f"{int(counts.sum()):,} values above 0, and {hist.zeros:,} zeros left out", pad=20)
    middle = edges[1 + int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))]
    n = text_number
    return fig, (
        f"Half of the {int(counts.sum())} values above 0 lie below {n(middle)}, the largest is "
        f"{n(hist.max_val)}. Histogram of an activation on a logarithmic count axis. Marked: "
        + ", ".join(f"{name} {n(at)}" for name, at in marks.items())
        + "."
    )


def sweep(found: Sweep, guess: Prediction | None = None) -> Shown:
    """The divergence of every candidate threshold, its smallest value, and the learner's guess.

    The guess is in percent of the largest threshold.
    """
    finite = np.isfinite(found.scores)
    t, score = found.thresholds[finite], found.scores[finite]
    best = int(np.flatnonzero(finite[: found.best + 1]).size - 1)
    fig, ax = figure(7.2, 3.0)
    gaps = np.where(finite, found.scores, np.nan)  # an infinite divergence leaves a gap
    ax.plot(found.thresholds, gaps, **RULE_STYLE["KL"])
    ax.plot(t[best], score[best], "o", color=BLUE, markersize=7, zorder=6)
    ax.annotate(f"best: {t[best]:.3g}", (t[best], score[best]), xytext=(-4, 24), ha="center",
                textcoords="offset points", fontsize=9)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="clipping threshold T", ylabel="KL divergence (nats)")
    plain_log_ticks(ax, t[0], t[-1])
    ax.annotate(
        "small T: outliers piled\nonto the last bin", (0.02, 0.93), xycoords="axes fraction",
        va="top", fontsize=9, color=ink(GREY),
    )  # fmt: skip
    ax.annotate(
        "large T: detail lost\ninside wide groups", (0.985, 0.06), xycoords="axes fraction",
        ha="right", fontsize=9, color=ink(GREY),
    )  # fmt: skip
    if guess is not None and isinstance(guess.guess, int | float):
        at = guess.guess / 100 * found.thresholds[-1]
        Prediction(guess.id, at).draw(ax)
        ax.texts[-1].set(**_beside(np.interp(at, t, score), ax.get_ylim()))
    n = text_number
    return fig, (
        f"The divergence is smallest at a threshold of {n(t[best])}, with {n(score[best])} nats. "
        f"Curve over the clipping threshold from {n(t[0])} to {n(t[-1])}: {n(score[0])} nats at "
        f"the smallest, and {n(score[-1])} at the largest value, which is min-max."
    )


def _beside(value: float, ylim: tuple[float, float]) -> dict[str, Any]:
    """Where an upright label of about a quarter of the axes stays off a curve of this height."""
    share = np.log(value / ylim[0]) / np.log(ylim[1] / ylim[0])
    if share > 0.85:
        return {"y": 0.35, "va": "bottom"}
    return {"y": 0.03, "va": "bottom"} if share > 0.35 else {"y": 0.72, "va": "top"}


def objectives(
    error: Sweep,
    power: float,
    tried: tuple[ArrayLike, ArrayLike],
    right: tuple[ArrayLike, ArrayLike],
    chosen: Mapping[str, float],
    reference: float,
) -> Shown:
    """Every rule's threshold under two objectives: signal-to-noise ratio, and accuracy.

    error: mse_sweep of the activation; power: its mean square. tried: thresholds and mean squared
    errors found by quantizing the data itself. right: thresholds and accuracy in percent.
    chosen: each rule's threshold. reference: accuracy in FP32, percent.
    """
    fig, (top, bottom) = figure(7.2, 5.0, 2, 1, sharex=True)
    brute_t, brute = (np.asarray(a, np.float64) for a in tried)
    accuracy_t, accuracy = (np.asarray(a, np.float64) for a in right)
    decibels = 10 * np.log10(power / np.maximum(error.scores, 1e-30))
    brute_db = 10 * np.log10(power / brute)
    best = int(brute_db.argmax())
    low = min(accuracy_t[0], *chosen.values())
    shown = error.thresholds >= low
    top.plot(error.thresholds[shown], decibels[shown], color=DARK)
    top.plot(brute_t, brute_db, "o", markersize=3.5, markerfacecolor="white", color=DARK)
    top.plot(brute_t[best], brute_db[best], "*", markersize=14, color=DARK, zorder=6)
    top.set(xscale="log", ylabel="signal-to-noise ratio (dB)")
    top.set_title(
        "Line: predicted from the histogram. Dots: quantized. Star: the best of the dots.", pad=34
    )
    bottom.plot(accuracy_t, accuracy, "o-", color=RED, markersize=4)
    bottom.axhline(reference, color=GREY, linestyle="--", linewidth=1)
    bottom.text(0.01, reference, "FP32", transform=bottom.get_yaxis_transform(), color=ink(GREY),
                fontsize=9, ha="left", va="bottom")  # fmt: skip
    bottom.set(xlabel="clipping threshold T", ylabel="top-1 accuracy (%)", ylim=(0, 106))
    bottom.set_title("The same thresholds, judged by the network")
    plain_log_ticks(bottom, low, float(brute_t[-1]))
    _named_lines(top, chosen)
    _named_lines(bottom, chosen, labels=False)
    n = text_number
    at = {name: float(np.interp(np.log(t), np.log(error.thresholds), decibels))
          for name, t in chosen.items()}  # fmt: skip
    peak = int(accuracy.argmax())
    return fig, (
        f"The two optima lie apart: the signal-to-noise ratio is best at {n(brute_t[best])} "
        f"({n(brute_db[best])} dB), the accuracy at {n(accuracy_t[peak])} ({n(accuracy[peak])} "
        f"percent, FP32 {n(reference)}). Two curves over the clipping threshold. Thresholds: "
        + ", ".join(f"{name} {n(t)} ({n(at[name])} dB)" for name, t in chosen.items())
        + "."
    )


def advantage(decibels: Mapping[str, float]) -> Shown:
    """How many dB min-max is better than KL on each kind of data (negative: worse)."""
    names, values = list(decibels), np.array(list(decibels.values()))
    place = np.arange(len(names))
    fig, ax = figure(7.2, 0.9 + 0.42 * len(names))
    better = [RULE_STYLE["min-max" if v > 0 else "KL"]["color"] for v in values]
    ax.barh(place, values, 0.6, color=better)
    ax.axvline(0, color="black", linewidth=0.8)
    for y, value in enumerate(values):
        ax.annotate(f"{value:+.1f}", (value, y), xytext=(4 if value >= 0 else -4, 0), fontsize=9,
                    textcoords="offset points", va="center",
                    ha="left" if value >= 0 else "right")  # fmt: skip
    ax.margins(x=0.15)
    ax.set_yticks(place, names)
    ax.invert_yaxis()
    ax.set(xlabel="signal-to-noise ratio of min-max minus that of KL (dB)")
    ax.set_title("Left: KL is better. Right: min-max is better.")
    said = ", ".join(f"{name} {value:+.1f}" for name, value in decibels.items())
    most = max(decibels, key=lambda name: decibels[name])
    finding = f"Min-max does best against KL on {most}, {decibels[most]:+.1f} dB."
    return fig, f"{finding} Bars of its advantage over KL in dB: {said}."


def victims(accuracy: Mapping[str, Mapping[str, float]]) -> Shown:
    """Accuracy in percent by rule for several groups of pictures: {group: {rule: percent}}."""
    groups, rules = list(accuracy), list(next(iter(accuracy.values())))
    height = 0.8 / len(rules)
    fig, ax = figure(7.2, 0.9 + 0.3 * len(rules) * len(groups))
    for i, rule in enumerate(rules):
        place = np.arange(len(groups)) - 0.4 + (i + 0.5) * height
        values = [accuracy[group][rule] for group in groups]
        tint = RULE_STYLE[rule]["color"] if rule in RULE_STYLE else GREY
        ax.barh(place, values, 0.92 * height, color=tint)
        for y, value in zip(place, values, strict=True):
            ax.annotate(f"{rule} {value:.1f}", (value, y), xytext=(4, 0), fontsize=9,
                        textcoords="offset points", va="center")  # fmt: skip
    ax.set_yticks(range(len(groups)), groups)
    ax.invert_yaxis()
    ax.set(xlabel="top-1 accuracy (%)", xlim=(0, 112), xticks=range(0, 101, 20))
    said = "; ".join(
        f"{group}: " + ", ".join(f"{rule} {value:.1f}" for rule, value in row.items())
        for group, row in accuracy.items()
    )
    lost, group, rule = max(
        (row[rules[0]] - row[rule], group, rule) for group, row in accuracy.items() for rule in row
    )
    return fig, (
        f"Most is lost on {group} with {rule}, {lost:.1f} points against {rules[0]}. "
        f"Bars of top-1 accuracy in percent. {said}."
    )


def whole_network(accuracy: Mapping[str, Mapping[int, float]], reference: float) -> Shown:
    """Accuracy in percent of the whole network by rule and bits: {rule: {bits: percent}}."""
    bits = sorted(next(iter(accuracy.values())), reverse=True)
    curves = {rule: np.array([row[b] for b in bits]) for rule, row in accuracy.items()}
    gaps = np.diff(np.sort(np.stack(list(curves.values())), axis=0), axis=0).min(axis=0)
    at = int(gaps.argmax())  # where the names fit beside the lines
    top = max(curves, key=lambda rule: curves[rule][at])
    fig, ax = figure(7.2, 3.0)
    ax.axhline(reference, color=GREY, linestyle=":", linewidth=1.2)
    ax.text(bits[-1], reference, "FP32", color=ink(GREY), fontsize=9, ha="right", va="bottom")
    for rule, values in curves.items():
        style = RULE_STYLE[rule]
        ax.plot(bits, values, marker="o", markersize=5, **style)
        place = {"xytext": (7, 5), "va": "bottom"}
        if rule != top:
            place = {"xytext": (-7, -3), "va": "top", "ha": "right"}
        ax.annotate(rule, (bits[at], values[at]), textcoords="offset points", fontsize=9,
                    color=ink(style["color"]), **place)  # fmt: skip
    ax.set(ylim=(0, 107), xlabel="bits of weights and activations", ylabel="top-1 accuracy (%)")
    ax.set_xticks(range(bits[0], bits[-1] - 1, -1))
    ax.invert_xaxis()
    said = "; ".join(
        f"{rule} " + ", ".join(f"{v:.1f}" for v in values) for rule, values in curves.items()
    )
    last = {rule: float(values[-1]) for rule, values in curves.items()}
    best = max(last, key=lambda rule: last[rule])
    second = sorted(last.values())[-2]
    return fig, (
        f"At {bits[-1]} bits {best} keeps {last[best]:.1f} percent, the next rule {second:.1f}. "
        f"Lines of the top-1 accuracy of the whole network, FP32 {reference:.1f}, at "
        f"{', '.join(map(str, bits))} bits: {said}."
    )


def bins_matter(
    bins: Sequence[int],
    thresholds: Mapping[int, ArrayLike],
    shortest: Mapping[int, ArrayLike],
    largest: float,
) -> Shown:
    """The KL threshold found with so many bins, for several numbers of bits: {bits: [bins]}.

    shortest: {bits: [bins]}, the shortest window that the search may choose, levels x bin width.
    """
    fig, ax = figure(7.2, 3.4)
    ax.axhline(largest, linewidth=1.2, **RULE_STYLE["min-max"])
    ax.text(1.0, largest, "min-max", transform=ax.get_yaxis_transform(), ha="right", va="bottom",
            color=ink(RULE_STYLE["min-max"]["color"]), fontsize=9)  # fmt: skip
    said = []
    for i, (bits, found) in enumerate(thresholds.items()):
        found, limit = np.asarray(found, np.float64), np.asarray(shortest[bits], np.float64)
        searched = np.asarray(bins) > 2**bits
        ax.plot(bins, limit, color=GREY, linewidth=0.9)
        ax.plot(bins, found, color=BLUE, linestyle=LINES[i])
        ax.plot(np.asarray(bins)[searched], found[searched], "o", color=BLUE, markersize=5)
        ax.plot(np.asarray(bins)[~searched], found[~searched], "x", color=BLUE, markersize=8,
                markeredgewidth=2)  # fmt: skip
        ax.annotate(f" {bits} bits", (bins[-1], found[-1]), va="center", fontsize=9,
                    xytext=(3, 0), textcoords="offset points", color=ink(BLUE))  # fmt: skip
        said.append(
            f"{bits} bits from {text_number(found[0])} to {text_number(found[-1])}, lowest "
            f"{text_number(found.min())}, shortest window from {text_number(limit[0])} to "
            f"{text_number(limit[-1])}, nothing searched in {int((~searched).sum())} of {len(bins)}"
        )
    lowest = min(np.min(v) for v in thresholds.values())
    ax.set(
        xscale="log", yscale="log", xlabel="bins of the histogram", ylabel="threshold KL chooses"
    )
    ax.set_xticks(bins, [f"{b:,}" for b in bins], fontsize=8)
    ax.minorticks_off()
    plain_log_ticks(ax, lowest, largest, axis="y")
    ax.set(xlim=(bins[0] * 0.85, bins[-1] * 1.9), ylim=(0.7 * lowest, 1.5 * largest))
    ax.set_title("Thin: the shortest window allowed. Crosses: nothing was searched.")
    return fig, (
        f"The threshold that KL chooses moves with the number of bins, and with few bins it stays "
        f"just above the shortest window. Curves from {bins[0]} to {bins[-1]} bins: "
        f"{'; '.join(said)}. The largest value is {text_number(largest)}."
    )


def plain_log_ticks(ax: Any, low: float, high: float, axis: str = "x") -> None:
    """Ticks 0.5, 1, 2, 5, 10, ... written as plain numbers on a logarithmic axis."""
    wanted = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    ticks = [t for t in wanted if low <= t <= high * 1.0001]
    setter = ax.set_xticks if axis == "x" else ax.set_yticks
    setter(ticks, [f"{t:g}" for t in ticks])
    setter([], minor=True)


def _named_lines(ax: Any, marks: Mapping[str, float], labels: bool = True) -> None:
    """Vertical lines of the rules' thresholds, their names above the axes, two rows by turns."""
    for row, (name, at) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        style = RULE_STYLE[name]
        ax.axvline(at, linewidth=1.4, **style)
        if labels:
            ax.annotate(f"{name} {at:.3g}", (at, 1), xycoords=ax.get_xaxis_transform(),
                        xytext=(0, 4 + 13 * (row % 2)), textcoords="offset points", ha="center",
                        va="bottom", fontsize=9, color=ink(style["color"]))  # fmt: skip
