"""Export to ONNX with integer weights (Q/DQ format), and execution in ONNX Runtime.

Chapters 00 and 15. The file holds QuantizeLinear and DequantizeLinear nodes around each operation;
the runtime fuses such a sandwich to one integer kernel (QLinearConv, QGemm, ...).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.files import write_atomically
from ptq_course.deploy.onnx.curves import (
    ExportedCurve,
    absorb_factors,
    write_numbers_as_codes,
    write_silu_as_one_node,
)
from ptq_course.deploy.onnx.dynamic import exported_dynamic_layer
from ptq_course.deploy.onnx.examples import arguments, free_shapes, tensors_of
from ptq_course.deploy.onnx.graph import (
    drop_implied_clamps,
    repeat_quantizers,
    use_global_average_pool,
)
from ptq_course.deploy.onnx.layers import ExportedQuantizer, FourBitLinear, exported_layer
from ptq_course.deploy.onnx.layout import repeat_channels_last, turn_behind_pooling
from ptq_course.deploy.onnx.lookups import DecodedLayer, FloatCurve, FloatQuantizer
from ptq_course.deploy.onnx.ops import translation_table
from ptq_course.deploy.onnx.recurrent import ExportedRecurrent
from ptq_course.deploy.onnx.slopes import write_slopes_as_arithmetic
from ptq_course.deploy.session import Session, session
from ptq_course.deploy.targets import (
    TARGETS,
    Target,
    check_dynamic,
    check_target,
    decoded_in_float,
    find_target,
    stored_as_int8,
)
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph import copied, trace
from ptq_course.graph.fusion import fuse
from ptq_course.graph.recurrent import Recurrent
from ptq_course.graph.sequences import leave_norms, norms_of_sequences
from ptq_course.grids.affine import FloatQParams
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
    example: Tensor | Sequence | Mapping[str, Any],
    path: str | Path,
    target: str = "onnxruntime",
    *,
    free_dimensions: Sequence[int] = (0,),
    four_bit_convolutions: bool = False,
    upsample_by_copies: bool = True,
) -> Path:
    """Write ``model`` as an ONNX file and return its path; the first dimension stays free.

    model: a QuantizedModel, whose weights and biases go into the file as integers; a DynamicModel
        (see below); or any float module, which is folded and stripped first, so that FP32 and INT8
        are compared fairly.
    example: inputs of the model's shape, batch size of at least 2: a tensor, several in a tuple, or
        a dict by the names of the arguments (`examples.arguments`).
    free_dimensions: of every input, those that the file leaves open. (0, 2, 3) leaves height and
        width of pictures free too; a network that takes one size only (Flatten before a Linear)
        refuses the others when the file is run. Each is at least 2 in the example.
    target: the runtime that will read the file; quantize with the preset of the same name.
        "onnxruntime"  8-bit activations, int8 weights, int32 bias. Linear layers of 4 bits or
                       fewer per group are stored as INT4 and multiplied in floating point;
                       other weights below 8 bits are stored, and computed, as int8. A warning
                       names those of 4 bits or fewer (`targets.stored_as_int8`).
        "tensorrt"     int8 with zero point 0 everywhere, floating-point bias
                       (`deploy.tensorrt.check_tensorrt` lists the rules).
        "arm"          affine int8 activations, int8 weights, int32 bias.

    four_bit_convolutions: store the weights of convolutions of 4 bits or fewer as INT4. The file is
        about half as large (0.16x FP32 instead of 0.26x in a ResNet), and the runtime, which has no
        kernel for them, computes these convolutions in floating point: no faster than FP32.
        Only with target "onnxruntime".
    upsample_by_copies: write nearest upsampling of codes by whole factors as copies of pixels,
        which ONNX Runtime runs several times as fast as Resize (`layout.repeat_channels_last`).
        OpenVINO does not: pass False where it will read the file.

    What stays in floating point. ONNX Runtime has no integer kernel for some operations (transposed
    and three-dimensional convolution, layer norm, SiLU, Hardswish, GELU, ...): the file holds
    integer weights for them and the runtime computes them in floating point. So it computes a
    convolution whose output is not rounded, for example the last layer of a network that ends with
    one (a last Linear is fused to QGemm, which returns real numbers), and 4-bit weights per group,
    also where their input has 8 bits. `deploy.validate.validate` counts them.

    Codebooks and FP8 (target "onnxruntime"). The file holds a codebook and its codes (UINT4 where 4
    bits hold them, else uint8), or FP8 codes; the runtime decodes them once, when it opens the
    file, and computes in floating point: smaller, no faster. Where inputs are rounded a warning
    names these layers, and what ONNX Runtime would do to them (`session`). FP4, MXFP4 and NVFP4
    have no kernel and are refused.

    Scales chosen at run time (`quantize_dynamic`, target "onnxruntime"). Linear layers become
    DynamicQuantizeLinear and MatMulInteger, which the runtime fuses to DynamicQuantizeMatMul;
    convolutions become ConvInteger, which is smaller but no faster than FP32; transposed ones have
    integer weights and compute in floating point. The file rounds each input to uint8 with one
    scale for the whole tensor, as granularity="per_tensor" simulates it: a model made per token is
    written so too, with a warning. (An encoder of MiniLM's size at random: cosine with FP32 0.9999
    per tensor; `benchmarks/dynamic_encoder.py`.)

    Raises UnsupportedError by name for what the target has no form for (another preset's grids,
    9 to 16 bits, groups of 8-bit weights, 4-bit floats, quantized models in other formats than
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
    given = arguments(model, example)
    shapes = free_shapes(given, free_dimensions)
    if four_bit_convolutions and runtime.name != "onnxruntime":
        raise UnsupportedError(
            f"export: {runtime.name} reads no 4-bit convolutions; leave four_bit_convolutions out."
        )
    if isinstance(model, DynamicModel):
        check_dynamic(model, runtime)
    elif isinstance(model, QuantizedModel):
        check_target(model.module, model.config, runtime)
        _warn_decoded(model)
        _warn_float_activations(model, runtime)
    _check_dtype(model, tensors_of(given))
    module = _exportable(model, given, runtime)
    wider = stored_as_int8(model, four_bit_convolutions)
    if wider:
        warnings.warn(
            f"export: {', '.join(wider)}: weights of 4 bits or fewer are stored as int8, as large "
            "as with 8 bits. Linear layers are stored as INT4 per group (weight_granularity=32), "
            "convolutions with four_bit_convolutions=True, at a price in speed.",
            stacklevel=2,
        )
    opset = FOUR_BIT_OPSET if four_bit_convolutions or _four_bits(module) else OPSET
    written = _to_onnx(module, given, shapes, opset)
    if runtime.name == "onnxruntime":
        write_slopes_as_arithmetic(written)
        turn_behind_pooling(written)
        if upsample_by_copies:
            repeat_channels_last(written)
    proto = finished(written, four_bit_convolutions)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # of the checker, or of its inference of shapes and types
        raise UnsupportedError(
            f"ONNX's checker refuses the file of {type(model).__name__}: {_reason(error)}"
        ) from error
    write_atomically(path, proto.SerializeToString())
    return path


def _warn_decoded(model: QuantizedModel) -> None:
    """Say which layers compute in floating point although their input is rounded."""
    found = decoded_in_float(model)
    if found and model.config.activation_bits is not None:
        kinds = ", ".join(dict.fromkeys(found.values()))
        warnings.warn(
            f"export: {', '.join(found)}: weights decoded from {kinds}. The file is small, and the "
            "runtime computes these layers in floating point from the decoded weight: no faster "
            "than FP32, although their inputs are rounded. Integer kernels need integer weights. "
            "Open it with deploy.onnx.session, which turns WeightBiasQuantization off: that "
            "optimizer of ONNX Runtime would round the decoded weights to integers once more.",
            stacklevel=3,
        )


def _warn_float_activations(model: QuantizedModel, runtime: Target) -> None:
    """Say that integer weights behind FP8 activations meet no integer kernel."""
    name, decoded = model.config.activation_format, decoded_in_float(model)
    layers = [layer for layer in model.quantized_layers() if layer not in decoded]
    if name is not None and layers and runtime.name == "onnxruntime":
        warnings.warn(
            f"export: activations are rounded to {name}, for which ONNX Runtime has no kernels, so "
            f"that it computes {', '.join(layers)} in floating point, no faster than FP32. Leave "
            "activation_format out for integer kernels.",
            stacklevel=3,
        )


def _four_bits(module: nn.Module) -> bool:
    """Whether a part of it is stored in 4 bits."""
    books = [part.codebook for part in module.modules() if isinstance(part, DecodedLayer)]
    if any(book is not None and len(book) <= 16 for book in books):
        return True
    return any(isinstance(part, FourBitLinear) for part in module.modules())


def _check_dtype(model: nn.Module, examples: list[Tensor]) -> None:
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


def _exportable(model: nn.Module, given: tuple, runtime: Target) -> nn.Module:
    """A module in which every quantized part is replaced by the operator that exports it."""
    factors: dict[ActivationQuantizer, float] = {}
    if isinstance(model, ConvertedModel):
        module = copy.deepcopy(model.module)
        if isinstance(module, fx.GraphModule):
            drop_implied_clamps(module)
            if runtime.integer_bias:  # TensorRT wants one scale for each pair, and real numbers
                factors = absorb_factors(module)
                write_numbers_as_codes(module)
            repeat_quantizers(module)
            if runtime.name == "onnxruntime":
                write_silu_as_one_node(module)
    else:
        try:
            traced = trace(model)
            leave_norms(traced, norms_of_sequences(traced, given))
            module = fuse(traced)
        except UnsupportedError:
            module = copied(model)
    if isinstance(module, fx.GraphModule):
        use_global_average_pool(module, given)
    replaced: dict[nn.Module, nn.Module] = {}
    inside: set[nn.Module] = set()  # parts of recurrent layers, which are written as a whole
    for part in module.modules():
        if isinstance(part, Recurrent):
            replaced[part] = ExportedRecurrent(part)
            inside.update(part.modules())
        elif part in inside:
            continue
        elif isinstance(part, ActivationQuantizer):
            floats = part.zero_point is None
            replaced[part] = (
                FloatQuantizer(part) if floats else ExportedQuantizer(part, factors.get(part, 1.0))
            )
        elif isinstance(part, RoundedInside):
            floats = isinstance(part.factor, FloatQParams)
            replaced[part] = FloatCurve(part) if floats else ExportedCurve(part)
        elif isinstance(part, DynamicLayer):
            replaced[part] = exported_dynamic_layer(part)
        elif isinstance(part, QuantizedLayer) and part.weight_qparams is None:
            replaced[part] = DecodedLayer(part)
        elif isinstance(part, QuantizedLayer):
            replaced[part] = exported_layer(part, runtime.integer_bias)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return module.eval()


def _to_onnx(module: nn.Module, given: tuple, shapes: tuple, opset: int) -> ir.Model:
    from ptq_course.deploy.onnx.optimizing import optimize  # late, as below

    level = logging.root.manager.disable
    # torch.onnx warns about torchvision, which this course does not use, and torch.export writes
    # forty lines about an example that does not fit, before it raises.
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (*given, {}),  # a dict at the end would be taken for named arguments
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=shapes,
                custom_translation_table=translation_table(opset),
                optimize=False,  # the next lines do
                verbose=False,
            )
            assert program is not None  # dynamo=True returns one
            optimize(program.model)
    except Exception as error:
        raise UnsupportedError(
            f"torch.onnx.export refused {type(module).__name__}: {_reason(error)}"
        ) from error
    finally:
        logging.disable(level)
    return program.model


def finished(model: ir.Model, four_bit_convolutions: bool = False) -> onnx.ModelProto:
    """The file of what torch.onnx.export made: without what it can do without, weights packed."""
    # Imported late, as torch.onnx does: onnx_ir takes a second.
    import onnx_ir as ir

    from ptq_course.deploy.onnx.compact import compact
    from ptq_course.deploy.onnx.file import (
        own_weights,
        pack_codebooks,
        pack_four_bits,
        part_fp8_from_clamps,
        strip,
    )

    strip(model)
    own_weights(model)
    part_fp8_from_clamps(model)
    pack_four_bits(model, four_bit_convolutions)
    if model.opset_imports[""] >= FOUR_BIT_OPSET:
        pack_codebooks(model)
    compact(model)
    return ir.to_proto(model)


def _reason(error: BaseException) -> str:
    """The first line of what caused an error first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)  # may have no text
