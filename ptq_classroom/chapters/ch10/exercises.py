"""Checks of chapter 10: overlap, one layer at a time, a byte budget, and the cheapest plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.chapters.ch10.widths import int4
from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer of WRONG_INTERVALS calls it)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect, expect_close, roughly

# 10.1 ------------------------------------------------------------------------------------------


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of box i of a with box i of b: [n, 4] and [n, 4] give [n]."""
    low = torch.maximum(a[:, :2], b[:, :2])
    high = torch.minimum(a[:, 2:], b[:, 2:])
    inside = (high - low).clamp(min=0).prod(1)
    area_a = (a[:, 2:] - a[:, :2]).prod(1)
    area_b = (b[:, 2:] - b[:, :2]).prod(1)
    return inside / (area_a + area_b - inside)


def _boxes() -> Iterator[tuple[str, dict[str, Any]]]:
    a = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    yield "half of each", {"a": a, "b": torch.tensor([[2.0, 0.0, 6.0, 2.0]])}
    yield "the same box", {"a": a, "b": a.clone()}
    yield "one inside the other", {"a": a, "b": torch.tensor([[1.0, 0.5, 2.0, 1.5]])}
    yield "apart in x and in y", {"a": a, "b": torch.tensor([[10.0, 20.0, 12.0, 26.0]])}
    yield "apart in x and in y, by a little", {"a": a, "b": torch.tensor([[5.0, 3.0, 9.0, 8.0]])}
    yield "apart in x alone", {"a": a, "b": torch.tensor([[10.0, 0.5, 12.0, 3.0]])}
    yield "they touch", {"a": a, "b": torch.tensor([[4.0, 0.0, 6.0, 2.0]])}
    g = torch.Generator().manual_seed(1001)
    low = 40 * torch.rand(2, 8, 2, generator=g)
    made = torch.cat([low, low + 5 + 30 * torch.rand(2, 8, 2, generator=g)], 2)
    yield "eight pairs", {"a": made[0], "b": made[1]}


def _by_rows(a: Tensor, b: Tensor) -> list[float]:
    result = []
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(a.tolist(), b.tolist(), strict=True):
        width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
        inside = width * height if width > 0 and height > 0 else 0.0
        both = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)
        result.append(inside / (both - inside))
    return result


def _by_sides(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = a.double().numpy(), b.double().numpy()  # type: ignore[assignment]
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])  # type: ignore
    inside = np.where((sides > 0).all(1), sides[:, 0] * sides[:, 1], 0)
    sizes = [np.diff(x.reshape(-1, 2, 2), axis=1)[:, 0].prod(1) for x in (a, b)]  # type: ignore
    return inside / (sizes[0] + sizes[1] - inside)


IOU = Exercise(
    id="10.1", title="How well do two boxes agree?", minutes=7, difficulty=2,
    signature="iou(a, b)", reference=iou, cases=_boxes, agree=roughly, returns="the overlaps",
    compare=lambda got, expected, **_: expect_close(got, expected, "the overlaps", 1e-5, 1e-6),
    accepted=(_by_rows, _by_sides),
    diagnoses=(
        (".clamp(min=0) =>",
         "boxes that are apart: both sides are negative, and their product is positive. A side "
         "below 0 counts as 0"),
        ("(high - low).clamp(min=0).prod(1) => (high - low).prod(1).clamp(min=0)",
         "clamp the sides, not the area: two negative sides make a positive area"),
        ("(high - low).clamp(min=0).prod(1) => (high - low).prod(1)",
         "inside / (area_a + area_b - inside) => (inside / (area_a + area_b - inside)).clamp(0, 1)",
         "clamp the sides, not the ratio: boxes that are apart in both directions by a little have "
         "two negative sides, and a positive product"),
        ("area_a + area_b - inside => area_a + area_b",
         "the sum counts the intersection twice; the union is the sum less the intersection"),
        ("(area_a + area_b - inside) => torch.minimum(area_a, area_b)",
         "over the smaller box: a small box inside a large one would be perfect"),
        ("(area_a + area_b - inside) => area_a", "over one box: it should not matter which is a"),
        ("torch.maximum(a[:, :2], b[:, :2]) => torch.minimum(a[:, :2], b[:, :2])",
         "torch.minimum(a[:, 2:], b[:, 2:]) => torch.maximum(a[:, 2:], b[:, 2:])",
         "that is the box around both; the intersection begins at the larger left side and ends at "
         "the smaller right one"),
        ("(a[:, 2:] - a[:, :2]).prod(1) => a[:, 2:].prod(1)",
         "(b[:, 2:] - b[:, :2]).prod(1) => b[:, 2:].prod(1)",
         "the last two numbers are right and bottom, not width and height"),
        ("(high - low) => (high - low + 1)",
         "+ 1 is for boxes that name their last pixel; here right and bottom lie behind it"),
    ),
    hints=(
        ("Where does the intersection begin and end?",
         "At the larger of the two left sides and the smaller of the two right sides; likewise "
         "top and bottom."),
        ("More than 0 for boxes that are apart",
         "Then a side is negative: `.clamp(min=0)` before you multiply."),
        ("The union", "area + area - intersection: the sum counts the common part twice."),
    ),
)  # fmt: skip


# 10.2 ------------------------------------------------------------------------------------------


def one_at_a_time(model: nn.Module, metric: Callable[[nn.Module], float]) -> dict[str, float]:
    """What the metric loses when one layer alone has 4-bit weights: name -> loss, from input on."""
    before = metric(model)
    lost = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            kept = layer.weight.data
            layer.weight.data = int4(kept)
            lost[name] = before - metric(model)
            layer.weight.data = kept
    return lost


def _networks() -> Iterator[tuple[str, dict[str, Any]]]:
    for seed, net, shape in (
        (1, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)),
         (40, 6)),
        (2, nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(),
                          nn.Linear(12, 4)), (20, 2, 6, 6)),
        (3, nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 7), nn.ReLU())}), (30, 5)),
    ):  # fmt: skip
        g = torch.Generator().manual_seed(1020 + seed)
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=g)
        x = torch.randn(*shape, generator=g)
        yield f"network {seed}", {"model": net, "metric": functools.partial(_agreement, x)}


def _agreement(x: Tensor, model: nn.Module) -> float:
    """A metric of a network alone: a little curved, so that it tells many differences apart."""
    run = model["body"] if isinstance(model, nn.ModuleDict) else model
    with torch.no_grad():
        return torch.tanh(run(x)).pow(2).mean().item()


def _on_copies(model: nn.Module, metric: Callable[[nn.Module], float]) -> dict[str, float]:
    import copy

    lost = {}
    for name, part in model.named_modules():
        if type(part) in (nn.Linear, nn.Conv2d):
            other = copy.deepcopy(model)
            with torch.no_grad():
                weight: Any = other.get_submodule(name).weight
                weight.copy_(int4(weight))
            lost[name] = metric(model) - metric(other)
    return lost


def _with_saved_state(model: nn.Module, metric: Callable[[nn.Module], float]) -> dict[str, float]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    names = [n for n, m in model.named_modules() if hasattr(m, "weight")]
    best, lost = metric(model), {}
    for name in names:
        key = f"{name}.weight"
        model.load_state_dict({**state, key: int4(state[key])})
        lost[name] = best - metric(model)
    model.load_state_dict(state)
    return lost


def _all_but_one(model: nn.Module, metric: Callable[[nn.Module], float]) -> dict[str, float]:
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if hasattr(m, "weight")}
    before, kept = metric(model), {n: m.weight.data for n, m in layers.items()}
    lost = {}
    for name in layers:
        for other, layer in layers.items():
            layer.weight.data = kept[other] if other == name else int4(kept[other])
        lost[name] = before - metric(model)
    for name, layer in layers.items():
        layer.weight.data = kept[name]
    return lost


ONE_AT_A_TIME = Exercise(
    id="10.2", title="One layer at a time", minutes=9, difficulty=3,
    signature="one_at_a_time(model, metric)", reference=one_at_a_time, cases=_networks,
    compare=lambda got, expected, **_: expect_close(got, expected, "the losses", 1e-4, 1e-6),
    agree=roughly, returns="the losses",
    accepted=(_on_copies, _with_saved_state),
    diagnoses=(
        ("layer.weight.data = kept => pass",
         "the weight was not put back: the next layers are measured in a network that is already "
         "damaged, and the caller's network stays so"),
        ("before - metric(model) => metric(model) - before",
         "the sign: a loss is what there was before less what there is now"),
        ("before - metric(model) => metric(model)",
         "the metric itself: asked for is what it loses against the network as it was"),
        ("(nn.Conv2d, nn.Linear) => nn.Linear", "convolutions have weights, too"),
        ("(nn.Conv2d, nn.Linear) => nn.Conv2d", "linear layers have weights, too"),
        ("int4(kept) => torch.zeros_like(kept)",
         "the layer was switched off, not rounded: use int4"),
        ("int4(kept) => kept.round()",
         "rounded to whole numbers: int4 finds a scale for the layer"),
        (_all_but_one, "all layers but this one were rounded: that is the other sweep"),
    ),
    hints=(
        ("How do I find the layers?",
         "`model.named_modules()` gives (path, module) in order; take those that are nn.Conv2d or "
         "nn.Linear."),
        ("How do I change one weight and bring it back?",
         "Keep `layer.weight.data` under a name, assign `int4(...)` of it, measure, assign what "
         "you kept."),
    ),
)  # fmt: skip


# 10.3 ------------------------------------------------------------------------------------------


def greedy(sensitivity: dict[str, float], bytes: dict[str, int], budget: int) -> list[str]:
    """The layers to keep wide: most loss avoided for a byte first, as long as the bytes last."""
    order = sorted(sensitivity, key=lambda name: sensitivity[name] / bytes[name], reverse=True)
    wide, spent = [], 0
    for name in order:
        if sensitivity[name] > 0 and spent + bytes[name] <= budget:
            wide.append(name)
            spent += bytes[name]
    return wide


def _budgets() -> Iterator[tuple[str, dict[str, Any]]]:
    sensitivity = {"stem": 2.0, "body": 6.0, "neck": 1.0, "head": 3.0}
    bytes = {"stem": 10, "body": 100, "neck": 20, "head": 5}
    for budget in (15, 4, 30, 135, 120):
        yield f"a budget of {budget}", {
            "sensitivity": sensitivity, "bytes": bytes, "budget": budget,
        }  # fmt: skip
    gains = {"a": -0.5, "b": 0.7, "c": 0.0, "d": 0.2}
    yield "layers that lose nothing", {
        "sensitivity": gains, "bytes": {"a": 1, "b": 40, "c": 2, "d": 30}, "budget": 1000,
    }  # fmt: skip
    rng = np.random.default_rng(1003)
    for number in range(3):
        names = [f"layer{i}" for i in range(9)]
        yield (
            f"nine layers, {number + 1}",
            {
                "sensitivity": {
                    n: float(v) for n, v in zip(names, rng.gamma(1, 1, 9), strict=True)
                },
                "bytes": {n: int(v) for n, v in zip(names, rng.integers(5, 60, 9), strict=True)},
                "budget": 90,
            },
        )


def _same_choice(got: Any, expected: list[str], **_: Any) -> None:
    ok = isinstance(got, list | tuple | set | dict) and all(isinstance(n, str) for n in got)
    expect(ok, "the function should return the names of layers", expected=expected, got=got)
    same = sorted(got) == sorted(expected)
    expect(same, "these are other layers", expected=sorted(expected), got=sorted(got))


def _agree_in_any_order(got: Any, wrong: Any) -> bool:
    try:
        return sorted(got) == sorted(wrong)
    except TypeError:
        return False


def _round_by_round(sensitivity: dict, bytes: dict, budget: int) -> set[str]:
    left, wide = dict(sensitivity), set()
    while left:
        best = max(left, key=lambda name: left[name] / bytes[name])
        loss = left.pop(best)
        if loss > 0 and bytes[best] <= budget:
            wide.add(best)
            budget -= bytes[best]
    return wide


def _sorted_by_numpy(sensitivity: dict, bytes: dict, budget: int) -> tuple[str, ...]:
    names = list(sensitivity)
    rates = np.array([sensitivity[n] / bytes[n] for n in names])
    wide: tuple[str, ...] = ()
    for i in np.argsort(-rates):
        total = sum(bytes[n] for n in wide) + bytes[names[i]]
        if rates[i] > 0 and total <= budget:
            wide += (names[i],)
    return wide


def _stops(sensitivity: dict, bytes: dict, budget: int) -> list[str]:
    order = sorted(sensitivity, key=lambda name: sensitivity[name] / bytes[name], reverse=True)
    wide, spent = [], 0
    for name in order:
        if sensitivity[name] <= 0 or spent + bytes[name] > budget:
            break
        wide.append(name)
        spent += bytes[name]
    return wide


GREEDY = Exercise(
    id="10.3", title="Bytes where they count", minutes=8, difficulty=3,
    signature="greedy(sensitivity, bytes, budget)", reference=greedy, cases=_budgets,
    compare=_same_choice, agree=_agree_in_any_order, returns="the layers",
    accepted=(_round_by_round, _sorted_by_numpy),
    diagnoses=(
        ("sensitivity[name] / bytes[name], => sensitivity[name],",
         "the largest loss first, whatever it costs: a large layer may eat the budget of many "
         "small ones. Divide by the bytes"),
        ("sensitivity[name] / bytes[name], => 1 / bytes[name],",
         "the smallest layers first: what they avoid counts as well"),
        ("reverse=True => reverse=False", "the wrong end: the most loss for a byte comes first"),
        ("sensitivity[name] > 0 and =>",
         "a layer that loses nothing was kept wide: those bytes buy nothing"),
        ("<= budget => < budget", "the budget may be used up to the last byte"),
        ("spent + bytes[name] <= budget => spent <= budget",
         "the budget is exceeded: ask before you spend, not after"),
        ("spent + bytes[name] <= budget => bytes[name] <= budget",
         "each layer fits by itself; together they must fit"),
        (_stops, "it stops at the first layer that does not fit; a smaller one behind it may"),
    ),
    hints=(
        ("Which layer comes first?", "The one with the most loss avoided for each of its bytes."),
        ("A layer does not fit", "Go on to the next one: it may be smaller."),
    ),
)  # fmt: skip


# 10.4 ------------------------------------------------------------------------------------------


def choose_plan(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The smallest plan that surely loses at most 0.01, and the interval of its change."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_PLAN = Exercise(
    id="10.4", title="Decide: the smallest file that is good enough", minutes=8, difficulty=3,
    signature="choose_plan(scores, baseline)", reference=choose_plan,
    cases=functools.partial(limit_cases, ("4 bits", "mixed", "INT8", "FP32"), 0.01, 1040),
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [IOU, ONE_AT_A_TIME, GREEDY, CHOOSE_PLAN]
