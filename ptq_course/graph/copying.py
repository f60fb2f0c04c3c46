"""A copy of the user's model to work on, so that the model itself is never changed. Chapter 04."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ptq_course.errors import UnsupportedError
from ptq_course.graph.transformer import rewrite_modules


def plain_module(model: nn.Module) -> nn.Module:
    """The module inside DataParallel and torch.compile.

    UnsupportedError for what is no Python module with values: TorchScript, an exported program,
    parameters on the meta device or of a lazy layer.
    """
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = cast(nn.Module, model._orig_mod)
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
    """A deep copy in evaluation mode, without hooks but those that compute a weight.

    UnsupportedError where it cannot be copied.
    """
    model = plain_module(model)
    computed = [t for part in model.modules() for t in vars(part).values() if _is_computed(t)]
    try:
        twin = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed}).eval()
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Take out "
            "of it what Python's copy.deepcopy() cannot copy."
        ) from error
    _remove_hooks(twin)
    for old, new in zip(model.modules(), twin.modules(), strict=True):
        # Copying nn.TransformerDecoderLayer hides an activation module behind F.relu.
        if isinstance(old, nn.TransformerDecoderLayer) and "activation" not in vars(old):
            vars(new).pop("activation", None)
    return twin


def prepared_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode, its attention rewritten, its computed weights plain."""
    model = copied(model)
    for module in list(model.modules()):
        _run_weight_hooks(module)
        if parametrize.is_parametrized(module):
            _compute_parametrizations(module)
    return rewrite_modules(model)


def _remove_hooks(model: nn.Module) -> None:
    """Hooks belong to the user's model: a graph would skip some, and calibration fire the rest."""
    found = []
    for name, module in model.named_modules():
        before = (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
        behind = (
            module._forward_hooks,
            module._forward_hooks_with_kwargs,
            module._forward_hooks_always_called,
        )
        removed = behind if hooked_weights(module) else (*before, *behind)
        if any(removed):
            found.append(name or "(the model itself)")
        for hooks in removed:
            hooks.clear()
    if found:
        warnings.warn(
            f"forward hooks are left out of the quantized copy: {', '.join(found)}. If one changes "
            "what the module computes, move it into a module's forward().",
            stacklevel=3,
        )


def _is_computed(value: object) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def hooked_weights(module: nn.Module) -> list[str]:
    """The weights that a hook computes before each call, and writes where a parameter was.

    torch.nn.utils.weight_norm, spectral_norm and prune do so, and keep what they compute it from
    as ``weight_g`` or ``weight_orig``.
    """
    if not module._forward_pre_hooks:
        return []
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
        and (name in ("weight", "bias") or {f"{name}_orig", f"{name}_g"} & {*module._parameters})
    ]


def _run_weight_hooks(module: nn.Module) -> None:
    """Compute such weights once more, now, and make plain parameters of them.

    What the attribute holds was computed at the last call, before a checkpoint was loaded.
    """
    names = hooked_weights(module)
    if not names:
        return
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            hook(module, ())
    module._forward_pre_hooks.clear()
    module._state_dict_hooks.clear()
    module._load_state_dict_pre_hooks.clear()
    for name in names:
        value = getattr(module, name).detach().clone()
        delattr(module, name)
        for suffix in ("orig", "g", "v", "u", "mask"):
            module._parameters.pop(f"{name}_{suffix}", None)
            module._buffers.pop(f"{name}_{suffix}", None)
        setattr(module, name, nn.Parameter(value))


def _compute_parametrizations(module: nn.Module) -> None:
    """Make computed weights (weight_norm, ...) plain parameters.

    torch's remove_parametrizations changes the class, which the user's model shares.
    """
    values = {
        name: getattr(module, name).detach().clone() for name in cast(Any, module).parametrizations
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
