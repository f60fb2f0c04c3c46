"""Widget of chapter 15: what the runtime makes of a row of convolutions, and what that takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from ptq_classroom.chapters.ch15 import chains
from ptq_classroom.kit.controls import Choice
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, figure, ink
from ptq_course.deploy.session import latency, session
from ptq_course.deploy.validate import Kernels

BEHIND = {"ReLU": "Relu", "GELU": "Gelu", "residual sum": "Add"}
BATCHES = (1, 8, 32)
KINDS = ("integers", "floating point", "Q and DQ")
HUES = (COLORS[0], COLORS[2], COLORS[3])
MOST_TIME = 3.0  # of FP32's, in the picture


@dataclass(frozen=True)
class Found:
    """Of one file: executed nodes of each of KINDS, and its time over FP32's for each batch."""

    nodes: tuple[int, int, int]
    times: Mapping[int, float]


def measure(rounds: int = 5) -> dict[tuple[str, bool], Found]:
    """(what stands behind, whether a pair stands directly behind the convolution) -> found."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, behind in BEHIND.items():
            models = {
                "FP32": chains.floating(behind),
                True: chains.quantized(behind, directly=True),
                False: chains.quantized(behind, directly=False),
            }
            files = {}
            for name, model in models.items():
                path = Path(folder) / f"{behind}_{name}.onnx"
                onnx.save(model, path)
                files[str(name)] = session(path, threads=1)  # steadier than two
            took = {n: latency(files, _batch(n), rounds) for n in BATCHES}
            for directly in (True, False):
                kernels = Kernels.of(files[str(directly)].operators)
                counts = (kernels.integer, kernels.floating, kernels.boundary)
                integer, floating, boundary = (sum(kind.values()) for kind in counts)
                times = {n: t[str(directly)] / t["FP32"] for n, t in took.items()}
                found[title, directly] = Found((integer, floating, boundary), times)
    return found


def _batch(count: int) -> torch.Tensor:
    shape = (count, chains.WIDTH, chains.SIDE, chains.SIDE)
    return torch.rand(shape, generator=torch.Generator().manual_seed(15))


class OneRow:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self, found: Mapping[tuple[str, bool], Found]) -> None:
        self.found = found
        self.fig, (left, right) = figure(7.6, 2.6, 1, 2, width_ratios=(3, 2))
        most = max(max(one.nodes) for one in found.values())
        self.nodes = left.barh(range(3), [1] * 3, color=HUES, height=0.6)
        self.counts = [left.text(0, i, "", va="center", fontsize=9) for i in range(3)]
        left.set_yticks(range(3), KINDS)
        left.set(xlim=(0, 1.12 * most), ylim=(2.5, -0.5), xlabel="nodes that are executed")
        left.set_title(f"{chains.LENGTH} convolutions in a row")
        (self.time,) = right.barh([0], [1], color=COLORS[0], height=0.45)
        self.told = right.text(0, 0, "", va="center", fontsize=9)
        right.axvline(1, color=GREY, linestyle="--", linewidth=1.4)
        right.text(1.06, 0.55, "FP32", fontsize=9, va="center", color=ink(GREY))
        right.set(xlim=(0, MOST_TIME), ylim=(0.7, -0.5), yticks=[], title="Time of a call")
        right.set_xlabel("times FP32's (dashed)")

    def frame(self, behind: str, directly: bool, batch: int) -> tuple[str, str]:
        """Show what is executed of this file, and its time at this batch."""
        one = self.found[behind, directly]
        for bar, text, count in zip(self.nodes, self.counts, one.nodes, strict=True):
            bar.set_width(count)
            text.set(x=count, text=f" {count}")
        time = one.times[batch]
        self.time.set_width(min(time, MOST_TIME))
        self.time.set_facecolor(COLORS[0] if time < 1 else COLORS[2])
        beside = min(max(time, 1), 0.75 * MOST_TIME)  # never on the dashed line
        self.told.set(x=beside, text=f" {time:.1f} times")
        pair = "a pair" if directly else "no pair"
        integer, floating, boundary = one.nodes
        readout = (
            f"{behind}, {pair} directly behind each convolution: {integer} nodes in integers, "
            f"{floating} in floating point, {boundary} Q and DQ; batch of {batch}: "
            f"~{time:.1f} times FP32's time"
        )
        return readout, f"{readout}."


def explorer(found: Mapping[tuple[str, bool], Found] | None = None) -> Explorer:
    """The widget: what stands behind, whether rounded before it, batch. found: from `measure`."""
    picture = OneRow(measure() if found is None else found)
    controls = [
        Choice("behind", tuple(BEHIND), "ReLU", "behind each convolution"),
        Choice("directly", (("no", False), ("yes", True)), False,
               "a Q/DQ pair directly behind each convolution"),
        Choice("batch", BATCHES, 8),
    ]  # fmt: skip
    return Explorer(picture.fig, controls, picture.frame, "What the runtime makes of it")
