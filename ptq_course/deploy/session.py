"""Execution in ONNX Runtime, guarded against processors whose INT8 products saturate.

Chapters 00, 08 and 15. On x86 without VNNI the fast kernel multiplies unsigned by signed bytes and
adds pairs of products in 16 bits, where 255 * 127 * 2 does not fit: large sums come out silently
wrong. A known-answer test finds such processors, and the exact mode of ONNX Runtime serves them.
"""

from __future__ import annotations

import collections
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, needs, whole

with needs("onnx"):
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

EXACT_MODE = "session.x64quantprecision"
# 4-bit products: 1 computes them in float32, while the default rounds the activations to 8 bits.
FOUR_BIT_ACCURACY = "session.qdq_matmulnbits_accuracy_level"
# It would quantize a weight or bias that the file holds in floating point, without being asked.
UNASKED = ("optimization.disable_specified_optimizers", "WeightBiasQuantization")
# Threads that wait by spinning stop when a call returns. Otherwise an idle session takes processor
# time from the next one: FP32 measured twice as slow beside an INT8 session as without it.
WEIGHTS_APART = "session.optimized_model_external_initializers_file_name"
STOP_SPINNING = ("session.force_spinning_stop", "1")
MAX_THREADS = 256  # more is a mistake, not a machine
SILENT = 4  # of ONNX Runtime's levels: what goes wrong is raised, and need not be printed too


class Session:
    """An ONNX file ready to run: call it with the inputs, get what the model returns.

    Tensors in, tensors out; NumPy arrays in, arrays out; several outputs as a tuple. ``exact`` None
    runs the known-answer test and chooses; True and False force a mode. ``saturation_guard`` says
    what was chosen.
    Raises QuantizationError for a missing file or one that ONNX Runtime cannot open, for threads
    outside 1 to 256, and for inputs that the file does not take.
    """

    def __init__(self, path: str | Path, threads: int = 2, exact: bool | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise QuantizationError(f"session: there is no file {path}; export the model first.")
        threads = whole("session: threads", threads, 1, MAX_THREADS)
        self.path = path
        self.threads = threads
        self.saturation_guard = products_saturate() if exact is None else exact
        try:
            self._session = self._opened(exact is None)
        except Exception as error:  # ONNX Runtime has a type for each of a dozen reasons
            raise QuantizationError(
                f"session: ONNX Runtime cannot open {path}: {error}. Is it an ONNX file?"
            ) from error
        self._names = [given.name for given in self._session.get_inputs()]

    def _opened(self, may_choose: bool) -> ort.InferenceSession:
        """The runtime's session. ONNX Runtime 1.32 cannot guard every file that it can run, some of
        its own quantizer's among them: such a file is opened unguarded, with a warning."""
        try:
            return _open(self.path, self.threads, self.saturation_guard)
        except Exception:
            if not (self.saturation_guard and may_choose):
                raise
            opened = _open(self.path, self.threads, False)
        self.saturation_guard = False
        warnings.warn(
            f"session: ONNX Runtime cannot open {self.path.name} guarded against saturation. It is "
            "opened without, and its products may saturate on this processor: compare its outputs "
            "with FP32's.",
            stacklevel=4,
        )
        return opened

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
        try:
            outputs = self._session.run(None, dict(zip(self._names, arrays, strict=True)))
        except Exception as error:  # as above: of the inputs, or of a node in the middle
            wanted = [f"{x.name}: {x.type} {x.shape}" for x in self._session.get_inputs()]
            got = [f"{getattr(x, 'dtype', type(x).__name__)} {np.shape(x)}" for x in arrays]
            raise QuantizationError(
                f"session: {self.path.name} cannot be run on {', '.join(got)}; it takes "
                f"{', '.join(wanted)}. ONNX Runtime says: {error}"
            ) from error
        if any(isinstance(x, Tensor) for x in inputs):
            outputs = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @cached_property
    def operators(self) -> dict[str, int]:
        """How often each operator occurs after the runtime's fusions (QLinearConv, Conv, ...).

        The file is opened a second time, and the optimized graph written to the temporary folder.
        Raises QuantizationError where that has no room.
        """
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            try:
                _open(self.path, self.threads, self.saturation_guard, optimized)
                nodes = onnx.load(optimized, load_external_data=False).graph.node
            except Exception as error:
                raise QuantizationError(
                    f"session: the optimized graph of {self.path.name} cannot be written to "
                    f"{folder}: {error}. Make room there, or set TMPDIR to another folder."
                ) from error
        return dict(sorted(collections.Counter(node.op_type for node in nodes).items()))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size


def session(
    path: str | Path, threads: int = 2, exact: bool | None = None, runtime: str = "onnxruntime"
) -> Session:
    """Open an ONNX file on the CPU with that many threads (see `Session`).

    runtime: "onnxruntime", or "openvino" (the extra of that name; `exact` is ONNX Runtime's).
    Raises QuantizationError for another runtime, MissingExtraError where OpenVINO is missing.
    """
    if runtime == "onnxruntime":
        return Session(path, threads, exact)
    if runtime != "openvino":
        raise QuantizationError(
            f"session: runtime is 'onnxruntime' or 'openvino', got {runtime!r}."
        )
    if exact is not None:
        raise QuantizationError("session: exact is a mode of ONNX Runtime; leave it out.")
    from ptq_course.deploy.openvino_session import OpenVINOSession

    return cast(Session, OpenVINOSession(path, threads))  # called in the same way


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the fastest and the median of many, and the median of each turn."""

    best: float
    median: float
    turns: tuple[float, ...] = ()


@dataclass(frozen=True)
class Speedup:
    """How many times faster: the median over the turns, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, peer: Timing, contestant: Timing) -> Speedup:
        """The peer's time over the contestant's, turn by turn.

        What slows a machine for a while slows both of a turn, so that it cancels in their ratio;
        the fastest calls of each may come from different moments.
        """
        pairs = zip(peer.turns, contestant.turns, strict=True)
        ratios = [theirs / ours for theirs, ours in pairs]
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def timings(
    sessions: Mapping[str, Callable], x: Tensor | np.ndarray, rounds: int = 20, calls: int = 3
) -> dict[str, Timing]:
    """Time each session on ``x``, in turns: ``rounds`` turns of ``calls`` calls.

    Taking turns gives each the same chance of a quiet moment; quote ratios, not seconds. The first
    call of a turn is not counted: it finds the caches full of the other sessions' data.
    """
    rounds, calls = whole("timings: rounds", rounds, 1), whole("timings: calls", calls, 1)
    if not sessions:
        raise QuantizationError("timings: needs at least one session.")
    times: dict[str, list[list[float]]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, run in sessions.items():
            run(x)
            turn = []
            for _ in range(calls):
                start = time.perf_counter()
                run(x)
                turn.append(time.perf_counter() - start)
            times[name].append(turn)
    return {name: _timing(turns) for name, turns in times.items()}


def _timing(turns: list[list[float]]) -> Timing:
    every = [seconds for turn in turns for seconds in turn]
    medians = tuple(statistics.median(turn) for turn in turns)
    return Timing(min(every), statistics.median(every), medians)


def latency(
    sessions: Mapping[str, Callable], x: Tensor | np.ndarray, rounds: int = 20
) -> dict[str, float]:
    """Fastest seconds a call of each session on ``x``, measured in turns (see `timings`).

    Other programs on the machine can only make a call slower, so the fastest says most about the
    session itself.
    """
    return {name: timing.best for name, timing in timings(sessions, x, rounds).items()}


@cache
def products_saturate() -> bool:
    """Known-answer test: does this processor's fast uint8 x int8 kernel give wrong sums?

    A matrix product of extreme codes, [4, 64] of 255 with [64, 16] of 127, against the exact
    integers. True on x86 processors without VNNI.
    """
    inputs = np.full((4, 64), 255, np.uint8)
    weights = np.full((64, 16), 127, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "known_answer",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [4, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    run = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    exact = inputs.astype(np.int32) @ weights.astype(np.int32)
    return not np.array_equal(np.asarray(run.run(None, {"x": inputs})[0]), exact)


def _open(
    path: Path, threads: int, exact: bool, optimized: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Weights apart, since one file holds at most 2 GB.
        options.add_session_config_entry(WEIGHTS_APART, "weights")
    options.add_session_config_entry(FOUR_BIT_ACCURACY, "1")
    options.add_session_config_entry(*UNASKED)
    options.add_session_config_entry(*STOP_SPINNING)
    if exact:
        options.add_session_config_entry(EXACT_MODE, "1")
    return ort.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
