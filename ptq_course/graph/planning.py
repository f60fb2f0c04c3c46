"""The plan: who owns a scale. One QParams per tensor value, shared by all its consumers.

Chapters 04 and 06. `plan` reads the graph that `trace` made and says which values become integers
(`Value`) and which layers get integer weights (`LayerSite`). Nothing here computes a scale: that is
the quantizer's work.

A value is rounded because a kernel of the target asks for it, and nowhere else (`kernels`): as its
input, or because the kernel returns codes. So a convolution's output is rounded in front of a GELU,
since QLinearConv returns codes, and the inputs of an add that only a LayerNorm reads are not, since
the runtime adds in floating point there. Cases that do not get a scale of their own:

- what a ReLU or ReLU6 consumes alone: clamping is free after requantization, so the boundary lies
  behind it ("ReLU boundary"); the same holds for other activations that a runtime fuses;
- what only moves or averages codes (pooling, reshape): the output inherits the scale of its input;
- what no integer kernel reads, such as the logits;
- what is only an angle, a sampling address or one side of a comparison.

The inputs of a concatenation keep a scale each, as those of an add do, and its output has its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from ptq_course.graph.choosing import Choice, choose, parts_of
from ptq_course.graph.kernels import (
    DEFAULT_TARGET,
    FAMILY_OF,
    IN_UNIT_RANGE,
    INTEGERS_THROUGHOUT,
    RUNTIMES,
    Kernel,
    kernel_of,
)
from ptq_course.graph.kinds import ADDRESSING, ALWAYS_FUSED, Kind, averages, operation_of
from ptq_course.graph.reading import Reading, read, source_of, the_source
from ptq_course.graph.recurrent import GATES

NOT_READ = "no integer kernel of {} reads its result"


@dataclass
class Value:
    """One tensor of the graph that becomes integers, and the scale it will own."""

    name: str
    node: str  # the fx node that computes it
    range: tuple[float, float] | None = None  # known beforehand (softmax), else calibrated
    inherited_by: list[str] = field(default_factory=list)  # averaging nodes that round to its grid
    asked_by: list[str] = field(default_factory=list)  # kernels that read it, or return it
    only_returned: bool = False  # rounded because a kernel returns codes; nothing reads them


@dataclass
class LayerSite:
    """One layer whose weight becomes integers."""

    name: str  # path of the module in the user's model
    node: str
    input_value: str | None  # None: it stays in floating point, or (embedding) reads indices
    kept_float: bool = False  # its weight stays as it is: float_layers, a recurrent layer's


@dataclass
class Plan:
    """What will be quantized: values and layers by name, and what stays in floating point."""

    values: dict[str, Value]
    layers: dict[str, LayerSite]
    left_in_float: dict[str, str]  # operation -> why
    inner: dict[str, str] = field(default_factory=dict)  # fx node -> family that rounds inside


def kinds_of(
    traced: fx.GraphModule, fused_activations: Collection[str] = ALWAYS_FUSED
) -> dict[fx.Node, Kind]:
    """What the operation at each node of the graph does to integers."""
    return read(traced, fused_activations).kinds


def plan(
    traced: fx.GraphModule,
    float_layers: Collection[str] = (),
    fused_activations: Collection[str] = ALWAYS_FUSED,
    target: str = DEFAULT_TARGET,
    *,
    static: bool = True,
) -> Plan:
    """Decide which values and layers of a traced (and fused) model become integers.

    ``float_layers``: what stays in floating point, see `choosing`. ``fused_activations``:
    activations that the runtime computes inside the layer before them
    (`QConfig.fused_activations`). ``target``: whose kernels decide. ``static``: activations are
    rounded with scales chosen beforehand; recurrent layers, for which no runtime has such kernels,
    then keep floating-point weights. Every operation that computes
    in floating point stands in ``left_in_float`` with its reason. Raises UnsupportedError for a
    name in ``float_layers`` that the model does not have.
    """
    reading = read(traced, fused_activations)
    names = _names(reading)
    kept = choose(traced, reading, float_layers)
    demand = _Demand(traced, reading, kept, target)
    result = Plan({}, {}, {})
    owner: dict[fx.Node, str] = {}  # node -> name of the value whose scale it carries
    for node, kind in reading.kinds.items():
        inherits = kind is Kind.INHERIT and node not in kept.nodes
        if inherits and (held := owner.get(the_source(node))) is not None:
            owner[node] = held
            if averages(traced, node) and node in demand.wanted:
                result.values[owner[node]].inherited_by.append(node.name)
        elif node in demand.wanted:
            owner[node] = names[node]
            known = (0.0, 1.0) if operation_of(traced, node) in IN_UNIT_RANGE else None
            asked = list(dict.fromkeys(demand.wanted[node]))
            result.values[names[node]] = Value(
                names[node], node.name, known, [], asked, node not in demand.read
            )
        if node.op.startswith("call") and (why := demand.why_float(node)):
            place = str(node.target) if node.op == "call_module" else node.name
            result.left_in_float[place] = why
        if (family := demand.rounds_inside(node)) is not None:
            result.inner[node.name] = family
        if kind is Kind.WEIGHTED:
            source = owner.get(the_source(node)) if demand.reads_codes(node) else None
            path = str(node.target)
            result.layers[path] = LayerSite(path, node.name, source, node in kept.nodes)
        if parts := parts_of(traced, node):
            stays = static or node in kept.nodes
            for path in parts:
                result.layers[path] = LayerSite(path, node.name, None, stays or path in kept.parts)
                if path in kept.parts:
                    result.left_in_float[path] = kept.why
            if not stays:
                name = operation_of(traced, node).__name__
                result.left_in_float[str(node.target)] = GATES.format(name)
    return result


class _Demand:
    """Which nodes' values some kernel asks for as integers: ``wanted``, node -> the kernels."""

    def __init__(self, traced: fx.GraphModule, reading: Reading, kept: Choice, target: str) -> None:
        self.traced, self.reading, self.kept, self.target = traced, reading, kept, target
        self.containers = _containers(reading)
        self.addresses = _addresses(traced, reading)
        self.wanted: dict[fx.Node, list[str]] = {}
        self.read: set[fx.Node] = set()
        for node in reading.kinds:
            kernel = self.kernel(node)
            if kernel is None or not kernel.rounds_output:
                continue
            if reading.kinds[node] is not Kind.WEIGHTED and target not in INTEGERS_THROUGHOUT:
                continue
            if (end := self.boundary(node)) not in self.addresses:
                self.wanted.setdefault(end, []).append(kernel.name)
        for node in reversed(reading.kinds):  # users before their sources
            if node in reading.floats:
                names = [name for user in node.users if (name := self._asks(user, node))]
                if names:
                    self.read.add(node)
                    self.wanted.setdefault(node, []).extend(names)

    def kernel(self, node: fx.Node) -> Kernel | None:
        """The target's integer kernel for a node; None where it stays in floating point."""
        kind = self.reading.kinds[node]
        if node in self.kept.nodes or (node in self.addresses and kind is not Kind.WEIGHTED):
            return None
        if kind not in (Kind.WEIGHTED, Kind.BINARY, Kind.CURVE, Kind.SOFTMAX):
            return None
        return kernel_of(self.target, operation_of(self.traced, node))

    def boundary(self, node: fx.Node) -> fx.Node:
        """Where a node's result is rounded: behind the clamps that merge into it."""
        while (
            len(node.users) == 1
            and self.reading.kinds[user := next(iter(node.users))] is (Kind.CLAMP)
            and user not in self.kept.nodes
        ):
            node = user
        return node

    def reads_codes(self, node: fx.Node) -> bool:
        """Whether a node runs as an integer kernel, whose inputs must be codes."""
        kernel = self.kernel(node)
        return kernel is not None and (
            not kernel.rounds_output or self.boundary(node) in self.wanted
        )

    def rounds_inside(self, node: fx.Node) -> str | None:
        """The family of an operation that the target computes with several integer kernels."""
        kernel = self.kernel(node)
        if kernel is None or not kernel.inner or not self.reads_codes(node):
            return None
        return FAMILY_OF[operation_of(self.traced, node)]

    def _asks(self, user: fx.Node, node: fx.Node) -> str:
        """The name of what asks for ``node`` as codes; "" where its user needs none."""
        kind = self.reading.kinds[user]
        if user in self.reading.conversions or user in self.kept.nodes:
            return ""
        if kind is Kind.INHERIT:
            item_of_container = user in self.containers and node in self.containers
            passes_on = user in self.wanted and source_of(user) is node and not item_of_container
            return self.wanted[user][0] if passes_on else ""
        if kind is Kind.CLAMP:
            # conv, pool, ReLU: the pooling separates the clamp from the layer it could merge into
            asks = user in self.wanted and self.reading.kinds[node] is Kind.INHERIT
            return self.wanted[user][0] if asks else ""
        kernel = self.kernel(user) if self.reads_codes(user) else None
        return "" if kernel is None else kernel.name

    def why_float(self, node: fx.Node) -> str:
        """Why an operation computes in floating point; "" where it does not."""
        kind = self.reading.kinds[node]
        if node in self.kept.nodes and node in self.reading.floats:
            return self.kept.why
        if node in self.reading.why:
            return self.reading.why[node]
        runtime = RUNTIMES[self.target]
        if kind is Kind.INHERIT and averages(self.traced, node) and node in self.reading.floats:
            if kernel_of(self.target, operation_of(self.traced, node)) is None:
                return f"{runtime} has no integer kernel for {self._name(node)}"
            return "" if node in self.wanted else NOT_READ.format(runtime)
        if kind not in (Kind.WEIGHTED, Kind.BINARY, Kind.CURVE, Kind.SOFTMAX):
            return ""
        if node in self.addresses:
            return "only an angle, an address or a comparison comes of it"
        if self.kernel(node) is None:
            stored = ", its weight is stored as integers" if kind is Kind.WEIGHTED else ""
            return f"{runtime} has no integer kernel for {self._name(node)}{stored}"
        if not self.reads_codes(node):
            return NOT_READ.format(runtime)
        return ""

    def _name(self, node: fx.Node) -> str:
        operation = operation_of(self.traced, node)
        return getattr(operation, "__name__", str(operation))


def _addresses(traced: fx.GraphModule, reading: Reading) -> set[fx.Node]:
    """Values that only ever become an angle, a sampling address or a side of a comparison.

    A large angle rounded to 8 bits is another angle. The search goes back through arithmetic and
    moves, and stops at layers.
    """
    found: set[fx.Node] = set()

    def uses_as_address(user: fx.Node, node: fx.Node) -> bool:
        operation = operation_of(traced, user)
        if operation in ADDRESSING:
            position = ADDRESSING[operation]
            return position is None or node in user.args[position : position + 1]
        return user in found and reading.kinds[user] is not Kind.WEIGHTED

    for node in reversed(reading.kinds):
        users = node.users if node in reading.floats else {}
        if users and all(uses_as_address(user, node) for user in users):
            found.add(node)
    return found


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
