"""Activations and constants written so that the runtime finds integer kernels for them. Chapter 15.

SiLU, Hardswish   a product with a factor in [0, 1] that lies on a grid (`simulation.curves`)
x + 3, x * 0.5    the number becomes a code of one element: QLinearAdd and QLinearMul read codes
x * c, then Q     a constant factor in front of a quantizer divides its scale: no operation
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.onnx import ops as onnx_ops  # noqa: F401  (registers the operators)
from ptq_course.deploy.onnx.graph import IN_PLACE
from ptq_course.graph.kernels import FAMILIES
from ptq_course.grids.affine import IntGrid, QParams
from ptq_course.simulation.curves import Hardsigmoid, RoundedInside, RoundedSiLU
from ptq_course.simulation.layers import ActivationQuantizer

_DIVIDE = FAMILIES["divide"]
_SCALING = {*FAMILIES["multiply"], *_DIVIDE}


class ExportedCurve(nn.Module):
    """A `RoundedInside`, as the runtime executes it."""

    def __init__(self, curve: RoundedInside) -> None:
        super().__init__()
        factor = curve.factor
        assert isinstance(factor, QParams)  # floats: `lookups`
        dtype = torch.int8 if factor.grid.signed else torch.uint8
        self.kind = type(curve)
        self.saturates = factor.grid.bits == 8  # at 0 and 6, so that no clamp is needed
        self.scale, self.zero_point = factor.scale.item(), int(factor.zero_point)
        self.signed = factor.grid.signed
        self.three = Number(3.0, dtype)

    def _rounded(self, x: Tensor, divisor: int = 1) -> Tensor:
        """x / divisor on the factor's grid; its codes decode to that."""
        return torch.ops.ptq.quantize_dequantize(
            x, self.scale * divisor, self.zero_point, self.signed, self.scale
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind is RoundedSiLU:
            return x * self._rounded(torch.sigmoid(x))
        shifted = x + self.three()
        shifted = shifted if self.saturates else torch.clamp(shifted, 0.0, 6.0)
        if self.kind is Hardsigmoid:
            return shifted  # the quantizer behind it divides by 6: `absorb_factors`
        return x * self._rounded(shifted, 6)


class Number(nn.Module):
    """A number other than 0 as one integer code, exactly: |number| is the scale."""

    def __init__(self, number: float, dtype: torch.dtype) -> None:
        super().__init__()
        positive = number > 0
        self.register_buffer("codes", torch.tensor([1 if positive else 0], dtype=dtype))
        self.register_buffer("scale", torch.tensor(abs(number), dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(0 if positive else 1, dtype=dtype))

    def forward(self) -> Tensor:
        return torch.ops.ptq.dequantize(self.codes, self.scale, self.zero_point, 0)


def write_numbers_as_codes(module: fx.GraphModule) -> None:
    """Let x + 3 and x * 0.5 read a code where x and the result lie on grids."""
    for node in list(module.graph.nodes):
        number = _number(node)
        if number is None:
            continue
        before = _quantizer(module, node.all_input_nodes[0])
        after = [_quantizer(module, user) for user in node.users]
        if before is None or not after or None in after:
            continue
        source = node.all_input_nodes[0]
        path = f"{node.name}_number"
        assert isinstance(before.grid, IntGrid)
        dtype = torch.int8 if before.grid.signed else torch.uint8
        module.add_submodule(path, Number(number, dtype))
        with module.graph.inserting_before(node):
            code = module.graph.call_module(path, ())
        function = operator.mul if node.target in _SCALING else operator.add
        node.op, node.target, node.args, node.kwargs = "call_function", function, (source, code), {}
    module.recompile()


def absorb_factors(module: fx.GraphModule) -> dict[ActivationQuantizer, float]:
    """Remove x * c in front of a quantizer where x is a fresh result; quantizer -> c.

    The quantizer then rounds x with the scale divided by c, and decodes with its own: the codes are
    the same.
    """
    factors: dict[ActivationQuantizer, float] = {}
    for node in list(module.graph.nodes):
        number, users = _number(node), list(node.users)
        quantizer = _quantizer(module, users[0]) if users else None
        if quantizer is not None and _is_hardsigmoid(module, node):
            factors[quantizer] = 1 / 6
            continue
        if number is None or number < 0 or node.target not in _SCALING or len(users) != 1:
            continue
        source = node.all_input_nodes[0]
        if quantizer is None or _quantizer(module, source) is not None or len(source.users) != 1:
            continue
        if sum(n.target == users[0].target for n in module.graph.nodes) > 1:
            continue  # it rounds other values too
        factors[quantizer] = number
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
    module.recompile()
    return factors


def _is_hardsigmoid(module: fx.GraphModule, node: fx.Node) -> bool:
    """With its one quantizer behind it, as the plan leaves it: its kernel returns codes."""
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), Hardsigmoid
    )


def _number(node: fx.Node) -> float | None:
    """The constant of x * c, x / c or x + c, as a factor or a summand other than 0; else None."""
    if node.target not in _SCALING and node.target not in FAMILIES["add"]:
        return None
    if node.target in IN_PLACE:  # others may see the change through a view
        return None
    if len(node.args) != 2 or node.kwargs or len(node.all_input_nodes) != 1:
        return None
    first, second = node.args
    divides = node.target in _DIVIDE
    number = first if isinstance(second, fx.Node) else second
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not number:
        return None
    if divides and isinstance(second, fx.Node):
        return None  # c / x
    number = 1 / number if divides else float(number)
    return number if math.isfinite(number) else None


def _quantizer(module: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer to integers that a node calls."""
    found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(found, ActivationQuantizer) or found.zero_point is None:
        return None
    return found
