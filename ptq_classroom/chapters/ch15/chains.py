"""Six convolutions in a row as ONNX files, with a choice of what stands behind each of them.

Made node by node: the files show a pattern, not a trained network, and take a moment to build.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from ptq_classroom.chapters.ch15.small_files import Graph

LENGTH, WIDTH, SIDE = 6, 32, 16  # convolutions, channels, pixels of an edge
BEHIND = ("Relu", "Gelu", "Add")  # of a convolution; Add: the chain's value before it
STEP = 0.02  # of every rounded value
UNSIGNED, SIGNED = np.uint8(0), np.uint8(128)  # zero points: from 0 on, and on both sides of it


class Chain(Graph):
    """A graph whose input ``x`` is [N, WIDTH, SIDE, SIDE]."""

    def rounded(self, x: str, zero_point: np.uint8 = SIGNED) -> str:
        """A pair of Q and DQ behind a value, on uint8."""
        grid = self.constant(np.float32(STEP)), self.constant(zero_point)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *grid), *grid)

    def conv3(self, x: str, integer: bool) -> str:
        """A convolution of width 3 whose weights are codes, or numbers."""
        shape = (WIDTH, WIDTH, 3, 3)
        gain = 1 / np.sqrt(np.prod(shape[1:]))  # values neither grow nor fade along the chain
        if not integer:
            weight = self.constant(self._rng.normal(0, gain, shape).astype(np.float32))
            return self.add("Conv", x, weight, pads=[1] * 4)
        codes = self.constant(self._rng.integers(-127, 128, shape).astype(np.int8))
        scales = self.constant(np.full(WIDTH, gain / 73, np.float32))
        zeros = self.constant(np.zeros(WIDTH, np.int8))
        weight = self.add("DequantizeLinear", codes, scales, zeros, axis=0)
        return self.add("Conv", x, weight, pads=[1] * 4)

    def finished(self, output: str) -> ModelProto:
        """The file."""
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH, SIDE, SIDE])
            for name in ("x", output)
        ]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def floating(behind: str) -> ModelProto:
    """The chain in floating point."""
    g, x = Chain(), "x"
    for _ in range(LENGTH):
        y = g.conv3(x, integer=False)
        x = g.add(behind, y, *([x] if behind == "Add" else ()))
    return g.finished(x)


def quantized(behind: str, directly: bool) -> ModelProto:
    """The chain with Q and DQ; directly: one pair stands right behind each convolution, too.

    Without it, values are rounded behind the operator only: where the next convolution reads them.
    """
    g = Chain()
    x = g.rounded("x")
    for _ in range(LENGTH):
        y = g.conv3(x, integer=True)
        if directly:
            y = g.rounded(y)
        y = g.add(behind, y, *([x] if behind == "Add" else ()))
        x = g.rounded(y, UNSIGNED if behind == "Relu" else SIGNED)
    return g.finished(x)
