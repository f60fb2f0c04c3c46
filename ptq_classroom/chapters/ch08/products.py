"""Exercises 08.1 and 08.2: products of codes, and the bias in the accumulator's steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect_close


def _is_floating(got: Any) -> bool:
    """A tensor or array of a floating-point type; plain Python numbers are never complained of."""
    if isinstance(got, Tensor):
        return got.is_floating_point()
    return isinstance(got, np.ndarray | np.generic) and got.dtype.kind == "f"


def int_linear(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    """int32 [N, O]: sum over k of (xq - zx) * wq."""
    differences = xq.to(torch.int32) - zx
    return differences @ wq.to(torch.int32).T


def _products() -> Iterator[tuple[str, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(801)

    def codes(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)

    def case(label: str, xq: Any, wq: Any, zx: int) -> tuple[str, dict[str, Any]]:
        return label, {"xq": xq, "wq": wq, "zx": zx}

    byte, signed = torch.uint8, torch.int8
    xq, wq = torch.tensor([[4, 6, 5]], dtype=byte), torch.tensor([[1, -2, 3]], dtype=signed)
    yield case("three products, zero point 5", xq, wq, 5)
    xq, wq = codes((2, 4), 0, 30, byte), codes((3, 4), -9, 9, signed)
    yield case("three outputs, zero point 0", xq, wq, 0)
    xq, wq = codes((2, 40), 0, 255, byte), codes((3, 40), -127, 127, signed)
    yield case("the full range of uint8", xq, wq, 131)
    xq, wq = codes((3, 300), -128, 127, signed), codes((2, 300), -127, 127, signed)
    yield case("int8 codes, 300 products", xq, wq, -40)
    xq = torch.full((1, 1200), 255, dtype=byte)
    yield case("sums beyond 2^24", xq, torch.full((2, 1200), 127, dtype=signed), 0)


def _same_integers(got: Any, expected: Tensor, **_: Any) -> None:
    if _is_floating(got):
        raise Failure(
            "the accumulators should be integers",
            got=got.dtype,
            expected=torch.int32,
            cause="the product was computed in floating point",
        )
    expect_close(got, expected, "the accumulators", rtol=0, atol=0)


def _no_zero_point(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T


def _wrapped_difference(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq - zx).int() @ wq.int().T


def _wrapped_input(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq.to(torch.int8).int() - zx) @ wq.int().T


def _wrong_sign(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T + zx * wq.int().sum(1)


def _one_correction(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T - zx * wq.int().sum()


def _terms_for_weights(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T - zx * xq.shape[1]


def _zero_point_once(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ wq.int().T - zx


def _zero_point_of_weights(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.int() @ (wq.int() - zx).T


def _sixteen_bits(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    exact = (xq.int() - zx) @ wq.int().T
    return exact.to(torch.int16).int()


def _transposed(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return wq.int() @ (xq.int() - zx).T


def _through_float(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return (xq.float() - zx) @ wq.float().T


def _linear_corrected(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    return xq.long() @ wq.long().T - zx * wq.long().sum(dim=1)


def _linear_loops(xq: Tensor, wq: Tensor, zx: int) -> Tensor:
    rows = [[sum((x - zx) * w for x, w in zip(a, b, strict=True)) for b in wq.tolist()]
            for a in xq.tolist()]  # fmt: skip
    return torch.tensor(rows, dtype=torch.int32)


LINEAR = Exercise(
    id="08.1",
    title="A linear layer on codes",
    minutes=6,
    difficulty=2,
    signature="int_linear(xq, wq, zx)",
    reference=int_linear,
    cases=_products,
    compare=_same_integers,
    returns="accumulators",
    accepted=(_linear_corrected, _linear_loops),
    diagnoses=(
        (_no_zero_point, "the zero point is missing: a code stands for (code - zx) steps"),
        (_wrapped_difference, "xq - zx wrapped around in 8 bits: widen to int32 first"),
        (_wrapped_input, "uint8 codes above 127 do not fit into int8: widen to int32 instead"),
        (_wrong_sign, "the correction is subtracted: -zx * (sum of the weights)"),
        (_one_correction, "each output has its own correction: sum the weights of its row"),
        (_terms_for_weights, "zx * K is the correction only where every weight is 1: sum them"),
        (
            _zero_point_once,
            "zx was subtracted once from the sum: each of its products has it, times a weight",
        ),
        (_zero_point_of_weights, "zx is the zero point of xq, and was subtracted from wq"),
        (_sixteen_bits, "16 bits are too few for these sums: accumulate in int32"),
        (_transposed, "the result is transposed: one row for each input, [N, O]"),
        (_through_float, "the product was computed in floating point"),
    ),
    hints=(
        ("The numbers are far off", "Widen before subtracting: xq.to(torch.int32) - zx."),
        (
            "Which dimensions are multiplied?",
            "xq is [N, K], wq is [O, K]: transpose the weight, then multiply matrices with @, "
            "which works on int32 tensors.",
        ),
    ),
)


def quantize_bias(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    """int32 codes [O] of a bias, in steps of sx * sw."""
    return torch.round(b / (sx * sw)).to(torch.int32)


def _biases() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, b: list[float], sx: float, sw: list[float]) -> tuple[str, dict[str, Any]]:
        return label, {"b": torch.tensor(b), "sx": sx, "sw": torch.tensor(sw)}

    yield case("one scale for all", [1.0, -0.5, 0.26], 0.5, [0.25, 0.25, 0.25])
    yield case("a scale for each channel", [1.0, 1.0, -1.0], 0.03, [0.002, 0.004, 0.008])
    yield case("large codes", [3.0, -2.0, 0.7], 0.01, [0.001, 0.0003, 0.002])
    yield case("values that round up", [0.57, -0.38], 0.1, [1.0, 1.0])


def _same_codes(got: Any, expected: Tensor, **_: Any) -> None:
    expect_close(got, expected, "the bias codes", rtol=0, atol=0)
    if _is_floating(got):
        raise Failure(
            "the bias codes should be integers",
            expected=torch.int32,
            got=got.dtype,
            cause="rounded, but still floating point: convert to int32",
        )


def _bias_truncated(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return (b / (sx * sw)).to(torch.int32)


def _bias_input_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / sx).to(torch.int32)


def _bias_weight_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / sw).to(torch.int32)


def _bias_multiplied(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b * (sx * sw)).to(torch.int32)


def _bias_int8(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw)).clamp(-127, 127).to(torch.int32)


def _bias_int8_wraps(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw)).to(torch.int32).to(torch.int8)


def _bias_largest_scale(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw.max())).to(torch.int32)


def _bias_float(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return b / (sx * sw)


def _bias_rounded_float(b: Tensor, sx: float, sw: Tensor) -> Tensor:
    return torch.round(b / (sx * sw))


def _bias_python(b: Tensor, sx: float, sw: Tensor) -> list[int]:
    return [round(v / (sx * s)) for v, s in zip(b.tolist(), sw.tolist(), strict=True)]


def _bias_numpy(b: Tensor, sx: float, sw: Tensor) -> Any:
    return np.rint(b.double().numpy() / sx / sw.double().numpy()).astype(np.int32)


BIAS = Exercise(
    id="08.2",
    title="The bias in the accumulator's steps",
    minutes=4,
    difficulty=2,
    signature="quantize_bias(b, sx, sw)",
    reference=quantize_bias,
    cases=_biases,
    compare=_same_codes,
    returns="codes",
    accepted=(_bias_python, _bias_numpy),
    diagnoses=(
        (_bias_truncated, "the fraction was cut off: round to the nearest code"),
        (_bias_input_scale, "these are steps of sx: the accumulator counts in sx * sw"),
        (_bias_weight_scale, "these are steps of sw: the accumulator counts in sx * sw"),
        (_bias_multiplied, "multiplied by the scale: divide by it to get codes"),
        (_bias_int8, "clamped to 8 bits: a bias is int32"),
        (_bias_int8_wraps, "stored in 8 bits, where it wrapped around: a bias is int32"),
        (_bias_largest_scale, "one scale for all channels: each channel has its own sw"),
        (_bias_float, "the result was never rounded"),
        (_bias_rounded_float, "rounded, but still floating point: convert to int32"),
    ),
    hints=(
        (
            "What is one step of the accumulator worth?",
            "It adds up (input code) * (weight code), and those stand for sx and sw.",
        ),
        (
            "My codes look like the bias itself, or like zeros",
            "Divide by the step, which is small: b / (sx * sw). Then round and convert.",
        ),
    ),
)
