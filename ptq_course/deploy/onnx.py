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
from torch.nn import functional as F

from ptq_course.deploy.onnx_ops import (
    ExportedLayer,
    ExportedQuantizer,
    implied_clamp,
    translation_table,
)
from ptq_course.deploy.session import Session, session
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.fusion import fuse
from ptq_course.graph import trace
from ptq_course.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.quantizer import QuantizedModel

__all__ = ["Session", "export", "session"]

TARGETS = ("onnxruntime",)
OPSET = 20


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
    Raises UnsupportedError by name for what ONNX Runtime has no integer form for, and
    QuantizationError for an unknown target or a path whose folder does not exist. The file appears
    only when it is complete and has passed ONNX's checker.
    """
    if target not in TARGETS:
        raise QuantizationError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}.")
    path = Path(path)
    if not path.parent.is_dir():
        raise QuantizationError(
            f"export: the folder {path.parent} does not exist; create it first."
        )
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    module = _exportable(model)
    proto = _to_onnx(module, examples)
    _strip(proto)
    _give_each_weight_its_zero_point(proto)
    onnx.checker.check_model(proto, full_check=True)
    partial = path.with_name(path.name + ".partial")
    onnx.save(proto, partial)
    partial.replace(path)
    return path


def _exportable(model: nn.Module) -> nn.Module:
    """A module in which every quantized part is replaced by the operator that exports it."""
    if isinstance(model, QuantizedModel):
        module = copy.deepcopy(model.module)
        if isinstance(module, fx.GraphModule):
            _drop_implied_clamps(module)
    else:
        try:
            module = fuse(trace(model))
        except UnsupportedError:
            module = copy.deepcopy(model).eval()
    if isinstance(module, fx.GraphModule):
        _use_global_average_pool(module)
    replaced: dict[nn.Module, nn.Module] = {}
    for part in module.modules():
        if isinstance(part, ActivationQuantizer):
            replaced[part] = ExportedQuantizer(part)
        elif isinstance(part, QuantizedLayer):
            replaced[part] = ExportedLayer(part)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if isinstance(module, fx.GraphModule):
        module.recompile()
    return module.eval()


def _drop_implied_clamps(module: fx.GraphModule) -> None:
    """Remove a ReLU or ReLU6 whose clamp the quantizer behind it performs anyway.

    Runtimes know this rule for ReLU; for ReLU6 they compare float32 bounds and can miss it by one
    unit in the last place, which would leave the convolution in floating point.
    """
    for node in list(module.graph.nodes):
        bounds = _clamp_bounds(module, node)
        users = list(node.users)
        if bounds is None or len(users) != 1 or users[0].op != "call_module":
            continue
        quantizer = module.get_submodule(users[0].target)
        if isinstance(quantizer, ActivationQuantizer) and implied_clamp(quantizer.qparams, *bounds):
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()


def _clamp_bounds(module: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    target = type(module.get_submodule(node.target)) if node.op == "call_module" else node.target
    if target in (nn.ReLU6, F.relu6):
        return (0.0, 6.0)
    if target in (nn.ReLU, F.relu, torch.relu, "relu", "relu_"):
        return (0.0, float("inf"))
    return None


class _GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ptq.global_average_pool(x)


def _use_global_average_pool(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "call_module":
            pool = module.get_submodule(node.target)
            if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1)):
                parent, _, name = node.target.rpartition(".")
                setattr(module.get_submodule(parent), name, _GlobalAveragePool())
        elif node.target is F.adaptive_avg_pool2d and node.args[1:2] in ((1,), ((1, 1),)):
            node.target = torch.ops.ptq.global_average_pool.default
            node.args, node.kwargs = node.args[:1], {}
    module.recompile()


def _to_onnx(module: nn.Module, examples: tuple[Tensor, ...]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
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
                opset_version=OPSET,
                dynamic_shapes=[{0: batch} for _ in examples],
                custom_translation_table=translation_table(),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise UnsupportedError(
            f"torch.onnx.export refused {type(module).__name__}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        logger.setLevel(level)
    return program.model_proto


def _strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces and paths of this machine, which can outweigh the weights."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]:
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.value_info[:]


def _give_each_weight_its_zero_point(proto: onnx.ModelProto) -> None:
    """Undo the sharing of equal zero points between weights.

    On x86 without VNNI, ONNX Runtime's exact mode rewrites int8 weights as uint8, each with its
    zero point, and fails where two weights share one.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    used: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        name = node.input[2] if len(node.input) > 2 else ""
        if name in used:
            own = onnx.TensorProto()
            own.CopyFrom(constants[name])
            own.name = f"{name}_{number}"
            proto.graph.initializer.append(own)
            node.input[2] = own.name
        used.add(name)
