"""Checks of chapter 06: watch layers with hooks, an ablation, and a report with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from ptq_classroom.kit.examine import Probe
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect, expect_close

NOTHING = "the function returned nothing: is a `return` missing?"

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
            self.features = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2))
            self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.stem(x)).mean((2, 3)))


def _observed(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[float, float]]:
    """The answer by another road: the inputs of each layer, recomputed by hand."""
    inputs: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for x in batches:
            values = [model.stem(x)]
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


def _check_collect(fn: Probe) -> None:
    generator = torch.Generator().manual_seed(602)
    sizes = (1.0, 3.0, 0.5)
    batches = [torch.randn(4, 2, 6, 6, generator=generator) * size for size in sizes]
    for label, given in (
        ("the second batch is the largest", batches),
        ("the largest batch comes last", [batches[2], batches[0], batches[1]]),
        ("every input is positive", [x.abs() + 0.5 for x in batches]),
        ("every input is negative", [-x.abs() - 0.5 for x in batches]),
    ):
        model = _Small().eval()
        expected = _observed(model, given)
        before = set(global_hooks._global_forward_hooks)
        got = fn(model, given)
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


def _hooks_on(model: nn.Module, before: set[int]) -> dict[str, list[str]]:
    """Cause -> where a hook was left; new hooks on all of PyTorch's modules are taken off."""
    named = list(model.named_modules())
    new = set(global_hooks._global_forward_hooks) - before
    for key in new:
        del global_hooks._global_forward_hooks[key]
    left = {
        HOOKS: [name for name, m in named if m._forward_hooks],
        PRE_HOOKS: [name for name, m in named if m._forward_pre_hooks],
        GLOBAL_HOOKS: ["every module"] if new else [],
    }
    return {cause: names for cause, names in left.items() if names}


def _with_hooks(
    model: nn.Module, batches: list[Tensor], pick: Callable, kinds: tuple, remove: bool = True,
    merge: Callable | None = None, modules: str = "named_modules",
) -> dict[str, tuple[float, float]]:  # fmt: skip
    ranges: dict[str, tuple[float, float]] = {}
    handles = []
    for name, module in getattr(model, modules)():
        if isinstance(module, kinds):

            def watch(module: Any, inputs: Any, output: Any, name: str = name) -> None:
                x = pick(inputs, output)
                new = (x.min().item(), x.max().item())
                old = ranges.get(name)
                if old is not None:
                    new = merge(old, new) if merge else (min(old[0], new[0]), max(old[1], new[1]))
                ranges[name] = new

            handles.append(module.register_forward_hook(watch))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles if remove else ():
        handle.remove()
    return ranges


_LAYERS = (nn.Linear, nn.Conv2d)


def _outputs(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: o, _LAYERS)


def _hooks_left(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: i[0], _LAYERS, remove=False)


def _pre_hooks_left(model: nn.Module, batches: list[Tensor]) -> dict:
    ranges: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):

            def watch(module: Any, inputs: Any, name: str = name) -> None:
                x = inputs[0]
                low, high = ranges.get(name, (float("inf"), float("-inf")))
                ranges[name] = min(low, x.min().item()), max(high, x.max().item())

            module.register_forward_pre_hook(watch)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return ranges


def _from_zero(model: nn.Module, batches: list[Tensor]) -> dict:
    return {n: (min(0.0, a), max(0.0, b)) for n, (a, b) in collect(model, batches).items()}


def _first_batch_only(model: nn.Module, batches: list[Tensor]) -> dict:
    return collect(model, batches[:1])


def _weight_ranges(model: nn.Module, batches: list[Tensor]) -> dict:
    layers = ((n, m.weight) for n, m in model.named_modules() if isinstance(m, _LAYERS))
    return {name: (w.min().item(), w.max().item()) for name, w in layers}


def _children_only(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: i[0], _LAYERS, modules="named_children")


def _last_batch_only(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: i[0], _LAYERS, merge=lambda old, new: new)


def _linear_only(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: i[0], (nn.Linear,))


def _every_module(model: nn.Module, batches: list[Tensor]) -> dict:
    return _with_hooks(model, batches, lambda i, o: i[0], (nn.Module,))


def _late_binding(model: nn.Module, batches: list[Tensor]) -> dict:
    ranges = _with_hooks(model, batches, lambda i, o: i[0], _LAYERS).values()
    last = [name for name, _ in model.named_modules()][-1]
    return {last: (min(low for low, _ in ranges), max(high for _, high in ranges))}


def _collect_pre_hook(model: nn.Module, batches: list[Tensor]) -> dict:
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable:
        return lambda module, inputs: seen.setdefault(name, []).append(inputs[0].detach())

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if type(module) in _LAYERS
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


# 06.2 ------------------------------------------------------------------------------------------


def ablation_table(make: Callable, evaluate: Callable) -> dict[str, float]:
    """Score of each version minus FP32's; make(weight_bits, activation_bits) builds a version."""
    fp32 = evaluate(make(None, None))
    return {
        "W8A32": evaluate(make(8, None)) - fp32,
        "W32A8": evaluate(make(None, 8)) - fp32,
        "W8A8": evaluate(make(8, 8)) - fp32,
    }


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
    ):
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


def _swapped(make: Callable, evaluate: Callable) -> dict:
    right = ablation_table(make, evaluate)
    return {**right, "W8A32": right["W32A8"], "W32A8": right["W8A32"]}


def _wrong_sign(make: Callable, evaluate: Callable) -> dict:
    return {name: -value for name, value in ablation_table(make, evaluate).items()}


def _scores_alone(make: Callable, evaluate: Callable) -> dict:
    fp32 = evaluate(make(None, None))
    return {name: value + fp32 for name, value in ablation_table(make, evaluate).items()}


def _added_up(make: Callable, evaluate: Callable) -> dict:
    right = ablation_table(make, evaluate)
    return {**right, "W8A8": right["W8A32"] + right["W32A8"]}


def _against_w8a8(make: Callable, evaluate: Callable) -> dict:
    fp32, whole = evaluate(make(None, None)), evaluate(make(8, 8))
    return {n: v + fp32 - whole for n, v in ablation_table(make, evaluate).items()}


def _in_percent(make: Callable, evaluate: Callable) -> dict:
    return {name: 100 * value for name, value in ablation_table(make, evaluate).items()}


def _relative(make: Callable, evaluate: Callable) -> dict:
    fp32 = evaluate(make(None, None))
    return {name: value / fp32 for name, value in ablation_table(make, evaluate).items()}


def _with_fp32(make: Callable, evaluate: Callable) -> dict:
    return {"FP32": 0.0, **ablation_table(make, evaluate)}


def _without_make(make: Callable, evaluate: Callable) -> dict:
    fp32 = evaluate(None, None)
    return {"W8A32": evaluate(8, None) - fp32}


def _thirty_two(make: Callable, evaluate: Callable) -> dict:
    return {"W8A32": evaluate(make(8, 32)) - evaluate(make(None, None))}


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
    mixed = {"a": 40.0, "b": 9.5, "c": 33.0, "d": -1.0}
    yield case("a drop, mostly from the weights", -9.0, -6.1, -5.2, -0.4, mixed)
    yield case("the interval contains zero", -1.2, 0.3, -0.9, -0.2, mixed)
    yield case("the interval ends at zero", -1.0, 0.0, -0.2, -0.7, four)
    yield case("it became better", 0.2, 1.9, 0.1, 0.6, four)
    yield case("one half gains by itself", -1.9, -0.4, 1.2, -0.9, four)
    inf = float("inf")
    yield case("an exact layer", -4.0, -1.0, -2.0, -1.5, {"in": inf, "mid": 50.0, "out": 7.0})


def _same_report(got: Any, expected: tuple, **_: Any) -> None:
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
    expect(
        list(got[1]) == expected[1], "the worst layers differ (worst first)",
        expected=expected[1], got=list(got[1]),
    )  # fmt: skip


def _verdict(kind: str, low: float, high: float, weights: float, activations: float) -> str:
    dropped = {"right": high < 0, "mean": low + high < 0, "low": low < 0, "always": True}[kind]
    if not dropped:
        return "no drop shown"
    return "weights" if weights < activations else "activations"


def _highest_decibels(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=decibels.get, reverse=True)[:2]
    return _verdict("right", low, high, weights, activations), worst


def _low_end(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=decibels.get)[:2]
    return _verdict("low", low, high, weights, activations), worst


def _no_interval(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=decibels.get)[:2]
    return _verdict("always", low, high, weights, activations), worst


def _wrong_half(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=decibels.get)[:2]
    return _verdict("right", low, high, activations, weights), worst


def _by_magnitude(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=lambda name: abs(decibels[name]), reverse=True)[:2]
    worst = worst if min(decibels.values()) < 0 else sorted(decibels, key=decibels.get)[:2]
    return _verdict("right", low, high, weights, activations), worst


def _first_two(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    return _verdict("right", low, high, weights, activations), list(decibels)[:2]


def _larger_magnitude(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    worst = sorted(decibels, key=decibels.get)[:2]
    return _verdict("right", low, high, -abs(weights), -abs(activations)), worst


def _best_of_the_two_first(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    verdict, worst = write_report(low, high, weights, activations, decibels)
    return verdict, worst[::-1]


def _one_name(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    verdict, worst = write_report(low, high, weights, activations, decibels)
    return verdict, worst[0]


def _one_name_in_a_list(
    low: float, high: float, weights: float, activations: float, decibels: dict[str, float]
) -> tuple:
    verdict, worst = write_report(low, high, weights, activations, decibels)
    return verdict, worst[:1]


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


EXERCISES = [
    Exercise(
        id="06.1",
        title="Watch every layer's input",
        minutes=9,
        difficulty=3,
        signature="collect(model, batches)",
        reference=collect,
        check=_check_collect,
        diagnoses=(
            (_outputs, "the ranges are those of the layers' outputs, not of their inputs"),
            (_hooks_left, HOOKS),
            (_pre_hooks_left, PRE_HOOKS),
            (_last_batch_only, "only the last batch counts: keep the extremes of all batches"),
            (_first_batch_only, "only the first batch counts: keep the extremes of all batches"),
            (_from_zero, "the extremes begin at 0, so 0 counts as seen: begin at the first value"),
            (_weight_ranges, "these are the ranges of the weights; wanted are the inputs'"),
            (_children_only, "layers in containers are missed: named_modules() goes inside"),
            (_linear_only, "only Linear layers are watched, Conv2d are layers too"),
            (_every_module, "every module is watched, not only Linear and Conv2d"),
            (_late_binding, "all hooks write under the last name: bind it with name=name"),
        ),
        accepted=(_collect_pre_hook, _collect_tensors),
        hints=(
            ("I do not know how to see a layer's input",
             "`module.register_forward_hook(fn)` calls `fn(module, inputs, output)` after each "
             "forward pass; `inputs` is a tuple, the tensor is `inputs[0]`."),
            ("Every layer has the range of the last one",
             "A function made in a loop sees the loop's variable as it is when it runs. Give it "
             "a default argument: `def watch(module, inputs, output, name=name)`."),
            ("The check finds hooks on the model",
             "`register_forward_hook` returns a handle. Keep all of them in a list and call "
             "`handle.remove()` when the batches are through."),
        ),
    ),
    Exercise(
        id="06.2",
        title="Take the quantization apart",
        minutes=6,
        difficulty=2,
        signature="ablation_table(make, evaluate)",
        reference=ablation_table,
        check=_check_ablation,
        diagnoses=(
            (_swapped, "W8A32 and W32A8 are exchanged: W comes first, and None means float"),
            (_wrong_sign, "the sign is turned: a loss is a negative change, version minus FP32"),
            (_scores_alone, "these are the scores: subtract FP32's from each"),
            (_added_up, "W8A8 is the sum of the other two: measure it, losses do not add up"),
            (_against_w8a8, "the reference is W8A8: subtract the score of FP32"),
            (_in_percent, "the changes are 100 times too large: keep the unit of the scores"),
            (_relative, "divided by FP32's score: the change is a difference, not a ratio"),
            (_with_fp32, "FP32 is the reference, not a version: leave its own change out"),
            (_without_make, "evaluate takes a version: evaluate(make(8, None))"),
            (_thirty_two, "32 bits are floating point here: make takes None for them"),
        ),
        accepted=(_ablation_loop, _ablation_tensors),
        hints=(
            ("Which model is FP32?",
             "`make(None, None)`: no bits for weights, none for activations. Nothing is rounded."),
            ("What is W32A8?",
             "Weights in 32-bit floating point, activations in 8 bits: `make(None, 8)`."),
        ),
    ),
    Exercise(
        id="06.3",
        title="Write the report",
        minutes=7,
        difficulty=2,
        signature="write_report(low, high, weights, activations, decibels)",
        reference=write_report,
        cases=_reports,
        compare=_same_report,
        diagnoses=(
            (_highest_decibels, "layers with many decibels are the best ones, not the worst"),
            (_low_end, "the low end decides nothing: a drop is shown where high is below 0"),
            (_no_interval, "a drop is reported although the interval reaches zero"),
            (_wrong_half, "the other half is to blame: a larger loss is a more negative change"),
            (_by_magnitude, "negative decibels are worst of all: sort by value, not magnitude"),
            (_first_two, "these are the first two layers, not the worst two"),
            (_larger_magnitude, "magnitudes were compared: a half that gained is not to blame"),
            (_best_of_the_two_first, "the right two layers, the other way round: worst first"),
            (_one_name, "one name, where a list of two is wanted"),
            (_one_name_in_a_list, "a list of one name, where two are wanted"),
        ),
        accepted=(_report_with_min, _report_with_tensors),
        hints=(
            ("When is a drop shown?",
             "When the whole interval lies below zero, that is when `high < 0`. At zero or above, "
             "the data allow that nothing was lost."),
            ("Which layers are worst?",
             "Those with the lowest signal-to-noise ratio: `sorted(decibels, key=decibels.get)`."),
        ),
    ),
]  # fmt: skip
