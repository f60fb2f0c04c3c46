"""What an integer network may hold, and why the rest is refused. Chapter 08."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from ptq_course.errors import UnsupportedError
from ptq_course.graph.kinds import MAX_POOLS, MEANS, NOT_TENSORS
from ptq_course.graph.layer_types import bias_of, known_type, plain_type
from ptq_course.grids.affine import AnyQParams, FloatQParams, IntGrid, QParams
from ptq_course.grids.floats import format_name
from ptq_course.integer.averages import IntegerAveragePool, IntegerAveraging, IntegerMean
from ptq_course.simulation.bias import scale_per_output
from ptq_course.simulation.layers import QuantizedLayer

NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x1": "input", "x2": "other"}
SHAPES = NOT_TENSORS | {getattr}


def check_layer(layer: QuantizedLayer, quantized: bool) -> None:
    """Raise UnsupportedError, by the layer's name, where it cannot be computed with integers.

    quantized: whether its input arrives as codes.
    """
    kind, name, grid = known_type(layer.float_layer), layer.name, layer.weight_grid
    reason = None
    if not kind.integer:
        reason = f"{kind.module.__name__} has no integer form here"
    elif not quantized:
        reason = "its input is not quantized (activation_bits=None?)"
    elif getattr(layer.float_layer, "padding_mode", "zeros") != "zeros":
        reason = f"padding_mode {layer.float_layer.padding_mode!r} is not done with integers here"
    elif not isinstance(grid, IntGrid) or layer.weight_scale is None:
        found = layer.weight_qtensor.decoded_by
        reason = f"{found} decodes its weight, and a product needs codes on a grid of integers"
    elif grid.bits > 8:
        reason = f"its weight has {grid.bits} bits; use 8 or fewer"
    elif not grid.signed:
        reason = "its weight codes are unsigned; products want int8 weights"
    elif scale_per_output(layer.float_layer, layer.weight_scale) is None:
        reason = (
            "its weight has several scales in one sum (per group), so that one int32 accumulator "
            "cannot hold it; use weight_granularity='per_channel'"
        )
    elif bias_of(layer.float_layer) is not None and layer.bias_codes is None:
        reason = "its bias is in floating point; use quantize_bias=True"
    if reason:
        raise UnsupportedError(f"to_integer: {name}: {reason}.")


def checked_bits(name: str, qparams: AnyQParams) -> QParams:
    """The QParams of an activation of up to 8 bits with one scale; else UnsupportedError."""
    if isinstance(qparams, FloatQParams):
        raise UnsupportedError(
            f"to_integer: {name} is rounded to the floating-point format {format_name(qparams)}; "
            "quantize with integers (leave activation_format out)."
        )
    if qparams.grid.bits > 8:
        raise UnsupportedError(
            f"to_integer: {name} has {qparams.grid.bits} bits; integer kernels hold 8 or fewer."
        )
    if qparams.block_size is not None:
        raise UnsupportedError(f"to_integer: {name} has more than one scale for an activation.")
    return qparams


def averaging_of(
    module: nn.Module | None, node: fx.Node
) -> Callable[[str, QParams], IntegerAveraging] | None:
    """How to make the integer average of a node, None where the node is no average."""
    target = node.target if module is None else plain_type(type(module))
    if target in MEANS:
        arguments = bound(node, ("input", "dim", "keepdim"))
        dims, keepdim = arguments.get("dim"), arguments.get("keepdim", False)
        dims = (dims,) if isinstance(dims, int) else tuple(dims or (0,))
        if 0 in dims:
            raise UnsupportedError(
                f"to_integer: {describe(node, module)} averages over the batch; "
                "name the dimensions to average."
            )
        return lambda name, q: IntegerMean(name, q, dims, keepdim)
    if target in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d):
        given = bound(node, ("input", "output_size")) if module is None else vars(module)
        size = given["output_size"]
        if target is nn.AdaptiveAvgPool1d:
            size = (1, size if isinstance(size, int) else size[0])
        rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
        return lambda name, q: IntegerAveragePool(name, q, output_size=(rows, columns))
    if target in (nn.AvgPool1d, nn.AvgPool2d, F.avg_pool2d):
        return _fixed_windows(module, node, target)
    return None


def _fixed_windows(
    module: nn.Module | None, node: fx.Node, target: Any
) -> Callable[[str, QParams], IntegerAveraging]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
             "divisor_override")  # fmt: skip
    if module is None:
        given = bound(node, ("input", *names))
    else:
        given = {key: getattr(module, key) for key in names if hasattr(module, key)}
    kernel = given["kernel_size"]
    stride, padding = given.get("stride") or kernel, given.get("padding", 0)
    uneven = any(padding if isinstance(padding, tuple) else (padding,)) and not given.get(
        "count_include_pad", True
    )
    if given.get("ceil_mode") or given.get("divisor_override") or uneven:
        raise UnsupportedError(
            f"to_integer: {describe(node, module)}: windows of unequal size (ceil_mode, "
            "count_include_pad=False, divisor_override) are not done with integers here."
        )
    flat = target is nn.AvgPool1d

    def pair(value: int | tuple[int, ...], fill: int) -> tuple[int, int]:
        value = (value,) if isinstance(value, int) else tuple(value)
        return (fill, value[0]) if flat else (value[0], value[-1])

    windows = pair(kernel, 1), pair(stride, 1), pair(padding, 0)
    return lambda name, q: IntegerAveragePool(name, q, *windows)


def max_pooling(module: nn.Module | None, node: fx.Node) -> dict[str, Any] | None:
    """The settings of `IntegerMaxPool`, None where the node pools no maximum."""
    target = node.target if module is None else plain_type(type(module))
    if target not in MAX_POOLS:
        return None
    dims, names = MAX_POOLS[target]
    if module is None:
        given = bound(node, ("input", *names))
    else:
        given = vars(module)
    return {"dims": dims, **{name: given[name] for name in names if given.get(name) is not None}}


def zero_padding(module: nn.Module | None, node: fx.Node) -> tuple[int, ...] | None:
    """The widths of a border of zeros, None where the node adds no such border."""
    if isinstance(module, nn.modules.padding._ConstantPadNd) and not module.value:
        return tuple(module.padding)
    if node.target is not F.pad:
        return None
    given = bound(node, ("input", "pad", "mode", "value"))
    zeros = given.get("mode", "constant") == "constant" and not given.get("value")
    return tuple(given["pad"]) if zeros else None


def bound(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """A call's arguments by name, wherever they were given; NumPy's names become PyTorch's."""
    named = {NUMPY_NAMES.get(name, name): value for name, value in node.kwargs.items()}
    return {**dict(zip(names, node.args, strict=False)), **named}


def same(a: QParams, b: QParams) -> bool:
    """Whether two tensors have the same scale, zero point and grid."""
    return bool(a.scale == b.scale) and bool(a.zero_point == b.zero_point) and a.grid == b.grid


def describe(node: fx.Node, module: nn.Module | None = None) -> str:
    """A node's name and what it does, for messages: "layer1.act (SiLU)"."""
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
