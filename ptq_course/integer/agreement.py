"""How far the integers agree with the simulation: codes compared layer by layer.

Chapter 08. The simulation (`QuantizedModel`) rounds real numbers in float32; the integer network
multiplies by 31-bit integers. Near the middle between two codes they may decide differently: one
step off in one code of some thousand is expected. More than that would be a fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError
from ptq_course.graph.kinds import called
from ptq_course.grids.affine import QParams, dequantize
from ptq_course.integer.layers import IntegerLayer
from ptq_course.integer.model import IntegerModel
from ptq_course.integer.rules import same
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.observe import output_tensors
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.tables import html_table, text_table

COLUMNS = ("operation", "codes", "equal", "one step", "more", "largest",
           "equal, whole network", "one step", "more", "largest")  # fmt: skip


@dataclass
class Differences:
    """Counts of codes by their distance from the simulation's code."""

    codes: int = 0
    equal: int = 0
    one_step: int = 0
    largest: int = 0

    @property
    def more(self) -> int:
        return self.codes - self.equal - self.one_step

    def add(self, got: Tensor, expected: Tensor) -> None:
        distance = (got.int() - expected.int()).abs()
        self.codes += distance.numel()
        self.equal += int((distance == 0).sum())
        self.one_step += int((distance == 1).sum())
        self.largest = max(self.largest, int(distance.max()) if distance.numel() else 0)

    def cells(self) -> tuple[str, ...]:
        counts = (self.equal, self.one_step, self.more)
        if not self.codes:
            return ("-", "-", "-", "-")
        return (*(f"{100 * n / self.codes:.4f} %" for n in counts), str(self.largest))


@dataclass
class Agreement:
    """A row a value: each operation alone on equal codes, then the whole network from its input.

    isolated, cumulative: `Differences` by the name of the value. decisions: how often a largest
    logit was looked for along dimension 1 of the first output: once an input for [N, classes], once
    a pixel for [N, classes, H, W]. same_decision: share of them where it is the same one, NaN where
    there is none. ``print`` it, or leave it last in a cell.
    """

    isolated: dict[str, Differences] = field(default_factory=dict)
    cumulative: dict[str, Differences] = field(default_factory=dict)
    decisions: int = 0
    equal_decisions: int = 0

    @property
    def same_decision(self) -> float:
        return self.equal_decisions / self.decisions if self.decisions else math.nan

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (name, f"{alone.codes:,}", *alone.cells(), *self.cumulative[name].cells())
            for name, alone in self.isolated.items()
        ]

    def note(self) -> str:
        return f"same decision: {self.equal_decisions} of {self.decisions}"

    def __str__(self) -> str:
        return f"{text_table(COLUMNS, self.rows())}\n{self.note()}"

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, self.rows(), [self.note()])


@torch.no_grad()
def agreement(integer: IntegerModel, simulated: QuantizedModel, *inputs: Tensor) -> Agreement:
    """Compare the codes of both networks on the same inputs [N, ...], in pieces of batch_size.

    Isolated: the simulation is handed the integer network's codes before every operation, so that
    a row shows that operation alone. Whole network: both run on their own, differences add up.
    Raises QuantizationError where ``integer`` was not made from ``simulated``: where a scale, zero
    point or grid, or a layer's weight codes, are others.
    """
    _check_origin(integer, simulated)
    graph = cast(fx.GraphModule, simulated.module)  # as that which `to_integer` converted
    result = Agreement()
    for piece in _pieces(inputs, integer.batch_size):
        got = Recorder(integer.module, set(integer.quantizers.values()))
        logits = got.run(*piece)
        codes = {name: got.values[node] for name, node in integer.quantizers.items()}
        labels = {name: _label(integer, name) for name in codes}
        free, led = Simulation(graph), Simulation(graph, codes)
        expected = free.run(*piece)
        led.run(*piece)
        for name in codes:
            for rows, run in ((result.isolated, led), (result.cumulative, free)):
                rows.setdefault(labels[name], Differences()).add(codes[name], run.codes[name])
        for ours, theirs in zip(output_tensors(logits)[:1], output_tensors(expected), strict=False):
            if ours.dim() > 1:
                equal = ours.argmax(1) == theirs.argmax(1)
                result.decisions += equal.numel()
                result.equal_decisions += int(equal.sum())
    return result


def _check_origin(integer: IntegerModel, simulated: QuantizedModel) -> None:
    if not isinstance(simulated, QuantizedModel):
        raise QuantizationError(
            f"agreement: needs the QuantizedModel, got {type(simulated).__name__}; pass the one "
            "that to_integer() was given."
        )
    scales, layers = _quantizers(simulated.module), simulated.quantized_layers()
    other = [
        name
        for name, qparams in integer.qparams.items()
        if name not in scales or not same(scales[name], qparams)
    ]
    other += [
        name
        for name, op in integer.layers().items()
        if isinstance(op, IntegerLayer)
        and (name not in layers or not torch.equal(op.weight_codes, layers[name].weight_codes))
    ]
    if other:
        raise QuantizationError(
            f"agreement: the integer network was made from another model ({other[0]} differs); "
            "pass the one that to_integer() was given."
        )


def _quantizers(module: nn.Module) -> dict[str, QParams]:
    """What the quantizers of a simulated graph round to, by node; {} where there is no graph."""
    nodes = module.graph.nodes if isinstance(module, fx.GraphModule) else ()
    parts = ((node.name, called(module, node)) for node in nodes)
    found = {n: part.qparams for n, part in parts if isinstance(part, ActivationQuantizer)}
    return {n: q for n, q in found.items() if isinstance(q, QParams)}


def _label(integer: IntegerModel, quantizer: str) -> str:
    """The operation that makes a quantizer's codes, or the name of the network's input."""
    wanted = integer.quantizers[quantizer]
    target = next(node.target for node in integer.module.graph.nodes if node.name == wanted)
    part = integer.module.get_submodule(target)
    return getattr(part, "name", quantizer.removesuffix("_quantizer"))


def _pieces(inputs: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.split(size) for x in inputs), strict=True)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes (all of them for None)."""

    def __init__(self, module: fx.GraphModule, wanted: set[str] | None = None) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.wanted is None or n.name in self.wanted:
            self.values[n.name] = value
        return value


class Simulation(fx.Interpreter):
    """Runs the simulated graph, keeps the codes of its quantizers; ``lead`` replaces them."""

    def __init__(self, module: fx.GraphModule, lead: dict[str, Tensor] | None = None) -> None:
        super().__init__(module)
        self.lead = lead
        self.codes: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        quantizer = called(self.module, n)
        if isinstance(quantizer, ActivationQuantizer):
            q = quantizer.qparams
            assert isinstance(q, QParams)  # or there would be no integer network to compare with
            self.codes[n.name] = torch.round(value / q.scale).int() + q.zero_point
            if self.lead is not None:
                return dequantize(self.lead[n.name], q, value.dtype)
        return value
