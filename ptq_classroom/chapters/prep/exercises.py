"""Checks of the prep self-test: seven small things that the course takes for granted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.kit.examine import Probe
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect, expect_close, roughly
from ptq_classroom.kit.values import same, snapshot

Case = tuple[str, dict[str, Any]]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# prep.1 broadcasting -----------------------------------------------------------------------------


def scale_channels(w: Tensor, s: Tensor) -> Tensor:
    """Multiply output channel c of a convolution's weight [O, I, kh, kw] by s[c]."""
    return w * s.reshape(-1, 1, 1, 1)


def _weights() -> Iterator[Case]:
    s = torch.tensor([1.0, 10.0, 100.0])
    yield "every dimension is 3", {"w": _random(3, 3, 3, 3, seed=1), "s": s}
    yield "four outputs, two inputs", {"w": _random(4, 2, 3, 3, seed=2), "s": torch.arange(1.0, 5)}
    yield "a depthwise weight", {"w": _random(5, 1, 3, 3, seed=3), "s": torch.arange(1.0, 6) / 4}
    s = torch.tensor([-2.0, 0.5])
    yield "a kernel of 1 x 5, a negative factor", {"w": _random(2, 3, 1, 5, seed=13), "s": s}


def _scaled_loop(w: Tensor, s: Tensor) -> Tensor:
    return torch.stack([channel * factor for channel, factor in zip(w, s, strict=True)])


SCALE_CHANNELS = Exercise(
    id="prep.1", title="Broadcasting", minutes=2, difficulty=1,
    signature="scale_channels(w, s)", reference=scale_channels, cases=_weights,
    returns="the weight",
    accepted=(_scaled_loop, lambda w, s: torch.einsum("oihw,o->oihw", w, s), lambda w,
        s: (w.transpose(0, -1) * s).transpose(0, -1)),
    diagnoses=(
        (".reshape(-1, 1, 1, 1) =>",
         "w * s lines s up with the LAST dimension (the kernel's width); reshape s to [O, 1, 1, "
         "1]"),
        ("s.reshape(-1, 1, 1, 1) => s[:, None, None]",
         "s was lined up with the input channels; the output channels come first: s[:, None, "
         "None, None]"),
        ("s.reshape(-1, 1, 1, 1) => s[:, None]",
         "s was lined up with the kernel's height; it needs three trailing dimensions of size 1"),
        ("w * s => w / s", "divided instead of multiplied"),
    ),
    hints=(
        ("It runs when all sizes are 3 and fails otherwise",
         "Broadcasting lines shapes up from the right: s is [O], w is [O, I, kh, kw]."),
        ("How do I add dimensions", "s[:, None, None, None] or s.reshape(-1, 1, 1, 1)."),
    ),
)  # fmt: skip


# prep.2 integer wrap-around ----------------------------------------------------------------------


def wrap(value: int, bits: int) -> int:
    """What a two's-complement integer of `bits` bits shows after `value` was put into it."""
    half = 2 ** (bits - 1)
    return (value + half) % 2**bits - half


def _whole_numbers() -> Iterator[Case]:
    pairs = [(5, 8), (127, 8), (128, 8), (130, 8), (-129, 8), (300, 8), (-300, 8), (255, 8)]
    for value, bits in [*pairs, (7, 4), (8, 4), (-9, 4), (40000, 16), (1000, 4), (-1000, 4)]:
        yield f"{value} in {bits} bits", {"value": value, "bits": bits}


def _wrap_bits(value: int, bits: int) -> int:
    rest = value & (2**bits - 1)
    return rest - 2**bits if rest >> (bits - 1) else rest


def _wrap_loop(value: int, bits: int) -> int:
    while value >= 2 ** (bits - 1):
        value -= 2**bits
    while value < -(2 ** (bits - 1)):
        value += 2**bits
    return value


WRAP = Exercise(
    id="prep.2", title="Integer wrap-around", minutes=2, difficulty=2,
    signature="wrap(value, bits)", reference=wrap, cases=_whole_numbers, returns="the integer",
    accepted=(_wrap_bits, _wrap_loop),
    diagnoses=(
        ("(value + half) % 2**bits - half => min(max(value, -half), half - 1)",
         "this saturates; a plain cast wraps around instead"),
        ("(value + half) % 2**bits - half => value % 2**bits",
         "this is the unsigned integer; a signed one has negatives above 2^(bits-1) - 1"),
        ("(value + half) % 2**bits - half => value + 2 * half * ((value < -half) - (value >= "
         "half))",
         "large values go round more than once: use the remainder (%)"),
        ("half = 2 ** (bits - 1) => bits, half = 8, 128",
         "this is int8 whatever was asked for: use `bits`"),
        ("(value + half) % 2**bits - half => (value + half - 1) % 2**bits - half + 1",
         "2^(bits-1) itself has no room: 128 in 8 bits shows -128"),
    ),
    hints=(
        ("What happens to 128 in 8 bits",
         "The highest is 127; one more lands on the lowest, -128."),
        ("Where to begin",
         "Python's % is never negative. Shift by 2^(bits-1), take the remainder of 2^bits, shift "
         "back."),
    ),
)  # fmt: skip


# prep.3 histograms -------------------------------------------------------------------------------


def histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Counts of x in `bins` equal bins over [low, high]; `high` belongs to the last bin."""
    inside = x[(x >= low) & (x <= high)]
    index = ((inside - low) / (high - low) * bins).long().clamp(max=bins - 1)
    return torch.bincount(index, minlength=bins)


def _samples() -> Iterator[Case]:
    x = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9, 0.95, 0.05])
    yield "all inside", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    x = torch.tensor([-3.0, 0.1, 0.4, 0.6, 0.7, 5.0])
    yield "two outside", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    x = torch.tensor([0.0, 0.3, 1.0, 1.0])
    yield "on the upper edge", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    x = torch.tensor([0.25, 0.5, 0.5, 0.6, 0.75, 0.1])
    yield "on the edges between bins", {"x": x, "low": 0.0, "high": 1.0, "bins": 4}
    yield "normal", {"x": _random(400, seed=4), "low": -2.0, "high": 2.0, "bins": 16}


def _histogram_numpy(x: Tensor, low: float, high: float, bins: int) -> np.ndarray:
    return np.histogram(x.numpy(), bins=bins, range=(low, high))[0]


def _histogram_loop(x: Tensor, low: float, high: float, bins: int) -> list[int]:
    edges = torch.linspace(low, high, bins + 1).tolist()
    counts = [sum(a <= v < b for v in x.tolist()) for a, b in itertools.pairwise(edges)]
    counts[-1] += sum(v == high for v in x.tolist())
    return counts


HISTOGRAM = Exercise(
    id="prep.3", title="A histogram", minutes=3, difficulty=2,
    signature="histogram(x, low, high, bins)", reference=histogram, cases=_samples,
    returns="counts",
    accepted=(_histogram_numpy, _histogram_loop),
    diagnoses=(
        ("x <= high => x < high", "a value equal to `high` was lost; it belongs to the last bin"),
        ("x[(x >= low) & (x <= high)] => x.clamp(low, high)",
         "values outside the range were piled into the end bins; leave them out"),
        ("* bins) => * (bins - 1))", "the width of a bin is (high - low) / bins, not / (bins - 1)"),
        (".long() => .round().long()", "the bin's number is rounded down, not to the nearest"),
        (".long() => .ceil().sub(1).clamp(min=0).long()",
         "a value on the edge between two bins went to the lower one: it begins the upper one"),
    ),
    hints=(
        ("Which bin does a value fall into",
         "floor((x - low) / width), where width is (high - low) / bins."),
        ("The sum is too small",
         "A value equal to `high` computes to bin number `bins`: one too far."),
    ),
)  # fmt: skip


# prep.4 logarithms and decibels ------------------------------------------------------------------


def sqnr_db(signal: Tensor, noisy: Tensor) -> float:
    """Signal-to-noise ratio in decibels: 10 log10(power of the signal / power of the error)."""
    return 10 * math.log10(float((signal**2).sum() / ((signal - noisy) ** 2).sum()))


def _signals() -> Iterator[Case]:
    x = torch.tensor([3.0, -4.0, 5.0, -2.0])
    yield "error of a tenth", {"signal": x, "noisy": x * 1.1}
    x = _random(6, 7, seed=5)
    yield "a noisy matrix", {"signal": x, "noisy": x + 0.3 * _random(6, 7, seed=6)}
    yield "everything too large", {"signal": x, "noisy": x + 0.3 + 0.1 * _random(6, 7, seed=6)}
    yield "more noise than signal", {"signal": x, "noisy": x + 3 * _random(6, 7, seed=6)}


def _power_ratio(signal: Tensor, noisy: Tensor) -> float:
    return float((signal**2).sum() / ((signal - noisy) ** 2).sum())


SQNR_DB = Exercise(
    id="prep.4", title="Decibels", minutes=2, difficulty=1,
    signature="sqnr_db(signal, noisy)", reference=sqnr_db, cases=_signals,
    returns="the ratio in dB", rtol=1e-4,
    accepted=(lambda signal, noisy: 20 * torch.log10(signal.norm() / (signal - noisy).norm()),
        lambda signal, noisy: -10 * np.log10(1 / _power_ratio(signal, noisy))),
    diagnoses=(
        ("10 * math => 20 * math",
         "20 log10 belongs to a ratio of amplitudes; a ratio of powers takes 10 log10"),
        ("math.log10 => math.log", "the natural logarithm was used; decibels take log10"),
        ("return 10 => return -10", "the ratio is upside down: signal above, error below"),
        ("(signal**2).sum() / => signal.var() /",
         "((signal - noisy) ** 2).sum() => (signal - noisy).var()",
         "var() subtracts the mean first: a constant error counts too, so square and sum"),
        ("return 10 => return 5",
         "a ratio of amplitudes takes 20 log10 (or square them and take 10)"),
        ("return 10 * math.log10( => return abs(10 * math.log10(",
         "** 2).sum())) => ** 2).sum())))",
         "the sign was taken away: with more noise than signal the decibels are negative"),
        ("(signal - noisy) ** 2 => noisy**2",
         "the error is signal - noisy; the power of `noisy` itself was used"),
    ),
    hints=(
        ("What is the noise", "The difference between the two tensors, squared and summed."),
        ("I get twice (or half) the value",
         "Power goes with the square of the amplitude: 10 log10(a^2) = 20 log10(a)."),
    ),
)  # fmt: skip


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


CONV_OUT = Exercise(
    id="prep.5", title="Shapes of a convolution", minutes=2, difficulty=2,
    signature="conv_out(size, kernel, stride, padding, dilation)", reference=conv_out,
    cases=_convolutions, returns="the output size",
    accepted=(_conv_run, _conv_count),
    diagnoses=(
        ("// stride + 1 => // stride", "the first position counts too: + 1 at the end"),
        ("2 * padding => padding", "the padding is added on both sides: 2 * padding"),
        ("dilation * (kernel - 1) - 1 => kernel",
         "the dilation was ignored: a kernel spans dilation * (kernel - 1) + 1"),
        ("return ( => return 1 - (",
         "// stride + 1 => // -stride",
         "rounded up; a kernel that does not fit any more is left out (round down)"),
        ("dilation * (kernel - 1) - 1 => dilation * kernel",
         "a kernel of size k spans dilation * (k - 1) + 1, not dilation * k"),
    ),
    hints=(
        ("Off by one",
         "The kernel spans dilation * (kernel - 1) + 1 values. Count the places where its left "
         "end can stand."),
        ("Stride 2 is wrong",
         "Divide the free room by the stride, round down, and add the first place."),
    ),
)  # fmt: skip


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


BATCH_NORM = Exercise(
    id="prep.6", title="Batch norm in eval mode", minutes=3, difficulty=2,
    signature="batch_norm(x, mean, var, gamma, beta, eps)", reference=batch_norm, cases=_maps,
    returns="the output", rtol=1e-4, atol=1e-5,
    accepted=(_norm_module, _norm_folded), agree=roughly,
    diagnoses=(
        ("t in (mean, var, gamma, beta) => t in (x.mean((0, 2, 3)), x.var((0, 2, 3), "
         "unbiased=False), gamma, beta)",
         "the statistics of this batch were used (train mode); eval mode uses the running ones "
         "given"),
        ("t in (mean, var, gamma, beta) => t in (x.mean((0, 2, 3)), x.var((0, 2, 3)), gamma, beta)",
         "x.mean() and x.var() are those of this batch (train mode); eval mode uses the running "
         "ones given"),
        ("t.reshape(1, -1, 1, 1) => t",
         "the channel is dimension 1: reshape the vectors to [1, C, 1, 1]"),
        ("torch.sqrt(var + eps) => (var + eps)",
         "divided by the variance; divide by its square root"),
        ("mean, var, gamma, beta = => mean, var, beta, gamma =",
         "gamma and beta are swapped: multiply by gamma, add beta"),
        ("torch.sqrt(var + eps) => torch.sqrt(var)", "eps is missing under the root"),
        ("torch.sqrt(var + eps) => (torch.sqrt(var) + eps)",
         "eps belongs under the root: sqrt(var + eps)"),
    ),
    hints=(
        ("Shapes do not fit",
         "The four vectors have one entry per channel, and the channel is dimension 1 of x."),
        ("Almost right", "eps is 0.01 here so that it shows: sqrt(var + eps)."),
    ),
)  # fmt: skip


# prep.7 hooks ------------------------------------------------------------------------------------


ONCE = "one forward pass is enough: register all hooks first, then run the model once"
OTHERS = "remove the hooks that you registered and no others: handle.remove() of each handle"


def linear_outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output of every nn.Linear in one forward pass, by module name; hooks removed afterwards."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                found[name] = output.detach().clone()

            handles.append(module.register_forward_hook(keep))
    model(x)
    for handle in handles:
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


class _CountedLinear(nn.Linear):
    """Counts its forward passes: a hook that counts would not reach a student's process."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


def _once_and_clean_afterwards(fn: Probe) -> None:
    layer = _CountedLinear(2, 2)
    model = _Counted(layer, nn.Linear(2, 1))
    layer.register_forward_hook(lambda *_: None)  # somebody else's
    found = fn(model, torch.ones(1, 2))
    expect(
        model.runs == 1,
        f"the model ran {model.runs} times",
        expected="1 forward pass",
        got=f"{model.runs} forward passes",
        cause=ONCE,
    )
    left = sum(len(m._forward_hooks) for m in model.modules()) - 1
    expect(
        left >= 0,
        "a hook that was on the model before the call is gone",
        cause=OTHERS,
    )
    expect(layer.runs == 1, f"a layer ran {layer.runs} times", cause=ONCE)
    expect(
        left == 0,
        "hooks were left on the model",
        expected="0 hooks",
        got=f"{left} hooks",
        cause="keep the handle of register_forward_hook and call handle.remove()",
    )
    kept = snapshot(found)
    model(torch.full((1, 2), 3.0))
    expect(
        same(kept, found),
        "the outputs that were returned changed when the model ran again",
        cause="something still records: a global hook, or a `forward` that was replaced",
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


LINEAR_OUTPUTS = Exercise(
    id="prep.7", title="Hooks", minutes=3, difficulty=3,
    signature="linear_outputs(model, x)", reference=linear_outputs, cases=_networks,
    compare=_same_outputs, check=_once_and_clean_afterwards,
    accepted=(_linear_outputs_class, _linear_outputs_try),
    diagnoses=(
        (".detach().clone() =>",
         "a recorded output was changed afterwards by the in-place ReLU: keep a copy, "
         "out.detach().clone()"),
        ("output.detach() => inputs[0].detach()",
         "the inputs were recorded; a forward hook gets (module, inputs, output)"),
        ("isinstance(module, nn.Linear) => True",
         "every module was recorded; keep those with isinstance(module, nn.Linear)"),
        ("handle.remove() => pass",
         "keep the handle of register_forward_hook and call handle.remove()"),
        ("handle.remove() => [module._forward_hooks.clear() for module in model.modules()]",
         OTHERS),
        ("named_modules => named_children",
         "a Linear inside another module was missed: named_modules() goes through all of them, "
         "named_children() does not"),
        (", name: str = name =>",
         "a hook made in a loop sees the loop's last name: make it in a function that takes the "
         "name"),
        ("model(x) => model(x), model(x)", ONCE),
    ),
    hints=(
        ("Where do the names come from", "for name, module in model.named_modules(): ..."),
        ("Every entry is the same tensor",
         "A hook made in a loop sees the loop's last name. Make it in a function that takes the "
         "name."),
        ("Negative values turned into zeros",
         "nn.ReLU(inplace=True) writes into the tensor that you recorded. Record a copy."),
    ),
)  # fmt: skip


EXERCISES = [SCALE_CHANNELS, WRAP, HISTOGRAM, SQNR_DB, CONV_OUT, BATCH_NORM, LINEAR_OUTPUTS]
