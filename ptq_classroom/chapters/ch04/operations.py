"""A traced network as a small table of operations, and what rounding its values costs.

Chapter 04 counts Q/DQ pairs on the table, then runs the graph with every one of them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, fx, nn

from ptq_course.grids.affine import IntGrid, fake_quantize
from ptq_course.ranges.calibrators import PercentileCalibrator

Ops = dict[str, tuple[str, tuple[str, ...]]]  # name -> (kind, names of the values it reads)

_KINDS: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "bn",
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.AdaptiveAvgPool2d: "pool",
    nn.Linear: "linear",
}


def operations(traced: fx.GraphModule) -> Ops:
    """The operations of a traced network in order; identities are left out.

    Raises ValueError for a kind of operation that the two networks of the course do not have.
    """
    ops: Ops = {}
    alias: dict[str, str] = {}  # what an identity returns is its input
    for node in traced.graph.nodes:
        inputs = tuple(alias.get(source.name, source.name) for source in node.all_input_nodes)
        if node.op == "output":
            continue
        if node.op == "placeholder":
            ops[node.name] = ("input", ())
        elif node.op == "call_module":
            module = traced.get_submodule(node.target)
            if isinstance(module, nn.Identity):
                alias[node.name] = inputs[0]
                continue
            ops[node.name] = (_kind(module), inputs)
        else:
            name = getattr(node.target, "__name__", str(node.target))
            ops[node.name] = ("flatten" if name == "flatten" else "add", inputs)
    return ops


def _kind(module: nn.Module) -> str:
    if type(module) not in _KINDS:
        raise ValueError(f"operations: no name for {type(module).__name__}; add it to _KINDS")
    return _KINDS[type(module)]


def readers(ops: Ops, name: str) -> list[str]:
    """The operations that read this value."""
    return [other for other, (_, inputs) in ops.items() if name in inputs]


def quantized_values(ops: Ops, merge: Collection[str]) -> list[str]:
    """The values that get a Q/DQ pair: all that are read, but merged and flattened ones."""
    found = []
    for name, (kind, _) in ops.items():
        by = readers(ops, name)
        merges = len(by) == 1 and ops[by[0]][0] in merge
        if by and kind != "flatten" and not merges:
            found.append(name)
    return found


def observe_values(
    traced: fx.GraphModule, names: Collection[str], inputs: Tensor
) -> dict[str, PercentileCalibrator]:
    """One calibrator (percentile 99.9) for each of these values, fed with `inputs` [N, 3, H, W]."""
    calibrators = {name: PercentileCalibrator(percentile=99.9) for name in names}

    def feed(name: str, x: Tensor) -> Tensor:
        if name in calibrators:
            calibrators[name].update(x)
        return x

    with torch.inference_mode():
        _Watcher(traced, feed).run(inputs)
    return calibrators


def round_values(
    traced: fx.GraphModule, calibrators: Mapping[str, PercentileCalibrator], bits: int
) -> Callable[[Tensor], Tensor]:
    """The network, as a function of its input, with each calibrated value rounded to `bits` bits.

    Affine and unsigned; the weights stay in floating point.
    """
    grid = IntGrid(bits, signed=False)
    qparams = {name: c.qparams(grid, symmetric=False) for name, c in calibrators.items()}

    def rounded(name: str, x: Tensor) -> Tensor:
        return fake_quantize(x, qparams[name]) if name in qparams else x

    return _Watcher(traced, rounded).run


class _Watcher(fx.Interpreter):
    """Runs the graph node by node and sends each value through `visit(name, value)`."""

    def __init__(self, traced: fx.GraphModule, visit: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(traced)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Tensor:
        return self.visit(n.name, super().run_node(n))
