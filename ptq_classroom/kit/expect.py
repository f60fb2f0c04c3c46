"""What a check says when an answer is wrong: `Failure`, and the `expect_*` helpers that raise it.

Values may be Python numbers, lists, tuples, NumPy arrays or tensors; numbers are compared, never
types, unless a check asks for the type (`expect_integers`, `expect_dtype`).
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import torch

from ptq_classroom.kit.values import as_array, brief, number, same

NOTHING = "the function returned nothing: is a `return` missing?"


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
        structure: bool = False,
        tentative: bool = False,
    ):
        super().__init__(headline)
        self.headline = headline
        self.where = where
        self.expected = expected
        self.got = got
        self.index = index
        self.cause = cause
        self.structure = structure  # not the numbers are wrong but what holds them
        self.tentative = tentative  # a known wrong answer that does the same is the better cause
        self.case = ""
        self.inputs: dict[str, Any] = {}
        self.location = ""  # the learner's own line, when their code raised

    def __str__(self) -> str:
        rows = []
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
        return "\n".join([self.headline, *(_row(label, text) for label, text in rows)])


def _row(label: str, text: str) -> str:
    """An indented line with its label; a long one is continued under itself."""
    return textwrap.fill(
        text,
        100,
        initial_indent=f"  {label:<13}",
        subsequent_indent=" " * 15,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def expect_close(
    got: Any,
    expected: Any,
    where: str | tuple[str, ...] = "",
    rtol: float = 1e-5,
    atol: float = 1e-8,
) -> None:
    """Raise `Failure` unless every number of `got` is within rtol*|expected| + atol of `expected`.

    A tuple expects as many values (a tuple, a list, an array or tensor of one dimension); `where`
    may then name each of them.
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
            cause=NOTHING,
            structure=True,
        )
    try:
        found = as_array(got)
    except (ValueError, TypeError):
        raise Failure(
            f"{name} should hold numbers", where=name, expected=expected, got=got, structure=True
        ) from None
    if found.shape != wanted.shape and not (found.size == wanted.size == 1):
        raise Failure(
            f"{name} has shape {list(found.shape)}; {list(wanted.shape)} was expected",
            where=name,
            expected=expected,
            got=got,
            structure=True,
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
            f"wrong {name.removeprefix('the ')}{share}",
            where=name,
            expected=wanted,
            got=found.reshape(wanted.shape),
            index=index,
        )


def roughly(got: Any, wanted: Any) -> bool:
    """Equal up to the order in which float32 sums were taken; or the same error."""
    if same(got, wanted):
        return True
    try:
        expect_close(got, wanted, rtol=1e-4, atol=1e-5)
    except (Failure, TypeError, ValueError):
        return False
    return True


def several(got: Any, count: int) -> list[Any] | None:
    """The `count` values that a function returned, in whatever holds them; None if it did not."""
    flat = isinstance(got, torch.Tensor | np.ndarray) and got.ndim == 1
    if not (isinstance(got, tuple | list) or flat) or len(got) != count:
        return None
    return list(got)


def _expect_many(got: Any, expected: tuple | dict, where: Any, rtol: float, atol: float) -> None:
    if isinstance(expected, dict):
        fits = isinstance(got, dict) and set(got) == set(expected)
        names, what = tuple(expected), f"a dictionary with the keys {', '.join(map(str, expected))}"
        pairs = [(got[k], expected[k]) for k in expected] if fits else []
    else:
        numbered = tuple(f"result {i}" for i in range(len(expected)))
        names = where if isinstance(where, tuple) else numbered
        values = several(got, len(expected))
        fits = values is not None
        what = f"{len(expected)} values: {', '.join(names)}"
        pairs = list(zip(values, expected, strict=True)) if fits else []
    if not fits:
        cause = NOTHING if got is None else ""
        raise Failure(
            f"the function should return {what}",
            expected=expected,
            got=got,
            cause=cause,
            structure=True,
        )
    for (one, wanted), name in zip(pairs, names, strict=True):
        if one is None:
            raise Failure(f"{name} is None", where=str(name), expected=wanted, structure=True)
        expect_close(one, wanted, str(name), rtol, atol)


def expect(condition: bool, headline: str, **details: Any) -> None:
    """Raise `Failure(headline, ...)` unless the condition holds."""
    if not bool(condition):
        raise Failure(headline, **details)


def expect_number(got: Any, where: str = "the result") -> None:
    """One number, not a list or an array that holds one: the notebooks go on computing with it."""
    try:
        single = not isinstance(got, tuple | list | dict) and as_array(got).ndim == 0
    except (ValueError, TypeError):
        single = False
    if got is not None and not single:
        raise Failure(
            f"{where} should be one number",
            where=where,
            expected="a number",
            got=got,
            structure=True,
        )


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
        tentative=True,
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
