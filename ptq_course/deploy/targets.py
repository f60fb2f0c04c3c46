"""What each runtime can hold: a model is checked against its target before a file is written.

Chapter 15. One file cannot serve all: ONNX Runtime's kernels on x86 want unsigned activations,
TensorRT wants every zero point to be 0, the kernels for Arm want int8 with an int32 bias. Each has
its preset in `QConfig`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

from torch import nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph.layer_types import known_type
from ptq_course.grids.affine import FloatQParams, IntGrid
from ptq_course.grids.floats import FP8_E4M3, FP8_E5M2, format_name
from ptq_course.simulation.dynamic import DynamicModel
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel

FP8 = (FP8_E4M3, FP8_E5M2)  # the floats that files have a type and ONNX Runtime a kernel for


@dataclass(frozen=True)
class Target:
    """What a runtime reads. ``integer_bias``: whether the file holds it as int32 codes."""

    name: str
    activations: str
    unsigned: bool  # uint8 activations
    affine: bool  # activations with a zero point other than 0
    integer_bias: bool
    weight_only: bool  # quantized weights beside floating-point activations, 4-bit groups
    affine_weights: bool

    @property
    def remedy(self) -> str:
        """What to do when a model does not fit."""
        other = "" if self.name == "onnxruntime" else ", or export with target='onnxruntime'"
        return f"Quantize with QConfig.{self.name}(){other}."


TARGETS = {
    target.name: target
    for target in (
        Target("onnxruntime", "8-bit integers", True, True, True, True, True),
        Target("tensorrt", "int8 with zero point 0", False, False, False, False, False),
        Target("arm", "int8, affine", False, True, True, False, False),
    )
}


def find_target(name: str) -> Target:
    """The target of that name; QuantizationError for another word."""
    if name not in TARGETS:
        raise QuantizationError(f"unknown target {name!r}; choose from {', '.join(TARGETS)}.")
    return TARGETS[name]


def check_target(module: nn.Module, config: QConfig, target: Target) -> None:
    """Raise UnsupportedError where a quantized network holds what the target cannot.

    The message names the layer or value, what was found there, and the preset to use.
    """
    if config.activation_bits is None and not target.weight_only:
        raise UnsupportedError(
            f"export: only the weights are quantized, and {target.name} computes with integers "
            f"only where {target.activations} come in. {target.remedy}"
        )
    for path, part in module.named_modules():
        if isinstance(part, ActivationQuantizer):
            _check_activation(getattr(part, "name", "") or path, part, target)
        elif isinstance(part, QuantizedLayer):
            _check_layer(part.name or path, part, target)


def check_dynamic(model: DynamicModel, target: Target) -> None:
    """Raise UnsupportedError where a file cannot hold a dynamically quantized network.

    A file rounds each input to uint8, affine, with one scale for the whole tensor
    (DynamicQuantizeLinear); a model that was made otherwise is written so, with a warning.
    """
    if target.name != "onnxruntime":
        raise UnsupportedError(
            f"export: {target.name} has no form for scales that are chosen at run time; quantize "
            f"statically with QConfig.{target.name}(), or export with target='onnxruntime'."
        )
    grid = model.config.activation_grid
    if not isinstance(grid, IntGrid) or grid.bits != 8:
        raise UnsupportedError(
            f"export: inputs are rounded to {model.config.activation_bits} bits at run time, and "
            "files know 8 only; use activation_bits=8."
        )
    for name, layer in model.quantized_layers().items():
        _check_layer(name, layer, replace(target, integer_bias=False))
        if has_groups(layer):
            raise UnsupportedError(
                f"export: {name} has weights per group, for which {target.name} has no integer "
                "product with inputs rounded at run time; use weight_granularity='per_channel'."
            )
    if model.granularity != "per_tensor" or grid.signed or model.config.activation_symmetric:
        warnings.warn(
            "export: the file rounds the input of each layer to uint8 with one scale for the whole "
            f"tensor, and the model was made {model.granularity}"
            f"{', symmetric' if model.config.activation_symmetric else ''}. To see what the file "
            "computes, simulate quantize_dynamic(model, granularity='per_tensor').",
            stacklevel=3,
        )


def _check_activation(name: str, part: ActivationQuantizer, target: Target) -> None:
    qparams = part.qparams
    if isinstance(qparams, FloatQParams):
        if target.name == "onnxruntime" and qparams.grid in FP8 and not part.scale.dim():
            return
        raise UnsupportedError(
            f"export: value {name!r} is rounded to {format_name(qparams)}, and {target.name} reads "
            f"{target.activations} here, or FP8 with target='onnxruntime'. {target.remedy}"
        )
    grid = qparams.grid
    if grid.bits > 8:
        raise UnsupportedError(
            f"export: value {name!r} has {grid.bits} bits, and no runtime has integer kernels for "
            "9 to 16 bits; quantize with activation_bits=8 or fewer."
        )
    if part.scale.dim():
        raise UnsupportedError(
            f"export: value {name!r} has {part.scale.numel()} scales; a file holds one scale per "
            "activation tensor. Use per-tensor activations."
        )
    if not grid.signed and not target.unsigned:
        raise UnsupportedError(
            f"export: value {name!r} is unsigned, and {target.name} reads {target.activations}. "
            f"{target.remedy}"
        )
    zero_point = 0 if part.zero_point is None else int(part.zero_point)
    if zero_point and not target.affine:
        raise UnsupportedError(
            f"export: value {name!r} has zero point {zero_point}, and {target.name} "
            f"reads {target.activations}. {target.remedy}"
        )


def _check_layer(name: str, layer: QuantizedLayer, target: Target) -> None:
    qparams = layer.weight_qparams
    if qparams is None:
        _check_decoded(name, layer, target)
        return
    if qparams.grid.bits > 8:
        raise UnsupportedError(
            f"export: {name} has {qparams.grid.bits}-bit weights, and no runtime has integer "
            "kernels for 9 to 16 bits; use weight_bits=8 or fewer."
        )
    if has_groups(layer):
        _check_groups(name, layer, target)
    if not qparams.symmetric and (not target.affine_weights or qparams.scale.dim()):
        # The runtimes' kernels know one zero point for all channels of a weight, or none.
        where = "per channel " if qparams.scale.dim() else ""
        raise UnsupportedError(
            f"export: {name} has weights with zero points {where}other than 0, for which "
            f"{target.name} has no kernel; use weight_symmetric=True."
        )
    wants_codes = target.integer_bias and not target.weight_only
    if wants_codes and layer.bias_codes is None and layer.bias is not None:
        raise UnsupportedError(
            f"export: {name} has a floating-point bias, and {target.name} adds an int32 bias to "
            f"the accumulator; use quantize_bias=True. {target.remedy}"
        )


def _check_decoded(name: str, layer: QuantizedLayer, target: Target) -> None:
    """Of weights on no grid of integers: a codebook's, or floats."""
    found, qparams = layer.weight_qtensor.decoded_by, layer.weight_qtensor.qparams
    if target.name != "onnxruntime":
        raise UnsupportedError(
            f"export: {name} decodes its weights with {found}, which is written for "
            "target='onnxruntime' only; use integer weights (weight_bits, without weight_format)."
        )
    if not isinstance(qparams, FloatQParams):
        return
    if qparams.grid not in FP8:
        raise UnsupportedError(
            f"export: {name} decodes its weights with {found}, for which {target.name} has no "
            "kernel; use weight_format='fp8_e4m3', or integers of 4 bits per group "
            "(weight_bits=4, weight_granularity=32)."
        )
    if qparams.scale.numel() not in (1, layer.weight_codes.shape[layer.channel_axis]):
        raise UnsupportedError(
            f"export: {name} has weights of {found} per group, for which {target.name} has no form "
            "here; use weight_granularity='per_channel'."
        )


def decoded_in_float(model: QuantizedModel) -> dict[str, str]:
    """Layers that a file decodes and computes in floating point, and from what."""
    return {
        name: layer.weight_qtensor.decoded_by
        for name, layer in model.quantized_layers().items()
        if layer.weight_qparams is None
    }


def _check_groups(name: str, layer: QuantizedLayer, target: Target) -> None:
    bits = layer.weight_grid.bits if layer.weight_grid else 0
    linear = known_type(layer.float_layer).module is nn.Linear
    if target.weight_only and linear and bits <= 4:
        return
    kind = type(layer.float_layer).__name__
    raise UnsupportedError(
        f"export: {name} ({kind}) has {bits}-bit weights per group, for which {target.name} has no "
        "kernel; use weight_granularity='per_channel'. Only Linear layers of 4 bits or fewer go "
        "into a file per group, as INT4, with target='onnxruntime'."
    )


def stored_as_int8(model: nn.Module, four_bit_convolutions: bool = False) -> list[str]:
    """The layers whose weights of 4 bits or fewer a file holds as int8, as large as at 8 bits.

    Linear layers with weights per group, and convolutions where the export is asked to, are stored
    as INT4; embeddings and transposed convolutions like the others.
    """
    found = []
    for path, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer) and layer.weight_qparams is not None:
            packed = four_bit_convolutions and "Conv" in type(layer.float_layer).__name__
            if layer.weight_qparams.grid.bits <= 4 and not has_groups(layer) and not packed:
                found.append(layer.name or path)
    return found


def has_groups(layer: QuantizedLayer) -> bool:
    """Whether an output channel of the weight has several scales."""
    scale = layer.weight_scale
    if scale is None or not scale.dim():
        return False
    return scale.movedim(layer.channel_axis, 0).flatten(1).shape[1] != 1
