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
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from ptq_course.errors import UnsupportedError
from ptq_course.graph.attention import expand_dot_product_attention
from ptq_course.graph.functional import rewrite_functional_layers
from ptq_course.graph.kinds import KINDS, WEIGHTED_MODULES, Kind, operation_of
from ptq_course.graph.masks import MaskedSoftmax, ScoreMask, ZeroPadding
from ptq_course.graph.transformer import rewrite_attention

SECOND_CALL = "__call"  # fc, fc__call2: a layer that the model calls twice


class _Tracer(fx.Tracer):
    """torch.fx's tracer, which keeps every module of torch.nn as one node."""

    proxy_buffer_attributes = True  # self.position_ids[:, : x.size(1)] depends on x

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = (ScoreMask, MaskedSoftmax, ZeroPadding)
        if isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer, *ours)):
            return True
        return super().is_leaf_module(module, qualified_name)


class _Proxy(fx.Proxy):
    """Records ``y += x`` as it is, which torch.fx writes as ``y = y + x``: see `_unalias`."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable, other: Any) -> fx.Proxy:
        name = function.__name__.removeprefix("i")
        return self.tracer.create_proxy("call_function", function, (self, other), {}, name)


_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def _unalias(traced: fx.GraphModule) -> None:
    """Let every reader of a tensor that was changed in place read the result of that change.

    Otherwise a quantizer put between the two would separate them. Then ``y += x`` is written as
    ``y + x``, except where the change is seen through a view: after ``rows = x.view(..)`` and
    ``rows *= 2`` whoever reads x must find it doubled.
    """
    same: dict[fx.Node, fx.Node] = {}  # the first name of a tensor that a node stands for
    latest: dict[fx.Node, fx.Node] = {}  # first name -> the last node that changed it
    memory: dict[fx.Node, fx.Node] = {}  # the node that made the memory that a node may share
    for node in traced.graph.nodes:
        for source in node.all_input_nodes:
            node.replace_input_with(source, latest.get(same[source], source))
        first = node.all_input_nodes[0] if node.all_input_nodes else None
        changes = first is not None and _in_place(traced, node)
        passes = KINDS.get(operation_of(traced, node)) is Kind.INHERIT or node.target is getattr
        same[node] = same[first] if changes else node
        memory[node] = memory[first] if first is not None and (changes or passes) else node
        if changes:
            latest[same[node]] = node
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if node.target in _OUT_OF_PLACE:
            names = [n for n in order if memory[n] is memory[node] and order[n] < order[node]]
            if not any(order[user] > order[node] for n in names for user in n.users):
                node.target = _OUT_OF_PLACE[node.target]


def _in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Does an operation change its first input? add_, F.relu(x, inplace=True), nn.ReLU(True)."""
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(node.target), "inplace", False))
    if not node.op.startswith("call"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    named = name.endswith("_") and not name.endswith("__")
    return named or node.target in _OUT_OF_PLACE or node.kwargs.get("inplace") is True


def plain_module(model: nn.Module) -> nn.Module:
    """The module inside DataParallel and torch.compile.

    UnsupportedError for what is no Python module with values: TorchScript, an exported program,
    parameters on the meta device or of a lazy layer.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod
        else:
            break
    problem = ""
    if isinstance(model, torch.jit.ScriptModule):
        problem = "TorchScript, which has no Python to read: quantize the nn.Module it came from"
    elif isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes
    ):
        problem = "an exported program without layers: quantize the nn.Module it was exported from"
    elif any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        problem = "lazy and has no weights yet: run one batch through it first"
    elif any(p.is_meta for p in model.parameters()):
        problem = "on the meta device and has no values: load its weights first"
    if problem:
        raise UnsupportedError(f"{type(model).__name__} is {problem}.")
    return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, without hooks. UnsupportedError where it cannot be copied."""
    model = plain_module(model)
    try:
        twin = copy.deepcopy(model).eval()
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Make "
            "computed weights plain first: torch.nn.utils.remove_weight_norm, "
            "remove_spectral_norm, prune.remove."
        ) from error
    _remove_hooks(twin)
    for old, new in zip(model.modules(), twin.modules(), strict=True):
        # Copying nn.TransformerDecoderLayer hides an activation module behind F.relu.
        if isinstance(old, nn.TransformerDecoderLayer) and "activation" not in vars(old):
            vars(new).pop("activation", None)
    return twin


def prepared_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, its attention rewritten, its parametrizations computed."""
    model = copied(model)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            _compute_parametrizations(module)
    return rewrite_attention(model)


def trace(model: nn.Module) -> fx.GraphModule:
    """A traced deep copy of ``model`` in evaluation mode; the model itself is left alone.

    A layer that the model calls twice is given a second name for its second call (``fc``,
    ``fc__call2``; the weight is shared), because its two inputs are two values with two scales.
    Arguments with a default keep it: the network is traced for the call without them.
    Raises UnsupportedError with torch.fx's reason where the model's Python depends on its data.
    """
    prepared = prepared_copy(model)
    _check_signature(prepared)
    tracer = _Tracer()
    try:
        with _creation_follows_proxies():
            graph = tracer.trace(prepared, concrete_args=optional_arguments(prepared))
    except Exception as error:  # fx raises TraceError, TypeError, ... for the same cause
        raise UnsupportedError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}). "
            "Its forward() branches on values or shapes, asserts them, or calls what a graph "
            "cannot hold; move such code out of the model, or accept module-level quantization."
        ) from error
    traced = fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)
    _drop_optional_arguments(traced)
    _unalias(traced)
    expand_dot_product_attention(traced)
    _name_clamps(traced)
    rewrite_functional_layers(traced)
    _name_repeated_calls(traced)
    _drop_unused(traced)
    for node in traced.graph.nodes:
        node.type = None  # an annotation may be a string, which torch.save cannot store
    traced.graph.lint()
    traced.recompile()
    return traced.eval()


def _remove_hooks(model: nn.Module) -> None:
    """Hooks belong to the user's model: a graph would skip some, and calibration fire the rest."""
    found = []
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            found.append(name or "(the model itself)")
        for hooks in (
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
            module._forward_pre_hooks,
            module._forward_pre_hooks_with_kwargs,
        ):
            hooks.clear()
    if found:
        warnings.warn(
            f"forward hooks are left out of the quantized copy: {', '.join(found)}. If one changes "
            "what the module computes, move it into a module's forward().",
            stacklevel=3,
        )


def _compute_parametrizations(module: nn.Module) -> None:
    """Make computed weights (weight_norm, ...) plain parameters.

    torch's remove_parametrizations changes the class, which the user's model shares.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


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


def _hashable(bounds: tuple) -> tuple:
    return tuple(b if isinstance(b, (int, float)) or b is None else "?" for b in bounds)


def _drop_unused(traced: fx.GraphModule) -> None:
    """Remove results that nothing reads, such as attention weights that were not asked for."""
    pure = {operator.getitem, getattr, torch.mean, "mean", "size"}
    for node in reversed(list(traced.graph.nodes)):
        if not node.users and (node.op == "get_attr" or node.target in pure):
            traced.graph.erase_node(node)
