"""One quantized layer as the tensors of a checkpoint, and back.

`storage.py` names the tensors of each layer; chapters 05 and 13 measure what they cost.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ptq_course.deploy.checkpoint.header import LayerEntry, grid_entry, listed, tupled
from ptq_course.deploy.checkpoint.packing import pack, unpack
from ptq_course.errors import DataIntegrityError
from ptq_course.grids.affine import IntGrid, QParams, QTensor
from ptq_course.simulation.bias import scale_per_output
from ptq_course.simulation.layers import QuantizedLayer

FLOAT16 = torch.finfo(torch.float16)
REALS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)
STORED_AS = {
    "codes": INTEGERS, "scale": REALS, "zero_point": INTEGERS, "codebook": REALS,
    "bias_codes": (torch.int32,), "bias_scale": (torch.float32,), "bias": REALS,
}  # fmt: skip


def check_tensor(
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
    layer: QuantizedLayer, values: Mapping[str, QParams], scale_dtype: torch.dtype
) -> tuple[LayerEntry, dict[str, Tensor]]:
    """What the file holds of a layer; ``scale_dtype`` is that of its weight scales."""
    q, p = layer.weight_qtensor, layer.weight_qparams
    bits = p.grid.bits if p is not None else max(1, math.ceil(math.log2(len(layer.codebook))))
    entry = LayerEntry(
        kind=type(layer.float_layer).__name__,
        shape=list(q.shape),
        bits=bits,
        grid=None if p is None else grid_entry(p.grid),
        block_size=None if p is None else listed(p.block_size),
        dtype=str(layer.float_layer.weight.dtype).removeprefix("torch."),
        raised_channels=layer.raised_channels,
    )
    stored = {"codes": pack(q.codes, bits)}
    growth = None  # what float16 makes of each output's scale, as a factor
    if p is None:
        stored["codebook"] = q.codebook
    else:
        stored["scale"] = scale = _scale_as(p.scale, scale_dtype)
        if not p.symmetric:
            stored["zero_point"] = p.zero_point.to(p.grid.dtype)
        if scale.dtype != torch.float32:
            growth = scale_per_output(layer.float_layer, scale.float() / p.scale)
    if layer.bias_codes is not None:
        stored["bias_codes"] = layer.bias_codes
        entry.bias, entry.bias_from = "int32", _input_value(layer, values)
        if entry.bias_from is None:
            factor = 1.0 if growth is None else growth
            stored["bias_scale"] = (layer.bias_scale * factor).float()
    elif layer.bias is not None:
        entry.bias = "float"
        stored["bias"] = layer.bias
    return entry, stored


def _scale_as(scale: Tensor, dtype: torch.dtype) -> Tensor:
    outside = dtype == torch.float16 and bool(
        ((scale < FLOAT16.smallest_normal) | (scale > FLOAT16.max)).any()
    )
    return scale if outside else scale.to(dtype)


def _input_value(layer: QuantizedLayer, values: Mapping[str, QParams]) -> str | None:
    """The value whose scale times the weight's gives the bias scale, bit for bit."""
    p = layer.weight_qparams
    scale = None if p is None else scale_per_output(layer.float_layer, p.scale)
    for name, value in values.items():
        plain = scale is not None and value.block_size is None
        if plain and torch.equal(value.scale * scale, layer.bias_scale):
            return name
    return None


def layer_from_tensors(
    name: str, entry: LayerEntry, tensors: dict[str, Tensor], layer: nn.Module,
    values: Mapping[str, QParams],
) -> QuantizedLayer:  # fmt: skip
    """The layer that `layer_to_tensors` stored, around a copy of the float ``layer``."""
    prefix = f"layers/{name}/"
    stored = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    shape, dtype = tuple(entry.shape), getattr(torch, entry.dtype)
    if not dtype.is_floating_point:
        raise DataIntegrityError(f"layer {name!r} computes in {dtype} by the header.")
    outputs = getattr(layer.bias, "shape", None) if hasattr(layer, "bias") else None
    for part, tensor in stored.items():
        allowed = STORED_AS.get(part)
        if allowed is None:
            raise DataIntegrityError(f"tensor {prefix + part!r} belongs to no layer.")
        fixed = outputs if part.startswith("bias") else tensor.shape
        check_tensor(prefix + part, tensor, allowed, fixed)
    if entry.grid is None:
        weight = QTensor(
            unpack(stored["codes"], entry.bits, shape, False), None, stored["codebook"]
        )
    else:
        grid, scale = IntGrid(*entry.grid), stored["scale"].float()
        zero_point = stored.get("zero_point", torch.zeros_like(scale)).to(torch.int32)
        codes = unpack(stored["codes"], entry.bits, shape, grid.signed)
        weight = QTensor(codes, QParams(scale, zero_point, grid, tupled(entry.block_size)))
    layer = copy.deepcopy(layer)
    layer.weight = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
    bias_codes, bias_scale = stored.get("bias_codes"), stored.get("bias_scale")
    if entry.bias_from is not None:
        bias_scale = values[entry.bias_from].scale * scale_per_output(layer, scale)
    if bias_codes is not None:
        decoded = (bias_codes.double() * bias_scale.double()).to(dtype)
        layer.bias = nn.Parameter(decoded, requires_grad=False)
    elif entry.bias is not None:
        layer.bias = nn.Parameter(stored["bias"], requires_grad=False)
    quantized = QuantizedLayer(layer, weight, bias_codes, bias_scale, name=name)
    quantized.raised_channels = entry.raised_channels
    return quantized
