"""Reading a traced graph: which nodes are floating-point tensors, and what each does to integers.

Chapters 04 and 06. The tables of `kinds` know operations one by one; here their neighbours count:
indices are integers already, a formula such as x / sqrt(mean(x^2)) stays whole, a mask of -infinity
must not set a scale, and a fused activation merges into its layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from ptq_course.graph.kinds import (
    ACTIVATIONS,
    ALWAYS_FUSED,
    ARITHMETIC,
    CHOOSING,
    CONTRACTIONS,
    CONVERSIONS,
    CREATING,
    DIVISIONS,
    FLOAT_MAKING,
    FORMULAS,
    INTEGER_MAKING,
    KINDS,
    MASKING,
    NOT_TENSORS,
    SCALINGS,
    Kind,
    operation_of,
    refusal,
)
from ptq_course.graph.layer_types import layer_type
from ptq_course.graph.masks import ScoreMask

_BATCH_OF_MATRICES = (
    "its constant operand holds several matrices; multiply by one at a time, or use a layer"
)
FLOATING = "floating"  # in a node's meta: whether its tensor holds floating-point numbers
MASK_BELOW = -1e4  # numbers that stand for minus infinity in front of a softmax


@dataclass
class Reading:
    """What a traced graph's nodes are.

    kinds: what each node does to integers. floats: the nodes that compute floating-point tensors.
    why: for those that stay in floating point, the reason. conversions: x.float() and its like
    where x is an input of the network, which may hold integers.
    """

    kinds: dict[fx.Node, Kind] = field(default_factory=dict)
    floats: set[fx.Node] = field(default_factory=set)
    why: dict[fx.Node, str] = field(default_factory=dict)
    conversions: set[fx.Node] = field(default_factory=set)


def source_of(node: fx.Node) -> fx.Node | None:
    """The value that a node works on: its first input."""
    return node.all_input_nodes[0] if node.all_input_nodes else None


def the_source(node: fx.Node) -> fx.Node:
    """The first input of a node that is known to have one."""
    return node.all_input_nodes[0]


def read(module: fx.GraphModule, fused_activations: Collection[str] = ALWAYS_FUSED) -> Reading:
    """Read the nodes of ``module`` in order; see `Reading`.

    Which give integers, booleans or complex numbers an example has told (`learn_types`); before,
    the operations tell, as far as they can.
    """
    reader = _Reader(module, fused_activations)
    for node in module.graph.nodes:
        reader.visit(node)
    return reader.result


class _Reader:
    def __init__(self, module: fx.GraphModule, fused_activations: Collection[str]) -> None:
        self.module = module
        self.fused = {op for name in fused_activations for op in ACTIVATIONS[name]}
        self.result = Reading()
        self.tensors: set[fx.Node] = set()
        self.integers = _ancestors_of_indices(module)
        self.constants: set[fx.Node] = set()  # tensors that no input of the network reaches
        self.formulas: set[fx.Node] = set()
        self.masked: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> None:
        operation = operation_of(self.module, node)
        if not self._is_tensor(node, operation):
            self.result.kinds[node] = Kind.FLOAT
            return
        self.tensors.add(node)
        self._classify(node, operation)
        if FLOATING in node.meta:
            (self.integers.discard if node.meta[FLOATING] else self.integers.add)(node)
        if node in self.integers:
            self.result.kinds[node] = Kind.FLOAT
            known = operation is None or operation in KINDS or operation in INTEGER_MAKING
            if not known and any(n in self.result.floats for n in node.all_input_nodes):
                self.result.why[node] = refusal(self.module, node) or ""
            return
        self.result.floats.add(node)
        kind, why = self._kind(node, operation)
        self.result.kinds[node] = kind
        if operation in CONVERSIONS and self._is_input(the_source(node)):
            self.result.conversions.add(node)
        if kind is Kind.FLOAT and node.op.startswith("call"):
            self.result.why[node] = why

    def _is_tensor(self, node: fx.Node, operation: object) -> bool:
        if node.op in ("placeholder", "get_attr", "call_module"):
            return True
        if node.op == "output" or operation is getattr or operation in NOT_TENSORS:
            return False
        return operation in CREATING or any(n in self.tensors for n in node.all_input_nodes)

    def _classify(self, node: fx.Node, operation: object) -> None:
        """Integer, constant, part of a formula, masked: what travels along the edges."""
        sources = [n for n in node.all_input_nodes if n in self.tensors]
        if node.op == "get_attr":
            self._classify_constant(node)
            return
        whole = not any(map(_is_float, node.args))
        arranges = operation not in FLOAT_MAKING and node.op != "call_module"
        from_integers = sources and arranges and all(n in self.integers for n in sources)
        if whole and (operation in INTEGER_MAKING or from_integers):
            self.integers.add(node)
        calls_no_layer = node.op.startswith("call") and KINDS.get(operation) is not Kind.WEIGHTED
        if calls_no_layer and all(n in self.constants for n in sources):
            self.constants.add(node)
        travels = KINDS.get(operation) is Kind.INHERIT
        arithmetic = operation in ARITHMETIC or travels
        data = [n for n in sources if n not in self.constants]
        starts = operation in FORMULAS - DIVISIONS or self._divides_by_tensor(node, operation)
        goes_on = arithmetic and any(n in self.formulas for n in sources)
        if (starts and data) or goes_on:
            self.formulas.add(node)
        masks = isinstance(_submodule(self.module, node), ScoreMask) or (
            (operation in MASKING | ARITHMETIC | CREATING)
            and any(map(_is_mask_number, [*node.args, *node.kwargs.values()]))
        )
        if masks and operation in ARITHMETIC:
            self._leave_mask_in_float(sources[0])
        spreads = arithmetic or operation in MASKING
        if masks or (spreads and any(n in self.masked for n in sources)):
            self.masked.add(node)

    def _leave_mask_in_float(self, node: fx.Node) -> None:
        """(1 - mask) * -10000: neither the mask nor 1 - mask is a value of the network."""
        while self.result.kinds[node] in (Kind.CURVE, Kind.INHERIT) and len(node.users) == 1:
            if self.result.kinds[node] is Kind.CURVE:
                self.result.kinds[node] = Kind.FLOAT
                self.result.why[node] = "prepares a mask of very large numbers"
            node = the_source(node)

    def _classify_constant(self, node: fx.Node) -> None:
        self.constants.add(node)
        tensor = attribute(self.module, str(node.target))
        if not isinstance(tensor, torch.Tensor):
            return
        if not tensor.is_floating_point():
            self.integers.add(node)
        elif tensor.numel() and not tensor.min() > MASK_BELOW:
            self.masked.add(node)

    def _divides_by_tensor(self, node: fx.Node, operation: object) -> bool:
        if operation not in DIVISIONS:
            return False
        divisor = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
        return divisor in self.tensors

    def _kind(self, node: fx.Node, operation: object) -> tuple[Kind, str]:
        if operation is None:
            return Kind.FLOAT, ""
        why = refusal(self.module, node)
        if why is not None:
            return Kind.FLOAT, why
        kind = KINDS[operation]
        sources = [n for n in node.all_input_nodes if n in self.result.floats]
        if kind in (Kind.BINARY, Kind.CURVE, Kind.SOFTMAX, Kind.CLAMP):
            if not sources:
                return Kind.FLOAT, "computed from numbers that are not floating point"
            if all(n in self.constants for n in sources):
                return Kind.FLOAT, "computed from constants only, not from the input"
            if operation in CONTRACTIONS and any(n in self.constants for n in sources):
                return Kind.FLOAT, _BATCH_OF_MATRICES
            if node in self.formulas:
                return Kind.FLOAT, "part of a formula that is computed in floating point"
            if node in self.masked:
                return Kind.FLOAT, "masks scores with very large numbers, which have no scale"
        if kind is Kind.SOFTMAX and self._reads_mask(sources[0]):
            return Kind.FLOAT, "reads masked scores, which have no scale"
        if kind is Kind.BINARY and len(sources) < 2:
            repeated = sum(a in self.result.floats for a in node.args if _is_node(a)) == 2  # x + x
            kind = Kind.BINARY if repeated else Kind.CURVE  # x * 0.5: one value in, one out
        scales = kind is Kind.CURVE and operation in SCALINGS
        if scales and not any(map(_is_negative, node.args)) and self._follows_product(sources[0]):
            return Kind.CLAMP, ""  # a constant factor changes the scale, not the codes
        if kind is Kind.CLAMP and operation not in self.fused:
            kind = Kind.CURVE
        if kind is Kind.CURVE and operation in self.fused and self._follows_layer(sources[0]):
            kind = Kind.CLAMP
        if kind is Kind.INHERIT and node in self.formulas and operation in ARITHMETIC:
            return Kind.FLOAT, "part of a formula that is computed in floating point"
        return kind, ""

    def _follows_layer(self, source: fx.Node) -> bool:
        return self.result.kinds[source] is Kind.WEIGHTED and len(source.users) == 1

    def _follows_product(self, source: fx.Node) -> bool:
        product = self.result.kinds[source] in (Kind.WEIGHTED, Kind.BINARY)
        return product and len(source.users) == 1

    def _reads_mask(self, scores: fx.Node) -> bool:
        """Masked scores; also scores plus an input of the network, which is a mask then."""
        if scores in self.masked:
            return True
        if operation_of(self.module, scores) not in ARITHMETIC or len(scores.users) > 1:
            return False
        if not any(self._is_input(n) for n in scores.all_input_nodes):
            return False
        self.result.kinds[scores] = Kind.FLOAT
        self.result.why[scores] = "masks scores with an input of the network"
        return True

    def _is_input(self, node: fx.Node) -> bool:
        while self.result.kinds[node] is Kind.INHERIT:
            node = the_source(node)
        return node.op == "placeholder"


class _Types(fx.Interpreter):
    """Notes of each node whether its tensor holds floating-point numbers."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op.startswith("call"):
            n.meta[FLOATING] = result.is_floating_point()
        return result


def learn_types(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> bool:
    """Run a network once, so that no type of a tensor in it needs to be guessed.

    False where the tables know every operation, so that there is nothing to find out.
    """
    reading = read(module)
    if not any(n.op.startswith("call") and kind is Kind.FLOAT for n, kind in reading.kinds.items()):
        return False
    with torch.no_grad():
        _Types(module).run(*[x.clone() for x in inputs])
    return True


def types_of(module: fx.GraphModule) -> dict[str, bool]:
    """What an example has shown: by the name of a node, whether it gives floating point."""
    nodes = module.graph.nodes
    return {node.name: node.meta[FLOATING] for node in nodes if FLOATING in node.meta}


def mark_types(module: fx.GraphModule, types: Mapping[str, bool]) -> None:
    """Let `read` know what `types_of` told of the same network."""
    for node in module.graph.nodes:
        if node.name in types:
            node.meta[FLOATING] = types[node.name]


def _ancestors_of_indices(module: fx.GraphModule) -> set[fx.Node]:
    """What an embedding or a gather reads as indices, back to the inputs of the network."""
    found: set[fx.Node] = set()
    pending: list[fx.Node] = []
    for node in module.graph.nodes:
        layer = _submodule(module, node)
        kind = None if layer is None else layer_type(getattr(layer, "float_layer", layer))
        if (kind and not kind.token_dimensions) or isinstance(layer, nn.EmbeddingBag):
            pending += node.all_input_nodes
        elif node.op.startswith("call") and node.target in _INDEXED:
            position = _INDEXED[node.target]
            pending += [a for a in node.args[position : position + 1] if isinstance(a, fx.Node)]
    while pending:
        node = pending.pop()
        operation = operation_of(module, node)
        # What a layer or a sigmoid gives is no index: something in between has made it one.
        if node in found or KINDS.get(operation) in _COMPUTING:
            continue
        found.add(node)
        ends = operation in INTEGER_MAKING or operation in CONVERSIONS or _picks_indices(node)
        if not ends and (operation is None or operation in KINDS):
            pending += node.all_input_nodes
    return found


_COMPUTING = (Kind.WEIGHTED, Kind.SOFTMAX)


def _picks_indices(node: fx.Node) -> bool:
    """h.topk(2)[1] or h.topk(2).indices."""
    source = source_of(node)
    return source is not None and source.target in CHOOSING


# Position of the argument that holds indices.
_INDEXED = {
    nn.functional.embedding: 0,
    nn.functional.one_hot: 0,
    torch.gather: 2,
    "gather": 2,
    torch.index_select: 2,
    "index_select": 2,
}


def _submodule(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def attribute(module: nn.Module, path: str) -> object:
    """The parameter, buffer or other attribute at a dotted path."""
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


def unused_name(module: nn.Module, name: str) -> str:
    """``name``, with a number where the module has something of that name already."""
    found, count = name, 1
    while hasattr(module, found):
        count += 1
        found = f"{name}_{count}"
    return found


def _is_node(argument: object) -> bool:
    return isinstance(argument, fx.Node)


def _is_float(argument: object) -> bool:
    return isinstance(argument, float)


def _is_negative(argument: object) -> bool:
    return isinstance(argument, (int, float)) and argument < 0


def _is_mask_number(argument: object) -> bool:
    if isinstance(argument, bool) or not isinstance(argument, (int, float)):
        return False
    return argument <= MASK_BELOW or argument == float("inf")
