"""A quantized layer as the tensors of a checkpoint, its codes of a few bits packed, and back.

Chapters 05 and 13. Two INT4 codes take a byte, eight codes of 3 bits take three. Codes form one
stream of bits, the first code in the lowest bits of the first byte (as ONNX stores INT4). So every
width from 1 to 7 bits costs exactly that many bits, whether it divides 8 or not; only the last byte
is filled up with zeros. 8 bits are bytes, 9 to 16 are int16.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ptq_course.deploy.checkpoint.format import LayerEntry, entered_grid, grid_entry
from ptq_course.errors import DataIntegrityError, QuantizationError, whole
from ptq_course.graph.layer_types import bias_of, weight_of
from ptq_course.grids.affine import AnyQParams, FloatQParams, QParams, QTensor
from ptq_course.grids.float_scales import FloatGrid, scale_from_stored
from ptq_course.grids.tensors import FLOAT_DTYPES, INTEGER_DTYPES, check_tensor
from ptq_course.simulation.bias import scale_per_output
from ptq_course.simulation.layers import QuantizedLayer

AT_ONCE = 8  # eight codes of b bits fill b bytes, and with b < 8 they fit into one int64
PART = 2**17  # so many eights at a time, because int64 takes eight times the memory of a code


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer codes of any shape as a stored tensor of one dimension.

    codes: signed (two's complement) or unsigned integers that fit ``bits`` (1 to 16).
    Returns uint8 [ceil(n * bits / 8)] for up to 8 bits, int16 [n] above.
    Raises QuantizationError for other bits, floating-point codes, or a code that does not fit.
    """
    bits = whole("pack: bits", bits, 1, 16)
    check_tensor(codes, "pack (of what quantize returns)", INTEGER_DTYPES)
    flat = codes.detach().cpu().flatten()
    if flat.numel():
        low, high = (int(v) for v in torch.aminmax(flat))
        if low < -(2 ** (bits - 1)) or high >= 2**bits or (low < 0 and high >= 2 ** (bits - 1)):
            raise QuantizationError(f"pack: codes from {low} to {high} do not fit {bits} bits.")
    parts = [_packed(part.long() & (2**bits - 1), bits) for part in flat.split(AT_ONCE * PART)]
    packed = torch.cat(parts)
    return packed if bits > 8 else packed[: math.ceil(flat.numel() * bits / 8)].clone()


def _packed(flat: Tensor, bits: int) -> Tensor:
    """Codes as bit patterns, int64, in two's complement."""
    if bits > 8:
        return torch.where(flat >= 2**15, flat - 2**16, flat).to(torch.int16)
    if bits == 8:
        return flat.to(torch.uint8)
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % AT_ONCE)).reshape(-1, AT_ONCE)
    words = (rows << _shifts(AT_ONCE, bits)).sum(1, keepdim=True)
    return ((words >> _shifts(bits, 8)) & 255).to(torch.uint8).flatten()


def unpack(stored: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """The codes that `pack` stored, in the smallest dtype that holds every code of ``bits``.

    Raises QuantizationError where ``stored`` has another type or length than ``shape`` needs, or
    ``shape`` holds anything but sizes.
    """
    bits = whole("unpack: bits", bits, 1, 16)
    check_tensor(stored, "unpack", INTEGER_DTYPES)
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise QuantizationError(f"unpack: shape must hold sizes of at least 0, got {shape}.")
    count = math.prod(shape)
    dtype, length = (torch.int16, count) if bits > 8 else (torch.uint8, math.ceil(count * bits / 8))
    if stored.dtype != dtype or stored.shape != (length,):
        raise QuantizationError(
            f"unpack: {count} codes of {bits} bits are stored as {dtype} [{length}], got "
            f"{stored.dtype} {list(stored.shape)}."
        )
    parts = [_unpacked(part.long(), bits, signed) for part in stored.split(bits * PART)]
    return torch.cat(parts)[:count].reshape(shape)


def _unpacked(flat: Tensor, bits: int, signed: bool) -> Tensor:
    if bits < 8:
        rows = torch.nn.functional.pad(flat, (0, -flat.numel() % bits)).reshape(-1, bits)
        words = (rows << _shifts(bits, 8)).sum(1, keepdim=True)
        flat = (words >> _shifts(AT_ONCE, bits)).flatten()
    flat = flat & (2**bits - 1)
    if signed:
        flat = torch.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat)
        return flat.to(torch.int8 if bits <= 8 else torch.int16)
    wide = torch.int16 if bits < 16 else torch.int32
    return flat.to(torch.uint8 if bits <= 8 else wide)


def _shifts(count: int, step: int) -> Tensor:
    return torch.arange(count) * step


# --- layers ------------------------------------------------------------------------------------

FLOAT16 = torch.finfo(torch.float16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)
STORED_AS = {
    "codes": INTEGERS, "scale": FLOAT_DTYPES, "zero_point": INTEGERS, "codebook": FLOAT_DTYPES,
    "tensor_scale": (torch.float32,), "bias_codes": (torch.int32,),
    "bias_scale": (torch.float32,), "bias": FLOAT_DTYPES,
}  # fmt: skip


def check_stored(
    name: str, tensor: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: Sequence[int] | None,
) -> None:  # fmt: skip
    """DataIntegrityError where a stored tensor has another type or shape (None: no place)."""
    allowed = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in allowed or shape is None or tuple(tensor.shape) != tuple(shape):
        wanted = f"{allowed[0]} {list(shape)}" if shape is not None else "nothing"
        raise DataIntegrityError(
            f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, expected {wanted}; save the "
            "model again."
        )


def layer_to_tensors(
    layer: QuantizedLayer, values: ValueNames, scale_dtype: torch.dtype
) -> tuple[LayerEntry, dict[str, Tensor]]:
    """What the file holds of a layer; ``scale_dtype`` is that of its weight scales."""
    q = layer.weight_qtensor
    p = q.qparams
    entry = LayerEntry(
        kind=type(layer.float_layer).__name__,
        shape=list(q.shape),
        bits=q.code_bits,
        grid=None if p is None else grid_entry(p.grid),
        block_size=None if p is None or p.block_size is None else list(p.block_size),
        dtype=str(weight_of(layer.float_layer).dtype).removeprefix("torch."),
        raised_channels=layer.raised_channels,
        row_axis=layer.weight_row_axis,
        scale_format=layer.weight_scale_format,
    )
    stored = {"codes": pack(q.codes, q.code_bits)}
    growth = None  # what float16 makes of each output's scale, as a factor
    if q.codebook is not None:
        stored["codebook"] = q.codebook
    if isinstance(p, FloatQParams):
        stored["scale"] = _scale_as(p.stored_scale, scale_dtype)
        if p.tensor_scale is not None:
            stored["tensor_scale"] = p.tensor_scale
    elif p is not None:
        stored["scale"] = scale = _scale_as(p.scale, scale_dtype)
        if not p.symmetric:
            stored["zero_point"] = p.zero_point.to(p.grid.dtype)
        if scale.dtype != torch.float32:
            growth = scale_per_output(layer.float_layer, scale.float() / p.scale)
    if layer.bias_codes is not None and layer.bias_scale is not None:
        stored["bias_codes"] = layer.bias_codes
        entry.bias, entry.bias_from = "int32", values.of_bias(layer)
        if entry.bias_from is None:
            factor = 1.0 if growth is None else growth
            stored["bias_scale"] = (layer.bias_scale * factor).float()
    elif layer.bias is not None:
        entry.bias = "float"
        stored["bias"] = layer.bias
    return entry, stored


def _scale_as(scale: Tensor, dtype: torch.dtype) -> Tensor:
    if not scale.is_floating_point():  # E8M0 or FP8, which are short already
        return scale
    outside = dtype == torch.float16 and bool(
        ((scale < FLOAT16.smallest_normal) | (scale > FLOAT16.max)).any()
    )
    return scale if outside else scale.to(dtype)


class ValueNames:
    """Finds the activation that a bias scale came from, among any number of them."""

    def __init__(self, values: Mapping[str, AnyQParams]) -> None:
        self._names: dict[float, str] = {}
        for name, value in values.items():
            if isinstance(value, QParams) and value.block_size is None:
                self._names.setdefault(value.scale.item(), name)
        self._scales = sorted(self._names)

    def of_bias(self, layer: QuantizedLayer) -> str | None:
        """The value whose scale times the weight's gives the layer's bias scale, bit for bit."""
        p = layer.weight_qparams
        scale = None if p is None else scale_per_output(layer.float_layer, p.scale)
        if scale is None or layer.bias_scale is None:
            return None
        near = layer.bias_scale[0].item() / scale[0].item()  # up to the rounding of the product
        first = bisect_left(self._scales, near * (1 - 2**-22))
        for found in self._scales[first : bisect_right(self._scales, near * (1 + 2**-22))]:
            if torch.equal(torch.tensor(found, device=scale.device) * scale, layer.bias_scale):
                return self._names[found]
        return None


def layer_from_tensors(
    name: str, entry: LayerEntry, stored: dict[str, Tensor], module: nn.Module,
    values: Mapping[str, AnyQParams],
) -> QuantizedLayer:  # fmt: skip
    """The layer that `layer_to_tensors` stored, around that of the float ``module``.

    The float layer is the caller's own: it gets the weight and bias that the codes stand for.
    """
    prefix, layer = f"layers/{name}/", module.get_submodule(name)
    shape, dtype = tuple(entry.shape), DTYPES[entry.dtype]
    biases = {None: set(), "float": {"bias"}, "int32": {"bias_codes", "bias_scale"}}[entry.bias]
    explained = {"bias_scale"} if entry.bias_from is not None else set()
    if biases - explained != {part for part in stored if part.startswith("bias")}:
        raise DataIntegrityError(f"layer {name!r} has another bias than the header says.")
    outputs = getattr(bias_of(layer), "shape", None)
    for part, tensor in stored.items():
        allowed = STORED_AS.get(part)
        if allowed is None:
            raise DataIntegrityError(f"tensor {prefix + part!r} belongs to no layer.")
        if part == "scale" and entry.scale_format != "float32":
            allowed = (torch.uint8,)
        fixed = outputs if part.startswith("bias") else tensor.shape
        check_stored(prefix + part, tensor, allowed, fixed)
    if entry.grid is None:
        weight = QTensor(
            unpack(stored["codes"], entry.bits, shape, False), None, stored["codebook"]
        )
    else:
        grid = entered_grid(entry.grid)
        block_size = None if entry.block_size is None else tuple(entry.block_size)
        if isinstance(grid, FloatGrid):
            shared = stored.get("tensor_scale")
            scale = scale_from_stored(stored["scale"], entry.scale_format, shared)
            qparams: AnyQParams = FloatQParams(
                scale, grid, block_size, entry.row_axis, entry.scale_format, shared
            )
            codes = unpack(stored["codes"], entry.bits, shape, False)
        else:
            scale = stored["scale"].float()
            zero_point = stored.get("zero_point", torch.zeros_like(scale)).to(torch.int32)
            qparams = QParams(scale, zero_point, grid, block_size)
            codes = unpack(stored["codes"], entry.bits, shape, grid.signed)
        weight = QTensor(codes, qparams)
    layer.weight = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
    bias_codes, bias_scale = stored.get("bias_codes"), stored.get("bias_scale")
    if entry.bias_from is not None:
        weight_scale = scale_per_output(layer, weight.require_qparams().scale)
        if weight_scale is None:
            raise DataIntegrityError(f"layer {name!r} has several scales an output, and an int32 "
                                     "bias needs one.")  # fmt: skip
        bias_scale = values[entry.bias_from].scale * weight_scale
    if bias_codes is not None and bias_scale is not None:
        decoded = (bias_codes.double() * bias_scale.double()).to(dtype)
        layer.bias = nn.Parameter(decoded, requires_grad=False)
    elif entry.bias is not None:
        check_stored(f"{prefix}bias", stored["bias"], dtype, outputs)
        layer.bias = nn.Parameter(stored["bias"], requires_grad=False)
    quantized = QuantizedLayer(layer, weight, bias_codes, bias_scale, name=name)
    quantized.raised_channels = entry.raised_channels
    return quantized
