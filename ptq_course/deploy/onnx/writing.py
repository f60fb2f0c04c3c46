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
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.files import write_atomically
from ptq_course.deploy.onnx.curves import ExportedCurve, absorb_factors, write_numbers_as_codes
from ptq_course.deploy.onnx.graph import (
    drop_implied_clamps,
    repeat_quantizers,
    use_global_average_pool,
)
from ptq_course.deploy.onnx.layers import (
    ExportedQuantizer,
    FourBitLinear,
    exported_dynamic_layer,
    exported_layer,
)
from ptq_course.deploy.onnx.ops import translation_table
from ptq_course.deploy.session import Session, session
from ptq_course.deploy.targets import TARGETS, check_dynamic, check_target, find_target
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph import copied, trace
from ptq_course.graph.fusion import fuse
from ptq_course.simulation.curves import RoundedInside
from ptq_course.simulation.dynamic import DynamicModel
from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.quantized import ConvertedModel, QuantizedModel

if TYPE_CHECKING:
    import onnx_ir as ir

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

    model: a QuantizedModel, whose weights and biases go into the file as integers; a DynamicModel
        (see below); or any float module, which is folded and stripped first, so that FP32 and INT8
        are compared fairly.
    example: inputs of the model's shape (a tensor, or several), batch size of at least 2.
    target: the runtime that will read the file; quantize with the preset of the same name.
        "onnxruntime"  8-bit activations, int8 weights, int32 bias. Linear layers of 4 bits or
                       fewer per group are stored as INT4 and multiplied in floating point;
                       other weights below 8 bits are stored, and computed, as int8.
        "tensorrt"     int8 with zero point 0 everywhere, floating-point bias
                       (`deploy.tensorrt.check_tensorrt` lists the rules).
        "arm"          affine int8 activations, int8 weights, int32 bias.

    What stays in floating point. ONNX Runtime has no integer kernel for some operations (transposed
    and three-dimensional convolution, layer norm, SiLU, Hardswish, GELU, ...): the file holds
    integer weights for them and the runtime computes them in floating point. So it computes a
    convolution whose output is not rounded, for example the last layer of a network that ends with
    one (a last Linear is fused to QGemm, which returns real numbers), and 4-bit weights per group,
    also where their input has 8 bits. `deploy.validate.validate` counts them.

    Scales chosen at run time (`quantize_dynamic`, target "onnxruntime"). Linear layers become
    DynamicQuantizeLinear and MatMulInteger, which the runtime fuses to DynamicQuantizeMatMul;
    convolutions become ConvInteger, which is smaller but no faster than FP32; transposed ones have
    integer weights and compute in floating point. The file rounds each input to uint8 with one
    scale for the whole tensor, as granularity="per_tensor" simulates it: a model made per token is
    written so too, with a warning. (An encoder of MiniLM's size at random: cosine with FP32 0.9999
    per tensor; `benchmarks/dynamic_encoder.py`.)

    Raises UnsupportedError by name for what the target has no form for (another preset's grids,
    9 to 16 bits, groups of 8-bit weights, codebooks, quantized models in other formats than
    float32) and for what torch.onnx.export or ONNX's checker refuses, and QuantizationError for an
    unknown target, an example that does not fit the model, or a path whose folder does not exist.
    The file appears only when it is complete and has passed ONNX's checker.
    """
    runtime = find_target(target)
    path = Path(path)
    if not path.parent.is_dir():
        raise QuantizationError(
            f"export: the folder {path.parent} does not exist; create it first."
        )
    if path.is_dir():
        raise QuantizationError(f"export: {path} is a folder; name a file in it.")
    examples = _checked_examples(example)
    if isinstance(model, DynamicModel):
        check_dynamic(model, runtime)
    elif isinstance(model, QuantizedModel):
        check_target(model.module, model.config, runtime)
    _check_dtype(model, examples)
    module = _exportable(model, examples, runtime.integer_bias)
    proto = finished(_to_onnx(module, examples))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of the checker, or of its inference of shapes and types
        raise UnsupportedError(
            f"ONNX's checker refuses the file of {type(model).__name__}: {_reason(error)}"
        ) from error
    write_atomically(path, proto.SerializeToString())
    return path


def _checked_examples(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    examples = (example,) if isinstance(example, Tensor) else example
    if not isinstance(examples, tuple | list) or not examples:
        raise QuantizationError(
            f"export: example must be a tensor, or several in a tuple, got "
            f"{type(example).__name__}; pass an input of the model, batch first."
        )
    for x in examples:
        if not isinstance(x, Tensor) or x.dim() == 0:
            what = "a tensor without dimensions" if isinstance(x, Tensor) else type(x).__name__
            raise QuantizationError(
                f"export: example holds {what}; pass tensors whose first dimension is the batch."
            )
    return tuple(examples)


def _check_dtype(model: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Raise where the model and its example do not compute in one format, or cannot be written."""
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"export: needs an nn.Module, got {type(model).__name__}.")
    if isinstance(model, ConvertedModel):
        for name, layer in model.quantized_layers().items():
            dtype = layer.float_layer.weight.dtype
            if dtype != torch.float32:
                raise UnsupportedError(
                    f"export: layer {name!r} computes in {dtype}, and Q/DQ files are written in "
                    "float32; quantize model.float() instead."
                )
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for x in examples:
        if x.is_floating_point() and len(dtypes) == 1 and x.dtype not in dtypes:
            (dtype,) = dtypes
            raise QuantizationError(
                f"export: the example is {x.dtype} and the model computes in {dtype}; pass "
                f"example.to({dtype})."
            )


def _exportable(
    model: nn.Module, examples: tuple[Tensor, ...], integer_bias: bool = True
) -> nn.Module:
    """A module in which every quantized part is replaced by the operator that exports it."""
    factors: dict[ActivationQuantizer, float] = {}
    if isinstance(model, ConvertedModel):
        module = copy.deepcopy(model.module)
        if isinstance(module, fx.GraphModule):
            drop_implied_clamps(module)
            factors = absorb_factors(module)
            write_numbers_as_codes(module)
            repeat_quantizers(module)
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
            replaced[part] = ExportedQuantizer(part, factors.get(part, 1.0))
        elif isinstance(part, RoundedInside):
            replaced[part] = ExportedCurve(part)
        elif isinstance(part, DynamicLayer):
            replaced[part] = exported_dynamic_layer(part)
        elif isinstance(part, QuantizedLayer):
            replaced[part] = exported_layer(part, integer_bias)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return module.eval()


def _to_onnx(module: nn.Module, examples: tuple[Tensor, ...]) -> ir.Model:
    batch = torch.export.Dim("batch")
    four_bit = any(isinstance(part, FourBitLinear) for part in module.modules())
    opset = FOUR_BIT_OPSET if four_bit else OPSET
    level = logging.root.manager.disable
    # torch.onnx warns about torchvision, which this course does not use, and torch.export writes
    # forty lines about an example that does not fit, before it raises.
    logging.disable(logging.ERROR)
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
        raise UnsupportedError(
            f"torch.onnx.export refused {type(module).__name__}: {_reason(error)}"
        ) from error
    finally:
        logging.disable(level)
    return program.model


def finished(model: ir.Model) -> onnx.ModelProto:
    """The file of what torch.onnx.export made: without what it can do without, weights packed."""
    # Imported late, as torch.onnx does: onnx_ir takes a second.
    import onnx_ir as ir

    from ptq_course.deploy.onnx.compact import compact
    from ptq_course.deploy.onnx.file import own_weights, pack_four_bits, strip

    for change in (strip, own_weights, pack_four_bits, compact):
        change(model)
    return ir.to_proto(model)


def _reason(error: BaseException) -> str:
    """The first line of what caused an error first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)  # may have no text
