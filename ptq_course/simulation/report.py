"""The report of a quantizer: one row a layer, as a table that prints and a picture.

Chapter 06. It shows what was decided and what rounding the weights costs; what quantization does to
the network's answers is measured on data (`metrics.flips`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ptq_course.errors import QuantizationError, needs
from ptq_course.graph import Plan
from ptq_course.graph.layer_types import weight_of
from ptq_course.grids.affine import AnyQParams, FloatQParams, fake_quantize
from ptq_course.grids.floats import FloatFormat
from ptq_course.grids.metrics import snr_pooled
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.simulation.layers import weight_qparams
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.statistics import Statistics
from ptq_course.tables import html_table, lowest_first, text_table

COLUMNS = (
    "layer", "type", "weight", "bits", "scales", "weight, pooled dB", "input range", "scale", "zero"
)  # fmt: skip


@dataclass(frozen=True)
class LayerReport:
    """What was decided for one layer; None where it stays in floating point or is not decided."""

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    weight_bits: int | None
    weight_scales: int | None  # how many scales the weight has
    weight_sqnr_db: float | None  # snr_pooled
    input_low: float | None  # the range that the input's codes cover, in real numbers
    input_high: float | None
    input_scale: float | None
    input_zero_point: int | None  # None also for floats, which have none
    weight_format: str | None = None  # of floats

    def cells(self) -> tuple[str, ...]:
        shape = "x".join(str(n) for n in self.weight_shape)
        if self.weight_bits is None:
            weights = ("float", "-", "-")
        else:
            width = self.weight_format or str(self.weight_bits)
            weights = (width, str(self.weight_scales), f"{self.weight_sqnr_db:.1f}")
        if self.input_scale is None:
            inputs = ("-", "-", "-")
        else:
            inputs = (
                f"[{self.input_low:.3g}, {self.input_high:.3g}]",
                f"{self.input_scale:.4g}",
                "-" if self.input_zero_point is None else str(self.input_zero_point),
            )
        return (self.name, self.kind, shape, *weights, *inputs)


def _version() -> str:
    return importlib.import_module("ptq_course").__version__  # of the front door, above


@dataclass(frozen=True)
class Report:
    """A table of layers. ``print(report)``, or leave it last in a cell; ``plot()`` draws it."""

    layers: tuple[LayerReport, ...]
    left_in_float: dict[str, str]
    returned: dict[str, str] = field(default_factory=dict)  # value -> its kernel and the price
    version: str = field(default_factory=_version)  # of ptq_course, which made it

    def __str__(self) -> str:
        table = text_table(COLUMNS, [layer.cells() for layer in self.layers])
        return "\n".join([table, *self._notes()])

    def _repr_html_(self) -> str:
        notes = [*self._notes(), f"ptq_course {self.version}"]
        return html_table(COLUMNS, [layer.cells() for layer in self.layers], notes)

    def _notes(self) -> list[str]:
        parts = {
            "in floating point": self.left_in_float,
            "rounded only because their kernel returns codes": self.returned,
        }
        return [
            f"{what} ({len(named)}): " + "; ".join(f"{name} ({why})" for name, why in named.items())
            for what, named in parts.items()
            if named
        ]

    def worst_weights(self, count: int = 3) -> list[LayerReport]:
        """The layers whose weights lose most to rounding, worst first."""
        return lowest_first(self.layers, lambda layer: layer.weight_sqnr_db)[:count]

    def plot(self, ax: Any = None) -> Any:
        """Signal-to-noise ratio of each layer's weights as bars; returns the matplotlib Axes."""
        with needs("course"):  # here, because importing it costs more than this package
            import matplotlib.pyplot as plt

        rated = [layer for layer in self.layers if layer.weight_sqnr_db is not None]
        if not rated:
            raise QuantizationError("report.plot: no layer has integer weights.")
        if ax is None:
            ax = plt.figure(
                figsize=(6, 0.28 * len(rated) + 1.2), layout="constrained"
            ).add_subplot()
        ax.barh([layer.name for layer in rated], [layer.weight_sqnr_db for layer in rated])
        ax.invert_yaxis()
        ax.set_xlabel("signal-to-noise ratio of the weights (dB, pooled)")
        return ax


def make_report(
    module: nn.Module,
    plan: Plan,
    config: QConfig,
    qparams: Mapping[str, AnyQParams],
    statistics: Statistics,
) -> Report:
    """Describe each layer of ``plan``; ``qparams`` may be empty (nothing decided yet).

    A value that no kernel reads is rounded where the kernel that computes it returns codes; what
    that costs is read from its histogram, where one was collected.
    """
    rows = []
    for name, site in plan.layers.items():
        layer = module.get_submodule(name)
        weight, grid = weight_of(layer).detach(), config.weight_grid_of(name)
        bits = scales = decibels = None
        if grid is not None and not site.kept_float:
            parameters = weight_qparams(
                layer, grid, config.weight_granularity, config.weight_symmetric,
                config.weight_range,
            )  # fmt: skip
            bits, scales = grid.bits, parameters.scale.numel()
            decibels = snr_pooled(weight, fake_quantize(weight, parameters))
        low = high = scale = zero_point = None
        if (given := qparams.get(site.input_value or "")) is not None:
            scale = given.scale.item()
            if isinstance(given, FloatQParams):
                low, high = -given.grid.largest * scale, given.grid.largest * scale
            else:
                zero_point = int(given.zero_point)
                low = (given.grid.qmin - zero_point) * scale
                high = (given.grid.qmax - zero_point) * scale
        rows.append(
            LayerReport(
                name, type(layer).__name__, tuple(weight.shape), bits, scales, decibels, low, high,
                scale, zero_point, grid.name if isinstance(grid, FloatFormat) and bits else None,
            )
        )  # fmt: skip
    returned = {}
    for name, value in plan.values.items():
        if value.only_returned and name in qparams:
            hist = statistics.summaries.get(name, {}).get(DyadicHistogram)
            price = ""
            if isinstance(hist, DyadicHistogram):
                price = f", {_histogram_snr(hist, qparams[name]):.1f} dB pooled"
            returned[name] = f"{', '.join(value.asked_by)}{price}"
    return Report(tuple(rows), dict(plan.left_in_float), returned)


def _histogram_snr(hist: DyadicHistogram, qparams: AnyQParams) -> float:
    """Signal over rounding error of a histogram's values, each at the middle of its bin."""
    edges = torch.from_numpy(hist.edges())
    middle = ((edges[1:] + edges[:-1]) / 2).float()
    weight = torch.from_numpy(hist.counts).sqrt()
    return snr_pooled(middle * weight, fake_quantize(middle, qparams) * weight)
