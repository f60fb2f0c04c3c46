"""Validation in one call: does the file compute what the simulation does, how big, how fast?

The last of the five steps (chapters 06, 08 and 15): agreement, accuracy, size, speed, kernels.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_course.deploy.onnx import export
from ptq_course.deploy.onnx.examples import arguments
from ptq_course.deploy.session import Session, Timing, products_saturate, session, timings
from ptq_course.errors import QuantizationError
from ptq_course.grids.metrics import top1
from ptq_course.simulation.observe import outputs_over
from ptq_course.simulation.quantized import ConvertedModel

BATCHES = (1, 32)
CHUNK = 100  # examples at a time where speed is not measured
_INTEGER = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "NhwcMaxPool",
            "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")  # fmt: skip
_BOUNDARY = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_MOVING = (
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad",
    "Concat", "Identity", "Shape", "MaxPool", "ReorderInput", "ReorderOutput", "DepthToSpace",
    "SpaceToDepth", "Constant", "Cast", "Expand",
)  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """Nodes of the graph that the runtime executes, by kind: how many of each operator.

    integer: fused kernels on codes; floating: arithmetic in floating point (also 4-bit weights,
    MatMulNBits); boundary: Q and DQ left over between the two. What only moves data is left out.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    boundary: Mapping[str, int]

    @classmethod
    def of(cls, operators: Mapping[str, int]) -> Kernels:
        """Sort the operators of a session (`Session.operators`)."""
        integer = {n: c for n, c in operators.items() if n.startswith(_INTEGER)}
        boundary = {n: c for n, c in operators.items() if n in _BOUNDARY}
        known = {*integer, *boundary, *_MOVING}
        return cls(integer, {n: c for n, c in operators.items() if n not in known}, boundary)


@dataclass(frozen=True)
class Validation:
    """What `validate` measured; prints as a table.

    examples: how many inputs. agreement: share of the decisions that are the same in file and
    simulation: the largest of the first output's last dimension, or of its channels where it is a
    picture [N, C, H, W] and every pixel decides. step: a 255th of the range of the simulation's
    outputs; max_steps, mean_steps: absolute difference of the two in such steps. accuracy: top-1 of
    "FP32", "simulation", "file", None without labels. sizes: bytes of the files "FP32" and "INT8".
    seconds: for each batch size, `Timing` of "FP32", "INT8", and "INT8 unguarded" where the
    processor needs the guard.
    """

    target: str
    threads: int
    examples: int
    agreement: float
    max_steps: float
    mean_steps: float
    accuracy: Mapping[str, float] | None
    sizes: Mapping[str, int]
    seconds: Mapping[int, Mapping[str, Timing]]
    kernels: Kernels
    guarded: bool

    @property
    def size_ratio(self) -> float:
        """INT8 file over FP32 file."""
        return self.sizes["INT8"] / self.sizes["FP32"]

    def speedup(self, batch: int, name: str = "INT8", statistic: str = "best") -> float:
        """FP32's seconds over those of ``name``: the fastest calls, or their "median"."""
        times = self.seconds[batch]
        return getattr(times["FP32"], statistic) / getattr(times[name], statistic)

    def rows(self) -> list[tuple[str, str]]:
        """The table: what, and how much."""
        rows = [
            ("top-1 agreement with the simulation", f"{100 * self.agreement:.2f} %"),
            ("difference, mean / max", f"{self.mean_steps:.3f} / {self.max_steps:.2f} steps"),
        ]
        rows += [
            (f"top-1, {name}", f"{100 * x:.1f} %") for name, x in (self.accuracy or {}).items()
        ]
        rows.append(("file", f"{self.sizes['INT8']:,} bytes, {self.size_ratio:.2f}x FP32"))
        for batch, times in self.seconds.items():
            for name in [n for n in times if n != "FP32"]:
                best, median = (self.speedup(batch, name, s) for s in ("best", "median"))
                rows.append((f"speed of {name}, batch {batch}", f"~{best:.1f}x (~{median:.1f}x)"))
        for what, counts in (
            ("integer kernels", self.kernels.integer),
            ("in floating point", self.kernels.floating),
            ("Q and DQ left over", self.kernels.boundary),
        ):
            listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            rows.append((what, listed or "none"))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(what) for what, _ in rows)
        head = (
            f"{self.examples} examples, target {self.target}, {self.threads} threads; speed is "
            "the time of FP32 over that of INT8, fastest calls (medians)"
        )
        if self.guarded:
            head += "; guarded: exact sums on a processor without VNNI"
        return "\n".join([head, *(f"  {what:<{width}}  {value}" for what, value in rows)])

    __repr__ = __str__


def validate(
    quantized: ConvertedModel,
    fp32_model: nn.Module,
    path: str | Path,
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    labels: Tensor | None = None,
    *,
    target: str = "onnxruntime",
    threads: int = 2,
    rounds: int = 20,
) -> Validation:
    """Export ``quantized`` to ``path`` and measure the file against its simulation and FP32.

    quantized: statically, or with scales at run time. inputs: the examples [N, ...] (a tensor, one
    for each argument, or a dict by their names), N >= 2; labels [N].
    The FP32 model is exported too (folded and stripped) and runs in ONNX Runtime as well, with the
    same threads, in turns. Files for other targets run there too, where more of them stays in
    floating point; their speed is that of ONNX Runtime. Raises what `export` raises, and
    QuantizationError for fewer than two examples or labels of another length.
    """
    examples = arguments(quantized, inputs)
    if not all(isinstance(x, Tensor) and len(x) == len(examples[0]) for x in examples):
        raise QuantizationError("validate: pass tensors, as many rows in each: one an argument.")
    count = len(examples[0])
    if count < 2:
        raise QuantizationError("validate: needs at least two examples.")
    if labels is not None and len(labels) != count:
        raise QuantizationError(f"validate: {count} examples and {len(labels)} labels.")
    few = tuple(x[: max(2, min(count, max(BATCHES)))].clone() for x in examples)
    path = export(quantized, few, path, target=target)
    with tempfile.TemporaryDirectory() as folder:
        fp32 = session(export(fp32_model, few, Path(folder) / "fp32.onnx"), threads)
        int8 = session(path, threads)
        simulated = _outputs(quantized, examples)
        runs = {"FP32": fp32, "INT8": int8}
        if int8.saturation_guard and products_saturate():
            runs["INT8 unguarded"] = session(path, threads, exact=False)
        seconds = {
            batch: _seconds(runs, tuple(x[:batch].clone() for x in few), rounds)
            for batch in BATCHES
            if batch <= len(few[0])
        }
        got = _outputs(int8, examples)
        accuracy = None
        if labels is not None:
            logits = {"FP32": _outputs(fp32, examples), "simulation": simulated, "file": got}
            accuracy = {name: top1(x, labels) for name, x in logits.items()}
        sizes = {"FP32": fp32.size, "INT8": int8.size}
    classes = 1 if simulated.dim() > 3 else -1
    difference = (got.double() - simulated.double()).abs()
    step = max((simulated.max() - simulated.min()).item() / 255, torch.finfo(torch.float32).tiny)
    return Validation(
        target=target,
        threads=threads,
        examples=count,
        agreement=(got.argmax(classes) == simulated.argmax(classes)).double().mean().item(),
        max_steps=difference.max().item() / step,
        mean_steps=difference.mean().item() / step,
        accuracy=accuracy,
        sizes=sizes,
        seconds=seconds,
        kernels=Kernels.of(Counter(int8.operators)),
        guarded=int8.saturation_guard,
    )


def _outputs(run: Callable, examples: tuple[Tensor, ...]) -> Tensor:
    chunks = zip(*(x.split(CHUNK) for x in examples), strict=True)
    # Agreement and top-1 are read from the first output.
    return torch.cat([tensors[0] for tensors in outputs_over(run, chunks)])


def _seconds(
    runs: Mapping[str, Session], few: tuple[Tensor, ...], rounds: int
) -> dict[str, Timing]:
    if len(few) == 1:
        return timings(runs, few[0], rounds)
    rest = few[1:]
    together = {name: partial(_call, run, rest) for name, run in runs.items()}
    return timings(together, few[0], rounds)


def _call(run: Session, rest: tuple[Tensor, ...], first: Tensor) -> Tensor:
    return run(first, *rest)
