"""One ONNX operator, run by ONNX Runtime: what the toolkit itself makes of a formula."""

from __future__ import annotations

from typing import Any

import numpy as np


def onnx_run(op: str, inputs: list[np.ndarray], result: int, **attributes: Any) -> np.ndarray:
    """The output of operator `op` on `inputs`; `result` is its type, a TensorProto number."""
    import onnxruntime
    from onnx import helper

    names = [f"input{i}" for i in range(len(inputs))]
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    output = helper.make_tensor_value_info("output", result, None)
    node = helper.make_node(op, names, ["output"], **attributes)
    graph = helper.make_graph([node], "one_operator", given, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]
