"""From a converted model to integers only: each quantizer of the graph ends one integer operation.

Chapter 08. The simulation reads: layer, ReLU, quantizer. In the integer network these three are one
module: the layer's accumulators, requantized to the quantizer's grid, clamped at the ReLU's codes.
So the graph is walked once, and an operation stays *pending*, collecting clamps, until a quantizer
says on which grid its output lies, or until the network ends, where it is dequantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ptq_course.errors import QuantizationError, UnsupportedError, whole
from ptq_course.graph.kernels import RUNTIMES
from ptq_course.graph.kinds import (
    ACTIVATIONS,
    ADDITIONS,
    JOINS,
    MOVES,
    PRODUCTS,
    SUBTRACTIONS,
    called,
    operation_of,
)
from ptq_course.graph.planning import NOT_READ
from ptq_course.grids.affine import AnyQParams, QParams
from ptq_course.integer.accumulators import check_accumulator_range
from ptq_course.integer.averages import IntegerAveraging
from ptq_course.integer.elementwise import (
    IntegerAdd,
    IntegerConcat,
    IntegerMaxPool,
    IntegerMul,
    IntegerPad,
    IntegerRescale,
)
from ptq_course.integer.finish import Dequantize, QuantizeInput, Requantize
from ptq_course.integer.layers import IntegerLayer, IntegerOp
from ptq_course.integer.model import IntegerModel
from ptq_course.integer.rules import (
    SHAPES,
    averaging_of,
    bound,
    check_layer,
    checked_bits,
    describe,
    max_pooling,
    same,
    zero_padding,
)
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.quantized import QuantizedModel

RELU, RELU6 = ACTIVATIONS["relu"], ACTIVATIONS["relu6"]


@dataclass(frozen=True)
class Codes:
    """A node of the new graph that holds integer codes, and the scale that they stand for."""

    node: fx.Node
    qparams: QParams


@dataclass(frozen=True)
class Pending:
    """An integer operation that does not know its output grid yet; real-valued clamps collect."""

    name: str
    make: Callable[[], IntegerOp]
    inputs: tuple[fx.Node, ...]
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Real:
    """A node of the new graph that holds real numbers: the input, or what follows the logits."""

    node: fx.Node
    is_input: bool = False


def to_integer(model: QuantizedModel, batch_size: int = 64) -> IntegerModel:
    """The network of a `QuantizedModel` with integers only, from its input codes to its logits.

    model: what `PTQQuantizer.convert()` returns, with weights and activations of 2 to 8 bits.
    batch_size: pictures computed at a time, which bounds memory; the result does not depend on it.

    The graph may hold Linear, Conv1d and Conv2d, ReLU and ReLU6, additions, subtractions, products
    and concatenations of activations, max and average pooling, means, zero padding, and whatever
    only moves codes. Raises UnsupportedError with the name and the reason for anything else, and
    where an int32 accumulator could overflow.
    """
    if not isinstance(model, QuantizedModel):
        raise QuantizationError(
            f"to_integer: needs a QuantizedModel, got {type(model).__name__}; "
            "pass what PTQQuantizer.convert() returns."
        )
    if not isinstance(model.module, fx.GraphModule):
        raise UnsupportedError(
            "to_integer: this model could not be traced, so what happens between its layers is "
            "computed in floating point. Move branches on tensor values out of forward()."
        )
    unread = NOT_READ.format(RUNTIMES[model.config.target])  # what follows the last layer
    for name, why in model.left_in_float.items():
        if why != unread:
            raise UnsupportedError(
                f"to_integer: {name} stays in floating point: {why}. Where another runtime has an "
                "integer form, quantize with QConfig.arm()."
            )
    batch_size = whole("to_integer: batch_size", batch_size, 1)
    converter = _Converter(model.module)
    module = converter.run()
    converted = IntegerModel(module, converter.pairs, batch_size, converter.qparams)
    for op in converted.operations():
        check_accumulator_range(op)
    return converted


class _Converter:
    """Walks the simulated graph and writes the integer one."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.known: dict[fx.Node, Any] = {}
        self.pairs: dict[str, str] = {}  # quantizer's node in the simulation -> node of its codes
        self.qparams: dict[str, QParams] = {}  # the same quantizers -> what their codes stand for

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            self.known[node] = self.convert(node)
        module = fx.GraphModule(self.root, self.graph, class_name="IntegerGraph")
        module.graph.lint()
        return module.eval()

    def convert(self, node: fx.Node) -> Codes | Pending | Real | fx.Node:
        if node.op == "placeholder":
            return Real(self.graph.node_copy(node, lambda n: self.known[n]), is_input=True)
        if node.op == "output":
            leaves = pytree.tree_leaves(node.args[0])
            constant = [leaf for leaf in leaves if not isinstance(leaf, fx.Node)]
            if constant:
                raise UnsupportedError(
                    f"to_integer: the model returns {constant[0]!r} beside its tensors; return "
                    "tensors only."
                )
            return self.graph.output(fx.map_arg(node.args[0], self.as_real))
        if node.op == "get_attr":
            raise UnsupportedError(f"to_integer: {node.target} is a constant in floating point.")
        module = called(self.source, node)
        if isinstance(module, ActivationQuantizer):
            return self.quantizer(node, module.qparams)
        operation = operation_of(self.source, node)
        if operation in SHAPES or not self.tensors(node):
            return self.copied(node)
        if isinstance(module, QuantizedLayer):
            return self.layer(node, module)
        return self.operation(node, module, operation)

    def tensors(self, node: fx.Node) -> list[Codes | Pending | Real]:
        """What is known of the tensors among a node's inputs."""
        return [
            self.known[n]
            for n in node.all_input_nodes
            if isinstance(self.known[n], Codes | Pending | Real)
        ]

    # --- what ends an operation --------------------------------------------------------------

    def quantizer(self, node: fx.Node, given: AnyQParams) -> Codes:
        """A quantizer: finishes the pending operation, or quantizes the network's input."""
        qparams = checked_bits(node.name, given)
        source = node.all_input_nodes[0]
        value = self.known[source]
        if isinstance(value, Pending):
            new = self.emit(value, qparams)
        elif isinstance(value, Codes):
            new = self.emit(self.rescaled(node.name, value), qparams)
        elif value.is_input:
            new = self.call(node.name, QuantizeInput(qparams), value.node)
        else:
            raise UnsupportedError(
                f"to_integer: {source.name} is computed in floating point between integer layers."
            )
        self.pairs[node.name], self.qparams[node.name] = new.name, qparams
        return Codes(new, qparams)

    def emit(self, pending: Pending, qparams: QParams | None) -> fx.Node:
        """Write the pending operation, finished by its grid or, for None, as real numbers."""
        limits = (pending.low, pending.high)
        try:
            op = pending.make()
            if qparams is None:
                op.finish = Dequantize(op.acc_scale, *limits)
            else:
                op.finish = Requantize(op.acc_scale, qparams, *limits)
        except QuantizationError as error:  # scales too far apart for a multiplier
            raise type(error)(f"to_integer: {pending.name}: {error}") from error
        if (
            qparams is not None
            and isinstance(op, IntegerAveraging)
            and not same(op.source, qparams)
        ):
            raise UnsupportedError(f"to_integer: {op.name} averages onto another scale.")
        return self.call(pending.name, op, *pending.inputs)

    def call(self, name: str, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        target = name.replace(".", "_")
        while hasattr(self.root, target):
            target += "_"
        self.root.add_module(target, module)
        return self.graph.call_module(target, inputs)

    def as_real(self, node: fx.Node) -> fx.Node:
        """The node's value as real numbers: pending operations and codes are dequantized."""
        value = self.known[node]
        if isinstance(value, Codes):
            value = self.rescaled(node.name, value)
        if isinstance(value, Pending):
            self.known[node] = value = Real(self.emit(value, None))
        return value.node if isinstance(value, Real) else value

    # --- what begins one -----------------------------------------------------------------------

    def layer(self, node: fx.Node, layer: QuantizedLayer) -> Pending:
        value = self.known[node.all_input_nodes[0]]
        check_layer(layer, isinstance(value, Codes))
        return Pending(layer.name, lambda: IntegerLayer(layer, value.qparams), (value.node,))

    def rescaled(self, name: str, value: Codes) -> Pending:
        return Pending(name, lambda: IntegerRescale(name, value.qparams), (value.node,))

    def operation(self, node: fx.Node, module: nn.Module | None, target: Any) -> Any:
        values, name = self.tensors(node), node.name
        if target in RELU | RELU6 or target is nn.Hardtanh:
            return self.clamp(node, module, target)
        if any(isinstance(v, Real) and v.is_input for v in values):
            raise UnsupportedError(
                f"to_integer: {name} computes on the network's input before it is quantized."
            )
        moves = target in MOVES
        averaging = averaging_of(module, node) if not moves else None
        source = values[0]
        if not isinstance(source, Codes):
            if moves or averaging:
                return Real(self.copied(node, self.as_real))  # after the last dequantize
            return self.combined(node, module, target)
        if moves:
            return self.moved(node, source)
        if averaging:
            return Pending(name, lambda: averaging(name, source.qparams), (source.node,))
        if padding := zero_padding(module, node):
            if any(isinstance(width, fx.Node) for width in padding):  # computed from a shape
                widths, value = fx.map_arg(padding, self.known.get), int(source.qparams.zero_point)
                new = self.graph.call_function(F.pad, (source.node, widths), {"value": value})
            else:
                new = self.call(name, IntegerPad(padding, source.qparams), source.node)
            return Codes(new, source.qparams)
        return self.combined(node, module, target)

    def clamp(self, node: fx.Node, module: nn.Module | None, target: Any) -> Pending | Real:
        value = self.known[node.all_input_nodes[0]]
        low, high = (0.0, 6.0) if target in RELU6 else (0.0, math.inf)
        if isinstance(module, nn.Hardtanh):
            low, high = float(module.min_val), float(module.max_val)
        if isinstance(value, Codes):
            value = self.rescaled(node.name, value)
        if isinstance(value, Real):
            return Real(self.copied(node, self.as_real))
        # Of two clamps, one after the other, the second has the last word on both bounds.
        low, high = (min(max(bound, low), high) for bound in (value.low, value.high))
        return replace(value, low=low, high=high)

    def moved(self, node: fx.Node, value: Codes) -> Codes:
        module = called(self.source, node)
        if pooling := max_pooling(module, node):
            module = IntegerMaxPool(**pooling)
        if module is not None:
            new = self.call(node.name, module, value.node)
        else:
            new = self.copied(node)
            if new.target == "view":  # codes lie channels-last in memory, where a view cannot be
                new.target = "reshape"
        return Codes(new, value.qparams)

    def combined(self, node: fx.Node, module: nn.Module | None, target: Any) -> Pending:
        """Addition, product or concatenation of activations; everything else is refused."""
        if target not in ADDITIONS | SUBTRACTIONS | PRODUCTS | JOINS:
            raise UnsupportedError(
                f"to_integer: {describe(node, module)} has no integer form here. "
                "Use the simulation, or ONNX Runtime (deploy.onnx.export), for this network."
            )
        given = bound(node, ("tensors", "dim") if target in JOINS else ("input", "other"))
        listed = given["tensors"] if target in JOINS else (given["input"], given["other"])
        known = [self.known.get(n) if isinstance(n, fx.Node) else None for n in listed]
        parts = [part for part in known if isinstance(part, Codes)]
        if len(parts) < len(known) or given.get("alpha", 1) != 1:
            raise UnsupportedError(
                f"to_integer: {describe(node)} reads something that is not quantized codes; "
                "only activations are combined as integers."
            )
        qparams, nodes, name = [p.qparams for p in parts], tuple(p.node for p in parts), node.name
        if target in JOINS:
            dim = given.get("dim", 0)
            return Pending(name, lambda: IntegerConcat(name, qparams, dim), nodes)
        if target in PRODUCTS:
            return Pending(name, lambda: IntegerMul(name, qparams), nodes)
        return Pending(name, lambda: IntegerAdd(name, qparams, target in SUBTRACTIONS), nodes)

    def copied(self, node: fx.Node, look_up: Callable[[fx.Node], fx.Node] | None = None) -> fx.Node:
        def plain(n: fx.Node) -> fx.Node:
            value = self.known[n]
            return value.node if isinstance(value, Codes | Real) else value

        new = self.graph.node_copy(node, look_up or plain)
        if (module := called(self.source, node)) is not None:
            self.root.add_module(new.name, module)
            new.target = new.name
        return new
