"""What a check says when an answer is wrong: `Failure`, and the `expect_*` helpers that raise it.

Values may be Python numbers, lists, tuples, NumPy arrays or tensors; numbers are compared, never
types, unless a check asks for the type (`expect_integers`, `expect_dtype`).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch


class Failure(AssertionError):
    """A structured account of one wrong answer; `str(failure)` is what the learner reads."""

    def __init__(
        self,
        headline: str,
        *,
        where: str = "",
        expected: Any = None,
        got: Any = None,
        index: tuple[int, ...] | None = None,
        cause: str = "",
    ):
        super().__init__(headline)
        self.headline = headline
        self.where = where
        self.expected = expected
        self.got = got
        self.index = index
        self.cause = cause
        self.case = ""
        self.inputs: dict[str, Any] = {}
        self.location = ""  # the learner's own line, when their code raised

    def __str__(self) -> str:
        rows = [("", self.headline)]
        if self.location:
            rows.append(("your line", self.location))
        given = [f"{name} = {brief(value)}" for name, value in self.inputs.items()]
        if self.case:
            rows.append(("case", self.case))
        rows += [("input" if i == 0 else "", line) for i, line in enumerate(given)]
        if self.expected is not None or self.got is not None:
            rows.append(("expected", brief(self.expected)))
            rows.append(("got", brief(self.got)))
        if self.index:
            here = list(self.index)
            wanted, found = (as_array(v)[self.index] for v in (self.expected, self.got))
            rows.append(("first off", f"at {here}: expected {number(wanted)}, got {number(found)}"))
        if self.cause:
            rows.append(("likely cause", self.cause))
        head, *rest = rows
        return "\n".join([head[1], *(f"  {label:<13}{text}" for label, text in rest)])


def number(value: Any) -> str:
    """A number as short as it can be read: 0.25, -128, 1.2e-05."""
    value = np.asarray(value).item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def brief(value: Any, limit: int = 8) -> str:
    """One line for any value: arrays with their shape, at most `limit` numbers of each."""
    if isinstance(value, torch.Tensor | np.ndarray):
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
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 120 else text[:117] + "..."


def as_array(value: Any) -> np.ndarray:
    """Any numeric value as a NumPy array; ValueError when it holds no numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        value = [as_array(v) for v in value]
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{brief(value)} holds no numbers")
    return array


def expect_close(
    got: Any,
    expected: Any,
    where: str | tuple[str, ...] = "",
    rtol: float = 1e-5,
    atol: float = 1e-8,
) -> None:
    """Raise `Failure` unless every number of `got` is within rtol*|expected| + atol of `expected`.

    A tuple expects a tuple of as many values; `where` may then name each of them.
    """
    if isinstance(expected, tuple | dict):
        _expect_many(got, expected, where, rtol, atol)
        return
    name = where if isinstance(where, str) and where else "the result"
    wanted = as_array(expected)
    if got is None:
        raise Failure(
            f"{name} is None",
            where=name,
            expected=expected,
            got=None,
            cause="the function returned nothing: is a `return` missing?",
        )
    try:
        found = as_array(got)
    except (ValueError, TypeError):
        raise Failure(
            f"{name} should hold numbers", where=name, expected=expected, got=got
        ) from None
    if found.shape != wanted.shape and not (found.size == wanted.size == 1):
        raise Failure(
            f"{name} has shape {list(found.shape)}; {list(wanted.shape)} was expected",
            where=name,
            expected=expected,
            got=got,
        )
    bad = ~np.isclose(
        found.reshape(wanted.shape).astype(np.float64),
        wanted.astype(np.float64),
        rtol=rtol,
        atol=atol,
        equal_nan=True,
    )
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        share = f" ({int(bad.sum())} of {bad.size} elements)" if bad.size > 1 else ""
        raise Failure(
            f"{name} is not right{share}",
            where=name,
            expected=wanted,
            got=found.reshape(wanted.shape),
            index=index,
        )


def _expect_many(got: Any, expected: tuple | dict, where: Any, rtol: float, atol: float) -> None:
    if isinstance(expected, dict):
        fits = isinstance(got, dict) and set(got) == set(expected)
        names, what = tuple(expected), f"a dictionary with the keys {', '.join(map(str, expected))}"
        pairs = [(got[k], expected[k]) for k in expected] if fits else []
    else:
        numbered = tuple(f"result {i}" for i in range(len(expected)))
        names = where if isinstance(where, tuple) else numbered
        fits = isinstance(got, tuple | list) and len(got) == len(expected)
        what = f"{len(expected)} values: {', '.join(names)}"
        pairs = list(zip(got, expected, strict=True)) if fits else []
    if not fits:
        cause = "the function returned nothing: is a `return` missing?" if got is None else ""
        raise Failure(f"the function should return {what}", expected=expected, got=got, cause=cause)
    for (one, wanted), name in zip(pairs, names, strict=True):
        expect_close(one, wanted, str(name), rtol, atol)


def expect(condition: bool, headline: str, **details: Any) -> None:
    """Raise `Failure(headline, ...)` unless the condition holds."""
    if not bool(condition):
        raise Failure(headline, **details)


def expect_integers(got: Any, where: str = "the result") -> None:
    """Every number is whole (any dtype)."""
    array = as_array(got).astype(np.float64)
    expect(
        bool((array == np.round(array)).all()),
        f"{where} should be whole numbers",
        where=where,
        expected=np.round(array),
        got=array,
        cause="the result was never rounded" if array.size else "",
    )


def expect_dtype(got: Any, dtype: torch.dtype, where: str = "the result") -> None:
    """A tensor or array stored in `dtype`; plain Python numbers are accepted."""
    if isinstance(got, torch.Tensor | np.ndarray | np.generic):
        found, wanted = str(got.dtype).removeprefix("torch."), str(dtype).removeprefix("torch.")
        expect(
            found == wanted,
            f"{where} is stored as {found}, not as {wanted}",
            where=where,
            expected=wanted,
            got=found,
        )


def expect_unchanged(before: Any, after: Any, name: str) -> None:
    """The caller's `name` still holds what it held before the call."""
    expect(
        same(before, after),
        f"the function changed its input `{name}` in place",
        where=name,
        expected=before,
        got=after,
        cause="an in-place operation (x -= ..., x[...] = ..., x.clamp_()): work on a copy",
    )


def expect_raises(error: type[BaseException], fn: Any, *args: Any, **kwargs: Any) -> None:
    """`fn(*args)` refuses with `error`."""
    try:
        got = fn(*args, **kwargs)
    except Failure as failure:
        if isinstance(failure.__cause__, error):
            return
        raise
    except error:
        return
    raise Failure(
        f"{error.__name__} was expected and nothing was raised", expected=error.__name__, got=got
    )


def same(a: Any, b: Any, rtol: float = 1e-6) -> bool:
    """Equal structure and (almost) equal numbers; used for diagnosis and change detection."""
    if isinstance(a, BaseException) or isinstance(b, BaseException):
        return type(a) is type(b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y, rtol) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], rtol) for k in a)
    if isinstance(a, torch.nn.Module) and isinstance(b, torch.nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()), rtol) and a.training == b.training
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


def _equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, int | float | str | bytes | bool | type(None)):
        return a == b
    fields = getattr(a, "__dict__", None)
    return fields == getattr(b, "__dict__", None) if fields and _simple(fields) else True


def _simple(fields: dict) -> bool:
    return all(isinstance(v, int | float | str | bool | type(None)) for v in fields.values())
