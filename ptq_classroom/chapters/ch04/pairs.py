"""Exercise 04.2: count the Q/DQ pairs of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ptq_classroom.kit.exercises import Exercise

Ops = dict[str, tuple[str, tuple[str, ...]]]  # name -> (kind, names of the values it reads)


def qdq_pairs(ops: Ops, merge: tuple[str, ...]) -> int:
    """How many values need a Q/DQ pair when every operation computes with integers."""
    pairs = 0
    for name, (kind, _) in ops.items():
        users = [other for other, (_, inputs) in ops.items() if name in inputs]
        merges = len(users) == 1 and ops[users[0]][0] in merge
        if users and kind != "flatten" and not merges:
            pairs += 1
    return pairs


CHAIN: Ops = {
    "x": ("input", ()),
    "conv1": ("conv", ("x",)),
    "bn1": ("bn", ("conv1",)),
    "relu1": ("relu", ("bn1",)),
    "conv2": ("conv", ("relu1",)),
}
BLOCK: Ops = {
    "x": ("input", ()),
    "conv1": ("conv", ("x",)),
    "bn1": ("bn", ("conv1",)),
    "relu1": ("relu", ("bn1",)),
    "conv2": ("conv", ("relu1",)),
    "bn2": ("bn", ("conv2",)),
    "add": ("add", ("x", "bn2")),
    "relu2": ("relu", ("add",)),
    "pool": ("pool", ("relu2",)),
    "flatten": ("flatten", ("pool",)),
    "fc": ("linear", ("flatten",)),
}
BRANCH: Ops = {  # conv1's own output is needed as well: its ReLU cannot merge into it
    "x": ("input", ()),
    "conv1": ("conv", ("x",)),
    "relu1": ("relu", ("conv1",)),
    "conv2": ("conv", ("relu1",)),
    "add": ("add", ("conv1", "conv2")),
    "conv3": ("conv", ("add",)),
}


TWO_RELUS: Ops = {  # both readers of conv1 are of a kind that merges, and yet neither is alone
    "x": ("input", ()),
    "conv1": ("conv", ("x",)),
    "relu_a": ("relu", ("conv1",)),
    "relu_b": ("relu", ("conv1",)),
    "add": ("add", ("relu_a", "relu_b")),
    "conv2": ("conv", ("add",)),
}


def _graphs() -> Iterator[tuple[str, dict[str, Any]]]:
    for label, ops in (("a chain", CHAIN), ("a residual block", BLOCK), ("a branch", BRANCH)):
        yield f"{label}, nothing merges", {"ops": ops, "merge": ()}
        yield f"{label}, bn and relu merge", {"ops": ops, "merge": ("bn", "relu")}
    yield "a residual block, only bn merges", {"ops": BLOCK, "merge": ("bn",)}
    yield "two ReLUs read one value", {"ops": TWO_RELUS, "merge": ("bn", "relu")}


def _users(ops: Ops, name: str) -> list[str]:
    return [other for other, (_, inputs) in ops.items() if name in inputs]


def _count(ops: Ops, merge: tuple[str, ...], *, keep: Any) -> int:
    return sum(1 for name in ops if keep(ops, merge, name, _users(ops, name)))


def _with_output(ops: Ops, merge: tuple[str, ...]) -> int:
    return qdq_pairs(ops, merge) + 1


def _without_input(ops: Ops, merge: tuple[str, ...]) -> int:
    return qdq_pairs(ops, merge) - 1


def _per_arrow(ops: Ops, merge: tuple[str, ...]) -> int:
    pairs = 0
    for name, (kind, _) in ops.items():
        users = _users(ops, name)
        if kind != "flatten" and not (len(users) == 1 and ops[users[0]][0] in merge):
            pairs += len(users)
    return pairs


def _flatten_counts(ops: Ops, merge: tuple[str, ...]) -> int:
    return _count(ops, merge, keep=lambda o, m, n, u: u and not (len(u) == 1 and o[u[0]][0] in m))


def _any_user_merges(ops: Ops, merge: tuple[str, ...]) -> int:
    return _count(
        ops,
        merge,
        keep=lambda o, m, n, u: u and o[n][0] != "flatten" and not any(o[v][0] in m for v in u),
    )


def _all_users_merge(ops: Ops, merge: tuple[str, ...]) -> int:
    return _count(
        ops,
        merge,
        keep=lambda o, m, n, u: u and o[n][0] != "flatten" and not all(o[v][0] in m for v in u),
    )


def _never_merges(ops: Ops, merge: tuple[str, ...]) -> int:
    return qdq_pairs(ops, ())


def _every_operation(ops: Ops, merge: tuple[str, ...]) -> int:
    return len(ops)


def _pairs_by_counting(ops: Ops, merge: tuple[str, ...]) -> int:
    arrows: dict[str, list[str]] = {}
    for kind, inputs in ops.values():
        for name in set(inputs):
            arrows.setdefault(name, []).append(kind)
    return sum(
        ops[name][0] != "flatten" and not (len(kinds) == 1 and kinds[0] in merge)
        for name, kinds in arrows.items()
    )


def _pairs_by_subtraction(ops: Ops, merge: tuple[str, ...]) -> np.int64:
    used = {name: _users(ops, name) for name in ops}
    values = [name for name in ops if used[name]]
    moved = [name for name in values if ops[name][0] == "flatten"]
    free = [n for n in values if [ops[u][0] for u in used[n]] in [[kind] for kind in merge]]
    return np.int64(len(values) - len(set(moved) | set(free)))


PAIRS = Exercise(
    id="04.2",
    title="Count the Q/DQ pairs",
    minutes=9,
    difficulty=3,
    signature="qdq_pairs(ops, merge)",
    reference=qdq_pairs,
    cases=_graphs,
    returns="the number of pairs",
    accepted=(_pairs_by_counting, _pairs_by_subtraction),
    diagnoses=(
        (_with_output, "one too many: what the network returns stays in floating point"),
        (_without_input, "one too few: the picture is a value too, and must be quantized"),
        (
            _per_arrow,
            "counted arrows: a value that two operations read is quantized once, with one scale",
        ),
        (_flatten_counts, "flatten only moves numbers: its output keeps the scale it had"),
        (
            _any_user_merges,
            "merged although someone else reads the value too: then it must exist by itself",
        ),
        (_all_users_merge, "two ReLUs read it: neither reads it alone, so neither merges"),
        (_never_merges, "nothing was merged: look at `merge`"),
        (_every_operation, "this is the number of operations; some values need no pair"),
    ),
    hints=(
        (
            "Who reads a value?",
            "Collect the operations whose inputs contain its name. Nobody: it is what the "
            "network returns.",
        ),
        (
            "When does an operation merge?",
            "When it is of a kind in `merge` and the only one that reads the value before it. "
            "Then that value is never written down, and needs no pair.",
        ),
    ),
)
