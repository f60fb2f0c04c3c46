"""Where quantizers go: in the traced graph of a model, or around its layers if it has none.

Two classes with one interface, so that the quantizer need not know which it has: `TracedNetwork`
(one scale per tensor value, batch norm fused) and `UntracedNetwork` (each layer on its own, nothing
fused). Chapters 04 and 06.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, fx, nn

from ptq_course.fusion import fuse
from ptq_course.graph import (
    WEIGHTED_MODULES,
    LayerSite,
    Plan,
    Value,
    check_float_layers,
    plan,
    trace,
)


class TracedNetwork:
    """A traced, fused copy of a model and the plan for quantizing it."""

    def __init__(self, model: nn.Module, float_layers: Collection[str] = ()) -> None:
        self.module: fx.GraphModule = fuse(trace(model))
        self.replan(float_layers)
        self.full_plan: Plan = plan(self.module)  # float_layers may change after observation

    def apply(self, step: Callable[[fx.GraphModule], fx.GraphModule]) -> None:
        """Replace the network by an improved one that computes the same (chapters 11 and 12)."""
        self.module = step(self.module)
        self.full_plan = plan(self.module)
        self.replan(self.float_layers)

    def replan(self, float_layers: Collection[str]) -> None:
        self.float_layers = float_layers
        self.plan = plan(self.module, float_layers)

    @property
    def input_names(self) -> list[str]:
        """Names of the arguments that have no default."""
        nodes = self.module.graph.nodes
        return [str(n.target) for n in nodes if n.op == "placeholder" and not n.args]

    def with_observers(self, observers: Mapping[str, nn.Module]) -> nn.Module:
        """A copy (sharing the weights) that sends each value through its observer."""
        module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
        nodes = {node.name: node for node in module.graph.nodes}
        for name, observer in observers.items():
            _insert_after(module, nodes[self.full_plan.values[name].node], observer, "observer")
        module.recompile()
        return module.eval()

    def with_quantizers(
        self, layers: Mapping[str, nn.Module], quantizers: Mapping[str, nn.Module]
    ) -> nn.Module:
        """A copy with ``layers`` for the float ones and each value through its quantizer."""
        module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
        nodes = {node.name: node for node in module.graph.nodes}
        for path, layer in layers.items():
            _replace_submodule(module, path, layer)
        for name, quantizer in quantizers.items():
            value = self.plan.values[name]
            target = _insert_after(module, nodes[value.node], quantizer, "quantizer")
            for inheriting in value.inherited_by:
                _call_after(module, nodes[inheriting], target)
        module.graph.lint()
        module.recompile()
        return module.eval()


class UntracedNetwork:
    """A copy of a model that torch.fx cannot read: its layers are quantized one by one.

    Each layer's input is a value named ``<layer>.input``. Everything between the layers (adds,
    batch norm, activations) stays in floating point, and the plan says so.
    """

    def __init__(self, model: nn.Module, float_layers: Collection[str] = ()) -> None:
        self.module = copy.deepcopy(model).eval()
        self.replan(())
        self.full_plan = self.plan
        self.replan(float_layers)

    def replan(self, float_layers: Collection[str]) -> None:
        self.plan = Plan({}, {}, {"(between layers)": "the model could not be traced"})
        names = {n for n, m in self.module.named_modules() if type(m) in WEIGHTED_MODULES}
        check_float_layers(float_layers, names)
        for path, module in self.module.named_modules():
            if path in names and path not in float_layers:
                value = f"{path}.input"
                self.plan.values[value] = Value(value, path)
                self.plan.layers[path] = LayerSite(path, path, value)
            elif not list(module.children()):
                why = f"{type(module).__name__}: the model could not be traced"
                self.plan.left_in_float[path] = (
                    "kept in floating point by float_layers" if path in float_layers else why
                )

    @property
    def input_names(self) -> list[str]:
        parameters = inspect.signature(self.module.forward).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in parameters if p.kind in positional and p.default is p.empty]

    def with_observers(self, observers: Mapping[str, nn.Module]) -> nn.Module:
        module = _shallow_copy(self.module)
        for name, observer in observers.items():
            path = self.full_plan.values[name].node
            _replace_submodule(module, path, Preceded(observer, module.get_submodule(path)))
        return module

    def with_quantizers(
        self, layers: Mapping[str, nn.Module], quantizers: Mapping[str, nn.Module]
    ) -> nn.Module:
        module = _shallow_copy(self.module)
        for path, site in self.plan.layers.items():
            layer = layers.get(path, module.get_submodule(path))
            if site.input_value in quantizers:
                layer = Preceded(quantizers[site.input_value], layer)
            _replace_submodule(module, path, layer)
        return module


class Preceded(nn.Module):
    """A layer whose input goes through ``before`` first; weight and bias are the layer's."""

    def __init__(self, before: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.before = before
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.before(x))


def _shallow_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer."""
    memo = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


def _insert_after(module: fx.GraphModule, node: fx.Node, layer: nn.Module, suffix: str) -> str:
    target = f"{node.name}_{suffix}"
    module.add_submodule(target, layer)
    _call_after(module, node, target)
    return target


def _call_after(module: fx.GraphModule, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with module.graph.inserting_after(node):
        inserted = module.graph.call_module(target, (node,))
    for user in users:
        user.replace_input_with(node, inserted)


def _replace_submodule(module: nn.Module, path: str, new: nn.Module) -> None:
    parent_path, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent_path), name, new)
