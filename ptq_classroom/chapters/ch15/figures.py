"""Figures of chapter 15: a graph before and after fusion, a residual block in two runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ptq_classroom.kit.pieces import accuracy_bars
from ptq_classroom.kit.prediction import Prediction
from ptq_classroom.kit.show import COLORS, GREY, describe_bars, figure, ink

Interval = tuple[float, float, float]


def before_and_after(
    file: Mapping[str, int], runtime: Mapping[str, int], guess: Prediction | None = None
) -> tuple[Figure, str]:
    """Nodes by operator, in the file and in the graph that the runtime executes."""
    fig, axes = figure(8.2, 0.8 + 0.3 * max(len(file), len(runtime)), 1, 2, sharex=True)
    told = []
    for ax, counts, title in zip(axes, (file, runtime), ("in the file", "executed"), strict=True):
        names = sorted(counts, key=lambda name: -counts[name])
        values = [counts[name] for name in names]
        ours = [COLORS[2] if name in ("QuantizeLinear", "DequantizeLinear") else COLORS[0]
                for name in names]  # fmt: skip
        ax.barh(range(len(names)), values, color=ours, height=0.65)
        for i, value in enumerate(values):
            ax.annotate(
                str(value), (value, i), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=9,
            )  # fmt: skip
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(max(len(file), len(runtime)) - 0.4, -0.6)
        ax.set(title=f"{title}: {sum(values)} nodes", xlabel="nodes")
        told.append(f"{title} {sum(values)} nodes, {_pairs(counts)} of them Q or DQ")
    axes[0].margins(x=0.12)
    if guess is not None:
        guess.draw(axes[1], "x")
    few = describe_bars(list(runtime), list(runtime.values()), "nodes that are executed")
    return fig, f"Nodes {told[0]}; {told[1]}. {few}"


def _pairs(counts: Mapping[str, int]) -> int:
    return counts.get("QuantizeLinear", 0) + counts.get("DequantizeLinear", 0)


def two_blocks() -> tuple[Figure, str]:
    """One residual block as two runtimes compute it: where its values are rounded."""
    fig, axes = figure(8.4, 2.5, 1, 2)
    for ax, fused in zip(axes, (False, True), strict=True):
        ax.set(xlim=(-0.4, 6.2), ylim=(-0.5, 2.0))
        ax.axis("off")
        ax.set_title("OpenVINO: one kernel" if fused else "ONNX Runtime: two kernels")
        if fused:
            _box(ax, 2.4, 0.8, "convolution and sum\nin float32", 3.4, 1.5)
            edges = [((0.2, 0.8), (0.6, 0.8)), ((4.1, 0.8), (4.75, 0.8)), ((5.25, 0.8), (6.1, 0.8))]
            _round(ax, 5.0, 0.8)
        else:
            _box(ax, 1.5, 1.4, "convolution", 1.7)
            _round(ax, 2.8, 1.4)
            _box(ax, 3.9, 0.7, "sum", 0.9)
            _round(ax, 5.0, 0.7)
            edges = [
                ((0.2, 0.8), (0.65, 1.25)), ((0.2, 0.7), (3.4, 0.6)), ((2.35, 1.4), (2.55, 1.4)),
                ((3.05, 1.35), (3.5, 0.95)), ((4.35, 0.7), (4.75, 0.7)), ((5.25, 0.7), (6.1, 0.7)),
            ]  # fmt: skip
        ax.text(0.0, 0.75, "x", ha="center", va="center", fontsize=11)
        for start, end in edges:
            ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "black"})
    fig.supxlabel("a circle rounds to 8 bits; x is rounded already", fontsize=9)
    return fig, (
        "OpenVINO rounds a residual block once, ONNX Runtime twice. ONNX Runtime: x goes into a "
        "convolution, whose output is rounded, then the sum with x is rounded again. OpenVINO: one "
        "kernel computes convolution and sum in float32, and only its result is rounded."
    )


def _box(ax: Any, x: float, y: float, text: str, width: float, height: float = 0.6) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle="round,pad=0.02",
            facecolor="#e8f1fb",
            edgecolor=COLORS[0],
            linewidth=1.4,
        )
    )
    ax.text(x, y, text, ha="center", va="center", fontsize=9.5)


def _round(ax: Any, x: float, y: float) -> None:
    ax.plot(x, y, "o", markersize=19, markerfacecolor="#fdf0e4", markeredgecolor=ink(COLORS[6]))
    ax.text(x, y, "Q", ha="center", va="center", fontsize=10, color=ink(COLORS[6]))


def differences(means: Mapping[str, float], unit: str) -> tuple[Figure, str]:
    """Mean absolute difference of outputs from those of another runtime, for several versions."""
    fig, ax = figure(7.8, 0.8 + 0.42 * len(means))
    values = list(means.values())
    ax.barh(range(len(values)), values, color=COLORS[0], height=0.6)
    for i, value in enumerate(values):
        ax.annotate(
            f"{value:.3f}", (value, i), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=9,
        )  # fmt: skip
    ax.set_yticks(range(len(values)), list(means))
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel=unit)
    return fig, describe_bars(list(means), values, unit)


def changes(rows: Mapping[str, Interval]) -> tuple[Figure, str]:
    """Change of the accuracy against FP32 with its 95 % interval, in points."""
    fig, ax = figure(7.8, 0.9 + 0.42 * len(rows))
    middle, low, high = (100 * np.array(column) for column in zip(*rows.values(), strict=True))
    accuracy_bars(ax, list(rows), middle, low, high, unit="change of accuracy (points)")
    ax.axvline(0, color=GREY, linewidth=1.0)
    ax.axvline(-1, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(
        -1, 1.0, "limit", transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=9,
        color=ink(GREY),
    )  # fmt: skip
    told = []
    for name, value, least, most in zip(rows, middle, low, high, strict=True):
        keeps = "keeps" if least >= -1 else "may break"
        told.append(f"{name} {keeps} the limit of -1: {value:+.1f} ({least:+.1f} to {most:+.1f})")
    return fig, f"{'; '.join(told)}. Changes of accuracy against FP32 in points."
