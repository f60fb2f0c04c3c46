"""Two ways through a network and its quantized copy at once, measuring the error of each layer.

Chapter 06; `compare` drives them. `GraphWalk` follows the traced graph, `HookWalk` serves networks
that could not be traced. Both measure example by example, so that the result does not depend on how
the data was cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ptq_course.diagnosis.parts import Parts, partly, parts_of
from ptq_course.errors import QuantizationError
from ptq_course.graph.kinds import called
from ptq_course.graph.layer_types import weight_of
from ptq_course.graph.reading import attribute
from ptq_course.grids.metrics import Noise, snr_pooled
from ptq_course.simulation.layers import QuantizedLayer
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.tables import decibels


@dataclass(frozen=True)
class LayerError:
    """The error of one layer, in dB of signal over noise: lower is worse, None was not measured.

    Medians over the examples (`snr_median`) but for weight_db and pooled_db. Pooling the power of
    all examples lets a few loud ones (an over-exposed picture) speak for the rest.
    """

    name: str
    kind: str
    weight_db: float | None  # the weight alone, snr_pooled
    input_db: float | None  # the worst of its inputs alone
    isolated_db: float | None
    cumulative_db: float | None
    pooled_db: float | None = None  # isolated, snr_pooled

    def cells(self) -> tuple[str, ...]:
        measured = (self.weight_db, self.input_db, self.isolated_db, self.cumulative_db)
        return (self.name, self.kind, *map(decibels, measured))


@dataclass
class _Row:
    kind: str
    layer: QuantizedLayer | None
    inputs: dict[Any, Noise] = field(default_factory=dict)  # by position among the inputs
    isolated: Noise = field(default_factory=Noise)
    cumulative: Noise = field(default_factory=Noise)
    is_quantized: bool = True

    def result(self, name: str) -> LayerError:
        weight = None
        if self.layer is not None:
            weight = snr_pooled(
                weight_of(self.layer.float_layer).detach(), self.layer.weight.detach()
            )
        inputs = [noise.snr_median for noise in self.inputs.values()]
        return LayerError(
            name, self.kind, weight, min((db for db in inputs if db is not None), default=None),
            self.isolated.snr_median if self.is_quantized else None, self.cumulative.snr_median,
            self.isolated.snr_pooled if self.is_quantized else None,
        )  # fmt: skip


class GraphWalk:
    """Three passes in lockstep through the traced graph: float, quantized, and isolated inputs.

    Values are dropped after their last use, so memory stays near that of a forward pass.
    """

    def __init__(self, quantized: QuantizedModel) -> None:
        self.module = cast(fx.GraphModule, quantized.module)
        self.exact = partly(quantized, (), ()).module
        self.parts: Parts = parts_of(quantized)
        self.measured: dict[str, _Row] = {}
        for node, name in self.parts.rows.items():
            part = called(self.module, node)
            layer = part if isinstance(part, QuantizedLayer) else None
            kind = getattr(node.target, "__name__", str(node.target))
            if part is not None:
                kind = type(part if layer is None else layer.float_layer).__name__
            row = _Row(kind, layer, is_quantized=bool(layer or self.parts.feeding[name]))
            self.measured[name] = row
        last: dict[fx.Node, fx.Node] = {}
        for node in self.module.graph.nodes:
            for source in node.all_input_nodes:
                last[source] = node
        self.finished: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self.finished.setdefault(node, []).append(source)

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Outputs of the float graph and of the quantized one for one batch."""
        exact: dict[fx.Node, Any] = {}
        rounded: dict[fx.Node, Any] = {}
        isolated: dict[fx.Node, Any] = {}  # rounded since the last computing operation only
        remaining = iter(inputs)
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                x = next(remaining, node.args[0] if node.args else None)
                exact[node] = isolated[node] = x
                rounded[node] = _copied(x)
            elif node.op == "output":
                return self._args(node, exact)[0][0], self._args(node, rounded)[0][0]
            else:
                run = self._operation(node)
                alone = self._alone(node, run, exact, isolated)  # before anything in place
                rounded[node] = run(rounded)
                exact[node] = self._operation(node, as_float=True)(exact)
                isolated[node] = alone if node in self.parts.passes_codes else exact[node]
                if node in self.parts.rows:
                    row = self.measured[self.parts.rows[node]]
                    row.isolated.add(exact[node], alone)
                    row.cumulative.add(exact[node], rounded[node])
            for source in self.finished.get(node, ()):
                del exact[source], rounded[source], isolated[source]
        raise AssertionError("a graph ends with its output")

    def _alone(self, node: fx.Node, run: Callable, exact: dict, isolated: dict) -> Any:
        """The node's result when only what leads directly to it is rounded."""
        if node in self.parts.rows:
            for position, source in enumerate(node.all_input_nodes):
                if isolated[source] is not exact[source]:
                    noise = self.measured[self.parts.rows[node]].inputs
                    noise.setdefault(position, Noise()).add(exact[source], isolated[source])
        elif node not in self.parts.passes_codes:
            return None
        # Copies, because an operation may work in place (x += y, ReLU(inplace=True)).
        return run({n: _copied(isolated[n]) for n in node.all_input_nodes})

    def _operation(self, node: fx.Node, as_float: bool = False) -> Callable[[dict], Any]:
        """A function of an environment (node -> value) that computes the node."""

        def run(values: dict[fx.Node, Any]) -> Any:
            args, kwargs = self._args(node, values)
            if callable(node.target):
                return node.target(*args, **kwargs)
            if node.op == "get_attr":
                return attribute(self.module, node.target)
            part = called(self.exact if as_float else self.module, node)
            if part is None:
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return part(*args, **kwargs)

        return run

    @staticmethod
    def _args(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[tuple, dict]:
        return map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)

    def rows(self) -> list[LayerError]:
        return [row.result(name) for name, row in self.measured.items()]


class HookWalk:
    """Hooks on the layers of both models: for a network without a graph."""

    def __init__(self, fp32: nn.Module, quantized: QuantizedModel) -> None:
        self.fp32, self.quantized = fp32, quantized
        parts = parts_of(quantized)
        self.measured = {}
        for name in parts.feeding:
            layer = fp32.get_submodule(name)
            inner = quantized.module.get_submodule(name).modules()
            found = next((m for m in inner if isinstance(m, QuantizedLayer)), None)
            self.measured[name] = _Row(type(layer).__name__, found)

    def __call__(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        exact, output = self._recorded(self.fp32, inputs)
        rounded, simulated = self._recorded(self.quantized.module, inputs)
        for name, row in self.measured.items():
            part = self.quantized.module.get_submodule(name)
            if len(exact[name]) != len(rounded[name]):
                raise QuantizationError(
                    f"layer {name!r} ran {len(exact[name])} times in the float model and "
                    f"{len(rounded[name])} times in the quantized one: rounding changed a branch, "
                    "so the calls cannot be compared."
                )
            for (x, y), (_, z) in zip(exact[name], rounded[name], strict=True):
                row.isolated.add(y, part(x))
                row.cumulative.add(y, z)
                before = getattr(part, "before", None)
                if before is not None:
                    row.inputs.setdefault(0, Noise()).add(x, before(x))
        return output, simulated

    def _recorded(self, model: nn.Module, inputs: list[Tensor]) -> tuple[dict, Tensor]:
        """Input and output of every call of every layer, and the model's output."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.measured}

        def kept_as(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda _, x, y: calls[name].append((x[0].clone(), y.clone()))

        handles = [
            model.get_submodule(name).register_forward_hook(kept_as(name)) for name in self.measured
        ]
        try:
            return calls, model(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    def rows(self) -> list[LayerError]:
        return [row.result(name) for name, row in self.measured.items()]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
