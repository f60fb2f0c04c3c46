"""Tracing: from a model's Python code to a torch.fx graph in one way of writing.

Chapter 04. The same network can be written in many ways. After `trace`, attention consists of
linear layers and products, a convolution called as a function is a module, a layer that is called
twice has two names, and a clamp to [0, 6] is a ReLU6; the later steps then see one form of each.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ptq_course.errors import UnsupportedError
from ptq_course.graph.aliasing import unalias
from ptq_course.graph.attention import expand_dot_product_attention
from ptq_course.graph.copying import prepared_copy
from ptq_course.graph.example import ExampleTracer
from ptq_course.graph.functional import erase_unused_constants, rewrite_functional_layers
from ptq_course.graph.kinds import WEIGHTED_MODULES, is_known
from ptq_course.graph.layer_types import own_forward
from ptq_course.graph.masks import MaskedSoftmax, ScoreMask, ZeroPadding
from ptq_course.graph.products import rewrite_products
from ptq_course.graph.recurrent import Recurrent

# One trace at a time: torch.fx, and _creation_follows_proxies, patch what all threads share, and
# two at once would put back each other's patches. Models that other threads run meanwhile compute
# as ever (`ExampleTracer`).
_tracing = threading.RLock()
SECOND_CALL = "__call"  # fc, fc__call2: a layer that the model calls twice


class _Tracer(ExampleTracer):
    """torch.fx's tracer, which keeps every module of torch.nn as one node."""

    proxy_buffer_attributes = True  # self.position_ids[:, : x.size(1)] depends on x

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = (ScoreMask, MaskedSoftmax, ZeroPadding, Recurrent)
        if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer, *ours)):
            return True
        if is_known(type(module)):  # a subclass that computes as its base
            return True
        return super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module, example: Sequence[torch.Tensor] | None = None) -> fx.GraphModule:
    """A traced deep copy of ``model`` in evaluation mode; the model itself is left alone.

    A layer that the model calls twice is given a second name for its second call (``fc``,
    ``fc__call2``; the weight is shared), because its two inputs are two values with two scales.
    Arguments with a default keep it: the network is traced for the call without them.
    example: inputs on which Python's questions about shapes are answered (a layer that pads by its
    input's size); the graph then holds for inputs that have the same answers.
    Raises UnsupportedError with torch.fx's reason where the model's Python depends on its data.
    """
    prepared = prepared_copy(model)
    _check_signature(prepared)
    tracer = _Tracer(example)
    try:
        with _tracing, _creation_follows_proxies():
            graph = tracer.trace(prepared, concrete_args=optional_arguments(prepared))
    except Exception as error:  # fx raises TraceError, TypeError, ... for the same cause
        raise UnsupportedError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}). "
            "Its forward() branches on values or shapes, asserts them, or calls what a graph "
            "cannot hold; move such code out of the model, or accept module-level quantization."
            + _subclasses(prepared, example)
        ) from error
    traced = fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)
    _drop_optional_arguments(traced)
    unalias(traced)
    expand_dot_product_attention(traced)
    _name_clamps(traced)
    _name_leaky_relus(traced)
    _name_subtractions(traced)
    rewrite_functional_layers(traced)
    rewrite_products(traced)
    erase_unused_constants(traced)
    _name_repeated_calls(traced)
    _drop_unused(traced)
    for node in traced.graph.nodes:
        node.type = None  # an annotation may be a string, which torch.save cannot store
    traced.graph.lint()
    traced.recompile()
    return traced.eval()


def _subclasses(model: nn.Module, example: Sequence[torch.Tensor] | None) -> str:
    """What to do about layers with a forward() of their own, where a model has some."""
    parts = [f"{name} ({type(part).__name__})" for name, part in own_forward(model).items()]
    if not parts:
        return ""
    remedy = (
        "pass example=, an input by which they can ask for its shape (trace() and PTQQuantizer)"
    )
    if example is not None:
        remedy = "let forward() ask for shapes only, or make them plain layers behind F.pad"
    return f" Layers with a forward() of their own: {', '.join(parts)}; {remedy}."


@contextlib.contextmanager
def _creation_follows_proxies() -> Iterator[None]:
    """Let torch.arange(x.size(1)) and its like become nodes, which torch.fx alone refuses."""
    names = ("arange", "zeros", "ones", "full", "empty", "eye", "linspace", "rand", "randn")
    originals = {name: getattr(torch, name) for name in names}

    def following(original: Callable) -> Callable:
        def create(*args: Any, **kwargs: Any) -> Any:
            proxies = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, fx.Proxy)]
            if not proxies:
                return original(*args, **kwargs)
            return proxies[0].tracer.create_proxy("call_function", original, args, kwargs)

        return create

    try:
        for name, original in originals.items():
            setattr(torch, name, following(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def optional_arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments of forward() that have a default, and the default."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _check_signature(model: nn.Module) -> None:
    for p in inspect.signature(type(model).forward).parameters.values():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise UnsupportedError(
                f"{type(model).__name__}.forward() needs {p.name!r} by keyword, which a graph has "
                "no place for; wrap it in a module that takes it as a positional argument."
            )


def required_inputs(model: nn.Module) -> list[str]:
    """Names of the arguments of forward() that have no default; "*xs" for any number more."""
    if isinstance(model, fx.GraphModule):
        found = [n for n in model.graph.nodes if n.op == "placeholder" and not n.args]
        return [str(n.target) for n in found if not str(n.target).startswith("**")]
    names = []
    for p in inspect.signature(model.forward).parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty:
            names.append(p.name)
        elif p.kind is p.VAR_POSITIONAL:
            names.append(f"*{p.name}")
    return names


def _drop_optional_arguments(traced: fx.GraphModule) -> None:
    """Remove the inputs that tracing fixed to their default, and fx's assertions about them."""
    for node in list(traced.graph.nodes):
        if node.op == "placeholder" and str(node.target).startswith("**") and not node.users:
            traced.graph.erase_node(node)
            continue
        if node.op != "placeholder" or not node.args:
            continue
        for user in list(node.users):
            for assertion in [*user.users, user]:
                traced.graph.erase_node(assertion)
        traced.graph.erase_node(node)


def _name_repeated_calls(traced: fx.GraphModule) -> None:
    seen: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        seen[node.target] = seen.get(node.target, 0) + 1
        layer = traced.get_submodule(node.target)
        if seen[node.target] > 1 and isinstance(layer, WEIGHTED_MODULES):
            twin = copy.copy(layer)  # shares the parameters
            twin._parameters, twin._buffers = dict(twin._parameters), dict(twin._buffers)
            target = f"{node.target}{SECOND_CALL}{seen[node.target]}"
            traced.add_submodule(target, twin)
            node.target = target


_CLAMPS = {torch.clamp, "clamp", "clamp_", torch.clip, "clip", F.hardtanh, torch.clamp_min,
           "clamp_min"}  # fmt: skip
_BOUNDS = {"min", "max", "min_val", "max_val"}


def _name_clamps(traced: fx.GraphModule) -> None:
    """clamp(x, 0, 6) is ReLU6 under another name, clamp(x, min=0) is ReLU."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if type(module) is not nn.Hardtanh:
                continue
            low, high = module.min_val, module.max_val
            in_place = module.inplace
        elif node.op.startswith("call") and node.target in _CLAMPS:
            bounds = list(node.args[1:])
            low = node.kwargs.get("min", node.kwargs.get("min_val", bounds[0] if bounds else None))
            high = bounds[1] if len(bounds) > 1 else None
            high = node.kwargs.get("max", node.kwargs.get("max_val", high))
            if node.target is F.hardtanh:
                low, high = (-1 if low is None else low), (1 if high is None else high)
            in_place = node.target == "clamp_" or bool(node.kwargs.get("inplace"))
        else:
            continue
        function = {(0, 6): F.relu6, (0, None): F.relu}.get(_hashable((low, high)))
        if function is not None:
            node.op, node.target = "call_function", function
            # Whoever reads the clamped tensor under its old name must still see it clamped.
            node.args = (node.all_input_nodes[0],)
            node.kwargs = {"inplace": True} if in_place else {}


def _name_subtractions(traced: fx.GraphModule) -> None:
    """x - 3 is x + (-3), to the bit; runtimes have kernels for sums."""
    for node in traced.graph.nodes:
        number = node.args[1] if len(node.args) == 2 and not node.kwargs else None
        number = number if type(number) in (int, float) else None
        if node.target in (operator.sub, torch.sub, "sub") and isinstance(number, (int, float)):
            node.op, node.target, node.args = "call_function", operator.add, (node.args[0], -number)


def _name_leaky_relus(traced: fx.GraphModule) -> None:
    """A PReLU with one slope for all channels is, once trained, a LeakyReLU."""
    for node in traced.graph.nodes:
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        if type(layer) is nn.PReLU and bool((layer.weight == layer.weight[0]).all()):
            node.op, node.target = "call_function", F.leaky_relu
            node.args = (node.all_input_nodes[0], layer.weight[0].item())


def _hashable(bounds: tuple) -> tuple:
    return tuple(b if isinstance(b, (int, float)) or b is None else "?" for b in bounds)


def _drop_unused(traced: fx.GraphModule) -> None:
    """Remove results that nothing reads, such as attention weights that were not asked for."""
    pure = {operator.getitem, getattr, torch.mean, "mean", "size"}
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and (node.op == "get_attr" or node.target in pure):
            traced.graph.erase_node(node)
