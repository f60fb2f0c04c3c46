"""Which operations a runtime computes with integers, and what it asks for: one table a target.

Chapters 04, 06 and 15. A kernel is used only where its inputs stand on integer grids and, where
``rounds_output``, its output as well: ONNX Runtime has QLinearConv, which returns codes, but no
kernel that reads codes and returns real numbers. The plan, the report and the export read this
table; to teach a runtime a new kernel is one row. What has no row is computed in floating point.

Source: the graphs that ONNX Runtime 1.32 made of files with one operation each (chapter 15),
TensorRT's guide on explicit quantization, the operators of LiteRT's specification of 8 bits.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ptq_course.graph.masks import MaskedSoftmax

Operation = Any  # type[nn.Module], a function, or a method's name


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


def every_form(names: str) -> Iterator[Operation]:
    """Each name as a method, and as a function of torch, torch.nn.functional and operator."""
    for name in names.split():
        yield name
        for place in (torch, F, operator):
            function = getattr(place, name, None)
            if callable(function):
                yield function


# What runtimes have kernels for, and every way to write it in PyTorch.
FAMILIES: dict[str, tuple[Operation, ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed conv": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "linear": (nn.Linear,),
    "embedding": (nn.Embedding,),
    "product": tuple(every_form("matmul imatmul mm bmm mv dot addmm baddbmm")),
    "add": tuple(every_form("add add_ iadd")),
    "subtract": tuple(every_form("sub sub_ isub subtract neg")),
    "multiply": tuple(every_form("mul mul_ imul multiply")),
    "divide": tuple(every_form("div div_ truediv itruediv divide true_divide")),  # by a number
    "concat": tuple(every_form("cat concat concatenate stack hstack vstack dstack")),
    "softmax": (*every_form("softmax"), nn.Softmax, nn.Softmax2d, MaskedSoftmax),
    "sigmoid": (*every_form("sigmoid sigmoid_"), nn.Sigmoid),
    "leaky relu": (*every_form("leaky_relu leaky_relu_"), nn.LeakyReLU),
    "relu": (*every_form("relu relu_ relu6"), nn.ReLU, nn.ReLU6),
    "tanh": (*every_form("tanh tanh_"), nn.Tanh),
    "hardswish": (*every_form("hardswish hardswish_"), nn.Hardswish),
    "silu": (*every_form("silu"), nn.SiLU),
    "hardsigmoid": (*every_form("hardsigmoid"), nn.Hardsigmoid),
}
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
        "sigmoid": Kernel("QLinearSigmoid"),
        "leaky relu": Kernel("QLinearLeakyRelu"),
        "silu": Kernel("QLinearSigmoid, QLinearMul", inner=True),
        "hardswish": Kernel("QLinearAdd, QLinearMul", inner=True),
        "hardsigmoid": Kernel("QLinearAdd", inner=True),
    },
    "tensorrt": _REAL_RESULTS | _CONVOLUTIONS,
    "arm": _REAL_RESULTS,
}
# Here every operation that `kinds` knows has an integer form of its own name.
COMPLETE = {"tensorrt", "arm"}
RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "arm": "LiteRT"}


def kernel_of(target: str, operation: Operation) -> Kernel | None:
    """The integer kernel that a target has for an operation; None where it has none."""
    family = FAMILY_OF.get(operation, "")
    found = KERNELS[target].get(family)
    if found is None and target in COMPLETE:
        return Kernel(family or getattr(operation, "__name__", str(operation)))
    return found
