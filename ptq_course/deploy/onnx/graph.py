"""What is changed in a traced network so that its file fuses to integer kernels.

Nothing here changes what the network computes.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ptq_course.deploy.onnx.layers import implied_clamp
from ptq_course.graph.kinds import KINDS, Kind, every_form, operation_of
from ptq_course.grids.affine import QParams
from ptq_course.simulation.layers import ActivationQuantizer

IN_PLACE = {operator.iadd, operator.imul, operator.itruediv, "add_", "mul_", "div_"}
_SEVERAL = every_form("chunk split tensor_split unbind")
_POOL_MODULES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOL_FUNCTIONS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def drop_implied_clamps(module: fx.GraphModule) -> None:
    """Remove a ReLU or ReLU6 whose clamp the quantizer behind it performs anyway.

    Runtimes know this rule for ReLU; for ReLU6 they compare float32 bounds and can miss it by one
    unit in the last place, which would leave the convolution in floating point.
    """
    for node in list(module.graph.nodes):
        bounds = _clamp_bounds(module, node)
        users = list(node.users)
        if bounds is None or len(users) != 1 or users[0].op != "call_module":
            continue
        quantizer = module.get_submodule(users[0].target)
        qparams = quantizer.qparams if isinstance(quantizer, ActivationQuantizer) else None
        if isinstance(qparams, QParams) and implied_clamp(qparams, *bounds):
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.recompile()


def repeat_quantizers(module: fx.GraphModule) -> None:
    """Quantize again, to the same grid, behind what only moves codes: padding, resizing, splitting.

    The values do not change. But the runtime looks for Q/DQ right in front of a kernel, and carries
    it through a reshape or max pooling only; a convolution behind anything else would stay real.
    """
    if any(node.target in IN_PLACE for node in module.graph.nodes):
        return  # what is changed through a view must stay one tensor
    for node in list(module.graph.nodes):
        if _is_quantizer(module, node):
            _repeat_behind(module, node, str(node.target))
    module.recompile()


def _repeat_behind(module: fx.GraphModule, node: fx.Node, quantizer: str) -> None:
    for user in list(node.users):
        moves = KINDS.get(operation_of(module, user)) is Kind.INHERIT
        if not moves or user.all_input_nodes[0] is not node:
            continue
        _repeat_behind(module, user, quantizer)
        readers = [u for u in user.users if u.op != "output" and not _is_quantizer(module, u)]
        readers = [u for u in readers if KINDS.get(operation_of(module, u)) is not Kind.INHERIT]
        if readers and not _is_tuple(user):
            with module.graph.inserting_after(user):
                again = module.graph.call_module(quantizer, (user,))
            for reader in readers:
                reader.replace_input_with(user, again)


def _is_tuple(node: fx.Node) -> bool:
    """chunk and split return a tuple, and so does a slice of it."""
    if node.target is operator.getitem:
        return isinstance(node.args[1], slice) and _is_tuple(node.all_input_nodes[0])
    return node.target in _SEVERAL


def _is_quantizer(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return isinstance(module.get_submodule(str(node.target)), ActivationQuantizer)


def _clamp_bounds(module: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    target = (
        type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    )
    if target in (nn.ReLU6, F.relu6):
        return (0.0, 6.0)
    if target in (nn.ReLU, F.relu, torch.relu, "relu", "relu_"):
        return (0.0, math.inf)
    return None


class _GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ptq.global_average_pool(x)


def use_global_average_pool(module: fx.GraphModule, examples: tuple[Tensor, ...]) -> None:
    """Write pooling to one value, and the mean over all positions, as GlobalAveragePool.

    The runtimes have an integer kernel for it and none for ReduceMean. ``examples`` tell how many
    dimensions a mean runs over.
    """
    means = [node for node in module.graph.nodes if node.target in (torch.mean, "mean")]
    if means:
        _Shapes(module).run(*examples)
    for node in means:
        _replace_mean(module, node)
    for node in module.graph.nodes:
        if node.op == "call_module":
            pool = module.get_submodule(str(node.target))
            if isinstance(pool, _POOL_MODULES) and set(_sizes(pool.output_size)) == {1}:
                parent, _, name = node.target.rpartition(".")
                setattr(module.get_submodule(parent), name, _GlobalAveragePool())
        elif node.target in _POOL_FUNCTIONS and set(_sizes(_argument(node, 1))) == {1}:
            node.target = torch.ops.ptq.global_average_pool.default
            node.args, node.kwargs = node.args[:1], {}
    module.recompile()


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor in ``node.meta["shape"]``."""

    def run_node(self, n: fx.Node) -> object:
        with torch.no_grad():
            result = super().run_node(n)
        n.meta["shape"] = result.shape if isinstance(result, Tensor) else None
        return result


def _replace_mean(module: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0]
    shape = source.meta.get("shape") if isinstance(source, fx.Node) else None
    dims = _sizes(_argument(node, 1, "dim"))
    keep = bool(_argument(node, 2, "keepdim"))
    if shape is None or len(shape) < 3 or None in dims:
        return
    if sorted(d % len(shape) for d in dims) != list(range(2, len(shape))):
        return
    node.op, node.target = "call_function", torch.ops.ptq.global_average_pool.default
    node.args, node.kwargs = (source,), {}
    if not keep:
        users = list(node.users)
        with module.graph.inserting_after(node):
            flat = module.graph.call_function(torch.flatten, (node, 1))
        for user in users:
            user.replace_input_with(node, flat)


def _argument(node: fx.Node, position: int, name: str = "output_size") -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _sizes(value: object) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
