"""Run a graph with some of its values rounded: what each Q/DQ pair costs, fused and unfused.

The quantizer rounds what its plan says. Chapter 04 also rounds what an unfused network would have
to round, and with scales that were made for other values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, fx

from ptq_course.grids.affine import IntGrid, fake_quantize
from ptq_course.ranges.calibrators import PercentileCalibrator


def observe_values(
    traced: fx.GraphModule, names: Iterable[str], inputs: Tensor
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
