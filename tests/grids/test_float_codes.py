"""Floats through the same quantize, dequantize and QTensor: bit patterns against two oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import (
    FloatQParams,
    QTensor,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from ptq_course.grids.floats import (
    FLOAT_FORMATS,
    FP4_E2M1,
    FP8_E4M3,
    FP8_E5M2,
    MXFP4,
    NVFP4,
    float_format,
    format_name,
    mxfp4,
    nvfp4,
)
from ptq_course.grids.int32_bound import less_zero_point

ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("grid", "kind"), [(FP8_E4M3, torch.float8_e4m3fn), (FP8_E5M2, torch.float8_e5m2)]
)
def test_codes_are_the_bytes_of_torch(grid, kind):
    x = torch.cat([grid.values(), torch.randn(4000) * grid.largest / 4, torch.tensor([-0.0])])
    x = x.clamp(-grid.largest, grid.largest)
    codes = quantize(x, FloatQParams(ONE, grid))
    assert torch.equal(codes, x.to(kind).view(torch.uint8))
    assert torch.equal(dequantize(codes, FloatQParams(ONE, grid)), x.to(kind).float())


@pytest.mark.parametrize(
    ("grid", "name"),
    [(FP8_E4M3, "float8_e4m3fn"), (FP8_E5M2, "float8_e5m2"), (FP4_E2M1, "float4_e2m1fn")],
)
def test_codes_are_the_bytes_of_ml_dtypes(grid, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = (torch.randn(4000) * grid.largest / 3).clamp(-grid.largest, grid.largest)
    expected = x.numpy().astype(getattr(ml_dtypes, name)).view(np.uint8)
    assert np.array_equal(quantize(x, FloatQParams(ONE, grid)).numpy(), expected)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(FLOAT_FORMATS)), st.integers(1, 3), st.integers(1, 70),
    st.integers(-120, 120), st.booleans(),
)  # fmt: skip
def test_codes_decode_to_what_fake_quantize_gives(name, rows, columns, exponent, axis_last):
    torch.manual_seed(rows * columns)
    x = torch.randn(rows, columns, 2) * 2.0**exponent
    x[0, 0] = 0
    qparams = FLOAT_FORMATS[name].choose(x, (1, -1, -1), row_axis=1 if axis_last else 0)
    codes = quantize(x, qparams)
    held = QTensor(codes, qparams)
    assert codes.shape == x.shape
    assert torch.equal(held.dequantize(), fake_quantize(x, qparams))
    again = fake_quantize(held.dequantize(), qparams)
    assert torch.equal(again, held.dequantize()), "what lies on the grid stays"
    assert held.nbits_per_value * x.numel() == pytest.approx(
        held.code_bits * x.numel()
        + qparams.stored_scale.numel() * qparams.stored_scale.element_size() * 8
        + (32 if name == "nvfp4" else 0)
    )


@pytest.mark.parametrize(("named", "choose"), [(MXFP4, mxfp4), (NVFP4, nvfp4)])
def test_rows_of_any_length(named, choose):
    """Whole blocks as the function gives them; a shorter last block as if zeros filled it up."""
    x = torch.randn(5, 40, 3)
    found = fake_quantize(x, named.choose(x, row_axis=0))
    rows = torch.nn.functional.pad(x.flatten(1), (0, -120 % named.block))
    assert torch.equal(found, fake_quantize(rows, choose(rows))[:, :120].reshape(x.shape))
    other = fake_quantize(x, named.choose(x, row_axis=1))
    turned = x.movedim(1, 0)
    assert torch.equal(other, fake_quantize(turned, named.choose(turned, row_axis=0)).movedim(0, 1))
    assert not torch.equal(other, found)


def test_a_range_puts_its_end_on_the_largest_value():
    qparams = choose_qparams(-1.0, 3.5, float_format("fp8_e4m3"))
    assert qparams.scale.item() == 3.5 / 448
    x = torch.tensor([3.5, -3.5, 0.0, 9.0])
    assert fake_quantize(x, qparams).tolist() == [3.5, -3.5, 0.0, 3.5]
    assert choose_qparams(0.0, 0.0, MXFP4).scale.item() == 1


def test_scales_are_stored_short_and_come_back():
    x = torch.randn(4, 64) * torch.tensor([[1e-30], [1e-3], [1.0], [1e30]])
    e8m0, e4m3 = mxfp4(x), nvfp4(x[1:3])
    assert torch.equal(torch.exp2(e8m0.stored_scale.float() - 127), e8m0.scale)
    assert e4m3.tensor_scale is not None
    parts = e4m3.stored_scale.view(torch.float8_e4m3fn).float()
    assert torch.equal(parts * e4m3.tensor_scale, e4m3.scale)
    with pytest.raises(QuantizationError, match="no value of its format"):
        FloatQParams(torch.tensor(0.3), FP4_E2M1, scale_format="e8m0")
    with pytest.raises(QuantizationError, match="tensor_scale"):
        FloatQParams(ONE, FP4_E2M1, scale_format="e4m3")
    with pytest.raises(QuantizationError, match="rows"):
        FloatQParams(torch.ones(2, 1), FP4_E2M1, (2, 4), row_axis=0)


def test_what_is_no_number_is_no_code():
    for wrong in (0x7F, 0xFF):  # NaN of E4M3
        with pytest.raises(QuantizationError, match="infinity or NaN"):
            QTensor(torch.tensor([wrong], dtype=torch.uint8), FloatQParams(ONE, FP8_E4M3))
    with pytest.raises(QuantizationError, match=r"\[0, 15\]"):
        QTensor(torch.tensor([16], dtype=torch.uint8), FloatQParams(ONE, FP4_E2M1))
    held = QTensor(torch.tensor([15, 7], dtype=torch.uint8), FloatQParams(ONE, FP4_E2M1))
    assert held.dequantize().tolist() == [-6, 6]
    with pytest.raises(QuantizationError, match="format fp4_e2m1"):
        less_zero_point(held)


def test_names():
    assert format_name(mxfp4(torch.ones(1, 32))) == "mxfp4"
    assert format_name(FloatQParams(ONE, FP8_E5M2)) == "fp8_e5m2"
    with pytest.raises(QuantizationError, match=r"fp8_e4m3.*got 'fp8'"):
        float_format("fp8")
