"""Small ONNX files for the exercises, and files that break one of TensorRT's rules each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CHANNELS = 4


class Graph:
    """A graph under construction; its input ``x`` is [N, 4, 1, 1]."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.outputs: list[str] = []
        self._rng = np.random.default_rng(1500)

    def constant(self, value: Any) -> str:
        """A constant of the graph."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, name: str = "", **settings: Any) -> str:
        """A node whose name is not that of its value, as in most files."""
        number = len(self.nodes)
        value = name or f"value_{number}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [value], f"{op.lower()}_{number}", **settings)
        )
        return value

    def pair(self, x: str, scale: float = 0.5) -> str:
        """A Q/DQ pair behind a value."""
        grid = self.constant(np.float32(scale)), self.constant(np.int8(0))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *grid), *grid)

    def floats(self, shape: tuple[int, ...] = (CHANNELS, CHANNELS, 1, 1)) -> str:
        """A weight in floating point."""
        return self.constant(self._rng.normal(size=shape).astype(np.float32))

    def weight(self, shape: tuple[int, ...]) -> str:
        """Integer codes and their DequantizeLinear, a scale for each output channel."""
        codes = self.constant(self._rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant(np.full(shape[0], 0.01, np.float32))
        zeros = self.constant(np.zeros(shape[0], np.int8))
        return self.add("DequantizeLinear", codes, scales, zeros, axis=0)

    def conv(self, x: str, weight: str = "", bias: tuple[str, ...] = (), name: str = "") -> str:
        """A convolution of width 1, with no bias or one."""
        weight = weight or self.weight((CHANNELS, CHANNELS, 1, 1))
        return self.add("Conv", x, weight, *bias, name=name)

    def int32_bias(self, scale: float = 0.005) -> str:
        """Integer codes of a bias and their DequantizeLinear; scale: input's times weight's."""
        codes = self.constant(np.arange(CHANNELS, dtype=np.int32))
        scales = self.constant(np.full(CHANNELS, scale, np.float32))
        zeros = self.constant(np.zeros(CHANNELS, np.int32))
        return self.add("DequantizeLinear", codes, scales, zeros, axis=0)

    def gemm(self, x: str, weight: str = "") -> str:
        """A linear layer: the pictures are made rows of numbers, and rounded, before it."""
        before = self.nodes[-1]
        flat = self.pair(self.add("Flatten", x)) if before.op_type == "DequantizeLinear" else x
        return self.add("Gemm", flat, weight or self.weight((CHANNELS, CHANNELS)), transB=1)

    def model(self, output: str) -> ModelProto:
        """The finished file, which ends with that value."""
        shapes = {True: ["n", CHANNELS], False: ["n", CHANNELS, 1, 1]}
        kinds = {name: node.op_type for node in self.nodes for name in node.output}
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, 1, 1])],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[kinds[n] == "Gemm"])
                for n in [output, *self.outputs]
            ],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# --- a file for each rule ------------------------------------------------------------------------


class Change:
    """A right file and what a mistake needs to find in it: nodes by kind, constants by name."""

    def __init__(self, right: ModelProto) -> None:
        self.model = copy.deepcopy(right)
        self.graph = self.model.graph
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.convs = [n for n in self.graph.node if n.op_type == "Conv"]
        self.decode = self.made[self.convs[0].input[0]]  # DQ of the network's input
        self.encode = self.made[self.decode.input[0]]
        self.weight = self.made[self.convs[0].input[1]]

    def constant(self, value: Any) -> str:
        """A new constant."""
        name = f"new_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def stored(self, node: NodeProto) -> TensorProto:
        """The constant that a node reads first."""
        return next(t for t in self.graph.initializer if t.name == node.input[0])

    def grid(self, position: int, value: Any, nodes: tuple[NodeProto, ...] = ()) -> None:
        """Another scale (1) or zero point (2) for the pair at the input of the network."""
        name = self.constant(value)
        for node in nodes or (self.encode, self.decode):
            node.input[position] = name

    def insert(self, before: NodeProto, *nodes: NodeProto) -> None:
        """New nodes in front of one."""
        place = next(i for i, n in enumerate(self.graph.node) if n.output == before.output)
        for node in reversed(nodes):
            self.graph.node.insert(place, node)

    def setting(self, node: NodeProto, **settings: int) -> None:
        """An attribute of a node, in place of the one it has."""
        for name, value in settings.items():
            for old in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(old)
            node.attribute.append(helper.make_attribute(name, value))


def _opset(c: Change) -> None:
    c.model.opset_import[0].version = 12


def _format(c: Change) -> None:
    c.encode.domain = "com.microsoft"


def _type(c: Change) -> None:
    c.grid(2, np.uint8(0))


def _zero_point(c: Change) -> None:
    c.grid(2, np.int8(3))


def _scale(c: Change) -> None:
    c.grid(1, np.float32(-0.01))


def _per_tensor(c: Change) -> None:
    c.grid(1, np.full(3, 0.01, np.float32))
    c.grid(2, np.zeros(3, np.int8))
    for node in (c.encode, c.decode):
        c.setting(node, axis=1)


def _axis(c: Change) -> None:
    c.setting(c.weight, axis=1)


def _block(c: Change) -> None:
    c.setting(c.weight, block_size=16)


def _pair(c: Change) -> None:
    c.grid(1, np.float32(0.5), (c.decode,))


def _weight(c: Change) -> None:
    codes = numpy_helper.to_array(c.stored(c.weight))
    c.convs[0].input[1] = c.constant(codes.astype(np.float32))


def _input(c: Change) -> None:
    c.convs[0].input[0] = c.encode.input[0]


def _bias(c: Change) -> None:
    codes = c.constant(np.zeros(c.stored(c.weight).dims[0], np.int32))
    grid = c.constant(np.float32(0.001)), c.constant(np.int32(0))
    c.insert(c.convs[0], helper.make_node("DequantizeLinear", [codes, *grid], ["int32_bias"]))
    inputs = [*c.convs[0].input[:2], "int32_bias"]
    del c.convs[0].input[:]
    c.convs[0].input.extend(inputs)


def _residual(c: Change) -> None:
    add = next(n for n in c.graph.node if n.op_type == "Add")
    decode = c.made[add.input[1]]
    add.input[1] = c.made[decode.input[0]].input[0]


def _fusion(c: Change) -> None:
    relu = next(
        n for n in c.graph.node if n.op_type == "Relu" and c.made[n.input[0]].op_type == "Conv"
    )
    grid = c.constant(np.float32(0.1)), c.constant(np.int8(0))
    q = helper.make_node("QuantizeLinear", [relu.input[0], *grid], ["between_q"])
    c.insert(relu, q, helper.make_node("DequantizeLinear", ["between_q", *grid], ["between"]))
    relu.input[0] = "between"


MISTAKES: dict[str, Callable[[Change], None]] = {
    "opset": _opset,
    "format": _format,
    "type": _type,
    "zero_point": _zero_point,
    "scale": _scale,
    "per_tensor": _per_tensor,
    "axis": _axis,
    "block": _block,
    "pair": _pair,
    "weight": _weight,
    "input": _input,
    "bias": _bias,
    "residual": _residual,
    "fusion": _fusion,
}


def broken(right: ModelProto, rule: str) -> ModelProto:
    """A copy of a right file for TensorRT with one mistake, against one rule."""
    change = Change(right)
    MISTAKES[rule](change)
    return change.model


def scales_of(right: ModelProto) -> dict[str, float]:
    """The scale of every value that a right file rounds for the whole tensor."""
    constants = {t.name: numpy_helper.to_array(t) for t in right.graph.initializer}
    rounding = [node for node in right.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: float(constants[node.input[1]]) for node in rounding}


def counted(model: ModelProto) -> dict[str, int]:
    """How often each operator stands in a file, most frequent first."""
    kinds = [node.op_type for node in model.graph.node]
    return dict(sorted(((k, kinds.count(k)) for k in set(kinds)), key=lambda p: (-p[1], p[0])))
