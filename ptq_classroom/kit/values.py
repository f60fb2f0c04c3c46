"""Any value that an exercise may meet: shown in one line, compared, converted, copied.

Python numbers, lists, tuples, dicts, NumPy arrays, tensors and modules.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from numbers import Number
from typing import Any

import numpy as np
import torch

NUMERIC = "biufc"  # kinds of NumPy's numeric types


def number(value: Any) -> str:
    """A number as short as it can be read: 0.25, -128, 1.2e-05."""
    value = np.asarray(value).item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def brief(value: Any, limit: int = 8) -> str:
    """One line for any value: arrays with their shape, at most `limit` numbers of each."""
    if isinstance(value, torch.Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind in NUMERIC
    ):
        array = as_array(value)
        if array.ndim == 0:
            return number(array)
        flat = array.reshape(-1)
        text = ", ".join(number(v) for v in flat[:limit]) + (", ..." if flat.size > limit else "")
        shape = f"  (shape {list(array.shape)})" if array.ndim > 1 or flat.size > limit else ""
        return f"[{text}]{shape}"
    if isinstance(value, tuple | list) and all(
        isinstance(v, int | float | tuple | list | np.generic | np.ndarray | torch.Tensor)
        for v in value
    ):
        text = ", ".join(brief(v, limit) for v in value[:limit])
        text += ", ..." if len(value) > limit else ""
        return f"({text})" if isinstance(value, tuple) else f"[{text}]"
    if isinstance(value, float | np.floating):
        return number(value)
    if callable(value) and not isinstance(value, torch.nn.Module):
        return f"{getattr(value, '__name__', type(value).__name__)} (a function)"
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else text[:117] + "..."


def as_array(value: Any) -> np.ndarray:
    """Any numeric value as a NumPy array; ValueError when it holds no numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        value = [as_array(v) for v in value]
    array = np.asarray(value)
    if array.dtype.kind == "O" and all(isinstance(v, Number | torch.Tensor) for v in array.flat):
        array = array.astype(np.float64)  # fractions, or numbers kept as Python objects
    if array.dtype.kind not in NUMERIC:
        raise ValueError(f"{brief(value)} holds no numbers")
    return array


def same(a: Any, b: Any, rtol: float = 1e-6) -> bool:
    """Equal structure and (almost) equal numbers; used for diagnosis and change detection."""
    if isinstance(a, BaseException) or isinstance(b, BaseException):
        return type(a) is type(b) and str(a) == str(b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y, rtol) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], rtol) for k in a)
    if isinstance(a, torch.nn.Module) and isinstance(b, torch.nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()), rtol) and _modes(a) == _modes(b)
    try:
        x, y = as_array(a), as_array(b)
    except (ValueError, TypeError):
        return _equal(a, b)
    if x.shape != y.shape:
        return x.size == y.size == 1 and same(x.item(), y.item(), rtol)
    return bool(
        np.allclose(
            x.astype(np.float64), y.astype(np.float64), rtol=rtol, atol=1e-12, equal_nan=True
        )
    )


def like(example: Any, value: Any, given: Collection[torch.dtype] = ()) -> Any:
    """`value` as an array, tensor, list, tuple or number: whichever `example` is.

    A floating-point tensor gets the type of the example, unless it has the type of an input. A list
    of whole numbers, which has no type, gets that of the example where it holds them.
    """
    if isinstance(example, torch.Tensor):
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(as_array(value))
        whole = not (tensor.is_floating_point() or example.is_floating_point())
        if isinstance(value, (list, tuple)) and whole and tensor.equal(tensor.to(example.dtype)):
            return tensor.to(example.dtype)
        floating = tensor.is_floating_point() and example.is_floating_point()
        return tensor.to(example.dtype) if floating and tensor.dtype not in given else tensor
    if isinstance(example, np.ndarray):
        return value if isinstance(value, np.ndarray) else as_array(value)
    if isinstance(example, list):
        return _listed(value)
    if type(example) is tuple:
        values = list(value)
        if len(values) < len(example) and np.ndim(values[-1]):  # (choice, (low, high)) says it too
            values = [*values[:-1], *values[-1]]
        if len(example) == len(values):
            return tuple(like(one, got, given) for one, got in zip(example, values, strict=True))
    if isinstance(example, bool | int | float):
        number = as_array(value).item()
        fits = not isinstance(example, int) or number == int(number)
        return type(example)(number) if fits else number
    return value


def _listed(value: Any) -> list:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else list(value)


def alike(a: Any, b: Any) -> bool:
    """The same structure, whatever the numbers: (1, 2) is not like tensor([1, 2]), nor 1 like [1].

    For an answer of the wrong structure: a known wrong answer explains it only if it has that one.
    """
    if isinstance(a, BaseException) or isinstance(b, BaseException):
        return type(a) is type(b)
    for kind in (tuple | list, dict):
        if isinstance(a, kind) or isinstance(b, kind):
            if not (isinstance(a, kind) and isinstance(b, kind) and len(a) == len(b)):
                return False
            if kind is dict:
                return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
            return all(alike(x, y) for x, y in zip(a, b, strict=True))
    try:
        return as_array(a).shape == as_array(b).shape
    except (ValueError, TypeError):
        return type(a) is type(b)


def snapshot(value: Any) -> Any:
    """A copy that later changes cannot reach; what cannot be copied is returned as it is."""
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(snapshot(v) for v in value)
    if type(value) is dict:
        return {k: snapshot(v) for k, v in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def _modes(model: torch.nn.Module) -> tuple[list[bool], list[bool]]:
    """Which modules are in training mode, and which parameters get gradients."""
    modes = [module.training for module in model.modules()]
    return modes, [parameter.requires_grad for parameter in model.parameters()]


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, int | float | str | bytes | bool | type(None)):
        return a == b
    fields = getattr(a, "__dict__", None)
    return fields == getattr(b, "__dict__", None) if fields and _simple(fields) else True


def _simple(fields: dict) -> bool:
    return all(isinstance(v, int | float | str | bool | type(None)) for v in fields.values())
