"""Where quantizers go: in the traced graph of a model, or around its layers if it has none.

Two classes with one interface, so that the quantizer need not know which it has: `TracedNetwork`
(one scale per tensor value, batch norm fused) and `UntracedNetwork` (each layer on its own, nothing
fused). Chapters 04 and 06.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.fusion import fuse
from ptq_course.graph import (
    WEIGHTED_MODULES,
    LayerSite,
    Plan,
    Value,
    check_float_layers,
    optional_arguments,
    plan,
    prepared_copy,
    trace,
)
from ptq_course.observe import output_tensors
from ptq_course.qconfig import ALWAYS_FUSED


class TracedNetwork:
    """A traced, fused copy of a model and the plan for quantizing it."""

    def __init__(
        self,
        model: nn.Module,
        float_layers: Collection[str] = (),
        fused_activations: Collection[str] = ALWAYS_FUSED,
    ) -> None:
        self.module: fx.GraphModule = fuse(trace(model))
        self.optional_names = list(optional_arguments(model))
        self._plan_again(float_layers, fused_activations)

    def apply(self, step: Callable[[fx.GraphModule], fx.GraphModule]) -> None:
        """Replace the network by an improved one that computes the same (chapters 11 and 12)."""
        self.module = step(self.module)
        self._plan_again(self.float_layers, self.fused_activations)

    def _plan_again(
        self, float_layers: Collection[str], fused_activations: Collection[str]
    ) -> None:
        # Both may change after observation, so more values are observed than this plan needs.
        observed = [name for name in ALWAYS_FUSED if name in fused_activations]
        self.full_plan: Plan = plan(self.module, fused_activations=observed)
        self.replan(float_layers, fused_activations)

    def replan(
        self, float_layers: Collection[str], fused_activations: Collection[str] | None = None
    ) -> None:
        """Plan with other choices; QuantizationError where they need values never observed."""
        fused = self.fused_activations if fused_activations is None else fused_activations
        new = plan(self.module, float_layers, fused)
        missing = sorted(new.values.keys() - self.full_plan.values.keys())
        if missing:
            raise QuantizationError(
                f"fused_activations={tuple(fused)} needs the values {', '.join(missing)}, which "
                "were not observed; start with a new PTQQuantizer and this config."
            )
        self.float_layers, self.fused_activations, self.plan = float_layers, fused, new

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
    batch norm, activations) stays in floating point, and the plan says so. Attention modules are
    rewritten to their linear layers here too.
    """

    def __init__(
        self,
        model: nn.Module,
        float_layers: Collection[str] = (),
        fused_activations: Collection[str] = ALWAYS_FUSED,
    ) -> None:
        self.module = prepared_copy(model)
        self.optional_names = list(optional_arguments(self.module))
        self.replan(())
        self.full_plan = self.plan
        self.replan(float_layers)

    def replan(
        self, float_layers: Collection[str], fused_activations: Collection[str] | None = None
    ) -> None:
        """Plan with other choices; nothing is fused in a model without a graph."""
        self.plan = Plan({}, {}, {"(between layers)": "the model could not be traced"})
        names = {n for n, m in self.module.named_modules() if _quantizable(m)}
        check_float_layers(float_layers, names)
        for path, module in self.module.named_modules():
            if path in names and path not in float_layers:
                value = None if isinstance(module, nn.Embedding) else f"{path}.input"
                if value is not None:
                    self.plan.values[value] = Value(value, path)
                self.plan.layers[path] = LayerSite(path, path, value)
            elif not list(module.children()) or list(module.parameters(recurse=False)):
                why = f"{type(module).__name__}: the model could not be traced"
                self.plan.left_in_float[path or "(the model itself)"] = (
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


def check_same_outputs(reference: nn.Module, module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise UnsupportedError where ``module`` does not compute what ``reference`` computes.

    Tensors anywhere in the outputs are compared, relative to their own scale. A reference that
    answers the same input differently each time (dropout in evaluation mode) cannot be compared.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it writes zeros where padding is masked
    try:
        with torch.no_grad():
            expected, again = output_tensors(reference(*inputs)), output_tensors(reference(*inputs))
            got = output_tensors(module(*inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not all(torch.equal(a, b) for a, b in zip(expected, again, strict=True)):
        return
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise UnsupportedError("the traced network gives outputs of other shapes than the model.")
    for wanted, found in zip(expected, got, strict=True):
        # Equal infinities have no difference, and torch's NaN for a row of scores that are all
        # masked is no value to reach.
        same = (wanted == found) | wanted.isnan()
        error = (wanted.double() - found.double()).masked_fill(same, 0).abs().max().item()
        largest = wanted.double().masked_fill(~wanted.isfinite(), 0).abs().max().item()
        if not error <= 1e-3 * max(1.0, largest):  # also where only ``found`` is NaN
            raise UnsupportedError(
                f"fusing changed the model's output by {error:.3g}: a rule of fusion.py does not "
                "fit this model. Please report it; pass config float_layers to go on."
            )


def _quantizable(module: nn.Module) -> bool:
    rescaled = isinstance(module, nn.Embedding) and module.max_norm is not None
    return type(module) in WEIGHTED_MODULES and not rescaled


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
    """Put ``new`` where the module at ``path`` stands, also under its other names."""
    old = module.get_submodule(path)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
