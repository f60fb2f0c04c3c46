"""Where quantizers go: in the traced graph of a model. Chapters 04 and 06.

`TracedNetwork` has one scale per tensor value, and batch norm is fused. `untraced.UntracedNetwork`
has the same interface for a model without a graph, so that the quantizer need not know which it
has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.graph import Plan, optional_arguments, plain_module, plan, required_inputs, trace
from ptq_course.graph.fusion import fuse
from ptq_course.graph.kernels import KERNELS
from ptq_course.graph.kinds import ALWAYS_FUSED, called
from ptq_course.graph.reading import learn_types, mark_types, source_of, types_of
from ptq_course.graph.sequences import leave_norms, norms_of_sequences
from ptq_course.grids.affine import AnyGrid
from ptq_course.grids.metrics import rounding_limit
from ptq_course.simulation.curves import ROUNDED, RoundedInside
from ptq_course.simulation.layers import ActivationQuantizer, Preceded
from ptq_course.simulation.observe import output_tensors
from ptq_course.simulation.qconfig import QConfig


class TracedNetwork:
    """A traced, fused copy of a model and the plan for quantizing it.

    norms: batch norms that no Linear may absorb; by default those for which ``example`` tells
    (`graph.sequences`).
    """

    def __init__(
        self,
        model: nn.Module,
        example: Sequence[Tensor] | None = None,
        norms: Collection[str] = (),
    ) -> None:
        traced = trace(model, example)
        self.norms = norms or (norms_of_sequences(traced, example) if example else ())
        leave_norms(traced, self.norms)
        self.module: fx.GraphModule = fuse(traced)
        self.optional_names = list(optional_arguments(plain_module(model)))

    def apply(self, step: Callable[[fx.GraphModule], fx.GraphModule], config: QConfig) -> None:
        """Replace the network by an improved one that computes the same (chapters 11 and 12)."""
        self.module = step(self.module)
        self.plan_for(config)

    def learn_types(self, inputs: Sequence[Tensor]) -> None:
        """Plan again, knowing from an example what gives no floating-point numbers."""
        if learn_types(self.module, inputs):
            self.plan_for(self.config)

    def fork(self) -> TracedNetwork:
        """Another with the same plan, a graph of its own, and the same weights."""
        other = copy.copy(self)
        other.module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph)).eval()
        return other

    @property
    def types(self) -> dict[str, bool]:
        """What an example has shown, by node: does it give floating-point numbers?"""
        return types_of(self.module)

    @types.setter
    def types(self, types: Mapping[str, bool]) -> None:
        mark_types(self.module, types)
        self.plan_for(self.config)

    def plan_for(self, config: QConfig) -> None:
        """Plan for a configuration, and what must be observed so that others may follow."""
        fused = [name for name in ALWAYS_FUSED if name in config.fused_activations]
        self.full_plan = Plan({}, {}, {})
        for target in KERNELS:
            self.full_plan.values |= plan(self.module, (), fused, target).values
        self.replan(config)

    def replan(self, config: QConfig) -> None:
        """Plan with other choices; QuantizationError where they need values never observed."""
        fused = config.fused_activations
        static = config.activation_bits is not None
        new = plan(self.module, config.float_layers, fused, config.target, static=static)
        missing = sorted(new.values.keys() - self.full_plan.values.keys())
        if missing:
            raise QuantizationError(
                f"fused_activations={tuple(fused)} needs the values {', '.join(missing)}, which "
                "were not observed; start with a new PTQQuantizer and this config."
            )
        self.plan, self.config = new, config

    @property
    def input_names(self) -> list[str]:
        """Names of the arguments that have no default."""
        return required_inputs(self.module)

    @property
    def input_values(self) -> set[str]:
        """The values that are the network's own inputs."""
        nodes = {node.name for node in self.module.graph.nodes if node.op == "placeholder"}
        return {name for name, value in self.full_plan.values.items() if value.node in nodes}

    @property
    def places(self) -> set[str]:
        """Where values can be rounded: the nodes of the graph."""
        return {node.name for node in self.module.graph.nodes}

    def with_observers(self, observers: Mapping[str, nn.Module]) -> nn.Module:
        """A copy (sharing the weights) that sends each value through its observer."""
        module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
        nodes = {node.name: node for node in module.graph.nodes}
        for name, observer in observers.items():
            _insert_after(module, nodes[self.full_plan.values[name].node], observer, "observer")
        module.recompile()
        return module.eval()

    def with_quantizers(
        self,
        layers: Mapping[str, nn.Module],
        quantizers: Mapping[str, nn.Module],
        grid: AnyGrid | None,
    ) -> nn.Module:
        """A copy with ``layers`` for the float ones and each value through its quantizer.

        grid: that of the activations, for what is rounded inside an operation.
        """
        module = fx.GraphModule(self.module, copy.deepcopy(self.module.graph))
        nodes = {node.name: node for node in module.graph.nodes}
        for name, family in self.plan.inner.items():
            if grid is not None:
                _call_instead(module, nodes[name], ROUNDED[family](grid))
        _own_owners(module, layers)
        replace_submodules(module, layers)
        for name, quantizer in quantizers.items():
            value = self.plan.values[name]
            target = _insert_after(module, nodes[value.node], quantizer, "quantizer")
            for inheriting in value.inherited_by:
                _call_after(module, nodes[inheriting], target)
        module.graph.lint()
        module.recompile()
        return module.eval()


def rounded_places(module: nn.Module) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What was planned, read from a converted network.

    Two dictionaries: the nodes that are rounded to each value's scale (the one that computes it,
    then those that inherit), or the path of the layer in front of which it is where the network has
    no graph; and the family of each node that rounds inside.
    """
    values: dict[str, list[str]] = {}
    inside: dict[str, str] = {}
    if not isinstance(module, fx.GraphModule):
        for path, part in module.named_modules():
            if isinstance(part, Preceded) and isinstance(part.before, ActivationQuantizer):
                values[part.before.name] = [path]
        return values, inside
    families = {kind: family for family, kind in ROUNDED.items()}
    for node in module.graph.nodes:
        part = called(module, node)
        if isinstance(part, ActivationQuantizer):
            values.setdefault(part.name, []).append(node.args[0].name)
        elif isinstance(part, RoundedInside):
            inside[node.name] = families[type(part)]
    return values, inside


def check_same_outputs(reference: nn.Module, module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise UnsupportedError where ``module`` does not compute what ``reference`` computes.

    Tensors anywhere in the outputs are compared, relative to their own scale. A reference that
    answers the same input differently each time (dropout in evaluation mode) cannot be compared.
    """

    def outputs(model: nn.Module) -> list[Tensor]:
        return output_tensors(model(*[x.clone() for x in inputs]))  # it may work in place

    with torch.no_grad():
        expected, again, got = outputs(reference), outputs(reference), outputs(module)
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
        if not error <= rounding_limit(wanted):  # also where only ``found`` is NaN
            raise UnsupportedError(
                f"tracing and fusing changed the model's output by {error:.3g} (its largest value "
                f"is {largest:.3g}). Known causes: a batch norm after a Linear layer whose input "
                "has three dimensions, work in place on views, state that forward() changes. Write "
                "that part otherwise, or quantize the model's parts one by one."
            )


def shallow_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer."""
    memo = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, memo)


def _own_owners(module: fx.GraphModule, paths: Collection[str]) -> None:
    """Copy, sharing weights, what is called and has a part at one of ``paths`` (a recurrent layer).

    A GraphModule copies the tree down to the modules that it calls, which stay the original's: a
    part replaced inside one would be replaced in the float network, too.
    """
    for target in {str(n.target) for n in module.graph.nodes if n.op == "call_module"}:
        if any(path.startswith(f"{target}.") for path in paths):
            parent, _, name = target.rpartition(".")
            setattr(module.get_submodule(parent), name, shallow_copy(module.get_submodule(target)))


def _insert_after(module: fx.GraphModule, node: fx.Node, layer: nn.Module, suffix: str) -> str:
    target = f"{node.name}_{suffix}"
    module.add_submodule(target, layer)
    _call_after(module, node, target)
    return target


def _call_instead(module: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    target = f"{node.name}_rounded"
    module.add_submodule(target, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", target, (source_of(node),), {}


def _call_after(module: fx.GraphModule, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with module.graph.inserting_after(node):
        inserted = module.graph.call_module(target, (node,))
    for user in users:
        user.replace_input_with(node, inserted)


def replace_submodules(module: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put each new module where the one at its path stands, also under that one's other names."""
    replaced = {module.get_submodule(path): layer for path, layer in new.items()}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in replaced:
                setattr(parent, name, replaced[child])
