"""Exact int8 products, on processors that can and on processors that cannot."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptq_course.errors import QuantizationError
from ptq_course.integer import products
from ptq_course.integer.products import (
    KNOWN_SHAPES,
    exact_float_matmul,
    int_matmul,
    int_mm_is_exact,
    known_answer,
    saturating_matmul,
    to_signed,
)


@pytest.fixture
def fresh_test():
    """The known-answer test runs again before and after."""
    int_mm_is_exact.cache_clear()
    yield
    int_mm_is_exact.cache_clear()


def codes(*shape, low=-128, high=127, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)


def exact(a, b):
    return (a.int() @ b.int()).to(torch.int32)  # PyTorch's own integer product


@given(st.integers(1, 20), st.integers(1, 2500), st.integers(1, 20), st.integers(0, 99))
def test_both_paths_give_the_exact_integers(rows, inner, columns, seed):
    a, b = codes(rows, inner, seed=seed), codes(inner, columns, seed=seed + 1)
    assert torch.equal(exact_float_matmul(a, b), exact(a, b))
    assert torch.equal(int_matmul(a, b), exact(a, b))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 1, 8), (1, 1, 3), (2, 2, 1), (4, 9, 1)])
def test_ambiguous_strides_are_read_right(rows, inner, columns):
    """Overlapping rows (im2col makes them) and transposed matrices with a dimension of one."""
    a = codes(rows + inner).as_strided((rows, inner), (1, 1))
    b = codes(columns, inner, seed=1).t()
    assert torch.equal(int_matmul(a, b), exact(a, b))


@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("inner", [1024, 1025, 4096])
def test_float_path_is_exact_at_the_extremes(value, inner):
    a = torch.full((3, inner), value, dtype=torch.int8)
    b = torch.full((inner, 5), -128, dtype=torch.int8)
    assert torch.equal(exact_float_matmul(a, b), exact(a, b))


def test_the_chunk_is_as_long_as_float32_allows():
    """One product more, of an odd remainder, is no longer exact: 2^24 + 1 is not a float32."""
    assert products.CHUNK * 128 * 128 == 2**24
    assert float(torch.tensor(2**24 + 1, dtype=torch.float32)) == 2**24
    row = torch.full((1, 2 * products.CHUNK), -128.0)
    row[0, -1] = 1.0
    column = torch.full((2 * products.CHUNK, 1), -128.0)
    column[-1] = 1.0
    assert int(row @ column) != int(row.long() @ column.long())


def test_int_mm_gives_the_same_integers_where_16_bits_are_enough():
    """Weights of 7 bits keep every pair of products below 2^15, on any processor."""
    for rows, inner, columns in KNOWN_SHAPES:
        a, b = codes(rows, inner), codes(inner, columns, low=-63, high=63, seed=1)
        assert torch.equal(torch._int_mm(a, b), exact_float_matmul(a, b))


def test_a_saturating_kernel_is_found_out():
    assert known_answer(saturating_matmul, 32, 64, 16) > 0.9
    assert known_answer(exact_float_matmul, 32, 64, 16) == 0


def test_the_saturating_kernel_is_exact_where_16_bits_are_enough():
    a, b = codes(5, 33), codes(33, 4, low=-63, high=63, seed=1)
    assert torch.equal(saturating_matmul(a, b), exact(a, b))
    a, b = codes(5, 1), codes(1, 4, seed=1)  # one product alone always fits
    assert torch.equal(saturating_matmul(a, b), exact(a, b))
    a, b = (torch.full(shape, 127, dtype=torch.int8) for shape in ((1, 2), (2, 1)))
    assert int(saturating_matmul(a, b)) == 2**15 - 1 - 2 * 128 * 127  # 255 * 127 * 2 is clamped


def test_a_saturating_kernel_is_not_used(monkeypatch, fresh_test):
    monkeypatch.setattr(torch, "_int_mm", saturating_matmul)
    a, b = codes(8, 100), codes(100, 8, seed=1)
    assert not torch.equal(torch._int_mm(a, b), exact(a, b))
    assert not int_mm_is_exact()
    assert torch.equal(int_matmul(a, b), exact(a, b))


def test_a_kernel_that_refuses_is_not_used(monkeypatch, fresh_test):
    def refuse(a, b):
        raise RuntimeError("not implemented on this machine")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert not int_mm_is_exact()
    assert torch.equal(int_matmul(codes(2, 3), codes(3, 2)), exact(codes(2, 3), codes(3, 2)))


def test_a_good_kernel_is_used_and_tested_once(monkeypatch, fresh_test):
    calls = []

    def counted(a, b):
        calls.append(a.shape)
        return exact(a, b)

    monkeypatch.setattr(torch, "_int_mm", counted)
    assert int_mm_is_exact()
    tested = len(calls)
    assert tested == 2 * len(KNOWN_SHAPES)
    int_matmul(codes(2, 3), codes(3, 2))
    int_matmul(codes(2, 3), codes(3, 2))
    assert len(calls) == tested + 2


def test_shorter_float_formats_do_not_spoil_it(monkeypatch):
    a, b = codes(9, 700), codes(700, 5, seed=1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(exact_float_matmul(a, b), exact(a, b))
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact_float_matmul(a, b), exact(a, b))


def test_unsigned_codes_move_down_with_their_zero_point():
    x = torch.arange(256).to(torch.uint8)
    moved, zero_point = to_signed(x, 7)
    assert moved.dtype == torch.int8
    assert torch.equal(moved.int() - zero_point, x.int() - 7)
    assert to_signed(moved, 3) == (moved, 3)


def test_errors_name_what_is_wrong():
    with pytest.raises(QuantizationError, match="uint8"):
        int_matmul(torch.zeros(2, 2, dtype=torch.uint8), codes(2, 2))
    with pytest.raises(QuantizationError, match=r"\(2, 3\)"):
        int_matmul(codes(2, 3), codes(2, 3))
