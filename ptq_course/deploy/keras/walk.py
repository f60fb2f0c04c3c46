"""From the graph of a functional Keras model to a torch.fx graph, node by node. Chapter 15.

Keras remembers of each tensor which call of which layer made it. Walking back from the outputs
gives every call once, in an order in which its inputs are there; a model inside a model is walked
in the same way, with its inputs filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ptq_course.deploy.keras.calls import Call, Target
from ptq_course.deploy.keras.curves import CURVES, FUNCTIONS
from ptq_course.deploy.keras.files import import_keras
from ptq_course.deploy.keras.shapes import MERGES, SHAPES
from ptq_course.deploy.keras.windows import WINDOWS
from ptq_course.errors import QuantizationError, UnsupportedError

CONVERTERS = {**WINDOWS, **CURVES, **SHAPES}
# x + y between tensors of Keras: operations, no layers.
OPERATIONS = {
    **{name: MERGES[name] for name in MERGES},
    **FUNCTIONS,
    "Divide": torch.div,
    "TrueDivide": torch.div,
}


def convert(model: Any, target: Target, feeds: Sequence[fx.Node], prefix: str = "") -> list:
    """The outputs of a model as nodes of ``target``; ``feeds``: its inputs, channels first.

    Raises UnsupportedError with the path of a layer that has no form here.
    """
    values = {id(given): node for given, node in zip(model.inputs, feeds, strict=True)}
    pending = list(reversed(model.outputs))
    while pending:
        wanted = pending[-1]
        if id(wanted) in values:
            pending.pop()
            continue
        operation, index, _ = wanted._keras_history
        made = operation._inbound_nodes[index]
        missing = [given for given in made.input_tensors if id(given) not in values]
        if missing:
            pending += reversed(missing)
            continue
        results = _called(operation, made, values, target, prefix)
        for result, node in zip(made.outputs, results, strict=True):
            values[id(result)] = node
    return [values[id(output)] for output in model.outputs]


def _called(operation: Any, made: Any, values: dict, target: Target, prefix: str) -> list:
    path = f"{prefix}{operation.name}"
    given = [values[id(tensor)] for tensor in made.input_tensors]
    if is_model(operation):
        check_graph(operation, path)
        return convert(operation, target, given, f"{path}/")
    shapes = [tuple(tensor.shape) for tensor in made.input_tensors]
    call = Call(target, operation, path, given, shapes, tuple(made.outputs[0].shape))
    kind = type(operation).__name__
    if not type(operation).__module__.startswith("keras."):
        raise call.refusal("is a class of its own, and not one of Keras")
    if getattr(operation, "quantization_mode", None):
        raise call.refusal("has quantized weights", "convert the model before it is quantized")
    if kind in OPERATIONS and not hasattr(operation, "get_weights"):
        return [_operation(call, made)]
    if kind == "Lambda":
        raise call.refusal("holds code of its author, which is not run", "write it as layers")
    if kind not in CONVERTERS:
        raise call.refusal("has no form here")
    return [CONVERTERS[kind](call)]


def _operation(call: Call, made: Any) -> fx.Node:
    """x + y, x * 0.5, keras.ops.relu(x): tensors of one rank, or one tensor and a number."""
    known = dict(zip((id(tensor) for tensor in made.input_tensors), call.inputs, strict=True))
    arguments = [*made.arguments.args, *made.arguments.kwargs.values()]
    inside = [known.get(id(argument), argument) for argument in arguments]
    if not all(isinstance(part, (fx.Node, int, float)) for part in inside):
        raise call.refusal("computes with an array", "put it into a layer with a weight")
    if len({len(shape) for shape in call.shapes}) > 1:
        raise call.refusal("joins tensors of different ranks", "reshape them to one rank")
    return call.function(OPERATIONS[type(call.layer).__name__], *inside)


def is_model(operation: Any) -> bool:
    """Whether an operation is a model with layers inside."""
    return isinstance(operation, import_keras().Model)


def check_graph(model: Any, path: str) -> None:
    """Whether Keras knows the graph of a model.

    Raises UnsupportedError for a subclass with a call() of its own, and QuantizationError for a
    model that has not been built.
    """
    if not type(model).call.__module__.startswith("keras."):
        raise UnsupportedError(
            f"from_keras: model {path!r} ({type(model).__name__}) computes in a call() of its own, "
            "so that it has no graph to read; write it as keras.Sequential or with the functional "
            "API, keras.Model(inputs, outputs)."
        )
    if not getattr(model, "built", False) or not getattr(model, "outputs", None):
        raise QuantizationError(
            f"from_keras: model {path!r} has not been built, so that its shapes are not known; "
            "begin it with keras.Input(shape), or call it once."
        )
