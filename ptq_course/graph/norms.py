"""Batch norms in a traced graph; what becomes of one that no layer in front absorbs. Chapter 04.

At inference a batch norm is y = x * factor + shift, per channel. Behind a ReLU, an add or a
concatenation no layer can take it in. Where its only reader is a layer without padding, that one
does, exactly; elsewhere it becomes a depthwise convolution with kernels of one element, which every
runtime has an integer kernel for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ptq_course.errors import QuantizationError
from ptq_course.graph.functional import constant, insert_layer
from ptq_course.graph.kinds import (
    ARITHMETIC,
    BORDERS,
    FUSABLE,
    JOINS,
    KINDS,
    MAX_POOLS,
    RESIZING,
    Kind,
    called,
    every_form,
    operation_of,
)
from ptq_course.graph.layer_types import LAYER_TYPES, bias_of, layer_type, weight_of
from ptq_course.graph.tracing import SECOND_CALL

STAYS = "ptq_norm_stays"  # in a node's meta: no Linear may absorb it (`sequences`)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RANKS = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5} | {
    kind: row.token_dimensions + 1
    for kind, row in LAYER_TYPES.items()
    if kind in _CONVOLUTIONS.values() or kind in _TRANSPOSED
}
# What gives as many dimensions as it reads, whatever that is.
_KEEPS_RANK = (
    ARITHMETIC - every_form("mean sum")
    | JOINS | BORDERS | RESIZING | frozenset(MAX_POOLS) | every_form(" ".join(FUSABLE))
    | {operation for operation, kind in KINDS.items() if kind in (Kind.CURVE, Kind.CLAMP)}
    | {nn.GELU, nn.ELU, nn.PReLU, nn.Mish, nn.Softplus, F.gelu, F.elu, F.prelu}
) - {"sum", torch.sum}  # fmt: skip


def factor_of(var: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    """gamma / sqrt(var + eps), [channels], in float64; QuantizationError for a variance < 0."""
    if (var < 0).any():
        raise QuantizationError("batch norm: a variance is negative; is it the running_var?")
    factor = (var.double() + eps).rsqrt()
    return factor if gamma is None else factor * gamma.double()


class BatchNorm(NamedTuple):
    """A batch norm with constant statistics, each [channels], and the node that it normalizes."""

    source: fx.Node
    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float

    def line(self) -> tuple[Tensor, Tensor]:
        """factor and shift of y = x * factor + shift, each [channels], in float64."""
        factor = factor_of(self.var, self.gamma, self.eps)
        shift = -self.mean.double() * factor
        return factor, shift if self.beta is None else shift + self.beta.double()

    def remember(self, layer: nn.Module) -> None:
        """Keep gamma and beta on a layer: mean and spread of its output (chapter 11)."""
        gamma = torch.ones_like(self.mean) if self.gamma is None else self.gamma.clone()
        beta = torch.zeros_like(self.mean) if self.beta is None else self.beta.clone()
        layer.register_buffer("folded_gamma", gamma, persistent=False)
        layer.register_buffer("folded_beta", beta, persistent=False)


def batch_norm_at(module: fx.GraphModule, node: fx.Node) -> BatchNorm | None:
    """The batch norm that a node computes with running statistics, as a module or a function."""
    if node.op == "call_module":
        norm = module.get_submodule(str(node.target))
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            return None
        source, eps = node.all_input_nodes[0], norm.eps
        found = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    elif node.op == "call_function" and node.target is F.batch_norm:
        names = ("running_mean", "running_var", "weight", "bias")
        nodes = [argument(node, 1 + i, name, None) for i, name in enumerate(names)]
        found = tuple(constant(module, n) for n in nodes)
        computed = any(n is not None and t is None for n, t in zip(nodes, found, strict=True))
        uses_batch = argument(node, 5, "training", False) is not False
        if computed or uses_batch or found[0] is None:
            return None
        source, eps = argument(node, 0, "input", None), argument(node, 7, "eps", 1e-5)
    else:
        return None
    mean, var, gamma, beta = (None if t is None else t.detach() for t in found)
    return BatchNorm(source, cast(Tensor, mean), cast(Tensor, var), gamma, beta, eps)


def may_read_rows(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a batch norm that may read rows of features, as far as is known."""
    if STAYS in node.meta or batch_norm_at(module, node) is None:
        return False
    return not isinstance(called(module, node), (nn.BatchNorm2d, nn.BatchNorm3d))


def argument(node: fx.Node, position: int, name: str, default: object) -> Any:
    """An argument of a function by position or keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def fold_into_reader(module: fx.GraphModule, node: fx.Node, batch_norm: BatchNorm) -> bool:
    """Let the layer that alone reads a batch norm do its work; False where none can.

    W (f * x + s) + b = (W f) x + (W s + b): each input channel's weights take its factor, the bias
    takes the shifts. Padding is in the way, unless nothing is shifted: around the image it puts 0,
    which the batch norm in front would have turned into something else.
    """
    (reader, *others) = node.users or [None]
    layer = None if reader is None or others else called(module, reader)
    if reader is None or layer is None or layer_type(layer) is None or reader.args != (node,):
        return False
    if sum(n.target == reader.target for n in module.graph.nodes if n.op == "call_module") > 1:
        return False
    factor, shift = batch_norm.line()
    if not (isinstance(layer, nn.Linear) or _reads_plainly(layer, bool(shift.any()))):
        return False
    weight, groups = weight_of(layer), getattr(layer, "groups", 1)
    inputs = weight.shape[1] * groups
    if len(factor) != inputs or weight.dim() < 2:
        return False
    if isinstance(layer, nn.Linear) and not (
        may_read_rows(module, node) and _are_features(module, batch_norm.source)
    ):
        return False  # its channels are on axis 1, the layer reads the last
    by_group = weight.detach().double().unflatten(0, (groups, -1))
    shape = (groups, 1, -1, *[1] * (weight.dim() - 2))
    moved = (by_group * shift.reshape(shape)).flatten(2).sum(2).flatten()
    old = bias_of(layer)
    bias = moved if old is None else moved + old.detach().double()
    scaled = (by_group * factor.reshape(shape)).flatten(0, 1)
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
    node.replace_all_uses_with(batch_norm.source)
    module.graph.erase_node(node)
    return True


def _are_features(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value is rows of features, [N, C], as far as a graph tells."""
    while operation_of(module, node) in _KEEPS_RANK and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return operation_of(module, node) in {nn.Linear, nn.Flatten, *every_form("flatten")}


def _reads_plainly(layer: nn.Module, shifted: bool) -> bool:
    """Whether a convolution reads every value as it is, with nothing put around them."""
    if not isinstance(layer, tuple(_CONVOLUTIONS.values())):
        return False
    sides = cast(str | tuple[int, ...], layer.padding)
    return not (shifted and sides != "valid" and any(side != 0 for side in sides))


def write_as_convolution(module: fx.GraphModule, node: fx.Node, batch_norm: BatchNorm) -> None:
    """Replace a batch norm, in place, by a depthwise convolution with kernels of one element.

    Left as it is where the graph does not tell how many dimensions its input has: two, say.
    """
    kind = _CONVOLUTIONS.get(rank(module, node) or 0)
    if kind is None:
        return
    factor, shift = batch_norm.line()
    mean, channels = batch_norm.mean, len(factor)
    layer = kind(channels, channels, 1, groups=channels, device="meta")
    dims = len(layer.kernel_size)
    layer.weight = nn.Parameter(factor.reshape(-1, 1, *[1] * dims).to(mean.dtype))
    layer.bias = nn.Parameter(shift.to(mean.dtype))
    batch_norm.remember(layer.to(mean.device).eval())
    if node.op == "call_function":
        owner = argument(node, 1, "running_mean", None)
        with module.graph.inserting_before(node):
            call = insert_layer(module, layer, batch_norm.source, owner, node)
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
        return
    calls = [n for n in module.graph.nodes if n.op == "call_module" and n.target == node.target]
    if len(calls) > 1:  # a second call is a second layer, as everywhere
        node.target = f"{node.target}{SECOND_CALL}{len(calls)}"
    module.add_submodule(str(node.target), layer)


def rank(module: fx.GraphModule, node: fx.Node) -> int | None:
    """How many dimensions a value has, where a convolution or a norm near it tells; else None.

    Looked for in both directions, through what leaves the number of dimensions as it is.
    """
    seen, pending = {node}, [node]
    while pending:
        value = pending.pop()
        operation = operation_of(module, value)
        found = _RANKS.get(operation)
        if found is not None:
            return found
        if operation in _KEEPS_RANK or operation is F.batch_norm or operation in BATCH_NORMS:
            near = [n for n in value.all_input_nodes if n.op != "get_attr"]
        else:
            near = []
        for user in value.users:
            told = _RANKS.get(operation_of(module, user))
            if told is not None and user.all_input_nodes[:1] == [value]:
                return told
            if operation_of(module, user) in _KEEPS_RANK and len(user.all_input_nodes) == 1:
                near.append(user)
        pending += [n for n in near if n not in seen]
        seen.update(near)
    return None
