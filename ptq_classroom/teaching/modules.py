"""Networks as descriptions: classes of torch.nn by name, with their numbers and settings.

A class of an exercise's own travels as its source, from the judge to the student's process only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SIMPLE = (bool, int, float, str, type(None))
_own_classes: dict[str, type[nn.Module]] = {}  # by name, on both sides


def describe(module: nn.Module, pack: Callable[[Any], Any]) -> dict:
    """JSON of a module; `pack` packs its tensors and settings. Hooks are counted, not sent."""
    kind = type(module)
    settings = {k: v for k, v in vars(module).items() if _is_setting(k, v)}
    found: dict[str, Any] = {
        "t": "module",
        "class": kind.__name__,
        "settings": {k: pack(v) for k, v in settings.items()},
        "parameters": {k: pack(v) for k, v in module._parameters.items()},
        "buffers": {k: pack(v) for k, v in module._buffers.items()},
        "parts": {k: v if v is None else describe(v, pack) for k, v in module._modules.items()},
        "training": module.training,
        "hooks": [len(module._forward_hooks), len(module._forward_pre_hooks)],
    }
    if getattr(nn, kind.__name__, None) is not kind:
        try:
            found["source"] = inspect.getsource(kind)
        except (OSError, TypeError):
            found["source"] = ""
        _own_classes.setdefault(kind.__name__, kind)
    return found


def build(found: dict, unpack: Callable[[Any], Any], trusted: bool = False) -> nn.Module:
    """The module of a description. trusted: the source of an unknown class may be run."""
    name = found["class"]
    kind = getattr(nn, name, None) or _own_classes.get(name)
    if kind is None and trusted and found.get("source"):
        kind = _own_classes[name] = _defined(name, found["source"])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"no class of modules: {str(name)[:40]}")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for key, value in found["settings"].items():
        value = unpack(value)
        if _is_setting(key, value):
            module.__dict__[key] = value
    for key, value in found["parameters"].items():
        tensor = unpack(value)
        made = tensor if tensor is None else nn.Parameter(tensor.detach(), tensor.requires_grad)
        module.register_parameter(key, made)
    for key, value in found["buffers"].items():
        module.register_buffer(key, unpack(value))
    for key, value in found["parts"].items():
        module.add_module(key, None if value is None else build(value, unpack, trusted))
    module.training = bool(found["training"])
    return module


def restore(module: nn.Module, found: dict, unpack: Callable[[Any], Any]) -> None:
    """Bring `module` into the state that a description of it says: numbers, modes, hooks left."""
    for key, value in found["settings"].items():
        if _is_setting(key, value := unpack(value)):
            module.__dict__[key] = value
    for own, there in ((module._parameters, "parameters"), (module._buffers, "buffers")):
        for key, value in own.items():
            if value is not None and key in found[there]:
                value.data = unpack(found[there][key]).data
    module.training = bool(found["training"])
    forward, before = (max(0, min(int(n), 100)) for n in found["hooks"])
    for _ in range(forward - len(module._forward_hooks)):
        module.register_forward_hook(lambda *_: None)
    for _ in range(before - len(module._forward_pre_hooks)):
        module.register_forward_pre_hook(lambda *_: None)
    for key, part in module._modules.items():
        if part is not None and found["parts"].get(key):
            restore(part, found["parts"][key], unpack)


def _is_setting(name: str, value: Any) -> bool:
    if name == "training" or (name.startswith("_") and not name.startswith("_reversed")):
        return False
    items = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(item, _SIMPLE) for item in items)


def _defined(name: str, source: str) -> type[nn.Module]:
    space: dict[str, Any] = {"torch": torch, "nn": nn, "Tensor": Tensor, "np": np, "Any": Any}
    exec(compile("from __future__ import annotations\n" + source, f"<{name}>", "exec"), space)
    return space[name]
