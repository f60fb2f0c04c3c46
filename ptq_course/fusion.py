"""Fusion: fold batch norm into the layer before it, drop what only training needs.

Chapter 04. At inference batch norm is one multiply and one add per channel with constants, so a
convolution can absorb it. Every operation that disappears is one fewer place to quantize. The
formula is `fold_batch_norm`; `fuse` finds the places in a traced graph.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import QuantizationError

FOLDABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRAINING_ONLY = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


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
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that equals layer, then batch norm, in evaluation mode.

    ``weight`` has its output channels on ``channel_axis`` (0 for Conv and Linear, 1 for
    ConvTranspose without groups); the others are [channels]. With
    factor = gamma / sqrt(var + eps):  w' = w * factor,  b' = (b - mean) * factor + beta.
    Computed in float64, returned in the dtype of ``weight`` (Ioffe and Szegedy, 2015, for batch
    norm; Jacob et al., 2018, section 3.2, for folding it). Raises QuantizationError where a
    variance is negative or a length differs from the number of channels.
    """
    channels = weight.shape[channel_axis]
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
    if (var < 0).any():
        raise QuantizationError("fold_batch_norm: a variance is negative; is it the running_var?")
    factor = (var.double() + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma.double()
    shape = [1] * weight.dim()
    shape[channel_axis] = -1
    folded_weight = weight.double() * factor.reshape(shape)
    start = torch.zeros_like(factor) if bias is None else bias.double()
    folded_bias = (start - mean.double()) * factor
    if beta is not None:
        folded_bias = folded_bias + beta.double()
    return folded_weight.to(weight.dtype), folded_bias.to(weight.dtype)


def fuse(module: fx.GraphModule) -> fx.GraphModule:
    """A new traced module without batch norms that follow a layer, dropouts and identities.

    ``module`` must be in evaluation mode (`graph.trace` sees to it): in training mode batch norm
    uses the statistics of the batch, which no constant can replace. A batch norm is folded only
    where it is the layer's sole consumer. gamma and beta stay on the layer as ``folded_gamma`` and
    ``folded_beta``, because they tell the mean and spread of its output (chapter 11).
    """
    if module.training or any(isinstance(m, BATCH_NORMS) and m.training for m in module.modules()):
        raise QuantizationError(
            "fuse: the model is in training mode, where batch norm depends on the batch. "
            "Call model.eval() first."
        )
    module = copy.deepcopy(module)
    _remove_training_only(module)
    for node in list(module.graph.nodes):
        layer_node = _layer_before_batch_norm(module, node)
        if layer_node is None:
            continue
        _fold_into(module, layer_node, module.get_submodule(node.target))
        node.replace_all_uses_with(layer_node)
        module.graph.erase_node(node)
    module.graph.lint()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _remove_training_only(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        removable = (
            node.op == "call_module"
            and isinstance(module.get_submodule(node.target), TRAINING_ONLY)
        ) or (node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS)
        if removable:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


_DROPOUT_FUNCTIONS = {
    nn.functional.dropout,
    nn.functional.dropout1d,
    nn.functional.dropout2d,
    nn.functional.dropout3d,
    nn.functional.alpha_dropout,
}


def _layer_before_batch_norm(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    if node.op != "call_module" or not isinstance(module.get_submodule(node.target), BATCH_NORMS):
        return None
    batch_norm = module.get_submodule(node.target)
    before = node.all_input_nodes[0]
    if batch_norm.running_mean is None or before.op != "call_module" or len(before.users) != 1:
        return None
    layer = module.get_submodule(before.target)
    if not isinstance(layer, FOLDABLE) or (getattr(layer, "groups", 1) != 1 and _transposed(layer)):
        return None
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if channels != batch_norm.num_features:  # a batch norm over another axis than the channels
        return None
    shared = sum(
        1 for n in module.graph.nodes if n.op == "call_module" and n.target == before.target
    )
    return before if shared == 1 else None


def _transposed(layer: nn.Module) -> bool:
    return "Transpose" in type(layer).__name__


def _fold_into(module: fx.GraphModule, layer_node: fx.Node, batch_norm: nn.Module) -> None:
    layer = module.get_submodule(layer_node.target)
    weight, bias = fold_batch_norm(
        layer.weight.detach(),
        None if layer.bias is None else layer.bias.detach(),
        batch_norm.running_mean,
        batch_norm.running_var,
        None if batch_norm.weight is None else batch_norm.weight.detach(),
        None if batch_norm.bias is None else batch_norm.bias.detach(),
        batch_norm.eps,
        channel_axis=1 if _transposed(layer) else 0,
    )
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    for name, value in {"gamma": batch_norm.weight, "beta": batch_norm.bias}.items():
        kept = None if value is None else value.detach().clone()
        layer.register_buffer(f"folded_{name}", kept, persistent=False)
