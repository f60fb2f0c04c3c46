"""Fusion: fold batch norm into the layer before it, drop what only training needs.

Chapter 04. At inference batch norm is one multiply and one add per channel with constants, so a
convolution can absorb it. Every operation that disappears is one fewer place to quantize. The
formula is `fold_batch_norm`; `fuse` finds the places in a traced graph.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ptq_course.errors import QuantizationError
from ptq_course.graph.functional import own_constants
from ptq_course.graph.layer_types import (
    bias_of,
    channel_axis,
    layer_type,
    output_channels,
    row_repeats,
    weight_of,
)
from ptq_course.graph.norms import (
    BATCH_NORMS,
    BatchNorm,
    argument,
    batch_norm_at,
    factor_of,
    fold_into_reader,
    may_read_rows,
    write_as_convolution,
)

TRAINING_ONLY = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Identity,
)
_DROPOUT_FUNCTIONS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
}


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    *,
    channel_axis: int = 0,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that equals layer, then batch norm, in evaluation mode.

    ``weight`` has its output channels on ``channel_axis`` (0 for Conv and Linear, 1 for
    ConvTranspose, whose ``groups`` each have their own rows); the others are [channels]. With
    factor = gamma / sqrt(var + eps):  w' = w * factor,  b' = (b - mean) * factor + beta.
    Computed in float64, returned in the dtype of ``weight`` (Ioffe and Szegedy, 2015, for batch
    norm; Jacob et al., 2018, section 3.2, for folding it). Raises QuantizationError where a
    variance is negative or a length differs from the number of channels.
    """
    groups = groups if channel_axis == 1 else 1  # only ConvTranspose keeps channels per group
    channels = weight.shape[channel_axis] * groups
    for name, value in {
        "mean": mean,
        "var": var,
        "gamma": gamma,
        "beta": beta,
        "bias": bias,
    }.items():
        if value is not None and value.shape != (channels,):
            raise QuantizationError(
                f"fold_batch_norm: {name} has shape {tuple(value.shape)}, the weight has "
                f"{channels} channels on axis {channel_axis}."
            )
    factor = factor_of(var, gamma, eps)
    shape = [1] * weight.dim()
    shape[channel_axis] = weight.shape[channel_axis]
    by_group = weight.double().unflatten(0, (groups, -1))
    folded_weight = (by_group * factor.reshape(groups, *shape)).flatten(0, 1)
    start = torch.zeros_like(factor) if bias is None else bias.double()
    folded_bias = (start - mean.double()) * factor
    if beta is not None:
        folded_bias = folded_bias + beta.double()
    return folded_weight.to(weight.dtype), folded_bias.to(weight.dtype)


def fuse(module: fx.GraphModule) -> fx.GraphModule:
    """A new traced module without batch norms that follow a layer, dropouts and identities.

    ``module`` must be in evaluation mode (`tracing.trace` sees to it): in training mode batch norm
    uses the statistics of the batch, which no constant can replace. A batch norm (a module, or
    F.batch_norm with running statistics) is folded only where it is the layer's sole consumer.
    gamma and beta stay on the layer as ``folded_gamma`` and ``folded_beta``, because they tell the
    mean and spread of its output (chapter 11). A batch norm after a Linear must normalize its
    features: a graph does not tell a [N, L, C] tensor, whose axis 1 it would take, from [N, C].
    What `sequences.leave_norms` has noted, from an example, stays.

    A batch norm that no layer in front can absorb (behind a ReLU, an add, a concatenation) is left
    to the layer behind it, or becomes a depthwise convolution (`norms`).
    """
    if module.training or any(isinstance(m, BATCH_NORMS) and m.training for m in module.modules()):
        raise QuantizationError(
            "fuse: the model is in training mode, where batch norm depends on the batch. "
            "Call model.eval() first."
        )
    module = copy.deepcopy(module)
    own_constants(module)
    _remove_training_only(module)
    for node in list(module.graph.nodes):
        batch_norm = batch_norm_at(module, node)
        if batch_norm is None or not _can_absorb(module, node, batch_norm):
            continue
        _fold_into(module.get_submodule(str(batch_norm.source.target)), batch_norm)
        node.replace_all_uses_with(batch_norm.source)
        module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if (late := batch_norm_at(module, node)) is not None:
            fold_into_reader(module, node, late) or write_as_convolution(module, node, late)
    for node in reversed(list(module.graph.nodes)):
        if node.op == "get_attr" and not node.users:  # statistics of F.batch_norm
            module.graph.erase_node(node)
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _remove_training_only(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        dropped = node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS
        if node.op == "call_module":
            dropped = isinstance(module.get_submodule(str(node.target)), TRAINING_ONLY)
        elif dropped and argument(node, 2, "training", node.target in _ON_BY_DEFAULT) is True:
            warnings.warn(
                f"{node.name}: dropout is called without training=self.training and would drop "
                "values at inference too; it is removed.",
                stacklevel=3,
            )
        if dropped:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


_ON_BY_DEFAULT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}


def _can_absorb(module: fx.GraphModule, node: fx.Node, batch_norm: BatchNorm) -> bool:
    """Is the node before a layer that only this batch norm reads, with as many channels?"""
    before = batch_norm.source
    if before.op != "call_module" or len(before.users) != 1:
        return False
    layer = module.get_submodule(str(before.target))
    kind = layer_type(layer)
    if kind is None or not kind.foldable:
        return False
    if output_channels(layer) != len(batch_norm.mean):  # it normalizes another axis
        return False
    if isinstance(layer, nn.Linear) and not may_read_rows(module, node):  # likewise
        return False
    return sum(n.op == "call_module" and n.target == before.target for n in module.graph.nodes) == 1


def _fold_into(layer: nn.Module, batch_norm: BatchNorm) -> None:
    old, bias = weight_of(layer), bias_of(layer)
    weight, bias = fold_batch_norm(
        old.detach(),
        None if bias is None else bias.detach(),
        batch_norm.mean,
        batch_norm.var,
        batch_norm.gamma,
        batch_norm.beta,
        batch_norm.eps,
        channel_axis=channel_axis(layer),
        groups=row_repeats(layer),
    )
    layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
    batch_norm.remember(layer)
