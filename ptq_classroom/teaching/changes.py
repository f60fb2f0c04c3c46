"""What a call has done to its arguments, carried over to the side that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ptq_classroom.kit.values import same
from ptq_classroom.teaching import modules

Unpack = Callable[[Any], Any]


def carry_over(args: tuple, after: Any, unpack: Unpack) -> None:
    """Change `args` as the packed arguments `after` the call say."""
    for own, there in zip(args, after["v"], strict=True):
        _bring(own, there, unpack)


def _bring(own: Any, there: Any, unpack: Unpack) -> None:
    if isinstance(own, torch.nn.Module):
        modules.restore(own, there, unpack)
    elif type(own).__name__ == "ModelProto":
        own.CopyFrom(unpack(there))
    elif isinstance(own, list | tuple) and len(own) == len(there["v"]):
        for part, new in zip(own, there["v"], strict=True):
            if isinstance(part, list | tuple | dict | torch.Tensor | np.ndarray):
                _bring(part, new, unpack)
        if isinstance(own, list) and not same(own, new := unpack(there), rtol=0):
            own[:] = new
    elif isinstance(own, list | dict | torch.Tensor | np.ndarray):
        new = unpack(there)
        if same(own, new, rtol=0):
            return
        if isinstance(own, torch.Tensor):
            own.data = new.data
        elif isinstance(own, np.ndarray) and own.shape == new.shape:
            own[...] = new
        elif isinstance(own, list):
            own[:] = new
        elif isinstance(own, dict):
            own.clear()
            own.update(new)
