"""Run by the doctor with the course's Python: prints as JSON what only libraries can tell."""

from __future__ import annotations

import json

from . import fingerprint


def torch_facts() -> dict[str, float]:
    """PyTorch's threads, and the share of wrong elements in its INT8 product at full range."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-128, 128, (64, 256), dtype=torch.int8, generator=generator)
    right = torch.randint(-127, 128, (256, 64), dtype=torch.int8, generator=generator)
    wrong = torch.ops.aten._int_mm(left, right) != left.long() @ right.long()
    return {"threads": torch.get_num_threads(), "wrong": wrong.double().mean().item()}


def runtime_facts() -> dict[str, float]:
    """The share of wrong elements in ONNX Runtime's uint8 x int8 product, without its option
    for exact products and with it.
    """
    import numpy
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = numpy.random.default_rng(0)
    left = random.integers(0, 256, (64, 256)).astype(numpy.uint8)
    right = random.integers(-127, 128, (256, 64)).astype(numpy.int8)
    exact = left.astype(numpy.int64) @ right.astype(numpy.int64)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "known_answer",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, exact.shape)],
        [numpy_helper.from_array(right, "right")],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def wrong(careful: str) -> float:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", careful)
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        product = numpy.asarray(session.run(None, {"left": left})[0])
        return float((product != exact).mean())

    return {"wrong": wrong("0"), "careful_wrong": wrong("1")}


def changes() -> list[str]:
    """What differs between this machine and the one that the notebooks were recorded on."""
    return fingerprint.differences(fingerprint.recorded(), fingerprint.here())


def main() -> None:
    """Print the facts; a part that fails is named instead of stopping the others."""
    facts: dict[str, object] = {}
    problems = []
    for name, part in (
        ("torch", torch_facts),
        ("runtime", runtime_facts),
        ("differences", changes),
    ):
        try:
            facts[name] = part()
        except Exception as problem:  # a report must not break on what it reports
            problems.append(f"{name}: {problem}")
    print(json.dumps(facts | {"problems": problems}))
