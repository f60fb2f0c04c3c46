"""AWQ: round finely what meets large inputs. Chapter 13.

A weight that multiplies a large input has a large part in the output's error. Multiplying the
weights of input channel c by s_c before rounding, and dividing its input by s_c, computes the same,
and makes the step of these weights s_c times as fine, as long as the row's largest weight, and so
its scale, stays. s = a^alpha, a the mean |x| of each channel; alpha is searched by the error of the
output, and 0 is rounding to nearest.

The division costs nothing where a LayerNorm, or a layer followed by ReLU alone, makes the input:
it is folded into that. Elsewhere it is a product of its own (``explicit=True``), or left out.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han, "AWQ: Activation-aware Weight Quantization
for LLM Compression and Acceleration", 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, UnsupportedError, flag, whole
from ptq_course.graph import required_inputs
from ptq_course.graph.layer_types import layer_type
from ptq_course.graph.reading import unused_name
from ptq_course.improve.awq_search import (
    Found,
    InputStatistics,
    check_supported,
    search_factors,
    to_nearest,
)
from ptq_course.improve.equalization import rescale
from ptq_course.improve.inputs import at_layer, some_of
from ptq_course.improve.matrices import grouped, put_grouped, weight_of
from ptq_course.improve.pairs import find_pairs, prepared
from ptq_course.improve.sharing import SHARED, read_alone
from ptq_course.improve.smoothquant import find_norms, smooth
from ptq_course.simulation.observe import placed


class AWQ:
    """A step: ``PTQQuantizer(model, config=..., steps=[AWQ(batches)])``; FP32 stays the same.

    batches: some calibration data (labels are not used), of which ``num_batches`` are taken.
    steps: how many exponents are tried. explicit: where nothing can take the division, multiply the
    input by 1/s in an operation of its own; else the layer stays as it is. Afterwards ``found``
    holds a `Found` for each layer that was scaled, ``left_out`` says why for each that was not.
    Raises CalibrationError without data, UnsupportedError, naming the layers, where none is scaled.
    """

    def __init__(
        self, batches: Iterable, num_batches: int = 16, steps: int = 20, explicit: bool = False
    ) -> None:
        self.batches, self.num_batches = batches, whole("num_batches", num_batches, 1)
        self.steps, self.explicit = whole("steps", steps, 1), flag("explicit", explicit)
        self.found: dict[str, Found] = {}
        self.left_out: dict[str, str] = {}

    def __call__(self, module: fx.GraphModule, quantizer: Any) -> fx.GraphModule:
        module, config = prepared(module), quantizer.config
        rounded = to_nearest(config)
        groups, refused = self._groups(module, config.float_layers)
        data = some_of(self.batches, self.num_batches, "AWQ")
        known = statistics_of(module, [n for g in groups for n in g.readers], data)
        found = {}
        for group in groups:
            layers = [module.get_submodule(name) for name in group.readers]
            with at_layer(group.readers[0]):
                one = search_factors(layers, [known[n] for n in group.readers], rounded, self.steps)
            group.apply(module, one.factors.to(weight_of(layers[0])))
            found |= dict.fromkeys(group.readers, one)
        module.recompile()
        if not found:
            reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
            raise UnsupportedError(f"AWQ: no layer can be scaled. {reasons}")
        self.found, self.left_out = found, refused
        return module

    def _groups(
        self, module: fx.GraphModule, kept: Sequence[str]
    ) -> tuple[list[_Group], dict[str, str]]:
        """Layers that share an input, with what takes the division; and why others are left."""
        owners, norms = read_alone(module), find_norms(module)
        pairs = {p.second: p for p in find_pairs(module)}
        groups: list[_Group] = [_Norm(readers, norm) for norm, readers in norms.items()]
        done = {name for readers in norms.values() for name in readers}
        refused: dict[str, str] = {}
        for node in module.graph.nodes:
            name = str(node.target)
            if node.op != "call_module" or name in done or name in kept:
                continue
            layer = module.get_submodule(name)
            if layer_type(layer) is None:
                inside = [f"{name}.{path}" for path, m in layer.named_modules() if layer_type(m)]
                refused |= dict.fromkeys(inside, f"part of a {type(layer).__name__}")
                continue
            try:
                check_supported(layer)
            except UnsupportedError as error:
                refused[name] = str(error)
                continue
            if name not in owners:
                refused[name] = SHARED
                continue
            pair = pairs.get(name)
            if pair is not None and not pair.limit and _meet_one_by_one(module, pair.first, layer):
                groups.append(_Pair([name], pair.first))
            elif self.explicit:
                groups.append(_Product([name], node))
            else:
                refused[name] = "nothing before it can take the factors; explicit=True multiplies"
        return groups, refused


@dataclass
class _Group:
    readers: list[str]

    def apply(self, module: fx.GraphModule, factors: Tensor) -> None:
        raise NotImplementedError


@dataclass
class _Norm(_Group):
    """A LayerNorm takes the division."""

    norm: str

    def apply(self, module: fx.GraphModule, factors: Tensor) -> None:
        layers = [module.get_submodule(name) for name in self.readers]
        smooth(
            module.get_submodule(self.norm),
            [x for x in layers if isinstance(x, nn.Linear)],
            factors,
        )


@dataclass
class _Pair(_Group):
    """The layer before takes the division."""

    first: str

    def apply(self, module: fx.GraphModule, factors: Tensor) -> None:
        rescale(module.get_submodule(self.first), module.get_submodule(self.readers[0]), factors)


@dataclass
class _Product(_Group):
    """The input is multiplied by 1 / factors before the layer reads it."""

    node: fx.Node

    def apply(self, module: fx.GraphModule, factors: Tensor) -> None:
        layer = module.get_submodule(self.readers[0])
        put_grouped(layer, grouped(layer) * factors.view(1, 1, -1, 1))
        name = unused_name(module, f"awq_scale_of_{self.node.name}")
        shape = [-1, *[1] * (weight_of(layer).dim() - 2)]
        module.register_buffer(name, (1 / factors).view(shape))
        source = self.node.all_input_nodes[0]
        with module.graph.inserting_before(self.node):
            scale = module.graph.get_attr(name)
            product = module.graph.call_function(torch.mul, (source, scale))
        self.node.replace_input_with(source, product)


def _meet_one_by_one(module: fx.GraphModule, first: str, second: nn.Module) -> bool:
    writer, reader = grouped(module.get_submodule(first)), grouped(second)
    return writer.shape[0] * writer.shape[1] == reader.shape[2]


def statistics_of(
    module: fx.GraphModule, names: Sequence[str], batches: Iterable
) -> dict[str, InputStatistics]:
    """`InputStatistics` of the layers ``names``, summed over the batches; CalibrationError if none.

    Only sums are kept: magnitudes are means of batches, added up, whose ratios are what counts.
    """
    found: dict[str, InputStatistics] = {}

    def keep(name: str, layer: nn.Module, x: Tensor) -> None:
        part = InputStatistics.of(layer, x)
        found[name] = found[name] + part if name in found else part

    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda layer, inputs, name=name: keep(str(name), layer, inputs[0])
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                module(*placed(batch, required_inputs(module), module))
    finally:
        for hook in hooks:
            hook.remove()
    if names and not found:
        raise CalibrationError("AWQ: the loader gave no batch: pass at least one.")
    return found
