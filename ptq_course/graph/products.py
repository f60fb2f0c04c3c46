"""Products with a constant matrix become linear layers: ``x @ w``, mm, addmm, einsum. Chapter 04.

A parameter or buffer that multiplies data is a weight, however the product is written. Written as a
layer it gets integer codes, a scale for each channel, and an int32 bias. What surrounds the layer
only moves numbers. A matrix for each entry of a batch (heads, experts) makes a convolution with as
many groups. Where the number of dimensions is not known (``x @ w`` with such a w), the product
stays as it is, and the plan says why.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.graph.functional import constant, insert_layer
from ptq_course.graph.kinds import ADDITIONS
from ptq_course.graph.layer_types import LAYER_TYPES, layer_type, swap_last, weight_of

_MATMUL = (torch.matmul, operator.matmul, operator.imatmul, "matmul", torch.mm, "mm", torch.mv,
           "mv", torch.dot, "dot")  # fmt: skip
_LINEAR = LAYER_TYPES[nn.Linear]
_ADDMM = (torch.addmm, "addmm")
_BMM = (torch.bmm, "bmm")
_BADDBMM = (torch.baddbmm, "baddbmm")
_EINSUM = (torch.einsum, torch.functional.einsum)


@dataclass
class _Product:
    """x times a constant: ``moved`` brings x's terms last, ``back`` the layer's channels home.

    Both are (function, arguments behind the tensor) to call in turn. weight: [channels, terms], or
    [groups * channels, terms, 1].
    """

    x: fx.Node
    weight: Tensor
    source: fx.Node  # of the weight, which the layer is named after
    moved: list[tuple[Any, tuple]]
    back: list[tuple[Any, tuple]]
    out: str  # a letter for each of the last dimensions of the result
    free: dict[str, int]  # the letters that the layer's channels make, and their sizes
    groups: int = 1


def rewrite_products(traced: fx.GraphModule) -> None:
    """Replace, in place, each product of data and a constant matrix by a linear layer."""
    for node in list(traced.graph.nodes):
        added, alpha = None, 1.0
        if node.target in _MATMUL and len(node.args) == 2:
            product = _matmul(traced, *node.args)
        elif node.target in _BMM and len(node.args) == 2:
            product = _contraction(traced, "bmk,bkn->bmn", *node.args)
        elif node.target in (*_ADDMM, *_BADDBMM) and len(node.args) == 3:
            added, alpha = node.args[0], node.kwargs.get("alpha", 1)
            if node.target in _ADDMM:
                product = _matmul(traced, *node.args[1:])
            else:
                product = _contraction(traced, "bmk,bkn->bmn", *node.args[1:])
        elif node.target in _EINSUM:
            product = _einsum(traced, node)
        else:
            continue
        if product is None:
            continue
        layer = _layer(product, alpha)
        value: fx.Node = product.x
        with traced.graph.inserting_before(node):
            for function, args in product.moved:
                value = traced.graph.call_function(function, (value, *args))
            value = outer = insert_layer(traced, layer, value, product.source, node)
            for function, args in product.back:
                value = outer = traced.graph.call_function(function, (value, *args))
            if added is not None:
                if (beta := node.kwargs.get("beta", 1)) != 1:
                    added = traced.graph.call_function(torch.mul, (added, beta))
                outer = traced.graph.call_function(torch.add, (value, added))
        node.replace_all_uses_with(outer)
        traced.graph.erase_node(node)
        _absorb_added_constant(traced, value, layer, product.out, product.free)
    calls = [n for n in traced.graph.nodes if n.op == "call_module"]
    counts = Counter(n.target for n in calls)
    for node in calls:
        layer = traced.get_submodule(str(node.target))
        if layer_type(layer) is _LINEAR and layer.bias is None and counts[node.target] == 1:
            free = {"n": len(weight_of(layer))}
            _absorb_added_constant(traced, node, layer, "n", free)


def _layer(product: _Product, alpha: float) -> nn.Module:
    weight = (product.weight * alpha).detach().clone(memory_format=torch.contiguous_format)
    if product.groups == 1:
        layer: nn.Module = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    else:
        groups, (channels, terms, _) = product.groups, weight.shape
        layer = nn.Conv1d(terms * groups, channels, 1, groups=groups, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer.eval()


def _matmul(traced: fx.GraphModule, a: Any, b: Any) -> _Product | None:
    """a @ b where one of the two is a constant matrix or vector."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        return None
    left, right = (_matrix(traced, n) for n in (a, b))
    if (left is None) == (right is None) or constant(traced, b if right is None else a) is not None:
        return None
    swapped, squeezed = [(swap_last, ())], [(torch.squeeze, (-1,))]
    if right is not None:
        if right.dim() == 1:
            return _Product(a, right.unsqueeze(0), b, [], squeezed, "", {})
        return _Product(a, right.t(), b, [], [], "n", {"n": right.shape[1]})
    assert left is not None  # one of the two is a constant
    if left.dim() == 1:
        return _Product(b, left.unsqueeze(0), a, swapped, squeezed, "", {})
    return _Product(b, left, a, swapped, swapped, "mn", {"m": left.shape[0]})


def _matrix(traced: fx.GraphModule, node: fx.Node, dims: Container[int] = (1, 2)) -> Tensor | None:
    found = constant(traced, node)
    if found is None or not found.is_floating_point() or found.dim() not in dims:
        return None
    return found if found.numel() else None


def _einsum(traced: fx.GraphModule, node: fx.Node) -> _Product | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    return _contraction(traced, equation.replace(" ", ""), *operands)


def _contraction(traced: fx.GraphModule, equation: str, *operands: Any) -> _Product | None:
    """An einsum of x and a constant whose letters are contracted, free, or those of a batch."""
    given, _, out = equation.partition("->")
    terms = given.split(",")
    constants = [_matrix(traced, n, range(1, 9)) for n in operands]
    if "->" not in equation or len(terms) != 2 or (constants[0] is None) == (constants[1] is None):
        return None
    which = 0 if constants[0] is not None else 1
    weight, letters, mine = constants[which], terms[1 - which], terms[which]
    assert weight is not None  # one of the two is
    dots = letters.startswith("...")
    if dots != out.startswith("...") or len(mine) != weight.dim():
        return None
    letters, out = letters.removeprefix("..."), out.removeprefix("...")
    batch = [c for c in letters if c in mine and c in out]
    summed = [c for c in letters if c in mine and c not in out]
    free = [c for c in mine if c not in letters]
    rest = [c for c in letters if c not in mine]
    repeated = any(len(set(s)) < len(s) for s in (letters, mine, out))
    complete = sorted(mine) == sorted(batch + summed + free)
    complete = complete and sorted(out) == sorted(rest + batch + free)
    if repeated or not summed or not complete or not (letters + out).isalpha():
        return None
    sizes = dict(zip(mine, weight.shape, strict=True))
    weight = weight.permute([mine.index(c) for c in batch + free + summed])
    weight = weight.flatten(len(batch + free)).reshape(
        math.prod(sizes[c] for c in batch + free), -1
    )
    channels = {c: sizes[c] for c in batch + free}
    x, source = operands[1 - which], operands[which]
    if not batch:
        moved = _reordered(letters, rest + summed) + _flattened(-len(summed), -1)
        back = _unflattened(-1, channels) + _reordered(rest + free, out)
        return _Product(x, weight, source, moved, back, out, channels) if free else None
    if dots or not 1 <= len(rest) <= 2:
        return None
    first, last = rest[:1], rest[1:]  # [first, batch and terms, last] is what a convolution reads
    moved = _reordered(letters, first + batch + summed + last)
    moved += _flattened(1, len(batch + summed)) + ([] if last else [(torch.unsqueeze, (-1,))])
    back = ([] if last else [(torch.squeeze, (-1,))]) + _unflattened(1, channels)
    back += _reordered(first + batch + free + last, out)
    groups = math.prod(sizes[c] for c in batch)
    return _Product(x, weight.unsqueeze(-1), source, moved, back, out, channels, groups)


def _flattened(first: int, last: int) -> list[tuple[Any, tuple]]:
    return [] if first == last else [(torch.flatten, (first, last))]


def _unflattened(dim: int, sizes: dict[str, int]) -> list[tuple[Any, tuple]]:
    return [(torch.unflatten, (dim, tuple(sizes.values())))] if len(sizes) > 1 else []


def _reordered(have: Any, want: Any) -> list[tuple[Any, tuple]]:
    """The call that brings named dimensions, the last ones of a tensor, into another order."""
    if list(have) == list(want):
        return []
    count = len(have)
    places = tuple(list(want).index(c) - count for c in have)
    return [(torch.movedim, (tuple(range(-count, 0)), places))]


def _absorb_added_constant(
    traced: fx.GraphModule, value: fx.Node, layer: nn.Module, out: str, free: dict[str, int]
) -> None:
    """Make a constant that is added to a layer's result its bias, where it has one for a channel.

    out: names of the result's last dimensions. free: those that the channels make, and their sizes.
    """
    user = next(iter(value.users)) if len(value.users) == 1 else value
    if user.target not in ADDITIONS or len(user.args) != 2 or user.kwargs:
        return
    bias = constant(traced, next((a for a in user.args if a is not value), None))
    if bias is None or not free or not bias.is_floating_point() or bias.dim() > len(out):
        return
    shape = (1,) * (len(out) - bias.dim()) + tuple(bias.shape)
    if any(size not in (1, free.get(c, 1)) for c, size in zip(out, shape, strict=True)):
        return
    order = [i for i, c in enumerate(out) if c not in free] + [out.index(c) for c in free]
    bias = bias.detach().reshape(shape).expand([free.get(c, 1) for c in out]).permute(order)
    layer.bias = nn.Parameter(bias.flatten().clone(), requires_grad=False)
    user.replace_all_uses_with(value)
    traced.graph.erase_node(user)
