"""The plan: who owns a scale. One QParams per tensor value, shared by all its consumers.

Chapters 04 and 06. `plan` reads the graph that `trace` made and says
which values become integers (`Value`) and which layers get integer weights (`LayerSite`). Nothing
here computes a scale: that is the quantizer's work.

A value is quantized because something that computes with integers consumes it. Three cases do not
get a scale of their own:

- what a ReLU or ReLU6 consumes alone: clamping is free after requantization, so the boundary lies
  behind it ("ReLU boundary"); the same holds for other activations that a runtime fuses;
- what only moves or averages codes (pooling, reshape): the output inherits the scale of its input;
- what nothing quantized consumes, such as the logits.

The inputs of a concatenation keep a scale each, as those of an add do, and its output has its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from ptq_course.errors import UnsupportedError
from ptq_course.graph.kinds import ALWAYS_FUSED, SOFTMAXES, Kind, averages, operation_of
from ptq_course.graph.reading import Reading, read, source_of
from ptq_course.graph.tracing import SECOND_CALL


@dataclass
class Value:
    """One tensor of the graph that becomes integers, and the scale it will own."""

    name: str
    node: str  # the fx node that computes it
    range: tuple[float, float] | None = None  # known beforehand (softmax), else calibrated
    inherited_by: list[str] = field(default_factory=list)  # averaging nodes that round to its grid


@dataclass
class LayerSite:
    """One layer whose weight becomes integers."""

    name: str  # path of the module in the user's model
    node: str
    input_value: str | None  # None: it stays in floating point, or (embedding) reads indices


@dataclass
class Plan:
    """What will be quantized: values and layers by name, and what stays in floating point."""

    values: dict[str, Value]
    layers: dict[str, LayerSite]
    left_in_float: dict[str, str]  # operation -> why


def kinds_of(
    traced: fx.GraphModule, fused_activations: Collection[str] = ALWAYS_FUSED
) -> dict[fx.Node, Kind]:
    """What the operation at each node of the graph does to integers."""
    return read(traced, fused_activations).kinds


def plan(
    traced: fx.GraphModule,
    float_layers: Collection[str] = (),
    fused_activations: Collection[str] = ALWAYS_FUSED,
) -> Plan:
    """Decide which values and layers of a traced (and fused) model become integers.

    ``float_layers``: module paths that stay in floating point. ``fused_activations``: activations
    that the runtime computes inside the layer before them (`QConfig.fused_activations`). Every
    operation that computes in floating point stands in ``left_in_float`` with its reason. Raises
    UnsupportedError for a name in ``float_layers`` that the model does not have.
    """
    reading = read(traced, fused_activations)
    kinds = reading.kinds
    check_float_layers(float_layers, {n.target for n in kinds if kinds[n] is Kind.WEIGHTED})
    wanted = _wanted(reading, float_layers)
    names = _names(reading)
    result = Plan({}, {}, {})
    owner: dict[fx.Node, str] = {}  # node -> name of the value whose scale it carries
    for node, kind in kinds.items():
        if kind is Kind.INHERIT and source_of(node) in owner:
            owner[node] = owner[source_of(node)]
            if averages(traced, node) and node in wanted:
                result.values[owner[node]].inherited_by.append(node.name)
        elif node in wanted:
            owner[node] = names[node]
            known = (0.0, 1.0) if operation_of(traced, node) in SOFTMAXES else None
            result.values[names[node]] = Value(names[node], node.name, known)
        if node in reading.why:
            path = node.target if node.op == "call_module" else node.name
            result.left_in_float[path] = reading.why[node]
        if kind is Kind.WEIGHTED:
            skipped = stays_float(node.target, float_layers)
            source = None if skipped else owner.get(source_of(node))
            result.layers[node.target] = LayerSite(node.target, node.name, source)
            if skipped:
                result.left_in_float[node.target] = "kept in floating point by float_layers"
    return result


def _wanted(reading: Reading, float_layers: Collection[str]) -> set[fx.Node]:
    """The nodes whose value something consumes as integers."""
    kinds, wanted = reading.kinds, set()
    containers = _containers(reading)

    def reads_integers(user: fx.Node, node: fx.Node) -> bool:
        kind = kinds[user]
        if kind is Kind.WEIGHTED:
            return not stays_float(user.target, float_layers)
        if user in reading.conversions:
            return False
        if kind is Kind.INHERIT:
            item_of_container = user in containers and node in containers
            return user in wanted and source_of(user) is node and not item_of_container
        if kind is Kind.CLAMP:
            # conv, pool, ReLU: the pooling separates the clamp from the layer it could merge into
            return user in wanted and kinds[node] is Kind.INHERIT
        return kind in (Kind.BINARY, Kind.CURVE, Kind.SOFTMAX)

    for node in reversed(kinds):  # users before their sources
        if node in reading.floats and any(reads_integers(user, node) for user in node.users):
            wanted.add(node)
    return wanted


def _containers(reading: Reading) -> set[fx.Node]:
    """Nodes that may hold several tensors (an LSTM's output, a dict as input) and their items."""
    found: set[fx.Node] = set()
    for node, kind in reading.kinds.items():
        unknown = kind is Kind.FLOAT and node in reading.floats and node.op != "get_attr"
        if unknown or (_picks_an_item(node) and source_of(node) in found):
            found.add(node)
    return found


def _picks_an_item(node: fx.Node) -> bool:
    """x[0] or x["key"]: an item of a container, or the first row of a tensor."""
    named = node.target is getattr or getattr(node.target, "__name__", "") == "getitem"
    return named and len(node.args) == 2 and isinstance(node.args[1], (int, str))


def _names(reading: Reading) -> dict[fx.Node, str]:
    """A name for each value: the module's path, followed by the node's name from its second call.

    It does not depend on which values are quantized, so that one observation serves many plans.
    """
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    for node in reading.kinds:
        name = str(node.target) if node.op == "call_module" else node.name
        names[node] = name if name not in taken else f"{name}__{node.name}"
        taken.add(names[node])
    return names


def stays_float(layer: str, float_layers: Collection[str]) -> bool:
    """Is a layer kept in floating point? A name stands for all calls of its layer."""
    return layer in float_layers or layer.split(SECOND_CALL)[0] in float_layers


def check_float_layers(float_layers: Collection[str], layers: Collection[str]) -> None:
    """Raise UnsupportedError where ``float_layers`` names something that is not a layer."""
    for name in float_layers:
        if name not in layers:
            raise UnsupportedError(
                f"float_layers names {name!r}, which is not a layer of the model. "
                f"Its layers: {', '.join(sorted(layers))}."
            )
