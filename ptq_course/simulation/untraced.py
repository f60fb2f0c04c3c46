"""A model that torch.fx cannot read: its layers are quantized one by one. Chapter 06."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ptq_course.graph import (
    LayerSite,
    Plan,
    Value,
    check_float_layers,
    optional_arguments,
    prepared_copy,
    required_inputs,
)
from ptq_course.graph.layer_types import known_type, layer_type, rescales
from ptq_course.graph.recurrent import STAYS_FLOAT, Recurrent
from ptq_course.grids.affine import AnyGrid
from ptq_course.simulation.layers import Preceded
from ptq_course.simulation.network import replace_submodules, shallow_copy
from ptq_course.simulation.qconfig import QConfig


class UntracedNetwork:
    """A copy of a model that torch.fx cannot read: its layers are quantized one by one.

    Each layer's input is a value named ``<layer>.input``. Everything between the layers (adds,
    batch norm, activations) stays in floating point, and the plan says so. Attention modules are
    rewritten to their linear layers here too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = prepared_copy(model)
        self.types: dict[str, bool] = {}  # nothing is known of what happens between the layers
        self.optional_names = list(optional_arguments(self.module))

    def plan_for(self, config: QConfig) -> None:
        """Plan for a configuration, and what must be observed so that others may follow."""
        self.replan(replace(config, float_layers=()))
        self.full_plan = self.plan
        self.replan(config)

    def replan(self, config: QConfig) -> None:
        """Plan with other choices; nothing is fused in a model without a graph."""
        self.plan = Plan({}, {}, {"(between layers)": "the model could not be traced"})
        layers = {n: m for n, m in self.module.named_modules() if layer_type(m)}
        names = {n for n, layer in layers.items() if not rescales(layer)}
        float_layers = config.float_layers
        check_float_layers(float_layers, names)
        for path, module in self.module.named_modules():
            owner = path.rpartition(".")[0]
            part = isinstance(self.module.get_submodule(owner), Recurrent)
            if part and config.activation_bits is not None:
                kind = type(self.module.get_submodule(owner)).__name__
                self.plan.left_in_float[owner] = STAYS_FLOAT.format(kind)
            elif path in names:
                kept = path in float_layers
                reads_codes = known_type(module).token_dimensions and not part and not kept
                value = f"{path}.input" if reads_codes else None
                if value is not None:
                    self.plan.values[value] = Value(value, path)
                self.plan.layers[path] = LayerSite(path, path, value, kept)
                if kept:
                    self.plan.left_in_float[path] = "kept in floating point by float_layers"
            elif not list(module.children()) or list(module.parameters(recurse=False)):
                why = f"{type(module).__name__}: the model could not be traced"
                self.plan.left_in_float[path or "(the model itself)"] = why

    def fork(self) -> UntracedNetwork:
        """Another with the same plan and the same module, to which nothing is written."""
        return copy.copy(self)

    @property
    def input_names(self) -> list[str]:
        """Names of the arguments that have no default."""
        return required_inputs(self.module)

    @property
    def places(self) -> set[str]:
        """Where values can be rounded: in front of the modules."""
        return {path for path, _ in self.module.named_modules()}

    @property
    def input_values(self) -> set[str]:
        """None: the values here are the inputs of layers, which must be floating point."""
        return set()

    def with_observers(self, observers: Mapping[str, nn.Module]) -> nn.Module:
        module = shallow_copy(self.module)
        paths = {self.full_plan.values[name].node: seen for name, seen in observers.items()}
        new = {p: Preceded(seen, module.get_submodule(p)) for p, seen in paths.items()}
        replace_submodules(module, new)
        return module

    def with_quantizers(
        self,
        layers: Mapping[str, nn.Module],
        quantizers: Mapping[str, nn.Module],
        grid: AnyGrid | None = None,
    ) -> nn.Module:
        module, new = shallow_copy(self.module), dict(layers)
        for name, quantizer in quantizers.items():
            path = self.plan.values[name].node
            new[path] = Preceded(quantizer, new.get(path, module.get_submodule(path)))
        replace_submodules(module, new)
        return module
