"""Execution in OpenVINO: a second runtime for the same files. Chapter 15.

An ONNX file says which numbers lie on which grid, and each runtime decides which of its kernels
computes them, in which precision, and where it rounds. `precisions` reads that decision from the
compiled network.

Where it rounds otherwise (OpenVINO 2026.4): a residual sum is computed inside one of the
convolutions before it, in float32, and that convolution's own rounding is left out. On 4,000 test
pictures a simulation without these roundings gives OpenVINO's decision on all (ResNet-like) and on
99.95 % (MobileNet-like); ONNX Runtime, which rounds there, on 98.95 % and 99.58 %.
"""

from __future__ import annotations

import collections
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, needs, whole

with needs("openvino"):
    import openvino

MAX_THREADS = 256
# Bookkeeping of the compiled network, which computes nothing.
SILENT_TYPES = ("Input", "Output", "Const")


class OpenVINOSession:
    """An ONNX file ready to run in OpenVINO on the CPU, called like `deploy.session.Session`.

    Tensors in, tensors out; NumPy arrays in, arrays out; several outputs as a tuple. What the file
    leaves in floating point is computed in float32, whatever the processor could do.
    Raises QuantizationError for a missing file or one that OpenVINO cannot open, for threads
    outside 1 to 256, and for inputs that the file does not take.
    """

    def __init__(self, path: str | Path, threads: int = 2) -> None:
        path = Path(path)
        if not path.is_file():
            raise QuantizationError(f"session: there is no file {path}; export the model first.")
        self.path = path
        self.threads = whole("session: threads", threads, 1, MAX_THREADS)
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 on processors that have it
        }
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # OpenVINO has a type for each of many reasons
            raise QuantizationError(
                f"session: OpenVINO cannot open {path}: {_first_line(error)}. Is it an ONNX file "
                "without operators of ONNX Runtime's own (domain com.microsoft)?"
            ) from error
        self._request = self._compiled.create_infer_request()
        self._names = [given.any_name for given in self._compiled.inputs]

    def __call__(self, *inputs: Tensor | np.ndarray, **named: Tensor | np.ndarray) -> Any:
        """The output, or a tuple of all where the file has several; arrays for arrays."""
        if named.keys() <= set(self._names[len(inputs) :]):
            inputs += tuple(named[name] for name in self._names[len(inputs) :] if name in named)
        if len(inputs) != len(self._names):
            raise QuantizationError(
                f"session: {self.path.name} takes {len(self._names)} inputs "
                f"({', '.join(self._names)}), got {len(inputs)}"
                f"{' and ' + ', '.join(named) if named else ''}."
            )
        arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in inputs]
        wanted = [port.element_type.to_dtype() for port in self._compiled.inputs]
        got = [getattr(x, "dtype", None) for x in arrays]
        try:
            if got != wanted:  # OpenVINO itself would convert in silence
                raise TypeError(f"it computes in {', '.join(map(str, wanted))}")
            self._request.infer(dict(enumerate(map(np.ascontiguousarray, arrays))))
        except Exception as error:
            shapes = [f"{dtype} {np.shape(x)}" for dtype, x in zip(got, arrays, strict=True)]
            ports = [f"{port.any_name}: {port.partial_shape}" for port in self._compiled.inputs]
            raise QuantizationError(
                f"session: {self.path.name} cannot be run on {', '.join(shapes)}; it takes "
                f"{', '.join(ports)}. OpenVINO says: {_first_line(error)}"
            ) from error
        outputs = [
            self._request.get_output_tensor(i).data.copy()  # it owns the memory, and reuses it
            for i in range(len(self._compiled.outputs))
        ]
        if any(isinstance(x, Tensor) for x in inputs):
            outputs = [torch.from_numpy(x) for x in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @cached_property
    def precisions(self) -> dict[tuple[str, str], int]:
        """How often each operator is computed in which precision, as ("Convolution", "u8").

        A convolution "in u8" reads uint8 activations and int8 weights, sums in int32, and finishes
        (bias, scale, fused activation and addition) in float32 before it rounds once.
        """
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for op in self._compiled.get_runtime_model().get_ops():
            info = op.get_rt_info()
            kind = str(info["layerType"].astype(str))
            if kind not in SILENT_TYPES:
                found[kind, str(info["runtimePrecision"].astype(str))] += 1
        return dict(sorted(found.items()))

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator occurs after the runtime's fusions, whatever its precision."""
        found: collections.Counter[str] = collections.Counter()
        for (kind, _), count in self.precisions.items():
            found[kind] += count
        return dict(sorted(found.items()))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def _first_line(error: Exception) -> str:
    """OpenVINO's reason without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "")
