"""Which operations a runtime computes with integers, and what it asks for: one table a target.

Chapters 04, 06 and 15. A kernel is used only where its inputs stand on integer grids and, where
``rounds_output``, its output as well: ONNX Runtime has QLinearConv, which returns codes, but no
kernel that reads codes and returns real numbers. The plan, the report and the export read this
table; to teach a runtime a new kernel is one row. What has no row is computed in floating point.

ONNX Runtime could compute SiLU by QLinearSigmoid and QLinearMul. It has no row, because one kernel
in floating point between the two grids is faster and rounds once less (`deploy.onnx.curves`).

Source: the graphs that ONNX Runtime 1.32 made of files with one operation each (chapter 15),
TensorRT's guide on explicit quantization, the operators of LiteRT's specification of 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ptq_course.graph.kinds import (
    ACTIVATIONS,
    ADDITIONS,
    AVERAGING,
    CONTRACTIONS,
    DIVISIONS,
    JOINS,
    PRODUCTS,
    RESIZING,
    SOFTMAXES,
    SUBTRACTIONS,
    Operation,
    every_form,
)
from ptq_course.graph.layer_types import LAYER_TYPES


@dataclass(frozen=True)
class Kernel:
    """An integer kernel of a runtime.

    name: what the runtime calls it. rounds_output: it runs only where its output lies on a grid
    too; otherwise the runtime computes the operation in floating point. inner: the operation is
    made of several kernels with a rounded value between them (`simulation.curves`).
    """

    name: str
    rounds_output: bool = True
    inner: bool = False


_LAYERS = LAYER_TYPES.values()
# What runtimes have kernels for, and every way to write it in PyTorch.
FAMILIES: dict[str, frozenset[Operation]] = {
    "conv": frozenset(r.module for r in _LAYERS if r.token_dimensions > 1 and not r.channel_axis),
    "transposed conv": frozenset(r.module for r in _LAYERS if r.channel_axis),
    "linear": frozenset({nn.Linear}),
    "embedding": frozenset({nn.Embedding}),
    "product": CONTRACTIONS,
    "add": ADDITIONS,
    "subtract": SUBTRACTIONS,
    "multiply": PRODUCTS,
    "divide": DIVISIONS,  # by a number; by a tensor it is a formula
    "concat": JOINS | every_form("stack hstack vstack dstack"),
    "softmax": SOFTMAXES,
    "sigmoid": every_form("sigmoid sigmoid_") | {nn.Sigmoid},
    "leaky relu": every_form("leaky_relu leaky_relu_") | {nn.LeakyReLU},
    **ACTIVATIONS,
    "hardsigmoid": every_form("hardsigmoid") | {nn.Hardsigmoid},
    "average": AVERAGING,
    "interpolate": RESIZING,
}
# Their results fill [0, 1]; nothing need be calibrated.
IN_UNIT_RANGE = FAMILIES["softmax"] | FAMILIES["hardsigmoid"]
FAMILY_OF = {operation: family for family, members in FAMILIES.items() for operation in members}

_REAL_RESULTS = {
    family: Kernel(family, rounds_output=False) for family in ("linear", "embedding", "product")
}
_CONVOLUTIONS = {
    family: Kernel(family, rounds_output=False) for family in ("conv", "transposed conv")
}
DEFAULT_TARGET = "onnxruntime"
KERNELS: dict[str, dict[str, Kernel]] = {
    "onnxruntime": {
        "conv": Kernel("QLinearConv"),
        "linear": Kernel("QGemm", rounds_output=False),
        "embedding": Kernel("Gather", rounds_output=False),
        "product": Kernel("QLinearMatMul", rounds_output=False),  # else MatMulIntegerToFloat
        "add": Kernel("QLinearAdd"),
        "multiply": Kernel("QLinearMul"),
        "divide": Kernel("QLinearMul"),  # by the reciprocal
        "concat": Kernel("QLinearConcat"),
        "softmax": Kernel("QLinearSoftmax"),
        "average": Kernel("QLinearAveragePool"),
        "sigmoid": Kernel("QLinearSigmoid"),
        "leaky relu": Kernel("QLinearLeakyRelu"),
        "hardswish": Kernel("QLinearAdd, QLinearMul", inner=True),
        "hardsigmoid": Kernel("QLinearAdd", inner=True),
    },
    "tensorrt": _REAL_RESULTS | _CONVOLUTIONS,
    "arm": _REAL_RESULTS,
}
# Here every operation that `kinds` knows has an integer form of its own name.
COMPLETE = {"tensorrt", "arm"}
# Their files hold integers from the first layer to the last, also where nobody reads a result.
INTEGERS_THROUGHOUT = {"arm"}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "arm": "LiteRT"}


def kernel_of(target: str, operation: Operation) -> Kernel | None:
    """The integer kernel that a target has for an operation; None where it has none."""
    family = FAMILY_OF.get(operation, "")
    found = KERNELS[target].get(family)
    if found is None and target in COMPLETE:
        return Kernel(family or getattr(operation, "__name__", str(operation)))
    return found
