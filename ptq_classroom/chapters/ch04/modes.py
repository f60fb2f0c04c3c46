"""Exercise 04.3: find the modules that behave as in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect
from ptq_classroom.kit.values import same

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def suspects(model: nn.Module) -> list[str]:
    """Names of the batch norms and dropouts that are in training mode."""
    kinds = (
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
        nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    )  # fmt: skip
    return [name for name, m in model.named_modules() if isinstance(m, kinds) and m.training]


def _small_net() -> nn.Sequential:
    torch.manual_seed(43)
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), block, nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(4 * 4 * 4, 2),
    )  # fmt: skip


def _modes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "train() was called and eval() forgotten", {"model": _small_net().train()}
    yield "everything in eval mode", {"model": _small_net().eval()}
    part = _small_net().eval()
    part[2].train()
    yield "eval() on the network, train() on one block", {"model": part}
    frozen = _small_net().train()
    frozen[1].eval()
    frozen[2][1].eval()
    yield "train() on the network, its batch norms frozen", {"model": frozen}
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).train()
    yield "training mode, but nothing that cares", {"model": plain}


def _same_names(got: Any, expected: list[str], **_: Any) -> None:
    listed = isinstance(got, Iterable) and not isinstance(got, str)
    names = list(got) if listed else []
    if not listed or not all(isinstance(name, str) for name in names):
        raise Failure("suspects should return a list of names", expected=expected, got=got)
    expect(
        sorted(names) == sorted(expected),
        "these are not the modules that misbehave",
        expected=expected,
        got=names,
    )


def _changes_nothing(fn: Callable[..., list[str]]) -> None:
    """Evidence must not change what it looks at: modes and running statistics stay."""
    for model in (_small_net().train(), _small_net().eval()):
        before = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
        fn(model)
        modes = [m.training for m in model.modules()]
        expect(
            modes == before[0],
            "the model is in another mode than before the call",
            expected=before[0],
            got=modes,
            cause="eval() or train() was called on it: look, do not touch",
        )
        expect(
            same(before[1], dict(model.state_dict())),
            "the model's running statistics changed during the call",
            cause="a forward pass in training mode changes them: read `module.training`",
        )


def _only_the_root(model: nn.Module) -> list[str]:
    kinds = (*NORMS, *DROPOUTS)
    if not model.training:
        return []
    return [name for name, m in model.named_modules() if isinstance(m, kinds)]


def _everything_training(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if m.training]


def _every_kind(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, (*NORMS, *DROPOUTS))]


def _after_eval(model: nn.Module) -> list[str]:
    model.eval()
    return suspects(model)


def _children_only(model: nn.Module) -> list[str]:
    kinds = (*NORMS, *DROPOUTS)
    return [name for name, m in model.named_children() if isinstance(m, kinds) and m.training]


def _no_dropout(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, NORMS) and m.training]


def _suspects_by_name(model: nn.Module) -> set[str]:
    return {
        name
        for name, module in model.named_modules()
        if module.training and type(module).__name__.rstrip("123d") in ("BatchNorm", "Dropout")
    }


def _suspects_one_by_one(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, (*NORMS, *DROPOUTS)) and module.training:
            yield name


def _suspects_by_walking(model: nn.Module, prefix: str = "") -> list[str]:
    found = []
    for name, child in model.named_children():
        if child.training and hasattr(child, "running_mean" if "Norm" in str(child) else "p"):
            found.append(prefix + name)
        found += _suspects_by_walking(child, f"{prefix}{name}.")
    return found


MODES = Exercise(
    id="04.3",
    title="Which modules look at the batch?",
    minutes=8,
    difficulty=2,
    signature="suspects(model)",
    reference=suspects,
    cases=_modes,
    compare=_same_names,
    check=_changes_nothing,
    may_change_inputs=True,  # a cause of its own is named for it
    accepted=(_suspects_by_name, _suspects_by_walking, _suspects_one_by_one),
    diagnoses=(
        (
            _only_the_root,
            "asked the whole network only: every module has a `training` of its own, and a "
            "part may differ",
        ),
        (
            _everything_training,
            "these are all modules in training mode; convolutions and ReLUs do the same in "
            "both modes",
        ),
        (_every_kind, "these are all batch norms and dropouts; look at `module.training`"),
        (_after_eval, "eval() was called first, so there is nothing left to see"),
        (_children_only, "named_children() stops at the first level; use named_modules()"),
        (_no_dropout, "dropout behaves differently in training, too"),
    ),
    hints=(
        (
            "How do I see the mode?",
            "Each module has the attribute `training`. model.eval() sets it to False on every "
            "one of them, model.train() to True.",
        ),
        (
            "Which kinds of modules care?",
            "Batch norm takes the statistics of the batch in training mode. Dropout zeroes "
            "values at random. The others here do the same in both modes.",
        ),
    ),
)
