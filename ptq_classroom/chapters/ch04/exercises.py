"""Checks of chapter 04: batch norm folded, Q/DQ pairs counted, modules left in training mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    defended,
    interval,
    made_scores,
    no_rival_is_better,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer's)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect, expect_close
from ptq_classroom.kit.values import same
from ptq_course.grids.metrics import paired_bootstrap

# 04.1 --------------------------------------------------------------------------------------------


def fold_bn(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one layer that does what the layer and its batch norm did."""
    factor = gamma / torch.sqrt(var + eps)
    start = 0.0 if b is None else b
    folded_w = w * factor.reshape(-1, *[1] * (w.dim() - 1))
    folded_b = (start - mean) * factor + beta
    return folded_w, folded_b


def _layers() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, shape: tuple[int, ...], seed: int, eps: float, bias: bool = True) -> tuple:
        g = torch.Generator().manual_seed(seed)
        w = torch.randn(shape, generator=g)
        row = [torch.randn(shape[0], generator=g) for _ in range(4)]
        var = torch.rand(shape[0], generator=g) * 2 + 0.1
        b, mean, gamma, beta = row
        named = {"mean": mean, "var": var, "gamma": gamma, "beta": beta, "eps": eps}
        return label, {"w": w, "b": b if bias else None, **named}

    one = {name: torch.tensor([v]) for name, v in (("mean", 1.0), ("var", 0.24), ("gamma", 2.0))}
    paper = {"w": torch.tensor([[0.5, -0.2]]), "b": torch.tensor([0.0]), **one}
    yield "the channel of the paper", {**paper, "beta": torch.tensor([0.3]), "eps": 0.01}
    yield case("a fully connected layer [4, 4]", (4, 4), 41, 1e-5)
    yield case("a convolution [5, 3, 3, 3]", (5, 3, 3, 3), 42, 1e-3)
    yield case("a convolution [4, 4, 1, 1] without bias", (4, 4, 1, 1), 43, 1e-5, bias=False)
    label, dead = case("a channel that hardly varies: eps decides", (3, 2, 3), 44, 1e-3)
    dead["var"] = torch.tensor([1.0, 1e-6, 0.5])
    yield label, dead


def _same_layer(got: Any, expected: tuple[Tensor, Tensor], **_: Any) -> None:
    expect_close(got, expected, ("w", "b"), rtol=1e-4, atol=1e-5)


def _fold_by_channel(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    weights, biases = [], []
    for c in range(len(w)):
        sigma = (float(var[c]) + eps) ** 0.5
        weights.append(w[c] * float(gamma[c]) / sigma)
        start = 0.0 if b is None else float(b[c])
        biases.append(float(gamma[c]) * (start - float(mean[c])) / sigma + float(beta[c]))
    return torch.stack(weights), torch.tensor(biases)


def _fold_by_einsum(
    w: Tensor, b: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    factor = gamma.double() * (var.double() + eps).rsqrt()
    shift = (-mean if b is None else b - mean).double()
    weight = torch.einsum("c,c...->c...", factor, w.double())
    return weight, torch.addcmul(beta.double(), shift, factor)


FOLD_BN = Exercise(
    id="04.1", title="Fold a batch norm", minutes=8, difficulty=2,
    signature="fold_bn(w, b, mean, var, gamma, beta, eps)", reference=fold_bn, cases=_layers,
    compare=_same_layer,
    accepted=(_fold_by_channel, _fold_by_einsum),
    diagnoses=(
        ("torch.sqrt(var + eps) => torch.sqrt(var)",
         "eps is missing: batch norm divides by sqrt(var + eps)"),
        ("torch.sqrt(var + eps) => (torch.sqrt(var) + eps)",
         "eps stands outside the root: it is sqrt(var + eps)"),
        ("torch.sqrt(var + eps) => (var + eps)",
         "divided by the variance: batch norm divides by its square root"),
        ("(start - mean) * factor + beta => start - mean * factor + beta",
         "the layer's bias goes through the batch norm too: (b - mean) * factor"),
        ("(start - mean) * factor + beta => start * factor - mean + beta",
         "the mean was not multiplied by the factor: it is (b - mean) * factor"),
        ("* factor + beta => * factor", "beta is left out: it is added at the very end"),
        ("(start - mean) => -mean", "the layer's own bias b is left out"),
        ("(start - mean) => start",
         "the mean is left out: batch norm subtracts it first, (b - mean) * factor"),
        ("gamma / => 1 /", "gamma is left out: the factor is gamma / sqrt(var + eps)"),
        ("start - mean => start + mean", "the mean has the wrong sign: batch norm subtracts it"),
        ("(start - mean) * factor + beta => (start - mean + beta) * factor",
         "beta was multiplied by the factor; it is added at the very end"),
        (".reshape(-1, *[1] * (w.dim() - 1)) =>",
         "w * factor multiplies along the last axis; the output channels are the first: reshape "
         "the factor to [C, 1, ...]"),
        (".reshape(-1, *[1] * (w.dim() - 1)) => .reshape(1, -1, *[1] * (w.dim() - 2))",
         "the factors went along axis 1, the input channels; a batch norm has one for each "
         "output channel, axis 0"),
    ),
    hints=(
        ("Where do I begin?",
         "Write what batch norm does to y = w x + b: (y - mean) / sqrt(var + eps) * gamma + "
         "beta. Collect what multiplies x, then the rest."),
        ("The shapes do not broadcast",
         "factor has one entry a channel, w has the channels first: reshape it to as many "
         "dimensions as w, with -1 first and 1 elsewhere."),
        ("b is None", "A convolution before a batch norm often has no bias: that is b = 0."),
    ),
)  # fmt: skip


# 04.2 --------------------------------------------------------------------------------------------


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


CROSSING: Ops = {  # one value before a flatten and beside it
    "x": ("input", ()),
    "conv": ("conv", ("x",)),
    "flatten": ("flatten", ("conv",)),
    "pool": ("pool", ("conv",)),
    "fc_1": ("linear", ("flatten",)),
    "fc_2": ("linear", ("pool",)),
    "add": ("add", ("fc_1", "fc_2")),
}
TWO_HEADS: Ops = {  # three readers, two of which only move numbers
    "x": ("input", ()),
    "conv": ("conv", ("x",)),
    "flatten_1": ("flatten", ("conv",)),
    "flatten_2": ("flatten", ("conv",)),
    "pool": ("pool", ("conv",)),
    "fc_1": ("linear", ("flatten_1",)),
    "fc_2": ("linear", ("flatten_2",)),
    "add": ("add", ("fc_1", "fc_2", "pool")),
}
UNTOLD: Ops = {  # names that tell no kinds
    "picture": ("input", ()),
    "edges": ("conv", ("picture",)),
    "even": ("bn", ("edges",)),
    "small": ("pool", ("even",)),
    "row": ("flatten", ("small",)),
    "answer": ("linear", ("row",)),
}
NESTED: Ops = {  # names that stand in other names
    "x": ("input", ()),
    "conv": ("conv", ("x",)),
    "relu": ("relu", ("conv",)),
    "layer1_conv": ("conv", ("relu",)),
    "layer1_relu": ("relu", ("layer1_conv",)),
    "layer2_conv": ("conv", ("layer1_relu",)),
}
EARLY: Ops = {  # an output that is not the last operation
    "x": ("input", ()),
    "conv": ("conv", ("x",)),
    "early": ("linear", ("conv",)),
    "pool": ("pool", ("conv",)),
    "late": ("linear", ("pool",)),
}


def _graphs() -> Iterator[tuple[str, dict[str, Any]]]:
    for label, ops in (("a chain", CHAIN), ("a residual block", BLOCK), ("a branch", BRANCH)):
        yield f"{label}, nothing merges", {"ops": ops, "merge": ()}
        yield f"{label}, bn and relu merge", {"ops": ops, "merge": ("bn", "relu")}
    yield "a residual block, only bn merges", {"ops": BLOCK, "merge": ("bn",)}
    yield "two ReLUs read one value", {"ops": TWO_RELUS, "merge": ("bn", "relu")}
    yield "a flatten and a pooling read one value", {"ops": CROSSING, "merge": ("bn", "relu")}
    yield "two flattens and a pooling read one value", {"ops": TWO_HEADS, "merge": ("bn", "relu")}
    yield "names that tell no kinds", {"ops": UNTOLD, "merge": ("bn", "relu")}
    yield "names that stand in other names", {"ops": NESTED, "merge": ("bn", "relu")}
    yield "an output before the last operation", {"ops": EARLY, "merge": ("bn", "relu")}


def _users(ops: Ops, name: str) -> list[str]:
    return [other for other, (_, inputs) in ops.items() if name in inputs]


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


QDQ_PAIRS = Exercise(
    id="04.2", title="Count the Q/DQ pairs", minutes=9, difficulty=3,
    signature="qdq_pairs(ops, merge)", reference=qdq_pairs, cases=_graphs,
    returns="the number of pairs",
    accepted=(_pairs_by_counting, _pairs_by_subtraction),
    diagnoses=(
        ("return pairs => return pairs + 1",
         "one too many: what the network returns stays in floating point"),
        ("return pairs => return pairs - 1",
         "one too few: the picture is a value too, and must be quantized"),
        ("pairs += 1 => pairs += len(users)",
         "counted arrows: a value that two operations read is quantized once, with one scale"),
        ('and kind != "flatten" =>',
         "flatten only moves numbers: its output keeps the scale it had"),
        ('kind != "flatten" => [ops[user][0] for user in users] != ["flatten"]',
         "counted behind a flatten: count the value before it, which others may read too, and "
         "never what a flatten returns"),
        ('kind != "flatten" => "flatten" not in [ops[user][0] for user in users]',
         "a value that a flatten reads was left out: it needs its pair, and the flatten none"),
        ("merges = len(users) == 1 and ops[users[0]][0] in merge => merges = any(ops[user][0] in "
         "merge for user in users)",
         "merged although someone else reads the value too: then it must exist by itself"),
        ("merges = len(users) == 1 and ops[users[0]][0] in merge => merges = all(ops[user][0] in "
         "merge for user in users)",
         "two ReLUs read it: neither reads it alone, so neither merges"),
        ("merges = len(users) == 1 and ops[users[0]][0] in merge => merges = False",
         "nothing was merged: look at `merge`"),
        ('ops[users[0]][0] in merge => users[0].split("_")[0].rstrip("0123456789") in merge',
         "the name was asked instead of the kind: ops[name][0] is the kind"),
        ("if name in inputs => if name in str(inputs)",
         "a name was found inside another one, as conv is in layer1_conv: name in inputs"),
        ("if users and => if name != list(ops)[-1] and",
         "the last operation was left out: leave out every value that nobody reads"),
        ("return pairs => return len(ops)",
         "this is the number of operations; some values need no pair"),
    ),
    hints=(
        ("Who reads a value?",
         "Collect the operations whose inputs contain its name. Nobody: it is what the network "
         "returns."),
        ("When does an operation merge?",
         "When it is of a kind in `merge` and the only one that reads the value before it. Then "
         "that value is never written down, and needs no pair."),
    ),
)  # fmt: skip


# 04.3 --------------------------------------------------------------------------------------------


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


def _one_of_each() -> nn.Module:
    """Every kind that cares, and names that say nothing about kinds."""
    parts = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2)]
    parts += [kind() for kind in (*DROPOUTS, nn.ReLU)]
    parts += [nn.LayerNorm(2), nn.GroupNorm(1, 2)]  # one picture at a time, in both modes
    names = ("start", "stem", "cube", "noise", "lines", "maps", "cubes", "drop_nothing")
    names = (*names, "rows", "groups")
    return nn.ModuleDict(dict(zip(names, parts, strict=True)))


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
    lonely = _small_net().eval()
    lonely[2][1].train()
    yield "one batch norm trains, in a block in eval mode", {"model": lonely}
    yield "one of each kind", {"model": _one_of_each().train()}
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).train()
    yield "training mode, but nothing that cares", {"model": plain}


def _same_names(got: Any, expected: list[str], model: nn.Module) -> None:
    listed = isinstance(got, Iterable) and not isinstance(got, str)
    names = list(got) if listed else []
    if not listed or not all(isinstance(name, str) for name in names):
        raise Failure("suspects should return a list of names", expected=expected, got=got)
    modules = dict(model.named_modules())
    seen = {type(modules[name]) for name in names if name in modules}
    missed = {type(modules[name]) for name in expected} - seen
    kinds = ", ".join(sorted(kind.__name__ for kind in missed))
    expect(
        sorted(names) == sorted(expected),
        "these are not the modules that misbehave",
        expected=expected,
        got=names,
        cause=f"kinds that were missed: {kinds}" if seen and missed else "",
        tentative=True,
    )


def _changes_nothing(fn: Callable[..., list[str]]) -> None:
    """Evidence must not change what it looks at: modes and running statistics stay."""
    mixed = _small_net().train()
    mixed[1].eval()
    for model in (_small_net().train(), _small_net().eval(), mixed):
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


SUSPECTS = Exercise(
    id="04.3", title="Which modules look at the batch?", minutes=8, difficulty=2,
    signature="suspects(model)", reference=suspects, cases=_modes, compare=_same_names,
    check=_changes_nothing, may_change_inputs=True,
    accepted=(_suspects_by_name, _suspects_by_walking, _suspects_one_by_one),
    diagnoses=(
        ("and m.training => and model.training",
         "asked the whole network only: every module has a `training` of its own, and a part may "
         "differ"),
        ("isinstance(m, kinds) and m.training => m.training",
         "these are all modules in training mode; convolutions and ReLUs do the same in both "
         "modes"),
        ("and m.training =>", "these are all batch norms and dropouts; look at `module.training`"),
        ("model.named_modules() => model.eval().named_modules()",
         "eval() was called first, so there is nothing left to see"),
        ("nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, => nn.BatchNorm2d,",
         "batch norm has three kinds: BatchNorm1d and BatchNorm3d follow the mode too"),
        ("nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, => nn.Dropout,",
         "dropout has more kinds: Dropout1d to Dropout3d, which drop whole channels"),
        ('isinstance(m, kinds) => any(word in name for word in ("bn", "norm", "drop"))',
         "looked for words in the names: an author may call a module anything; ask for its type"),
        ('isinstance(m, kinds) => any(word in str(m) for word in ("BatchNorm", "Dropout"))',
         "looked for words in the printed module: a container prints what is in it; ask for its "
         "type"),
        ('isinstance(m, kinds) => ("Norm" in type(m).__name__ or isinstance(m, kinds))',
         "layer norm and group norm look at one picture alone: of the norms, only batch norm "
         "looks at the others"),
        ('m.training => m.training and model.get_submodule(name.rpartition(".")[0]).training',
         "the block around it was asked as well: only the module's own `training` counts"),
        ("named_modules => named_children",
         "named_children() stops at the first level; use named_modules()"),
        ("nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, =>",
         "dropout behaves differently in training, too"),
    ),
    hints=(
        ("How do I see the mode?",
         "Each module has the attribute `training`. model.eval() sets it to False on every one "
         "of them, model.train() to True."),
        ("Which kinds of modules care?",
         "Batch norm takes the statistics of the batch in training mode. Dropout zeroes values "
         "at random. The others here do the same in both modes."),
    ),
)  # fmt: skip


# 04.4 ------------------------------------------------------------------------------------------


def layers_to_keep(scores: Scores, baseline: str) -> tuple:
    """The cheapest option that no other one surely beats, and its interval."""
    unbeaten = [
        name
        for name in scores
        if all(interval(scores[name], other)[0] <= 0 for other in scores.values())
    ]
    choice = unbeaten[0]
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def _options() -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (label, baseline, accuracies) in enumerate((
        ("one layer is enough", "none", {"none": 0.5, "conv": 0.52, "first": 0.855, "all": 0.858}),
        ("nothing needs to be kept", "none",
         {"none": 0.857, "conv": 0.86, "first": 0.857, "all": 0.859}),
        ("each layer counts", "none", {"none": 0.5, "conv": 0.6, "first": 0.7, "all": 0.9}),
        ("the first step gains nothing", "none",
         {"none": 0.5, "conv": 0.5, "first": 0.85, "all": 0.852}),
        ("small steps, of which two together count", "none",
         {"none": 0.8, "conv": 0.808, "first": 0.816, "all": 0.816}),
        ("the dearest is not the best", "all",
         {"none": 0.5, "conv": 0.87, "first": 0.9, "all": 0.8}),
    )):  # fmt: skip
        yield label, {"scores": made_scores(3000, accuracies, 440 + i), "baseline": baseline}


def _cheapest_unbeaten(choice: str, scores: Scores, baseline: str) -> str:
    if said := no_rival_is_better(choice, scores, baseline):
        return said
    cheaper = list(scores)[: list(scores).index(choice)]
    free = [name for name in cheaper if not no_rival_is_better(name, scores, baseline)]
    return f"{free[0]!r} is cheaper, and nothing surely beats it" if free else ""


def _keep_by_walking(scores: Scores, baseline: str) -> list:
    for name, row in scores.items():
        lows = [paired_bootstrap(row, other, seed=5)[1] for other in scores.values()]
        if max(lows) <= 0:
            return [name, *paired_bootstrap(scores[baseline], row, seed=5)[1:]]
    raise AssertionError("the best of them is beaten by none")


def _keep_like_the_best(scores: Scores, baseline: str) -> tuple:
    """The first that cannot be told from the one with the highest mean."""
    best = max(scores.values(), key=lambda row: row.mean().item())
    name = next(n for n, row in scores.items() if paired_bootstrap(row, best)[1] <= 0)
    change = scores[name] - scores[baseline]
    half = 1.96 * change.std() / len(change) ** 0.5
    return name, (change.mean() - half, change.mean() + half)


LAYERS_TO_KEEP = Exercise(
    id="04.4", title="A layer to keep", minutes=8, difficulty=3,
    signature="layers_to_keep(scores, baseline)", reference=layers_to_keep, cases=_options,
    compare=partial(defended, objection=_cheapest_unbeaten), agree=same_decision,
    returns=("option", "low", "high"), accepted=(_keep_by_walking, _keep_like_the_best),
    diagnoses=(
        *WRONG_INTERVALS,
        ("unbeaten[0] => max(scores, key=lambda name: scores[name].mean().item())",
         "the highest mean: a cheaper one that cannot be told from it is enough"),
        ("for other in scores.values() => "
         "for other in list(scores.values())[list(scores).index(name) :][:2]",
         "only the next one was asked: a dearer one may beat it"),
        ('interval(scores[name], other)[0] <= 0 for other in scores.values() => '
         'interval(scores[name], list(scores.values())[-1])[0] <= 0 for _ in "1"',
         "only the dearest was asked: each of the others may beat it"),
        ("unbeaten[0] => list(scores)[-1]",
         "the dearest option: the dictionary begins with the cheapest"),
        ("unbeaten[0] => list(scores)[0]", "the cheapest option, though others surely beat it"),
    ),
    hints=(
        ("When is an option beaten?",
         "When the interval of another one against it begins above zero: "
         "paired_bootstrap(scores[name], scores[other])[1] > 0."),
        ("Which of the unbeaten?", "The dictionary begins with the cheapest: take the first."),
    ),
)  # fmt: skip


EXERCISES = [FOLD_BN, QDQ_PAIRS, SUSPECTS, LAYERS_TO_KEEP]
