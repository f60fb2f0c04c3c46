"""Checks of chapter 06: watch layers with hooks, an ablation, and a report with a verdict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

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
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.examine import Probe
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import NOTHING, expect, expect_close

# 06.1 ------------------------------------------------------------------------------------------


def collect(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Name of each Linear and Conv2d -> smallest and largest value of its input."""
    ranges: dict[str, tuple[float, float]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def watch(module: Any, inputs: Any, output: Any, name: str = name) -> None:
                x = inputs[0]
                low, high = ranges.get(name, (float("inf"), float("-inf")))
                ranges[name] = min(low, x.min().item()), max(high, x.max().item())

            handles.append(module.register_forward_hook(watch))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return ranges


class _Small(nn.Module):
    """A Conv2d and a Linear of its own, two Conv2d inside a container, to be observed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(601)
            self.stem = nn.Conv2d(2, 2, 1)
            self.norm = nn.BatchNorm2d(2)  # another one in training mode
            self.features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2))
            self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.norm(self.stem(x))).mean((2, 3)))


def _observed(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[float, float]]:
    """The answer by another road: the inputs of each layer, recomputed by hand."""
    inputs: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for x in batches:
            values = [model.norm(model.stem(x))]
            for layer in model.features:
                values.append(layer(values[-1]))
            inputs.setdefault("stem", []).append(x)
            inputs.setdefault("features.0", []).append(values[0])
            inputs.setdefault("features.2", []).append(values[2])
            inputs.setdefault("head", []).append(values[3].mean((2, 3)))
    return {
        name: (min(x.min().item() for x in xs), max(x.max().item() for x in xs))
        for name, xs in inputs.items()
    }


HOOKS = "a hook stays on the model: keep the handles and remove() them"
PRE_HOOKS = "a pre-hook stays on the model: it needs its handle and remove() like any other"
GLOBAL_HOOKS = "a hook stays on all modules of PyTorch: remove() its handle"
PATCHED = "forward was replaced and never put back: a hook sees the input and can be removed"
GRADIENTS = "set_grad_enabled(False) holds until somebody undoes it: use `with torch.no_grad():`"
GLOBALS = ("_global_forward_hooks", "_global_forward_pre_hooks")


def _check_collect(fn: Probe) -> None:
    generator = torch.Generator().manual_seed(602)
    kinds = ((4, 1.0), (4, 3.0), (3, 0.5))  # as many pictures as are left make the last batch
    batches = [torch.randn(n, 2, 6, 6, generator=generator) * size for n, size in kinds]
    for label, given in (
        ("the second batch is the largest", batches),
        ("the largest batch comes last", [batches[2], batches[0], batches[1]]),
        ("every input is positive", [x.abs() + 0.5 for x in batches]),
        ("every input is negative", [-x.abs() - 0.5 for x in batches]),
    ):
        model = _Small().eval()
        expected = _observed(model, given)
        before = {kind: set(getattr(global_hooks, kind)) for kind in GLOBALS}
        gradients = torch.is_grad_enabled()
        try:
            got = fn(model, given)
        finally:
            switched = torch.is_grad_enabled() != gradients
            torch.set_grad_enabled(gradients)
            left = _hooks_on(model, before)
        expect(
            isinstance(got, dict), "collect returns a dictionary: layer name -> (low, high)",
            expected=sorted(expected), got=type(got).__name__, where=label,
            cause=NOTHING if got is None else "",
        )  # fmt: skip
        expect(
            set(got) == set(expected), "the names are not those of the Linear and Conv2d layers",
            expected=sorted(expected), got=sorted(map(str, got)), where=label,
        )  # fmt: skip
        for name, (low, high) in expected.items():
            pair = got[name]
            expect(
                isinstance(pair, (tuple, list)) and len(pair) == 2,
                f"{name}: a pair (low, high) is wanted", expected=(low, high), got=pair,
            )  # fmt: skip
            expect_close(pair[0], low, f"the low end of {name!r} ({label})", rtol=1e-5)
            expect_close(pair[1], high, f"the high end of {name!r} ({label})", rtol=1e-5)
        where = ", ".join(name for names in left.values() for name in names)
        expect(
            not left, "a hook is left behind: it would run for ever after",
            expected="no hooks", got=f"hooks on {where}", cause=next(iter(left), ""),
        )  # fmt: skip
        patched = [name for name, m in model.named_modules() if "forward" in vars(m)]
        expect(
            not patched, "a layer's forward is still replaced", expected="the layers' own forward",
            got=f"another one in {', '.join(patched)}", cause=PATCHED,
        )  # fmt: skip
        expect(
            not switched, "gradients are off after the call", expected="gradients as before",
            got="none in all of PyTorch", cause=GRADIENTS,
        )  # fmt: skip


def _hooks_on(model: nn.Module, before: dict[str, set[int]]) -> dict[str, list[str]]:
    """Cause -> where a hook was left; new hooks on all of PyTorch's modules are taken off."""
    named = list(model.named_modules())
    new = [
        (kind, key) for kind in GLOBALS for key in set(getattr(global_hooks, kind)) - before[kind]
    ]
    for kind, key in new:
        del getattr(global_hooks, kind)[key]
    left = {
        HOOKS: [name for name, m in named if m._forward_hooks],
        PRE_HOOKS: [name for name, m in named if m._forward_pre_hooks],
        GLOBAL_HOOKS: ["every module"] if new else [],
    }
    return {cause: names for cause, names in left.items() if names}


def _collect_pre_hook(model: nn.Module, batches: list[Tensor]) -> dict:
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable:
        return lambda module, inputs: seen.setdefault(name, []).append(inputs[0].detach())

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Conv2d)
    ]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    flat = {name: torch.cat([x.flatten() for x in xs]) for name, xs in seen.items()}
    return {name: (x.min().item(), x.max().item()) for name, x in flat.items()}


def _collect_tensors(model: nn.Module, batches: list[Tensor]) -> dict:
    return {n: torch.tensor(r).unbind() for n, r in collect(model, batches).items()}


COLLECT = Exercise(
    id="06.1", title="Watch every layer's input", minutes=9, difficulty=3,
    signature="collect(model, batches)", reference=collect, check=_check_collect,
    accepted=(_collect_pre_hook, _collect_tensors),
    diagnoses=(
        ("inputs[0] => output", "the ranges are those of the layers' outputs, not of their inputs"),
        ("handle.remove() => pass", HOOKS),
        ("register_forward_hook => register_forward_pre_hook",
         "output: Any, =>",
         "handle.remove() => pass",
         PRE_HOOKS),
        ('ranges.get(name, (float("inf"), float("-inf"))) => (float("inf"), float("-inf"))',
         "only the last batch counts: keep the extremes of all batches"),
        ("in batches: => in batches[:1]:",
         "only the first batch counts: keep the extremes of all batches"),
        ('(float("inf"), float("-inf")) => (0.0, 0.0)',
         "the extremes begin at 0, so 0 counts as seen: begin at the first value"),
        ("ranges: dict[str, tuple[float, float]] = {} => ranges, _ = {}, model.train()",
         "train() was called: batch norm then takes the statistics of each batch, not its own"),
        ('(float("inf"), float("-inf")) => (0.0, 0.0)',
         "min(low, x.min().item()), max(high, x.max().item()) => low + x.min().item() / "
         "len(batches), high + x.max().item() / len(batches)",
         "the extremes of the batches were averaged: values beyond the average would be clipped"),
        ("inputs[0] => module.weight",
         "these are the ranges of the weights; wanted are the inputs'"),
        ("ranges[name] = min(low, x.min().item()), max(high, x.max().item()) => "
         "top = max(-low, high, x.abs().max().item()); ranges[name] = -top, top",
         "these ranges are symmetric: wanted are the smallest and the largest value seen"),
        ("return ranges => return {name: (high, low) for name, (low, high) in ranges.items()}",
         "the smallest value comes first, then the largest"),
        ("inputs[0] => inputs[0][0]",
         "only the first picture of each batch counts: inputs[0] is the whole batch"),
        ("named_modules => named_children",
         "layers in containers are missed: named_modules() goes inside"),
        ("(nn.Linear, nn.Conv2d) => nn.Linear",
         "only Linear layers are watched, Conv2d are layers too"),
        ("(nn.Linear, nn.Conv2d) => nn.Module",
         "every module is watched, not only Linear and Conv2d"),
        (", name: str = name =>", "all hooks write under the last name: bind it with name=name"),
    ),
    hints=(
        ("I do not know how to see a layer's input",
         "`module.register_forward_hook(fn)` calls `fn(module, inputs, output)` after each "
         "forward pass; `inputs` is a tuple, the tensor is `inputs[0]`."),
        ("Every layer has the range of the last one",
         "A function made in a loop sees the loop's variable as it is when it runs. Give it a "
         "default argument: `def watch(module, inputs, output, name=name)`."),
        ("The check finds hooks on the model",
         "`register_forward_hook` returns a handle. Keep all of them in a list and call "
         "`handle.remove()` when the batches are through."),
    ),
)  # fmt: skip


# 06.2 ------------------------------------------------------------------------------------------


def ablation_table(make: Callable, evaluate: Callable) -> dict[str, float]:
    """Score of each version minus FP32's; make(weight_bits, activation_bits) builds a version."""
    versions = {"W8A32": (8, None), "W32A8": (None, 8), "W8A8": (8, 8)}
    fp32 = evaluate(make(None, None))
    return {name: evaluate(make(*bits)) - fp32 for name, bits in versions.items()}


class _Version:
    """What `make` returns: a pair of bits. What matters is which versions are compared."""

    def __init__(self, bits: tuple) -> None:
        self.bits = bits


_SCORES = {(None, None): 0.93, (8, None): 0.925, (None, 8): 0.90, (8, 8): 0.88}


def _check_ablation(fn: Probe) -> None:
    for label, scores in (
        ("the activations cost most", _SCORES),
        ("the weights cost most", {**_SCORES, (8, None): 0.70, (8, 8): 0.69}),
        ("one version is better than FP32", {**_SCORES, (8, None): 0.95}),
        ("another network", {(None, None): 0.71234, (8, None): 0.71127, (None, 8): 0.66358,
                             (8, 8): 0.65891}),
    ):  # fmt: skip
        got = fn(_maker(scores), _evaluator(scores))
        keys = ["W8A32", "W32A8", "W8A8"]
        expect(
            isinstance(got, dict) and set(got) == set(keys),
            "a dictionary with the three versions is wanted", expected=keys,
            got=sorted(map(str, got)) if isinstance(got, dict) else got, where=label,
            cause=NOTHING if got is None else "",
        )  # fmt: skip
        for key, version in zip(keys, [(8, None), (None, 8), (8, 8)], strict=True):
            wanted = scores[version] - scores[None, None]
            expect_close(got[key], wanted, f"{key} ({label})", rtol=1e-6, atol=1e-9)


def _maker(scores: dict) -> Callable:
    def make(weight_bits: int | None, activation_bits: int | None) -> _Version:
        version = (weight_bits, activation_bits)
        if version not in scores:
            raise ValueError(
                f"make was called with {version}: the versions are 8 bits or None (floating point)"
            )
        return _Version(version)

    return make


def _evaluator(scores: dict) -> Callable:
    def evaluate(*given: Any) -> float:
        if len(given) != 1 or not isinstance(given[0], _Version):
            raise TypeError("evaluate(version) wants one version, as make(...) builds it")
        return scores[given[0].bits]

    return evaluate


def _ablation_loop(make: Callable, evaluate: Callable) -> dict:
    scores = {}
    for w in (8, None):
        for a in (8, None):
            scores[f"W{w or 32}A{a or 32}"] = evaluate(make(w, a))
    reference = scores.pop("W32A32")
    return {name: value - reference for name, value in scores.items()}


def _ablation_tensors(make: Callable, evaluate: Callable) -> dict:
    versions = {"W8A32": (8, None), "W32A8": (None, 8), "W8A8": (8, 8)}
    values = torch.tensor([evaluate(make(*v)) for v in versions.values()], dtype=torch.double)
    return dict(zip(versions, (values - evaluate(make(None, None))).tolist(), strict=True))


ABLATION_TABLE = Exercise(
    id="06.2", title="Take the quantization apart", minutes=6, difficulty=2,
    signature="ablation_table(make, evaluate)", reference=ablation_table, check=_check_ablation,
    accepted=(_ablation_loop, _ablation_tensors),
    diagnoses=(
        ('"W8A32": (8, None), "W32A8": (None, 8) => "W8A32": (None, 8), "W32A8": (8, None)',
         "W8A32 and W32A8 are exchanged: W comes first, and None means float"),
        ("evaluate(make(*bits)) - fp32 => fp32 - evaluate(make(*bits))",
         "the sign is turned: a loss is a negative change, version minus FP32"),
        ("evaluate(make(*bits)) - fp32 => evaluate(make(8, 8)) - evaluate(make(*(8 if b is None "
         "else None for b in bits)))",
         "one thing was left out of W8A8, instead of put into FP32: make(8, None) - FP32"),
        ("- fp32 =>", "these are the scores: subtract FP32's from each"),
        ("evaluate(make(*bits)) - fp32 => evaluate(make(bits[0], None)) + evaluate(make(None, "
         "bits[1])) - 2 * fp32",
         "W8A8 is the sum of the other two: measure it, losses do not add up"),
        ("make(None, None) => make(8, 8)", "the reference is W8A8: subtract the score of FP32"),
        ("evaluate(make(*bits)) - fp32 => 100 * (evaluate(make(*bits)) - fp32)",
         "the changes are 100 times too large: keep the unit of the scores"),
        ("evaluate(make(*bits)) - fp32 => evaluate(make(*bits)) / fp32 - 1",
         "divided by FP32's score: the change is a difference, not a ratio"),
        ("evaluate(make(*bits)) - fp32 => -abs(evaluate(make(*bits)) - fp32)",
         "a version may be better than FP32: its change is positive, keep the sign"),
        ("evaluate(make(*bits)) - fp32 => round(evaluate(make(*bits)) - fp32, 3)",
         "the changes were rounded: return them as they are, and round where you print"),
        ("evaluate(make(*bits)) - fp32 => evaluate(make(*bits)) - 0.93",
         "the reference is one fixed score: measure FP32 with evaluate(make(None, None))"),
        ("evaluate(make(*bits)) - fp32 => evaluate(make(*bits)) - (fp32 if None in bits else "
         "evaluate(make(8, None)))",
         "W8A8 was compared with W8A32: every version's change is against FP32"),
        ('versions = { => versions = {"FP32": (None, None), ',
         "FP32 is the reference, not a version: leave its own change out"),
        ("make(*bits) => *bits", "evaluate takes a version: evaluate(make(8, None))"),
        ('"W8A32": (8, None) => "W8A32": (8, 32)',
         "32 bits are floating point here: make takes None for them"),
    ),
    hints=(
        ("Which model is FP32?",
         "`make(None, None)`: no bits for weights, none for activations. Nothing is rounded."),
        ("What is W32A8?",
         "Weights in 32-bit floating point, activations in 8 bits: `make(None, 8)`."),
    ),
)  # fmt: skip


# 06.3 ------------------------------------------------------------------------------------------


def write_report(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple[str, list[str]]:
    """A verdict and the two worst layers."""
    if high >= 0:
        verdict = "no drop shown"
    else:
        verdict = "weights" if weights < activations else "activations"
    return verdict, sorted(decibels, key=decibels.get)[:2]


def _reports() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, low: float, high: float, w: float, a: float, db: dict) -> tuple:
        given = {"low": low, "high": high, "weights": w, "activations": a, "decibels": db}
        return label, given

    four = {"conv": 17.2, "layer1": 18.9, "layer2": 28.6, "fc": 32.1}
    yield case("a drop, mostly from the activations", -5.0, -2.3, -0.1, -3.0, four)
    mixed = {"a": 40.0, "b": 9.5, "c": 33.0, "d": -20.0}
    yield case("a drop, mostly from the weights", -9.0, -6.1, -5.2, -0.4, mixed)
    yield case("the interval contains zero", -1.2, 0.3, -0.9, -0.2, mixed)
    yield case("the interval ends at zero", -1.0, 0.0, -0.2, -0.7, four)
    yield case("it became better", 0.2, 1.9, 0.1, 0.6, four)
    yield case("the halves differ by little", -2.0, -0.5, -0.4, -0.7, four)
    yield case("each half gains by itself", -1.4, -0.3, 0.2, 0.5, mixed)
    yield case("one half gains by itself", -1.9, -0.4, 1.2, -0.9, four)
    inf = float("inf")
    alike = {"conv": 12.0, "layer1": 30.1, "layer2": 12.0, "fc": 25.4}
    yield case("two layers are equally bad", -3.0, -1.0, -0.5, -2.0, alike)
    near = {"conv": 9.4, "layer1": 31.0, "layer2": 9.1, "fc": 10.2}
    yield case("the worst layers differ by little", -3.0, -1.0, -2.5, -0.3, near)
    yield case("an exact layer", -4.0, -1.0, -2.0, -1.5, {"in": inf, "mid": 50.0, "out": 7.0})


def _same_report(got: Any, expected: tuple, decibels: dict[str, float], **_: Any) -> None:
    expect(
        isinstance(got, (tuple, list)) and len(got) == 2,
        "a pair is wanted: the verdict and a list of two layer names", expected=expected, got=got,
        cause=NOTHING if got is None else "",
    )  # fmt: skip
    expect(
        isinstance(got[1], (tuple, list, np.ndarray)),
        "the second value is a list of two layer names", expected=expected[1], got=got[1],
    )  # fmt: skip
    expect(got[0] == expected[0], "the verdict differs", expected=expected[0], got=got[0])
    names = list(got[1])  # layers that are equally bad may come in any order
    known = all(isinstance(name, str) and name in decibels for name in names)
    as_bad = known and [decibels[n] for n in names] == [decibels[n] for n in expected[1]]
    expect(
        as_bad and len(set(names)) == len(names), "the worst layers differ (worst first)",
        expected=expected[1], got=names,
    )  # fmt: skip


def _report_with_min(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    rest = dict(decibels)
    worst = []
    for _ in range(2):
        name = min(rest, key=lambda n: rest[n])
        worst.append(name)
        rest.pop(name)
    causes = {"weights": weights, "activations": activations}
    return (min(causes, key=causes.get) if high < 0 else "no drop shown"), worst


def _report_with_tensors(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    names = list(decibels)
    order = torch.tensor([decibels[n] for n in names]).argsort()[:2]
    verdict = ("activations", "weights")[weights < activations] if high < 0.0 else "no drop shown"
    return verdict, tuple(names[i] for i in order)


WRITE_REPORT = Exercise(
    id="06.3", title="Write the report", minutes=7, difficulty=2,
    signature="write_report(low, high, weights, activations, decibels)", reference=write_report,
    cases=_reports, compare=_same_report,
    accepted=(_report_with_min, _report_with_tensors),
    diagnoses=(
        ("key=decibels.get => key=decibels.get, reverse=True",
         "layers with many decibels are the best ones, not the worst"),
        ("high >= 0 => low >= 0",
         "the low end decides nothing: a drop is shown where high is below 0"),
        ("high >= 0 => high > 0", "an interval that ends at 0 reaches it: no drop is shown there"),
        ("high >= 0 => False", "a drop is reported although the interval reaches zero"),
        ("weights < activations => weights > activations",
         "the other half is to blame: a larger loss is a more negative change"),
        ("key=decibels.get => key=lambda name: abs(decibels[name])",
         "negative decibels are worst of all: sort by value, not magnitude"),
        ("sorted(decibels, key=decibels.get) => list(decibels)",
         "these are the first two layers, not the worst two"),
        ("weights < activations => abs(weights) > abs(activations)",
         "magnitudes were compared: a half that gained is not to blame"),
        ("sorted(decibels, key=decibels.get)[:2] => [name for _, name in sorted({db: name for "
         "name, db in decibels.items()}.items())][:2]",
         "two layers with the same decibels became one: sort the names, not a turned dictionary"),
        ("key=decibels.get => key=lambda name: decibels[name] // 1",
         "the decibels were cut to whole ones before sorting: a difference of less counts too"),
        ("sorted(decibels, key=decibels.get) => sorted(decibels)",
         "the names were sorted: give sorted the decibels as its key"),
        ("sorted(decibels, key=decibels.get)[:2] => sorted(decibels.values())[:2]",
         "these are the decibels: the names of the layers are asked for"),
        ("sorted(decibels, key=decibels.get) => sorted(decibels.items(), key=lambda i: i[1])",
         "these are pairs of name and decibels: the names alone are asked for"),
        ("[:2] => [1::-1]", "the right two layers, the other way round: worst first"),
        ("[:2] => [0]", "one name, where a list of two is wanted"),
        ("[:2] => [:1]", "a list of one name, where two are wanted"),
    ),
    hints=(
        ("When is a drop shown?",
         "When the whole interval lies below zero, that is when `high < 0`. At zero or above, "
         "the data allow that nothing was lost."),
        ("Which layers are worst?",
         "Those with the lowest signal-to-noise ratio: `sorted(decibels, key=decibels.get)`."),
    ),
)  # fmt: skip


# 06.4 ------------------------------------------------------------------------------------------


def choose_release(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The first file that surely loses at most one point, with its interval."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_RELEASE = Exercise(
    id="06.4", title="Choose the file to ship", minutes=8, difficulty=3,
    signature="choose_release(scores, baseline)", reference=choose_release,
    cases=functools.partial(limit_cases, ("min-max", "KL", "KL, first FP32", "FP32"), 0.01, 640),
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [COLLECT, ABLATION_TABLE, WRITE_REPORT, CHOOSE_RELEASE]
