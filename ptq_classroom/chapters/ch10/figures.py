"""Figures of chapter 10: boxes on scenes, precision over recall, one grid for two units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink
from ptq_classroom.pictures.boxes import Detections
from ptq_classroom.pictures.detection import DETECTED, Scenes

SURE = 0.4  # boxes with a lower score are not drawn


def boxes(
    scenes: Scenes, found: Mapping[str, Detections], which: Sequence[int]
) -> tuple[Figure, str]:
    """A row of scenes for each version, with its boxes, classes and scores of at least 0.4."""
    fig, axes = figure(8.4, 2.3 * len(found), len(found), len(which), squeeze=False)
    told, ranges = [], []
    for row, (version, detections) in zip(axes, found.items(), strict=True):
        counts, all_scores = [], []
        for ax, index in zip(row, which, strict=True):
            ax.imshow(scenes.images[index].permute(1, 2, 0).numpy(), extent=(0, 96, 96, 0))
            ax.axis("off")
            rows = zip(*(x.tolist() for x in detections.within(index, SURE)), strict=True)
            taken: list[tuple[float, float, float]] = []
            for (left, top, right, bottom), score, label in rows:
                _frame(ax, (left, top, right, bottom), f"{DETECTED[label]} {score:.2f}", taken)
                all_scores.append(score)
            counts.append(f"{len(taken)} of {len(scenes.objects(index)[1])}")
        row[0].set_title(version)
        told.append(f"{version} {', '.join(counts)}")
        if all_scores:
            ranges.append(f"{version} {min(all_scores):.2f} to {max(all_scores):.2f}")
    scores = f" Scores: {'; '.join(ranges)}." if ranges else ""
    return fig, f"Boxes drawn of objects there, scene by scene: {'; '.join(told)}.{scores}"


def _frame(
    ax: object, box: tuple[float, ...], text: str, taken: list[tuple[float, float, float]]
) -> None:
    """A box and its label: above it, or below it where ``taken`` has a label there already."""
    left, top, right, bottom = box
    x, y, end = min(max(left, 1), 44), max(top - 1.5, 8), 3.2 * len(text)
    if any(abs(y - other) < 7 and x < stop and start < x + end for start, stop, other in taken):
        y = min(bottom + 7, 95)
    taken.append((x, x + end, y))
    for edge, width in (("black", 2.6), ("white", 1.2)):
        ax.add_patch(  # type: ignore[attr-defined]
            Rectangle((left, top), right - left, bottom - top, fill=False, ec=edge, lw=width)
        )
    ax.text(  # type: ignore[attr-defined]
        x, y, text, fontsize=8, color="white",
        bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )  # fmt: skip


def precision_recall(
    hits: Sequence[bool], objects: int, name: str, area: float
) -> tuple[Figure, str]:
    """Precision over recall of one class, going down its list of detections, best score first."""
    fig, ax = figure(6.2, 3.2)
    right = np.cumsum(hits)
    recall, precision = right / objects, right / np.arange(1, len(right) + 1)
    hull = np.maximum.accumulate(precision[::-1])[::-1]
    ax.plot(recall, precision, color=COLORS[0], marker="o", markersize=3, linewidth=1)
    ax.fill_between(np.append(0, recall), np.append(hull[0], hull), step="pre",
                    color=COLORS[1], alpha=0.35)  # fmt: skip
    ax.text(0.5 * recall[-1], 0.45, f"area: AP {area:.2f}", ha="center", fontsize=11, bbox=BEHIND)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.05), xlabel=f"recall: share of the {objects} objects found")
    ax.set_ylabel("precision: right boxes\nover all boxes so far")
    ax.set_title(name)
    return fig, (
        f"{name}: average precision {area:.2f}. Precision stays above {precision.min():.2f} down "
        f"to a recall of {recall[-1]:.2f}, over {len(right)} detections of {objects} objects."
    )


def one_grid(
    before: Tensor, after: Tensor, step: float, separate: float = 1 / 255
) -> tuple[Figure, str]:
    """Probabilities before and behind a join with pixels: a staircase with few steps.

    before, after: the same probabilities, any shape; step: the scale that the join gave them.
    """
    x, y = before.flatten().numpy(), after.flatten().numpy()
    levels = np.unique(np.round(y / step)) * step
    fig, (left, right) = figure(8.2, 3.0, 1, 2, width_ratios=(1, 1))
    ticks = np.arange(0, 12) * step
    left.axvspan(0, 1, color=COLORS[1], alpha=0.35, linewidth=0)
    left.vlines(ticks, 0.35, 0.65, color=COLORS[0], linewidth=1.6)
    left.axhline(0.5, color=GREY, linewidth=0.8)
    left.text(0.5, 0.78, "probabilities", fontsize=9, ha="center")
    left.annotate("boxes go on to 96 pixels", (4.2, 0.22), xytext=(1.3, 0.2), fontsize=9,
                  arrowprops={"arrowstyle": "->", "color": GREY})  # fmt: skip
    left.set(xlim=(-0.05, 4.3), ylim=(0, 1), yticks=[], title="levels of the common grid")
    left.set_xlabel(f"value (one step is {step:.2f})")
    left.spines["left"].set_visible(False)
    right.plot(x, y, ".", color=COLORS[2], markersize=4)
    right.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    right.set(
        xlabel="probability in FP32", ylabel="behind the join", xlim=(0, 1), ylim=(-0.05, 1.2)
    )
    right.set_yticks(levels, [f"{level:.2f}" for level in levels])
    return fig, (
        f"Behind the join the probabilities have {len(levels)} values, "
        f"{', '.join(f'{level:.2f}' for level in levels)}: the step of the common grid is "
        f"{step:.2f}, where a grid of their own would have {separate:.4f}."
    )


def changes(
    rows: Mapping[str, tuple[float, float, float]], guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Change of mAP with its 95 % interval for each version (shares), drawn in points."""
    fig, ax = figure(7.6, 0.9 + 0.42 * len(rows))
    told = []
    for i, (name, values) in enumerate(rows.items()):
        middle, low, high = (100 * value for value in values)
        ax.errorbar(middle, i, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3,
                    color=COLORS[0], ecolor="black", elinewidth=1)  # fmt: skip
        ax.annotate(f"{middle:+.1f}", (middle, i), xytext=(0, 7), textcoords="offset points",
                    ha="center", fontsize=9)  # fmt: skip
        told.append(f"{name} {middle:+.1f} ({low:+.1f} to {high:+.1f})")
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(ylim=(len(rows) - 0.4, -0.7), xlabel="change of mAP at 0.5 against FP32 (points)")
    if guess is not None:
        guess.draw(ax, "x")
    return fig, f"Change of mAP in points, with 95 % intervals: {'; '.join(told)}."


def sweeps(sides: Mapping[str, Mapping[str, float]], unit: str = "points") -> tuple[Figure, str]:
    """One panel for each sweep: layer -> points of mAP, bars in the order of the network."""
    fig, axes = figure(8.2, 3.1, 1, len(sides), sharey=True, squeeze=False)
    told = []
    for i, (ax, (title, values)) in enumerate(zip(axes[0], sides.items(), strict=True)):
        names, lengths = list(values), [round(100 * v, 1) + 0.0 for v in values.values()]
        ax.barh(range(len(names)), lengths, color=COLORS[2 * i], height=0.65)
        for place, length in enumerate(lengths):
            ax.annotate(f"{length:.1f}", (max(length, 0), place), xytext=(4, 0), va="center",
                        textcoords="offset points", fontsize=9)  # fmt: skip
        ax.axvline(0, color=GREY, linewidth=1)
        ax.set(title=title, xlabel=f"mAP ({unit})")
        ax.set_yticks(range(len(names)), names)
        ax.margins(x=0.15)
        most = sorted(range(len(names)), key=lambda place: -lengths[place])[:2]
        told.append(f"{title}: {', '.join(f'{names[k]} {lengths[k]:.1f}' for k in most)}")
    axes[0, 0].invert_yaxis()
    return fig, f"The largest of {len(names)} layers, in points of mAP. {'; '.join(told)}."


def pareto(
    path: Mapping[str, tuple[float, float]],
    others: Mapping[str, tuple[float, float]],
    low: float = 35.0,
) -> tuple[Figure, str]:
    """Bytes and mAP (a share) of versions: a connected path, and others as single points."""
    fig, ax = figure(7.8, 3.7)
    x, y = (np.array(column) for column in zip(*path.values(), strict=True))
    ax.plot(x / 1000, 100 * y, marker="o", markersize=5, **color(0))
    following = [*x[1:], np.inf]
    for (name, (size, score)), after in zip(path.items(), following, strict=True):
        beside = after < 1.15 * size  # else there is room above the point
        ax.annotate(name, (size / 1000, 100 * score), xytext=(8, -3) if beside else (0, 8),
                    ha="left" if beside else "center", va="top" if beside else "bottom",
                    textcoords="offset points", fontsize=9, color=ink(COLORS[0]))  # fmt: skip
    for name, (size, score) in others.items():
        ax.plot(size / 1000, 100 * score, "s", color=COLORS[2], markersize=7)
        ax.annotate(name, (size / 1000, 100 * score), xytext=(0, 8), ha="center", fontsize=9,
                    textcoords="offset points", color=ink(COLORS[2]))  # fmt: skip
    ax.set(xscale="log", xlabel="bytes of all weights (kB, logarithmic)", ylabel="mAP at 0.5 (%)")
    ticks = [80, 100, 150, 200, 300, 600]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set(xlim=(78, 760), ylim=(low, 103))
    first, last = next(iter(path)), list(path)[-1]
    told = "; ".join(f"{n} {b / 1000:.0f} kB {100 * s:.1f} %" for n, (b, s) in others.items())
    return fig, (
        f"From {first} with {x[0] / 1000:.0f} kB and {100 * y[0]:.1f} % to {last} with "
        f"{x[-1] / 1000:.0f} kB and {100 * y[-1]:.1f} %, in {len(path)} versions. Others: {told}."
    )
