"""Checks of the prep self-test: convolution shapes, batch norm, hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.kit.examine import Probe
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect, expect_close
from ptq_classroom.kit.values import same

Case = tuple[str, dict[str, Any]]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# prep.5 convolution shapes -----------------------------------------------------------------------


def conv_out(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Length of a convolution's output along one dimension."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _convolutions() -> Iterator[Case]:
    names = ("size", "kernel", "stride", "padding", "dilation")
    table = [
        (48, 3, 1, 1, 1),
        (48, 3, 2, 1, 1),
        (32, 5, 1, 0, 1),
        (47, 3, 2, 0, 1),
        (48, 4, 3, 2, 1),
    ]
    for row in [*table, (48, 3, 1, 2, 2), (50, 3, 2, 1, 3), (7, 7, 1, 0, 1)]:
        yield (
            "kernel {1}, stride {2}, padding {3}, dilation {4}".format(*row),
            dict(zip(names, row, strict=True)),
        )


def _conv_run(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    conv = nn.Conv1d(1, 1, kernel, stride, padding, dilation)
    return conv(torch.zeros(1, 1, size)).shape[-1]


def _conv_count(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    last = size + 2 * padding - dilation * (kernel - 1)
    return len(range(0, last, stride))


# prep.6 batch norm -------------------------------------------------------------------------------


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    """Batch norm in eval mode: x [N, C, H, W] with the running statistics of each channel."""
    mean, var, gamma, beta = (t.reshape(1, -1, 1, 1) for t in (mean, var, gamma, beta))
    return (x - mean) / torch.sqrt(var + eps) * gamma + beta


def _maps() -> Iterator[Case]:
    for label, shape, seed in (("C = W", (2, 3, 3, 3), 7), ("C and W differ", (2, 4, 5, 6), 8)):
        c = shape[1]
        mean, gamma, beta = _random(3, c, seed=seed)
        yield (
            label,
            {
                "x": _random(*shape, seed=seed + 10) * 2 + 1,
                "mean": mean,
                "var": _random(c, seed=seed + 20).abs() + 0.05,
                "gamma": gamma,
                "beta": beta,
                "eps": 1e-2,
            },
        )


def _normed(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float, *, how: str
) -> Tensor:
    if how == "batch":
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    if how == "swapped":
        gamma, beta = beta, gamma
    if how != "last":
        mean, var, gamma, beta = (t.reshape(1, -1, 1, 1) for t in (mean, var, gamma, beta))
    below = {"no root": var + eps, "no eps": var.sqrt(), "outside": var.sqrt() + eps}
    return (x - mean) / below.get(how, (var + eps).sqrt()) * gamma + beta


def _roughly(got: Any, wrong: Any) -> bool:
    """Equal up to the order in which float32 sums were taken; or the same error."""
    if same(got, wrong):
        return True
    try:
        expect_close(got, wrong, rtol=1e-4, atol=1e-5)
    except (Failure, TypeError, ValueError):
        return False
    return True


def _norm_module(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    return nn.functional.batch_norm(x, mean, var, gamma, beta, training=False, eps=eps)


def _norm_folded(
    x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    factor = gamma * (var + eps).rsqrt()
    shift = beta - factor * mean
    return torch.einsum("nchw,c->nchw", x, factor) + shift[:, None, None]


# prep.7 hooks ------------------------------------------------------------------------------------


ONCE = "one forward pass is enough: register all hooks first, then run the model once"


def linear_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output of every nn.Linear in one forward pass, by module name; hooks removed afterwards."""
    return _hooked(model, x)


def _hooked(
    model: nn.Module,
    x: Tensor,
    *,
    remove: bool = True,
    copy: bool = True,
    which: type = nn.Linear,
    inputs: bool = False,
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple, out: Tensor) -> None:
            value = args[0] if inputs else out
            found[name] = value.detach().clone() if copy else value

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, which) and name
    ]
    model(x)
    for handle in handles if remove else ():
        handle.remove()
    return found


def _networks() -> Iterator[Case]:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(9)
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    inplace = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 2))
    torch.random.set_rng_state(torch_state)
    yield "Linear, Tanh, Linear", {"model": plain, "x": _random(2, 4, seed=10)}
    yield "with an in-place ReLU", {"model": inplace, "x": _random(3, 4, seed=11)}
    yield "a module inside a module", {"model": nested, "x": _random(3, 4, seed=12)}


class _Counted(nn.Sequential):
    """Counts its forward passes."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


def _once_and_clean_afterwards(fn: Probe) -> None:
    model = _Counted(nn.Linear(2, 2), nn.Linear(2, 1))
    fn(model, torch.ones(1, 2))
    expect(
        model.runs == 1,
        f"the model ran {model.runs} times",
        expected="1 forward pass",
        got=f"{model.runs} forward passes",
        cause=ONCE,
    )
    left = sum(len(m._forward_hooks) for m in model.modules())
    expect(
        left == 0,
        "hooks were left on the model",
        expected="0 hooks",
        got=f"{left} hooks",
        cause="keep the handle of register_forward_hook and call handle.remove()",
    )


class _Recorder:
    """A hook that knows its name."""

    def __init__(self, name: str, found: dict[str, Tensor]):
        self.name, self.found = name, found

    def __call__(self, _module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        self.found[self.name] = out.clone()


def _linear_outputs_class(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(_Recorder(n, found)) for n, m in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def _outermost_only(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_children()}
    return {name: out for name, out in _hooked(model, x).items() if name in names}


def _twice(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x)
    return _hooked(model, x)


def _last_name(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Hooks made in a loop, all of which see the loop's last name."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            handles.append(
                module.register_forward_hook(
                    lambda _m, _i, out: found.update({name: out.detach().clone()})  # noqa: B023
                )
            )
    model(x)
    for handle in handles:
        handle.remove()
    return found


def _linear_outputs_try(model: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    found, handles = {}, []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            handles.append(
                module.register_forward_hook(
                    lambda _m, _i, out, name=name: found.update({name: out.detach().numpy().copy()})
                )
            )
    try:
        model(x)
    finally:
        [handle.remove() for handle in handles]
    return found


def _same_outputs(got: Any, expected: dict, **_: Any) -> None:
    expect_close(got, expected, rtol=1e-4, atol=1e-6)


EXERCISES = [
    Exercise(
        id="prep.5",
        title="Shapes of a convolution",
        minutes=2,
        difficulty=2,
        signature="conv_out(size, kernel, stride, padding, dilation)",
        reference=conv_out,
        cases=_convolutions,
        returns="the output size",
        accepted=(_conv_run, _conv_count),
        diagnoses=(
            (
                lambda s, k, st, p, d: (s + 2 * p - d * (k - 1) - 1) // st,
                "the first position counts too: + 1 at the end",
            ),
            (
                lambda s, k, st, p, d: (s + p - d * (k - 1) - 1) // st + 1,
                "the padding is added on both sides: 2 * padding",
            ),
            (
                lambda s, k, st, p, d: (s + 2 * p - k) // st + 1,
                "the dilation was ignored: a kernel spans dilation * (kernel - 1) + 1",
            ),
            (
                lambda s, k, st, p, d: -((s + 2 * p - d * (k - 1) - 1) // -st) + 1,
                "rounded up; a kernel that does not fit any more is left out (round down)",
            ),
            (
                lambda s, k, st, p, d: (s + 2 * p - d * k) // st + 1,
                "a kernel of size k spans dilation * (k - 1) + 1, not dilation * k",
            ),
        ),
        hints=(
            (
                "Off by one",
                "The kernel spans dilation * (kernel - 1) + 1 values. Count the places where "
                "its left end can stand.",
            ),
            (
                "Stride 2 is wrong",
                "Divide the free room by the stride, round down, and add the first place.",
            ),
        ),
    ),
    Exercise(
        id="prep.6",
        title="Batch norm in eval mode",
        minutes=3,
        difficulty=2,
        signature="batch_norm(x, mean, var, gamma, beta, eps)",
        reference=batch_norm,
        cases=_maps,
        returns="the output",
        rtol=1e-4,
        atol=1e-5,
        accepted=(_norm_module, _norm_folded),
        agree=_roughly,
        diagnoses=(
            (
                lambda *a: _normed(*a, how="batch"),
                "the statistics of this batch were used (train "
                "mode); eval mode uses the running ones given",
            ),
            (
                lambda *a: _normed(*a, how="last"),
                "the channel is dimension 1: reshape the vectors to [1, C, 1, 1]",
            ),
            (
                lambda *a: _normed(*a, how="no root"),
                "divided by the variance; divide by its square root",
            ),
            (
                lambda *a: _normed(*a, how="swapped"),
                "gamma and beta are swapped: multiply by gamma, add beta",
            ),
            (lambda *a: _normed(*a, how="no eps"), "eps is missing under the root"),
            (lambda *a: _normed(*a, how="outside"), "eps belongs under the root: sqrt(var + eps)"),
        ),
        hints=(
            (
                "Shapes do not fit",
                "The four vectors have one entry per channel, and the channel is dimension 1 of x.",
            ),
            ("Almost right", "eps is 0.01 here so that it shows: sqrt(var + eps)."),
        ),
    ),
    Exercise(
        id="prep.7",
        title="Hooks",
        minutes=3,
        difficulty=3,
        signature="linear_outputs(model, x)",
        reference=linear_outputs,
        cases=_networks,
        compare=_same_outputs,
        check=_once_and_clean_afterwards,
        accepted=(_linear_outputs_class, _linear_outputs_try),
        diagnoses=(
            (
                lambda model, x: _hooked(model, x, copy=False),
                "a recorded output was changed afterwards by the in-place ReLU: keep a copy, "
                "out.detach().clone()",
            ),
            (
                lambda model, x: _hooked(model, x, inputs=True),
                "the inputs were recorded; a forward hook gets (module, inputs, output)",
            ),
            (
                lambda model, x: _hooked(model, x, which=nn.Module),
                "every module was recorded; keep those with isinstance(module, nn.Linear)",
            ),
            (
                lambda model, x: _hooked(model, x, remove=False),
                "keep the handle of register_forward_hook and call handle.remove()",
            ),
            (
                _outermost_only,
                "a Linear inside another module was missed: named_modules() goes through all of "
                "them, named_children() does not",
            ),
            (
                _last_name,
                "a hook made in a loop sees the loop's last name: make it in a function that takes "
                "the name",
            ),
            (_twice, ONCE),
        ),
        hints=(
            ("Where do the names come from", "for name, module in model.named_modules(): ..."),
            (
                "Every entry is the same tensor",
                "A hook made in a loop sees the loop's last name. Make it "
                "in a function that takes the name.",
            ),
            (
                "Negative values turned into zeros",
                "nn.ReLU(inplace=True) writes into the tensor that you recorded. Record a copy.",
            ),
        ),
    ),
]
