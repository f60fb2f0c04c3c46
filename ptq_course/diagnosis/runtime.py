"""How long does one example take in ONNX Runtime? For the log of `reach`. Chapter 10."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ptq_course.errors import MissingExtraError, QuantizationError

ROUNDS = 5
MOST = 32  # examples a call


def milliseconds(model: nn.Module, inputs: Sequence[Tensor]) -> float | None:
    """Milliseconds an example, the fastest of some calls on ``inputs``; one thread.

    None where the network has no file (a runtime without a kernel for it, several inputs) or the
    extra "onnx" is not installed.
    """
    if len(inputs) != 1 or inputs[0].dim() < 2 or len(inputs[0]) < 2:
        return None
    x = inputs[0][:MOST].cpu()
    try:
        from ptq_course.deploy.onnx import export
        from ptq_course.deploy.session import latency, session

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = session(export(model, x, Path(folder) / "network.onnx"), threads=1)
            return 1000 * latency({"it": run}, x, ROUNDS)["it"] / len(x)
    except (MissingExtraError, QuantizationError):
        return None
