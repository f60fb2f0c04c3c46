"""Compare a network with its quantized copy: layer by layer, and by its answers.

Chapter 06. Two numbers a layer, both signal-to-noise ratios of the layer's output in decibels:

isolated    only this layer is quantized (its weights and its inputs), everything before it is
            floating point: what this layer does wrong itself;
cumulative  everything up to and including this layer is quantized: what has piled up so far.

Both are medians over the examples (`snr_median`), the ratio of a weight is pooled over its values
(`snr_pooled`), and the columns say so. Low isolated numbers name suspects; what a suspect costs in
answers is measured by taking its quantization back (`sensitivity`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from ptq_course.diagnosis.walks import GraphWalk, HookWalk, LayerError
from ptq_course.errors import CalibrationError, QuantizationError, needs, whole
from ptq_course.graph import copied, prepared_copy, required_inputs
from ptq_course.grids.metrics import (
    Flips,
    correct,
    flips,
    paired_bootstrap,
    rounding_limit,
    snr_median,
)
from ptq_course.simulation.observe import labels_of, placed
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.tables import decibels, html_table, lowest_first, points, text_table

COLUMNS = (
    "layer", "type", "weight, pooled dB", "input, median dB", "isolated, median dB",
    "cumulative, median dB",
)  # fmt: skip
BY_HOOKS = (
    "read by module hooks, because the model could not be traced: only its layers are compared, "
    "nothing between them"
)


@dataclass(frozen=True)
class Comparison:
    """One row a layer in the order of execution; ``print`` it or leave it last in a cell.

    total: examples seen. changed: top-1 predictions that differ; None where the outputs are not
    [N, classes]. flips and drop (difference of accuracy, low, high: paired bootstrap, 95 %) exist
    where the loader gave labels.
    """

    layers: tuple[LayerError, ...]
    total: int
    output_db: float | None
    changed: int | None = None
    flips: Flips | None = None
    drop: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()

    def worst(self, count: int = 3) -> list[LayerError]:
        """The layers that are worst by themselves (isolated), worst first."""
        return lowest_first(self.layers, lambda layer: layer.isolated_db)[:count]

    def by_damage(self) -> Comparison:
        """The same with the worst layer first; layers without an isolated number come last."""
        unmeasured = [layer for layer in self.layers if layer.isolated_db is None]
        return replace(self, layers=(*self.worst(len(self.layers)), *unmeasured))

    def __str__(self) -> str:
        table = text_table(COLUMNS, [layer.cells() for layer in self.layers])
        return "\n".join([table, *self._lines()])

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, [layer.cells() for layer in self.layers], self._lines())

    def _lines(self) -> list[str]:
        lines = []
        if self.flips is not None and self.drop is not None:
            drop, low, high = map(points, self.drop)
            lines.append(
                f"top-1: {self.flips}; accuracy {drop} points, 95 % interval [{low}, {high}]"
            )
        elif self.changed is not None:
            same = 100 * (1 - self.changed / self.total)
            lines.append(
                f"top-1: {self.changed} of {self.total} predictions changed, {same:.1f} % agree "
                "(no labels, so right and wrong are unknown)"
            )
        if self.output_db is not None:
            lines.append(
                f"output: {decibels(self.output_db)} dB (median over {self.total} examples)"
            )
        return lines + [f"note: {note}" for note in self.notes]

    def plot(self, ax: Any = None) -> Any:
        """Isolated (bars) and cumulative (line) over the layers; returns the matplotlib Axes."""
        with needs("course"):  # here, because importing it costs more than this package
            import matplotlib.pyplot as plt

        rows = self.layers
        if ax is None:
            ax = plt.figure(figsize=(6, 0.28 * len(rows) + 1.4), layout="constrained").add_subplot()
        at = range(len(rows))
        nan = math.nan

        def finite(value: float | None) -> float:
            return nan if value is None or not math.isfinite(value) else value

        ax.barh(at, [finite(r.isolated_db) for r in rows], label="isolated")
        ax.plot([finite(r.cumulative_db) for r in rows], at, "k.--", label="cumulative")
        ax.set_yticks(at, [r.name for r in rows])
        ax.invert_yaxis()
        ax.set_xlabel("signal-to-noise ratio of the layer's output (dB, median), lower is worse")
        ax.legend(loc="lower right")
        return ax


def compare(
    fp32: nn.Module,
    quantized: nn.Module,
    loader: Iterable,
    *,
    num_batches: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Run both models over ``loader`` and measure the error of each layer and of the answers.

    fp32: the float model, never changed. quantized: what ``PTQQuantizer(fp32)...convert()`` gave.
    loader: batches as for calibration; an integer tensor after the inputs (or under "labels" in a
        dict) is taken as the labels. Without labels the agreement of the predictions is counted.
    A model that could not be traced is read by module hooks, and the notes say so.

    Raises QuantizationError where the first model is quantized already, the second is not, or they
    do not belong together; CalibrationError where the loader is empty.
    """
    check_float(fp32)
    fp32 = copied(fp32)
    if num_batches is not None:
        num_batches = whole("compare: num_batches", num_batches, 1, error=CalibrationError)
    if not isinstance(quantized, QuantizedModel):
        raise QuantizationError(
            f"compare: the second model is a {type(quantized).__name__}; pass what "
            "PTQQuantizer.convert() returned."
        )
    traced = isinstance(quantized.module, fx.GraphModule)
    walk = GraphWalk(quantized) if traced else HookWalk(prepared_copy(fp32), quantized)
    expected, got, labels = [], [], []
    with torch.no_grad():
        bar = tqdm(loader, desc="comparing", unit="batch", disable=not progress)
        names = required_inputs(quantized.module if traced else fp32)
        for batch in islice(bar, num_batches):
            inputs = placed(batch, names, fp32)
            label = labels_of(batch, len(inputs), len(inputs[0]))
            reference, simulated, output = fp32(*[x.clone() for x in inputs]), *walk(inputs)
            if not isinstance(reference, Tensor):
                raise QuantizationError(
                    f"compare: the model returns a {type(reference).__name__}; wrap it in a module "
                    "that returns the one tensor to compare."
                )
            _check_same_network(reference, simulated)
            expected.append(reference.cpu())
            got.append(output.cpu())
            labels.append(label)
    if not expected:
        raise CalibrationError("compare: the loader gave no batch; pass at least one.")
    notes = () if traced else (BY_HOOKS,)
    return _summarize(walk.rows(), torch.cat(expected), torch.cat(got), labels, notes)


def _summarize(
    rows: list[LayerError], expected: Tensor, got: Tensor, labels: list, notes: tuple[str, ...]
) -> Comparison:
    total, output_db = len(expected), snr_median(expected, got)
    if expected.dim() != 2 or expected.shape[1] < 2:
        notes = (*notes, f"outputs of shape {tuple(expected.shape)} have no top-1 to compare")
        return Comparison(tuple(rows), total, output_db, notes=notes)
    changed = int((expected.argmax(1) != got.argmax(1)).sum())
    if any(label is None for label in labels):
        return Comparison(tuple(rows), total, output_db, changed, notes=notes)
    truth = torch.cat(labels).cpu()
    drop = paired_bootstrap(correct(expected, truth), correct(got, truth))
    return Comparison(
        tuple(rows), total, output_db, changed, flips(expected, got, truth), drop, notes
    )


def _check_same_network(reference: Tensor, simulated: Tensor) -> None:
    error = math.inf
    if reference.shape == simulated.shape:
        # Equal infinities (a mask in the output) have no difference, NaN is no value to reach.
        same = (reference == simulated) | reference.isnan()
        error = (reference - simulated).masked_fill(same, 0).abs().max().item()
    if not error <= rounding_limit(reference):
        raise QuantizationError(
            f"compare: with the quantizers taken out, the quantized model differs from the float "
            f"one by {error:.3g}. It was made from another model, or this one changed since: "
            "quantize the float model that you pass."
        )
