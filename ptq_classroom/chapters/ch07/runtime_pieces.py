"""ONNX files that chapter 07 measures: the runtime's own dynamic quantization, single operators.

Nothing of the subject depends on them; they exist to be timed and compared.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ptq_course.deploy.checkpoint.packing import pack
from ptq_course.deploy.session import SILENT, UNASKED
from ptq_course.grids.affine import IntGrid, QTensor, block_minmax, choose_qparams, quantize

MICROSOFT = "com.microsoft"
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """ONNX Runtime's tools advise a preparation of the file, which `export` has done already."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def dynamic_file(source: str | Path, target: str | Path, convolutions: bool = False) -> Path:
    """Quantize an FP32 file dynamically with ONNX Runtime's `quantize_dynamic`.

    Linear layers get int8 weights per channel. With ``convolutions`` all weights are uint8, because
    its ConvInteger kernel takes no others.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with without_advice():
        quantize_dynamic(
            Path(source),
            Path(target),
            per_channel=not convolutions,
            weight_type=QuantType.QUInt8 if convolutions else QuantType.QInt8,
        )
    return Path(target)


def time_by_operator(
    path: str | Path, x: Tensor, layout: bool = True, runs: int = 10, threads: int = 2
) -> dict[str, float]:
    """Seconds a call that ONNX Runtime's profile counts for each operator, the longest first.

    Each node counts with its fastest run. ``layout`` False leaves out the last of the runtime's
    optimizations, which stores what convolutions read and write in blocks of channels.
    """
    options, levels = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = SILENT
    options.add_session_config_entry(*UNASKED)
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if layout else levels.ORT_ENABLE_EXTENDED
    )
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        run = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            run.run(None, {run.get_inputs()[0].name: x.numpy()})
        events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
    fastest: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["args"]["op_name"], event["name"]
            fastest[node] = min(fastest.get(node, float("inf")), event["dur"] / 1e6)
    total: collections.Counter[str] = collections.Counter()
    for (operator, _), seconds in fastest.items():
        total[operator] += seconds
    return dict(total.most_common())


def quantize_file(folder: Path, at_run_time: bool) -> Path:
    """One operator: QuantizeLinear with a fixed scale, or DynamicQuantizeLinear, which finds it."""
    if at_run_time:
        return _write(
            folder / "dynamic_range.onnx", "DynamicQuantizeLinear", ["x"],
            {"y": TensorProto.UINT8, "s": TensorProto.FLOAT, "z": TensorProto.UINT8},
        )  # fmt: skip
    constants = {"s": np.float32(0.02), "z": np.uint8(128)}
    return _write(
        folder / "fixed_range.onnx", "QuantizeLinear", ["x", *constants],
        {"y": TensorProto.UINT8}, constants,
    )  # fmt: skip


def integer_product_file(folder: Path, weight: QTensor) -> Path:
    """DynamicQuantizeMatMul: range, rounding and integer product of [rows, K] with [N, K] in one.

    weight: symmetric int8 codes [N, K], one scale for each row.
    """
    scale = weight.qparams.scale.flatten().numpy()
    constants = {"w": weight.codes.T.contiguous().numpy(), "s": scale}
    name = f"integer_product_{len(scale)}.onnx"
    return _write(
        folder / name, "DynamicQuantizeMatMul", ["x", *constants], {"y": TensorProto.FLOAT},
        constants, MICROSOFT,
    )  # fmt: skip


def product_file(folder: Path, weight: Tensor) -> Path:
    """MatMul of [rows, K] with a float weight [N, K]."""
    constants = {"w": weight.T.contiguous().numpy()}
    name = f"product_{len(weight)}.onnx"
    return _write(folder / name, "MatMul", ["x", "w"], {"y": TensorProto.FLOAT}, constants)


def four_bit_product_file(folder: Path, weight: QTensor) -> Path:
    """MatMulNBits: the weight [N, K] stays packed in memory and is decoded inside the product.

    weight: symmetric 4-bit codes in groups of 16, 32, ... along K. Accuracy level 1 keeps the
    activations in floating point.
    """
    rows, columns = weight.shape
    group = weight.qparams.block_size[1]
    stored = pack(weight.codes.int() + 8, 4)  # unsigned, zero point 8
    constants = {
        "w": stored.reshape(rows, columns // group, group // 2).numpy(),
        "s": weight.qparams.scale.flatten().numpy(),
    }
    settings = {"K": columns, "N": rows, "bits": 4, "block_size": group, "accuracy_level": 1}
    return _write(
        folder / f"four_bits_{rows}.onnx", "MatMulNBits", ["x", *constants],
        {"y": TensorProto.FLOAT}, constants, MICROSOFT, settings,
    )  # fmt: skip


def quantized_rows(weight: Tensor, bits: int, group: int | None = None) -> QTensor:
    """Symmetric codes of a matrix [N, K], one scale for each row or group of its row."""
    block = (1, group or -1)
    low, high = block_minmax(weight, block)
    qparams = choose_qparams(low, high, IntGrid(bits, narrow=True), True, block)
    return QTensor(quantize(weight, qparams), qparams)


def _write(
    path: Path, operator: str, inputs: list[str], outputs: dict[str, int],
    constants: dict[str, np.ndarray] | None = None, domain: str = "",
    settings: dict[str, int] | None = None,
) -> Path:  # fmt: skip
    node = helper.make_node(operator, inputs, list(outputs), domain=domain, **(settings or {}))
    graph = helper.make_graph(
        [node],
        "one_operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "columns"])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=9), path)
    return path
