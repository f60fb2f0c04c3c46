"""Figures of chapter 04: a block before and after fusion, what folding does to the channels."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import fx, nn

from ptq_classroom.chapters.ch04.exercises import Ops
from ptq_classroom.kit.names import network_name
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.show import COLORS, GREY, color, figure, ink, text_number
from ptq_course.graph import Plan
from ptq_course.graph.kinds import operation_of

KINDS = {
    None: "input", nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu", nn.ReLU6: "relu",
    operator.add: "add", nn.AdaptiveAvgPool2d: "pool", torch.flatten: "flatten",
    nn.Linear: "linear",
}  # fmt: skip
FILL = {"conv": "#d7e8f8", "bn": "#fde7c2", "relu": "#e3e6e8", "add": "#ead9f1", "entry": "white"}


def operations(traced: fx.GraphModule) -> Ops:
    """The operations of a traced network of the course in order; identities are left out."""
    ops: Ops = {}
    alias: dict[str, str] = {}  # what an identity returns is its input
    for node in traced.graph.nodes:
        reads = tuple(alias.get(source.name, source.name) for source in node.all_input_nodes)
        operation = operation_of(traced, node)
        if operation is nn.Identity:
            alias[node.name] = reads[0]
        elif node.op != "output":
            ops[node.name] = (KINDS[operation], reads)
    return ops


def readers(ops: Ops, name: str) -> list[str]:
    """The operations that read this value."""
    return [other for other, (_, inputs) in ops.items() if name in inputs]


def places(plan: Plan) -> list[str]:
    """The nodes behind which a planned network rounds: each value's, and averages of it."""
    return [node for value in plan.values.values() for node in (value.node, *value.inherited_by)]


def groups(ops: Ops, merge: tuple[str, ...]) -> dict[str, list[str]]:
    """Operations that run as one: the last of each group -> its members in order."""
    members: dict[str, list[str]] = {}
    for name in ops:
        before = [last for last in members if last in ops[name][1]]
        joins = ops[name][0] in merge and len(before) == 1 and len(readers(ops, before[0])) == 1
        members[name] = [*(members.pop(before[0]) if joins else []), name]
    return members


def block_diagram(ops: Ops, first: str, last: str, merge: tuple[str, ...]) -> tuple[Figure, str]:
    """The operations from `first` (what comes in) to `last`, alone and merged, with Q/DQ pairs.

    How many there are is left to the reader. The pair of what comes in belongs to another block.
    """
    names = list(ops)
    inside = names[names.index(first) : names.index(last) + 1]
    block = {name: ops[name] for name in inside}
    fig, axes = figure(8.4, 5.8, 1, 2)
    bottom, told = -1.0, []
    for ax, title, kinds in ((axes[0], "before fusion", ()), (axes[1], "after fusion", merge)):
        boxes = groups(block, kinds)
        pairs = {n for n in groups(ops, kinds) if readers(ops, n) and ops[n][0] != "flatten"}
        bottom = min(bottom, _draw_block(ax, block, boxes, pairs, first))
        ax.set_title(title, fontsize=11)
        below = [" + ".join(map(_short, boxes[name])) for name in boxes if name in pairs - {first}]
        told.append(f"{title} a Q/DQ pair below each of {', '.join(below)}")
    for ax in axes:
        ax.set(xlim=(-0.8, 2.4), ylim=(bottom - 0.75, 0.4), xticks=[], yticks=[])
        ax.spines[["left", "bottom"]].set_visible(False)
    legend = ("a Q/DQ pair", PAIR), ("counted with the block before", OTHERS)
    for row, (text, style) in enumerate(legend):
        axes[1].plot(0.5, bottom - 0.3 * row, "o", **style)
        axes[1].text(0.62, bottom - 0.3 * row, text, va="center", fontsize=9)
    return fig, f"Block from {first} to {last}: " + "; ".join(told) + "."


PAIR = {"color": COLORS[2], "markersize": 8}
OTHERS = {"color": GREY, "markersize": 8, "markerfacecolor": "white", "markeredgewidth": 1.8}
WIDTH, HEIGHT, LANE, DOT = 1.24, 0.52, 1.6, 0.13  # of boxes; between lanes; of dots below boxes


def _draw_block(ax: Any, block: Ops, boxes: dict[str, list[str]], pairs: set, first: str) -> float:
    """Boxes from top to bottom, what is on the shortcut in a lane beside; returns the last y."""
    end_of = {name: last for last, members in boxes.items() for name in members}
    inputs = {
        last: {end_of[i] for m in members for i in block[m][1] if i in end_of} - {last}
        for last, members in boxes.items()
    }
    y: dict[str, float] = {}
    for last in boxes:  # in the order of the graph: inputs come first
        y[last] = min((y[i] for i in inputs[last] if i in y), default=1.0) - 1.0
    x = {last: LANE if "shortcut" in last else 0.0 for last in boxes}
    for last, members in boxes.items():
        kind = "entry" if last == first else block[members[0]][0]
        corner = (x[last] - WIDTH / 2, y[last] - HEIGHT / 2)
        box = FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02")
        box.set(facecolor=FILL[kind], edgecolor=GREY)
        ax.add_patch(box)
        text = "from the block before" if last == first else " + ".join(map(_short, members))
        ax.text(x[last], y[last], text, ha="center", va="center", fontsize=8.5)
        for source in inputs[last]:
            _arrow(ax, x[source], y[source], x[last], y[last])
        if last in pairs:
            dot = y[last] - HEIGHT / 2 - DOT
            ax.plot(x[last], dot, "o", zorder=5, **(OTHERS if last == first else PAIR))
    return min(y.values())


def _arrow(ax: Any, x0: float, y0: float, x1: float, y1: float) -> None:
    """Straight down, or out to the other lane and down, or down and into a box from its side."""
    out, into = y0 - HEIGHT / 2, y1 + HEIGHT / 2
    if x0 == x1:
        corners = [(x0, out - 0.02), (x1, into + 0.02)]
    elif x1 > x0:
        corners = [(x0, out - DOT), (x1, out - DOT), (x1, into + 0.02)]
    else:
        corners = [(x0, out - 0.02), (x0, y1), (x1 + WIDTH / 2 + 0.02, y1)]
    ax.plot(*zip(*corners[:-1], strict=True), color=GREY, linewidth=1)
    style = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=corners[-1], xytext=corners[-2], arrowprops=style)


def _short(name: str) -> str:
    """layer2_shortcut_0 -> shortcut 0, layer2_conv1 -> conv1, add_1 -> add."""
    parts = [p for p in name.split("_") if not p.startswith("layer")]
    if parts[0] == "shortcut":
        return {"0": "conv", "1": "bn"}.get(parts[-1], parts[-1])
    return parts[0]


def spread_of_layers(spreads: dict[str, dict[str, tuple[float, float]]]) -> tuple[Figure, str]:
    """Largest over smallest channel range of each layer, before and after folding.

    spreads: network -> layer -> (before, after).
    """
    fig, axes = figure(8.2, 4.6, 1, len(spreads), squeeze=False)
    told = []
    for ax, (network, layers) in zip(axes[0], spreads.items(), strict=True):
        before, after = np.array(list(layers.values()), dtype=float).T
        place = np.arange(len(layers))
        ax.hlines(place, before, after, color=GREY, linewidth=1)
        ax.plot(before, place, "o", color=COLORS[0], markersize=5, markerfacecolor="white")
        ax.plot(after, place, "o", color=COLORS[2], markersize=5)
        ax.set_yticks(place, list(layers), fontsize=8)
        ax.invert_yaxis()
        ax.set(xscale="log", xlim=(1.5, 70), xticks=[2, 5, 10, 20, 50])
        ax.set_xticklabels(["2", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.set_xlabel("largest / smallest channel range")
        ax.set_title(network_name(network), fontsize=10)
        worst = int(after.argmax())
        grew = int((after > 1.1 * before).sum())
        told.append(
            f"{network_name(network)}: the spread of {grew} of {len(layers)} layers grows by more "
            f"than a tenth, most of all that of {list(layers)[worst]}, from "
            f"{before[worst]:.1f} to {after[worst]:.1f}"
        )
    ax = axes[0, -1]
    for number, (text, c) in enumerate((("○ before folding", 0), ("● after folding", 2))):
        ax.text(0.98, 0.09 - 0.05 * number, text, transform=ax.transAxes, ha="right", fontsize=9,
                color=ink(COLORS[c]), bbox=BEHIND)  # fmt: skip
    return fig, "; ".join(told) + ". Dots for the spread of each layer before and after folding."


def channel_ranges(before: Any, after: Any, layer: str) -> tuple[Figure, str]:
    """Largest |weight| of each channel over its median, before and after, sorted by the latter."""
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    order = np.argsort(after)
    before, after = before[order] / np.median(before), after[order] / np.median(after)
    fig, ax = figure(6.8, 3.0)
    place = np.arange(len(after))
    ax.bar(place, after, color=COLORS[0], width=0.8)
    ax.plot(place, before, "_", color="black", markersize=9, markeredgewidth=2)
    ax.set(xlabel=f"channel of {layer}, sorted", ylabel="range / median range", xticks=[])
    ax.text(
        0.02, 0.9, "bars: after folding", transform=ax.transAxes, color=ink(COLORS[0]), fontsize=9
    )
    ax.text(0.02, 0.8, "dashes: before folding", transform=ax.transAxes, fontsize=9)
    n = text_number
    return fig, (
        f"{len(after)} channels of {layer}: before folding ranges between {n(before.min())} and "
        f"{n(before.max())} times their median, after folding between {n(after.min())} and "
        f"{n(after.max())} times."
    )


def by_batch_size(sizes: Any, training: Any, evaluation: Any) -> tuple[Figure, str]:
    """Top-1 accuracy (percent) of one network over the batch size, in both modes."""
    fig, ax = figure(6.4, 3.2)
    for number, (name, values) in enumerate(
        (("eval mode", evaluation), ("training mode", training))
    ):
        ax.plot(sizes, values, marker="o", markersize=4, **color(number))
        ax.annotate(name, (sizes[0], values[0]), xytext=(0, -16), textcoords="offset points",
                    fontsize=9, color=ink(COLORS[number]), ha="left")  # fmt: skip
    ax.set(xscale="log", xticks=list(sizes), xticklabels=[str(s) for s in sizes])
    ax.minorticks_off()
    ax.set(xlabel="pictures in a batch", ylabel="top-1 accuracy (%)", ylim=(0, 104))
    n = text_number
    return fig, (
        f"Training mode: {n(training[0])} percent with {sizes[0]} in a batch, {n(training[-1])} "
        f"with {sizes[-1]}. Eval mode: {n(min(evaluation))} to {n(max(evaluation))} percent. "
        f"Lines of the accuracy over the batch size."
    )


def told_by_gamma(gamma: Any, deviation: Any, beta: Any, mean: Any) -> tuple[Figure, str]:
    """Spread and mean of each channel as measured, against |gamma| and beta."""
    fig, axes = figure(7.2, 3.1, 1, 2)
    told = []
    for ax, told_x, measured, name, statistic in (
        (axes[0], np.abs(np.asarray(gamma)), deviation, "|gamma|", "standard deviation"),
        (axes[1], np.asarray(beta), mean, "beta", "mean"),
    ):
        x, y = np.asarray(told_x, dtype=float), np.asarray(measured, dtype=float)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.2)
        ax.plot(x, y, "o", color=COLORS[0], markersize=4)
        ax.set(xlabel=f"{name}, kept from training", ylabel=f"{statistic} on the pictures")
        told.append(f"{statistic} against {name}, correlation {np.corrcoef(x, y)[0, 1]:.2f}")
    return fig, f"{len(np.asarray(gamma))} channels before ReLU: " + "; ".join(told) + "."
