"""Export to ONNX with integer weights (Q/DQ format), and execution in ONNX Runtime.

Chapters 00 and 15. The file holds QuantizeLinear and DequantizeLinear nodes around each operation;
the runtime fuses such a sandwich to one integer kernel (QLinearConv, QGemm, ...).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.onnx_compact import compact
from ptq_course.deploy.onnx_file import own_weights, pack_four_bits, strip
from ptq_course.deploy.onnx_graph import drop_implied_clamps, use_global_average_pool
from ptq_course.deploy.onnx_layers import ExportedQuantizer, FourBitLinear, exported_layer
from ptq_course.deploy.onnx_ops import translation_table
from ptq_course.deploy.session import Session, session
from ptq_course.deploy.targets import TARGETS, check_target, find_target
from ptq_course.dynamic import DynamicModel
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.fusion import fuse
from ptq_course.graph import copied, trace
from ptq_course.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.quantizer import QuantizedModel

__all__ = ["TARGETS", "Session", "export", "session"]

OPSET = 20
FOUR_BIT_OPSET = 21  # the first with INT4


def export(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    target: str = "onnxruntime",
) -> Path:
    """Write ``model`` as an ONNX file and return its path; the first dimension is dynamic.

    model: a QuantizedModel, whose weights and biases go into the file as integers, or any float
        module, which is folded and stripped first, so that FP32 and INT8 are compared fairly.
    example: inputs of the model's shape (a tensor, or several), batch size of at least 2.
    target: the runtime that will read the file; quantize with the preset of the same name.
        "onnxruntime"  8-bit activations, int8 weights, int32 bias. Linear layers of 4 bits or
                       fewer per group are stored as INT4 and multiplied in floating point;
                       other weights below 8 bits are stored, and computed, as int8.
        "tensorrt"     int8 with zero point 0 everywhere, floating-point bias
                       (`deploy.tensorrt.check_tensorrt` lists the rules).
        "arm"          affine int8 activations, int8 weights, int32 bias.

    ONNX Runtime has no integer kernel for some operations (transposed and three-dimensional
    convolution, layer norm, SiLU, Hardswish, GELU, ...): the file holds integer weights for them
    and the runtime computes them in floating point. `deploy.validate.validate` counts them.

    Raises UnsupportedError by name for what the target has no form for (another preset's grids,
    9 to 16 bits, groups of 8-bit weights, codebooks), and QuantizationError for an unknown target
    or a path whose folder does not exist. The file appears only when it is complete and has passed
    ONNX's checker.
    """
    runtime = find_target(target)
    path = Path(path)
    if not path.parent.is_dir():
        raise QuantizationError(
            f"export: the folder {path.parent} does not exist; create it first."
        )
    if path.is_dir():
        raise QuantizationError(f"export: {path} is a folder; name a file in it.")
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    if isinstance(model, DynamicModel):
        raise UnsupportedError(
            "export: scales chosen at run time have no Q/DQ form. Export the float model and give "
            "its file to onnxruntime.quantization.quantize_dynamic, or quantize statically."
        )
    if isinstance(model, QuantizedModel):
        check_target(model.module, model.config, runtime)
    module = _exportable(model, examples, runtime.integer_bias)
    proto = _to_onnx(module, examples)
    strip(proto)
    own_weights(proto)
    pack_four_bits(proto)
    compact(proto)
    onnx.checker.check_model(proto, full_check=True)
    partial = path.with_name(path.name + ".partial")
    try:
        onnx.save(proto, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _exportable(
    model: nn.Module, examples: tuple[Tensor, ...], integer_bias: bool = True
) -> nn.Module:
    """A module in which every quantized part is replaced by the operator that exports it."""
    if isinstance(model, QuantizedModel):
        module = copy.deepcopy(model.module)
        if isinstance(module, fx.GraphModule):
            drop_implied_clamps(module)
    else:
        try:
            module = fuse(trace(model))
        except UnsupportedError:
            module = copied(model)
    if isinstance(module, fx.GraphModule):
        use_global_average_pool(module, examples)
    replaced: dict[nn.Module, nn.Module] = {}
    for part in module.modules():
        if isinstance(part, ActivationQuantizer):
            replaced[part] = ExportedQuantizer(part)
        elif isinstance(part, QuantizedLayer):
            replaced[part] = exported_layer(part, integer_bias)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return module.eval()


def _to_onnx(module: nn.Module, examples: tuple[Tensor, ...]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    four_bit = any(isinstance(part, FourBitLinear) for part in module.modules())
    opset = FOUR_BIT_OPSET if four_bit else OPSET
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about torchvision, which this course does not use
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=[{0: batch} for _ in examples],
                custom_translation_table=translation_table(opset),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)  # may have no text
        raise UnsupportedError(
            f"torch.onnx.export refused {type(module).__name__}: {reason}"
        ) from error
    finally:
        logger.setLevel(level)
    return program.model_proto
