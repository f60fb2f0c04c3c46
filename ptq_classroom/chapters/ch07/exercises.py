"""Checks of chapter 07: one scale for each token, and a linear layer that works on integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    defended,
    interval,
    made_scores,
    no_rival_is_better,
    same_decision,
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.examine import Probe
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect, expect_close, roughly
from ptq_classroom.kit.values import as_array, same

# 07.1 ------------------------------------------------------------------------------------------


def token_scales(x: Tensor) -> Tensor:
    """Symmetric 8-bit scale of each token: [..., D] -> [..., 1]; 1 for a token of zeros."""
    largest = x.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / 127, 1.0)


COARSE = "a floor of 1e-5 is more than a quiet token holds: only a token of zeros needs one"


def _tokens() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "two tokens", {"x": torch.tensor([[1.27, -0.5, 0.3], [12.7, 3.0, -1.0]])}
    yield "the largest magnitude is negative", {"x": torch.tensor([[0.5, -2.54], [-5.08, 1.0]])}
    generator = torch.Generator().manual_seed(701)
    x = torch.randn(3, 5, 8, generator=generator)
    yield "a batch of sequences [3, 5, 8]", {"x": x * torch.tensor([0.1, 1, 5, 30, 2])[:, None]}
    yield "a token of zeros", {"x": torch.tensor([[0.0, 0.0, 0.0], [0.635, 0.1, -0.2]])}
    yield (
        "a token so quiet that it is almost zeros",
        {"x": torch.tensor([[1e-7, -2e-7, 0.0], [0.3, -0.2, 0.1]])},
    )
    cancel = torch.tensor([[1.27, -1.27, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]])
    yield "some zeros, and a token that adds up to 0", {"x": cancel}
    yield "nothing but zeros", {"x": torch.zeros(2, 3)}
    yield "one token [4]", {"x": torch.tensor([0.1, -0.3, 0.2, 0.05])}


def _same_scales(got: Any, expected: Tensor, x: Tensor) -> None:
    """As expected; a token of zeros may have any positive scale, since all decode it exactly."""
    wanted = _as_in(got, expected, x.abs().amax(-1, keepdim=True) == 0)
    expect_close(got, wanted, "scales", rtol=1e-5, atol=0)


def _as_in(got: Any, expected: Tensor, free: Tensor) -> Tensor:
    """What is expected, with got's own value wherever it is ``free`` and a positive number."""
    try:
        found = torch.as_tensor(as_array(got)).to(expected.dtype)
    except (ValueError, TypeError):
        return expected
    if found.shape != expected.shape:
        return expected
    return torch.where(free & (found > 0) & found.isfinite(), found, expected)


def _scales_clamped(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127


def _scales_in_a_loop(x: Tensor) -> Tensor:
    rows = [max(abs(v) for v in row) / 127 for row in x.reshape(-1, x.shape[-1]).tolist()]
    return torch.tensor([s or 1.0 for s in rows]).reshape(*x.shape[:-1], 1)


def _scales_in_numpy(x: Tensor) -> np.ndarray:
    values = x.numpy()
    ends = np.maximum(values.max(-1, keepdims=True), -values.min(-1, keepdims=True))
    return np.where(ends == 0, 127, ends) / 127


TOKEN_SCALES = Exercise(
    id="07.1", title="A scale for each token", minutes=6, difficulty=2,
    signature="token_scales(x)", reference=token_scales, cases=_tokens, compare=_same_scales,
    returns="scales",
    accepted=(_scales_in_a_loop, _scales_in_numpy, _scales_clamped),
    diagnoses=(
        ("x.abs().amax(-1, keepdim=True) => x.abs().max().expand(*x.shape[:-1], 1)",
         "one scale for the whole tensor: each token has its own largest value"),
        ("x.abs().amax(-1, keepdim=True) => x.abs().flatten(0, -2).amax(0, keepdim=True)",
         "the largest value of each feature over the tokens: reduce the last dim"),
        ("x.abs().amax => x.amax",
         "the maximum, not the largest magnitude: a token may be negative"),
        ("/ 127 => / 128", "divided by 128: the largest symmetric code of 8 bits is 127"),
        ("x.abs().amax(-1, keepdim=True) => x.amax(-1, keepdim=True).clamp(min=0) - x.amin(-1, "
         "keepdim=True).clamp(max=0)",
         "/ 127 => / 255",
         "this is the affine scale; the symmetric one is largest |x| / 127"),
        ("keepdim=True => keepdim=False",
         "the last dimension is gone: keep it with size 1, so that x / scales broadcasts"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest / 127",
         "a token of zeros gets scale 0, and 0 / 0 is NaN: give it scale 1"),
        ("largest > 0 => largest > 1e-3",
         "a quiet token is taken for zeros: only where all values are 0 is the scale 1"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest.clamp_min(1e-5) / 127", COARSE),
        ("torch.where(largest > 0, largest / 127, 1.0) => (largest / 127).clamp_min(1e-5)",
         "a floor of 1e-5 under the scale is far above a quiet token's own: only 0 needs one"),
        ("torch.where(largest > 0, largest / 127, 1.0) => (largest + 1e-9) / 127",
         "a small number was added to every scale: only a token of zeros needs another one"),
        ("largest > 0 => (x != 0).all(-1, keepdim=True)",
         "some zeros do not make a token of zeros: all of its values must be 0"),
        ("largest > 0 => x.sum(-1, keepdim=True) != 0",
         "values that add up to 0 are no zeros: ask whether the largest |x| is 0"),
        ("x.abs().amax(-1, keepdim=True) => x.abs().amax(min(1, x.dim() - 1), keepdim=True)",
         "dimension 1 is the last one of a matrix only: reduce dim -1"),
        ("return torch.where(largest > 0, largest / 127, 1.0) => return torch.where(largest > 0, "
         "largest / 127, 1.0).expand_as(x)",
         "the scale was repeated for each value: [..., 1] broadcasts by itself"),
        ("torch.where(largest > 0, largest / 127, 1.0) => 127 / largest",
         "this is the inverse, codes for each unit: 127 is the divisor"),
    ),
    hints=(
        ("Which dimension is the token?",
         "Each row along the last dimension is one token: reduce dim=-1, keep the others."),
        ("The shape is wrong",
         "amax(-1, keepdim=True) leaves a dimension of size 1, against which x broadcasts."),
        ("What about a token of zeros?",
         "Any positive scale decodes it exactly; torch.where(largest > 0, ..., 1.0)."),
    ),
)  # fmt: skip


# 07.2 ------------------------------------------------------------------------------------------


def dynamic_linear(x: Tensor, wq: Tensor, sw: Tensor) -> Tensor:
    """Round x to integers token by token, multiply integers, rescale: [N, K] -> [N, O]."""
    largest = x.abs().amax(-1, keepdim=True)
    sx = torch.where(largest > 0, largest / 127, 1.0)
    xq = torch.round(x / sx).to(torch.int32)
    sums = xq @ wq.to(torch.int32).T
    return sums * (sx * sw)


def _linear_cases() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, rows: int, columns: int, outputs: int, seed: int, spread: float) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, columns, generator=generator)
        x = x * 10 ** (spread * torch.rand(rows, 1, generator=generator))
        wq = torch.randint(-127, 128, (outputs, columns), generator=generator).to(torch.int8)
        sw = torch.rand(outputs, generator=generator) * 0.01 + 0.001
        return label, {"x": x, "wq": wq, "sw": sw}

    yield case("one token, two outputs", 1, 4, 2, 711, 0.0)
    yield case("tokens of different ranges", 5, 16, 3, 712, 2.0)
    yield case("as many tokens as outputs", 6, 40, 6, 713, 1.0)
    label, given = case(SILENT, 3, 12, 4, 714, 1.0)
    given["x"][1] = 0.0
    yield label, given
    halves = torch.tensor([[127.0, 0.5, 1.5, 2.5], [-127.0, -0.5, -1.5, -2.5]])
    wq = torch.tensor([[0, 1, 1, 1], [1, 2, 4, 8], [0, 0, 1, 0]], dtype=torch.int8)
    yield "halfway codes", {"x": halves, "wq": wq, "sw": torch.tensor([0.5, 0.25, 1.0])}
    label, given = case("a token so quiet that it is almost zeros", 3, 8, 4, 715, 1.0)
    given["x"][2] *= 1e-8
    yield label, given
    yield "4096 large products that nearly cancel", _cancelling()
    yield "262144 products: sums of far more than 24 bits", _long_sums()


HALF = 2048
SILENT = "a token of zeros"


def _cancelling() -> dict[str, Tensor]:
    """Extreme codes whose sums are exact and small; floats for the codes round every product."""
    x = torch.tensor([127.0, 126.0]).repeat_interleave(HALF) * torch.tensor([[0.0123], [0.0071]])
    wq = torch.tensor([126, -127]).repeat_interleave(HALF).repeat(2, 1)
    wq[0, 0], wq[1, -1] = 124, -123  # sums of -254 and 504
    return {"x": x, "wq": wq.to(torch.int8), "sw": torch.tensor([0.0037, 0.0091])}


def _long_sums() -> dict[str, Tensor]:
    """Sums that pass 2^30 on the way and end near zero; float32 rounds what it adds up there."""
    half, generator = 2**17, torch.Generator().manual_seed(716)
    codes, weights = torch.randint(100, 126, (2, half), generator=generator)
    codes[0] = 127
    wq = torch.cat([weights, -weights.flip(0)]).repeat(2, 1)
    wq[0, 0], wq[1, 0] = wq[0, 0] - 2, wq[1, 0] + 1  # sums of -254 and 127
    x = torch.cat([codes, codes.flip(0)])[None] * torch.tensor([[0.0123]])
    return {"x": x, "wq": wq.to(torch.int8), "sw": torch.tensor([0.0037, 0.0091])}


ZEROS = "a token of zeros has scale 0, and 0 / 0 is NaN: give it scale 1"
FLOAT_CODES = "the codes were added up as float32, which skips whole numbers beyond 2^24: use int32"
FLOATS = "decoded floats were multiplied, and each product was rounded: multiply the codes"


def _same_output(got: Any, expected: Tensor, x: Tensor, **_: Any) -> None:
    try:  # the room for rounding is that of its own row, which may be a quiet one
        expect_close(got, expected, "output", rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        rows = expected.abs().amax(1, keepdim=True).clamp(min=1e-30)
        expect_close(torch.as_tensor(as_array(got)) / rows, expected / rows, "output", 1e-4, 1e-5)
    except Failure as failure:
        if x.shape[1] == 2 * HALF and same(got, expected, rtol=0.1):
            failure.cause = FLOATS  # nearly right, and only where sums must be exact
        if failure.index and np.isnan(failure.got[failure.index]) and not x[failure.index[0]].any():
            failure.cause = ZEROS
        raise


def _linear_in_float64(x: Tensor, wq: Tensor, sw: Tensor) -> Tensor:
    sx = x.abs().max(dim=1, keepdim=True).values.clamp(min=1e-30) / 127
    codes = (x / sx).round().double()
    return torch.einsum("nk,ok->no", codes, wq.double()) * sx * sw


def _linear_in_a_loop(x: Tensor, wq: Tensor, sw: Tensor) -> list[list[float]]:
    output = []
    for row in x:
        scale = max(float(row.abs().max()) / 127, 1e-30)
        codes = [round(float(v)) for v in row / scale]
        sums = [sum(a * b for a, b in zip(codes, w, strict=True)) for w in wq.tolist()]
        output.append([s * scale * float(f) for s, f in zip(sums, sw, strict=True)])
    return output


class _CastsOfNaN(TorchFunctionMode):
    """Whether a NaN becomes an integer: some integer comes out, and times a scale of 0 it hides."""

    seen = False

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = (args[0] if args else None), out
        if isinstance(given, Tensor) and isinstance(made, Tensor) and given.is_floating_point():
            whole = not made.is_floating_point() and made.dtype != torch.bool
            self.seen |= whole and bool(given.isnan().any())
        return out


def _no_nan_becomes_a_code(fn: Probe) -> None:
    given = dict(_linear_cases())[SILENT]
    with _CastsOfNaN() as casts:
        fn(*given.values())
    expect(not casts.seen, "NaN became a code on the way to this output", cause=ZEROS)


DYNAMIC_LINEAR = Exercise(
    id="07.2", title="A linear layer that rounds its input and multiplies integers", minutes=10,
    difficulty=3,
    signature="dynamic_linear(x, wq, sw)", reference=dynamic_linear, cases=_linear_cases,
    compare=_same_output, check=_no_nan_becomes_a_code, returns="output",
    agree=roughly,
    accepted=(_linear_in_float64, _linear_in_a_loop),
    diagnoses=(
        ("torch.round(x / sx).to(torch.int32) => torch.round(x / sx).to(torch.int8)",
         "wq.to(torch.int32).T => wq.T",
         "products of int8 in int8 wrap around: widen to int32 before multiplying"),
        ("return sums * (sx * sw) => return x @ (wq.float() * sw[:, None]).T",
         "x was never rounded: that is weight-only quantization"),
        ("(sx * sw) => sw", "the token's scale is missing: sums have the unit s_x * s_w"),
        ("(sx * sw) => sx", "the weight scale is missing: sums have the unit s_x * s_w"),
        ("x.abs().amax(-1, keepdim=True) => x.abs().max()",
         "one scale for the whole input: each token has its own"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest.clamp_min(1e-5) / 127", COARSE),
        ("torch.round(x / sx) => torch.floor(x / sx + 0.5)",
         "halfway codes went up: torch.round takes the even neighbour"),
        ("torch.round(x / sx).to(torch.int32) => torch.round(x / sx).int().to(torch.uint8).int()",
         "uint8 has no negative codes, and without a zero point they wrap around: int8 or int32"),
        ("xq @ wq.to(torch.int32).T => (xq @ wq.to(torch.int32).T).to(torch.int16)",
         "16 bits are too few for these sums: accumulate in int32"),
        ("torch.round => torch.trunc", "codes were cut off towards 0, not rounded"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest / 127", ZEROS),
        ("return sums * (sx * sw) => return (xq * sx) @ (wq.float() * sw[:, None]).T", FLOATS),
        ("torch.round(x / sx).to(torch.int32) => torch.round(x / sx)",
         "wq.to(torch.int32).T => wq.float().T", FLOAT_CODES),
        ("torch.round => torch.floor", "floor instead of round: every code went down"),
        ("torch.round(x / sx) => x.sign() * torch.floor(x.abs() / sx + 0.5)",
         "halfway codes went away from zero: torch.round takes the even neighbour"),
        ("x.abs().amax(-1, keepdim=True) => x.amax(-1, keepdim=True)",
         "the maximum, not the largest magnitude: a token may be negative"),
        ("largest / 127, => largest / 128,",
         "torch.round(x / sx) => torch.round(x / sx).clamp(-128, 127)",
         "divided by 128: the largest symmetric code of 8 bits is 127"),
        ("xq @ wq.to(torch.int32).T => (xq @ wq.to(torch.int32).T).clamp(-32768, 32767)",
         "the sums were held at 16 bits: accumulate in int32"),
        ("(sx * sw) => (sx * sw.mean())", "one scale for all outputs: each output has its own sw"),
        ("return sums * (sx * sw) => return sums / (sx * sw)",
         "divided by the scales: one step of the sums is worth s_x * s_w, so multiply"),
        ("wq.to(torch.int32).T => wq.to(torch.int32)",
         "wq is [O, K], one row for each output: multiply by wq.T"),
        ("return sums * (sx * sw) => return sums",
         "both scales are missing: the sums have the unit s_x * s_w"),
    ),
    hints=(
        ("Where do I begin?",
         "Four steps: scale of each token, codes = round(x / scale), integer product with the "
         "rows of wq, product of the scales."),
        ("The shapes do not fit",
         "wq is [O, K], one row an output: multiply by wq.T. The scales are [N, 1] and [O]; "
         "their product broadcasts to [N, O]."),
        ("The numbers are small and look random",
         "int8 @ int8 stays int8 in PyTorch and wraps. Use .to(torch.int32) on both."),
    ),
)  # fmt: skip


# 07.3 ------------------------------------------------------------------------------------------


def choose_scheme(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The scheme that no other beats on the same frames, with its interval over the baseline."""
    choice = max(scores, key=lambda name: scores[name].double().mean().item())
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def _schemes() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, frames: int, seed: int, **shares: float) -> tuple[str, dict[str, Any]]:
        named = {name.replace("_", " "): share for name, share in shares.items()}
        return label, {"scores": made_scores(frames, named, seed), "baseline": "static"}

    yield case("a scale for each token wins", 1000, 730, static=0.3, per_tensor=0.32, per_token=0.9)
    yield case("the first wins", 1000, 731, per_token=0.95, static=0.6, per_tensor=0.5)
    yield case("one in the middle wins", 800, 732, static=0.5, weight_only=0.9, per_tensor=0.6)
    yield case("all are mostly right", 900, 734, per_tensor=0.7, static=0.6, per_token=0.93)
    yield case("the baseline wins", 800, 733, per_tensor=0.5, static=0.9, per_token=0.7)


def _by_duels(scores: Scores, baseline: str) -> tuple:
    names = list(scores)
    beaten = {a for a in names for b in names if interval(scores[a], scores[b])[0] > 0}
    choice = next(name for name in names if name not in beaten)
    return choice, interval(scores[baseline], scores[choice])


def _by_standard_error(scores: Scores, baseline: str) -> tuple:
    totals = torch.stack([row.double() for row in scores.values()]).sum(1)
    choice = list(scores)[int(totals.argmax())]
    change = scores[choice].double() - scores[baseline].double()
    half = 1.96 * change.std().item() / len(change) ** 0.5
    return choice, change.mean().item() - half, change.mean().item() + half


MEAN = "scores[name].double().mean().item()"
CHOOSE_SCHEME = Exercise(
    id="07.3", title="Choose a scheme for quiet frames", minutes=6, difficulty=2,
    signature="choose_scheme(scores, baseline)", reference=choose_scheme, cases=_schemes,
    compare=functools.partial(defended, objection=no_rival_is_better), agree=same_decision,
    accepted=(_by_duels, _by_standard_error),
    diagnoses=(
        *WRONG_INTERVALS,
        ("max(scores => min(scores", "this is the worst: another is better on the same frames"),
        (f"max(scores, key=lambda name: {MEAN}) => baseline",
         "the baseline was kept, though another beats it with an interval above zero"),
        (f"{MEAN} => scores[name].median().item()",
         "the median of scores of 0 and 1 is 0 or 1, and shows no difference: compare the means"),
        (f"max(scores, key=lambda name: {MEAN}) => list(scores)[-1]",
         "the last option was taken unseen: compare them all"),
        (f"max(scores, key=lambda name: {MEAN}) => list(scores)[0]",
         "the first option was taken unseen: compare them all"),
    ),
    hints=(
        ("Which one may I choose?",
         "Any that no other beats: for no rival may the interval of rival minus choice lie above "
         "zero. The option with the highest mean always passes."),
        ("Which interval?",
         "`paired_bootstrap(scores[baseline], scores[choice])` gives (mean, low, high) of the "
         "choice minus the baseline, frame by frame."),
    ),
)  # fmt: skip


EXERCISES = [TOKEN_SCALES, DYNAMIC_LINEAR, CHOOSE_SCHEME]
