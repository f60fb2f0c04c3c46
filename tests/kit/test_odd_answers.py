"""Every exercise meets answers that make no sense: each is rejected with a text, none crashes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ptq_classroom.kit import checking
from ptq_classroom.kit.exercises import Exercise, everything

ALL = everything()
ids = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)
# Their answers are names, or a network: there is no number in them to damage.
NAMES = {"00.3", "04.3", "06.3", "10.3", "15.1", "15.2", "17.2"}


class Opaque:
    pass


NAN = float("nan")
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a string": lambda: "s",
    "an object": Opaque,
    "an empty list": list,
    "a ragged list": lambda: [[1], [1, 2]],
    "a list of lists": lambda: [["a"], ["b"]],
    "a list that holds itself": lambda: functools.reduce(lambda a, _: a.append(a) or a, "x", []),
    "deeply nested": lambda: functools.reduce(lambda inner, _: [inner], range(2000), 1),
    "three numbers": lambda: (1, 2, 3),
    "a dictionary": lambda: {"a": object()},
    "a set": lambda: {1, 2},
    "a generator": lambda: iter([]),
    "a function": lambda: len,
    "a class": lambda: Opaque,
    "a module": lambda: torch.nn.Linear(2, 2),
    "NaN": lambda: NAN,
    "infinity": lambda: float("inf"),
    "-1": lambda: -1,
    "a huge integer": lambda: 10**400,
    "True": lambda: True,
    "a complex number": lambda: 1j,
    "bytes": lambda: b"bytes",
    "a pair of NaN": lambda: (NAN, NAN),
    "NaN and a number": lambda: (NAN, 3),
    "infinity and a number": lambda: (float("inf"), 0),
    "a pair of None": lambda: (None, None),
    "a pair of strings": lambda: ("a", "b"),
    "a pair of tensors": lambda: (torch.ones(3), torch.ones(3)),
    "a pair of lists": lambda: ([1, [2]], [[3], 4]),
    "a triple of None": lambda: (None, None, None),
    "an array of strings": lambda: np.array(["a"]),
    "an array of objects": lambda: np.array([None, 1], dtype=object),
    "an empty tensor": lambda: torch.empty(0),
    "a tensor of no dimension": lambda: torch.tensor(NAN),
    "a large tensor": lambda: torch.full((3, 3), 1e38),
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a compressed tensor": lambda: torch.eye(3).to_sparse_csr(),
    "a tensor without data": lambda: torch.empty(2, device="meta"),
    "a pair with one without data": lambda: (torch.empty(2, device="meta"), 1),
    "a tensor in bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "a complex tensor": lambda: torch.ones(3, dtype=torch.complex64),
    "a tensor with gradient": lambda: torch.ones(3, requires_grad=True),
}


@ids
@pytest.mark.filterwarnings("ignore")
def test_answers_that_make_no_sense_are_rejected_with_a_text(exercise: Exercise, capsys):
    wrong = {}
    for name, make in ODD.items():
        made = make()
        try:
            checking.check(exercise.id, lambda *args, made=made: made)
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:200]
            capsys.readouterr()
            continue
        said = capsys.readouterr().out
        if not said.startswith(f"✗ {exercise.id}"):
            wrong[name] = said[:200]
    assert wrong == {}


@ids
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_such_function_is_rejected_with_a_text(exercise: Exercise, capsys):
    for odd in (3, None, "f", Opaque, functools.partial(max), len, lambda: 1, lambda *a: 1 / 0):
        checking.check(exercise.id, odd)
        assert capsys.readouterr().out.startswith(f"✗ {exercise.id}"), odd


def changed(value: Any, number: Callable[[Any], Any], tensor: Callable[[Any], Any]) -> Any:
    """The value with every number and every array in it changed; names stay."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return tensor(value)
    if isinstance(value, float | int | np.generic):
        return number(value)
    if isinstance(value, dict):
        return {key: changed(part, number, tensor) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [changed(part, number, tensor) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if callable(value) and not isinstance(value, torch.nn.Module):
        return lambda *args, **kwargs: changed(value(*args, **kwargs), number, tensor)
    return value


def all_nan(value: Any) -> Any:
    def fill(array: Any) -> Any:
        if isinstance(array, np.ndarray):
            return np.full(array.shape, NAN)
        return torch.full(array.shape, NAN)

    return changed(value, lambda _: NAN, fill)


def one_more(value: Any) -> Any:
    """Each number becomes a pair, each array gets a dimension of 2 in front."""
    return changed(
        value,
        lambda n: torch.tensor([n, n]) if abs(n) < 2**60 else [n, n],
        lambda a: np.stack([a, a]) if isinstance(a, np.ndarray) else torch.stack([a, a]),
    )


def flat(value: Any) -> Any:
    """Each array with its first element once more, in one dimension."""

    def longer(array: Any) -> Any:
        array = array.reshape(-1)
        both = [array, array[:1]]
        return np.concatenate(both) if isinstance(array, np.ndarray) else torch.cat(both)

    return changed(value, lambda n: [n, n], longer)


@ids
@pytest.mark.parametrize("damage", [all_nan, one_more, flat], ids=lambda d: d.__name__)
@pytest.mark.filterwarnings("ignore")
def test_nan_and_another_shape_are_rejected(exercise: Exercise, damage, capsys):
    if exercise.id in NAMES:
        pytest.skip("the answer holds names, or is a network: no number to change")
    checking.check(exercise.id, lambda *args: damage(exercise.reference(*args)))
    said = capsys.readouterr().out
    assert said.startswith(f"✗ {exercise.id}"), said
