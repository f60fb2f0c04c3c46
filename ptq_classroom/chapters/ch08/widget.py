"""Widget of chapter 08: a narrow accumulator and a short multiplier in one layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.pieces import BEHIND
from ptq_classroom.kit.show import COLORS, GREY, figure, ink, text_number
from ptq_classroom.pictures.camera import to_input
from ptq_course.integer import IntegerModel, requantize, to_multiplier
from ptq_course.integer.agreement import Recorder

WRAPS, CLAMPS = "wraps around", "saturates"


def narrowed(acc: Tensor, bits: int, overflow: str) -> Tensor:
    """int32 sums as an accumulator of fewer bits would hold them."""
    half = 1 << (bits - 1)
    if overflow == CLAMPS:
        return acc.long().clamp(-half, half - 1).int()
    return ((acc.long() + half).remainder(2 * half) - half).int()


@dataclass(frozen=True, eq=False)
class Changes:
    """What a narrow register does: the layer's codes, and three shares from 0 to 1."""

    codes: Tensor
    lost: float  # of the sums: they do not fit
    changed: float  # of the layer's codes
    same: float  # of the network's decisions: they stay


class NarrowAccumulator:
    """The sums of one layer over some pictures, and the rest of the network behind it.

    Only this layer is narrowed; everything after it is computed again for every frame.
    """

    def __init__(self, integer: IntegerModel, images: Tensor, layer: str) -> None:
        self.graph, self.op = integer.module, integer.layers()[layer]
        nodes = [n for n in self.graph.graph.nodes if n.op == "call_module"]
        self.node = next(n for n in nodes if self.graph.get_submodule(n.target) is self.op)
        self.run = Recorder(self.graph)
        self.decisions = self.run.run(to_input(images)).argmax(1)
        self.values = dict(self.run.values)
        self.acc = self.op.accumulate(self.values[self.node.args[0].name])
        self.codes = self.values[self.node.name]
        finish = self.op.finish
        self.ratio = finish.multiplier.double() * torch.exp2(-finish.shift.double())
        self._draw()

    def _draw(self) -> None:
        self.fig, (top, bottom) = figure(6.6, 4.4, 2, 1)
        acc = self.acc.flatten().numpy()
        self.edge = 1.15 * float(np.abs(acc).max())
        counts, edges = np.histogram(acc, bins=160, range=(-self.edge, self.edge))
        top.stairs(np.maximum(counts, 0.5), edges, fill=True, color=COLORS[0], alpha=0.7)
        self.limits = [top.axvline(x, color=COLORS[2], linestyle="--") for x in (-1, 1)]
        top.set(yscale="log", ylim=(0.5, None), xlim=(-self.edge, self.edge), ylabel="count")
        style = {"ha": "right", "va": "top", "fontsize": 9, "color": ink(COLORS[2]), "bbox": BEHIND}
        self.rule = top.text(0.99, 0.96, "", transform=top.transAxes, **style)
        top.set_xlabel(f"sums of {self.op.name} (red: where the accumulator ends)")
        self.before = np.bincount(self.codes.flatten().numpy(), minlength=256)
        bottom.stairs(self.before, np.arange(257), fill=True, color=GREY, alpha=0.4)
        self.steps = bottom.stairs(self.before, np.arange(257), color=COLORS[2], linewidth=1.3)
        self.top, self.bottom = top, bottom
        bottom.set(xlim=(0, 256), xlabel="code of the output (grey: exact, red: now)")
        bottom.set(ylabel="count", ylim=(0, 1.1 * self.before.max()))

    def measure(self, bits: int, multiplier_bits: int, overflow: str) -> Changes:
        """Narrow the layer and run the rest of the network."""
        acc = narrowed(self.acc, bits, overflow)
        finish = self.op.finish
        multiplier, shift = to_multiplier(self.ratio, multiplier_bits)
        shape = (-1, *(1,) * (acc.dim() - 2))
        codes = requantize(
            acc, multiplier.reshape(shape), shift.reshape(shape), finish.zero_point, finish.grid,
            finish.limits,
        )  # fmt: skip
        return Changes(
            codes,
            lost=float((acc != self.acc).double().mean()),
            changed=float((codes != self.codes).double().mean()),
            same=float((self._rest(codes).argmax(1) == self.decisions).double().mean()),
        )

    def frame(self, bits: int, multiplier_bits: int, overflow: str) -> tuple[str, str]:
        """Draw what `measure` finds."""
        found = self.measure(bits, multiplier_bits, overflow)
        lost, changed, same = found.lost, found.changed, found.same
        end = min(float(1 << (bits - 1)), 2 * self.edge)
        where = "red: where the accumulator ends" if end < self.edge else "it ends far outside"
        self.top.set_xlabel(f"sums of {self.op.name} ({where})")
        for line, x in zip(self.limits, (-end, end), strict=True):
            line.set_xdata([x, x])
        now = np.bincount(found.codes.flatten().numpy(), minlength=256)
        self.steps.set_data(now)
        self.rule.set_text(f"a sum that does not fit {overflow}")
        self.bottom.set_ylim(0, 1.1 * max(now.max(), self.before.max()))
        readout = (
            f"{bits} bits, {overflow}: {100 * lost:.2f} % of the sums do not fit · multiplier of "
            f"{multiplier_bits} bits: {100 * changed:.2f} % of the codes changed · "
            f"{100 * same:.1f} % of the decisions stay"
        )
        n = text_number
        alt = (
            f"An accumulator of {bits} bits that {overflow}, a multiplier of {multiplier_bits} "
            f"bits: {n(100 * lost)} percent of the sums do not fit, {n(100 * changed)} percent of "
            f"the codes change, {n(100 * same)} percent of the decisions stay."
        )
        return readout, alt

    def _rest(self, codes: Tensor) -> Tensor:
        """The logits when this layer gives other codes: only what comes after it is computed."""
        values, changed = dict(self.values), {self.node.name}
        values[self.node.name] = codes
        for node in self.graph.graph.nodes:
            inputs = node.all_input_nodes
            if node.name in changed or not any(n.name in changed for n in inputs):
                continue
            changed.add(node.name)
            arguments = [values[a.name] if hasattr(a, "name") else a for a in node.args]
            if node.op == "output":
                return arguments[0]
            if node.op == "call_module":
                values[node.name] = self.graph.get_submodule(node.target)(*arguments)
            else:
                values[node.name] = node.target(*arguments, **node.kwargs)
        raise AssertionError("the graph has no output")


def explorer(integer: IntegerModel, images: Tensor, layer: str = "layer4.conv2") -> Explorer:
    """The widget on uint8 pictures [N, 3, 48, 48]; one layer of the network is narrowed."""
    picture = NarrowAccumulator(integer, images, layer)
    controls = [
        Slider("bits", 8, 32, 32, label="bits of the accumulator"),
        Slider("multiplier_bits", 2, 31, 31, label="bits of the multiplier"),
        Choice("overflow", (WRAPS, CLAMPS), WRAPS, "a sum that does not fit"),
    ]
    return Explorer(picture.fig, controls, picture.frame, "One layer with a narrow accumulator")
