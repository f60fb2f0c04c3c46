"""One walk through the float network and its quantized copy, side by side. Chapters 11 and 13.

Whatever improves a layer from data needs the layer's input as the *quantized* network gives it,
with all layers before it improved already, and the output that the float network has there. Both
are carried along layer by layer, so that one pass over the data serves every layer:

    quantized = improved(quantizer, batches, [AdaRound(), CorrectBias()])       in place of
    quantized = quantizer.convert()

Only values that a later node reads are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import QTensor
from ptq_course.improve.inputs import at_layer, some_of
from ptq_course.improve.matrices import second_moments
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.observe import placed
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer, checked_steps


@dataclass
class Site:
    """A quantized layer where the walk has arrived, with its inputs, one tensor a batch.

    layer: the `QuantizedLayer`, whose codes a step replaces; float_layer: what it was made from.
    x_float, x_quantized: its input in the float network and in the quantized one so far.
    """

    layer: QuantizedLayer
    float_layer: nn.Module
    x_float: list[Tensor]
    x_quantized: list[Tensor]

    @cached_property
    def moments(self) -> Tensor:
        """Gram matrices [G, K, K] of the quantized network's inputs, per position."""
        return sum_of_moments(self.float_layer, self.x_quantized, self.x_quantized)

    @cached_property
    def float_moments(self) -> Tensor:
        """Gram matrices [G, K, K] of the float network's inputs, per position."""
        return sum_of_moments(self.float_layer, self.x_float, self.x_float)

    @cached_property
    def mixed_moments(self) -> Tensor:
        """Inputs of the float network times those of the quantized one, [G, K, K]."""
        return sum_of_moments(self.float_layer, self.x_quantized, self.x_float)

    def use(self, weight: QTensor) -> None:
        """Give the layer other codes; QuantizationError where their shape is another."""
        if weight.shape != self.layer.weight_codes.shape:
            raise QuantizationError(
                f"{self.layer.name}: codes of shape {tuple(weight.shape)}, the layer has "
                f"{tuple(self.layer.weight_codes.shape)}."
            )
        self.layer.put_weight(weight)


class LayerStep(Protocol):
    """Improves the layer of a site in place, before the walk goes through it."""

    def __call__(self, site: Site) -> None: ...


def sum_of_moments(layer: nn.Module, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Moments of all batches, weighted alike; see `matrices.second_moments`."""
    total = None
    for a, b in zip(first, second, strict=True):
        part = second_moments(layer, a, b)
        total = part if total is None else total + part
    if total is None:
        raise CalibrationError("no batch has reached the layer: pass at least one.")
    return total


def improved(
    quantizer: PTQQuantizer,
    batches: Iterable,
    steps: Sequence[LayerStep],
    num_batches: int | None = None,
    *,
    progress: bool = True,
) -> QuantizedModel:
    """`convert()`, with every layer improved by ``steps`` in order on the data of ``batches``.

    quantizer: one that has its scales (``calibrate``), or quantizes weights only. batches: as for
    ``observe``; 100 to 1000 examples do. Labels are not used, and the quantizer stays as it is.
    Layers inside a recurrent layer have no place in the walk, and stay as rounded: a warning names
    them. Raises CalibrationError where no batch comes, UnsupportedError for a network without a
    graph.
    """
    if not isinstance(quantizer, PTQQuantizer):
        raise QuantizationError(
            f"improved: takes the PTQQuantizer that converts, got a {type(quantizer).__name__}."
        )
    if not isinstance(quantizer.float_model, fx.GraphModule):
        raise UnsupportedError(
            "improved: the network could not be traced, so nobody knows which layer comes next."
        )
    steps = checked_steps(steps, "[AdaRound(), CorrectBias()]")
    only_weights = quantizer.config.activation_bits is None
    model = quantizer.quantize_weights() if only_weights else quantizer.convert()
    names = quantizer.network.input_names
    some = some_of(batches, num_batches, "improved")
    data = [placed(batch, names, model) for batch in some]
    if not data:
        raise CalibrationError("improved: the loader gave no batch: pass at least one.")
    walk(quantizer.float_model, model, data, steps, progress)
    return model


def walk(
    plain: fx.GraphModule, quantized: QuantizedModel, data: list[list[Tensor]],
    steps: Sequence[LayerStep], progress: bool = False,
) -> None:  # fmt: skip
    """Take the steps at every layer of ``quantized``, in the order in which they compute."""
    rounded = quantized.module
    assert isinstance(rounded, fx.GraphModule)
    sides = _Side(plain, data), _Side(rounded, data)
    originals = {node.name: node for node in plain.graph.nodes}
    passed: set[str] = set()
    with torch.no_grad():
        for node in tqdm(list(rounded.graph.nodes), "layers", disable=not progress, leave=False):
            original = originals.get(node.name)
            layer = rounded.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, QuantizedLayer) and original is not None:
                exact = plain.get_submodule(str(original.target))
                site = Site(layer, exact, sides[0].inputs(original), sides[1].inputs(node))
                with at_layer(layer.name):
                    for step in steps:
                        step(site)
                passed.add(layer.name)
            if original is not None:
                sides[0].run(original)
            sides[1].run(node)
    if missed := [name for name in quantized.quantized_layers() if name not in passed]:
        warnings.warn(
            f"{', '.join(missed)}: part of a larger module, so that the inputs are not known; left "
            "as rounded.",
            stacklevel=3,
        )


class _Side:
    """One of the two networks: the values of its nodes for every batch, while they are read."""

    def __init__(self, module: fx.GraphModule, data: list[list[Tensor]]) -> None:
        self.runs = [fx.Interpreter(module) for _ in data]
        for run, inputs in zip(self.runs, data, strict=True):
            run.args_iter = iter([x.clone() for x in inputs])  # some work in place
            run.env = {}
        self.left = {node: len(node.users) for node in module.graph.nodes}

    def inputs(self, node: fx.Node) -> list[Any]:
        return [run.env[node.all_input_nodes[0]] for run in self.runs]

    def run(self, node: fx.Node) -> None:
        for run in self.runs:
            run.env[node] = run.run_node(node)
        for source in node.all_input_nodes:
            self.left[source] -= 1
            if not self.left[source]:
                for run in self.runs:
                    del run.env[source]
