"""Exact products of integers: which format computes them, and that they are the integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ptq_course.grids.exact import FLOAT32_INTEGERS, exact_product, float32_is_exact, shortened


def integers(*shape, largest=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator)


class Recorded:
    """A matrix product that remembers the formats it was given."""

    def __init__(self):
        self.dtypes = []

    def __call__(self, x, w):
        self.dtypes.append(x.dtype)
        assert not torch.is_autocast_enabled("cpu")
        return x @ w


@given(st.integers(1, 9), st.integers(0, 3000), st.integers(0, 99))
def test_the_integers_come_out(rows, inner, seed):
    a, b = integers(rows, inner, seed=seed), integers(inner, 4, seed=seed + 1)
    got = exact_product(torch.matmul, a, b, inner * 128 * 128)
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), a @ b)


def test_float32_until_the_bound_is_reached():
    product, a, b = Recorded(), integers(3, 5), integers(5, 2)
    for bound in (FLOAT32_INTEGERS, FLOAT32_INTEGERS + 1):
        assert torch.equal(exact_product(product, a, b, bound).long(), a @ b)
    assert product.dtypes == [torch.float32, torch.float64]


def test_a_convolution_under_autocast():
    x, w = integers(2, 8, 9, 9), integers(4, 8, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = exact_product(lambda a, b: F.conv2d(a, b, padding=1), x, w, 72 * 128 * 128)
    assert torch.equal(got.double(), F.conv2d(x.double(), w.double(), padding=1))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_shorter_formats_are_asked_for_anew_each_time(precision):
    product, a, b = Recorded(), integers(3, 5), integers(5, 2)
    assert not shortened()
    exact_product(product, a, b, 1)
    try:
        torch.set_float32_matmul_precision(precision)
        assert shortened()
        exact_product(product, a, b, 1)
    finally:
        torch.set_float32_matmul_precision("highest")
    exact_product(product, a, b, 1)
    assert product.dtypes == [torch.float32, torch.float64, torch.float32]


@pytest.mark.parametrize("operation", ["matmul", "conv"])
def test_settings_of_one_backend_count_too(operation):
    """PyTorch answers no longer, or still "highest", when one backend has a setting of its own."""
    backend = getattr(torch.backends.mkldnn, operation, None)
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("this PyTorch has no settings by backend")
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "bf16"
        assert shortened()
    finally:
        backend.fp32_precision = before
    assert not shortened()


def test_a_device_that_fails_its_test_computes_in_float64(monkeypatch):
    monkeypatch.setattr("ptq_course.grids.exact.float32_is_exact", lambda device, largest: False)
    product, a, b = Recorded(), integers(3, 5), integers(5, 2)
    exact_product(product, a, b, 1)
    assert product.dtypes == [torch.float64]


def test_the_known_answer_test_notices_inexact_kernels(monkeypatch):
    assert float32_is_exact.__wrapped__("cpu", 255)
    original = torch.nn.functional.conv2d

    def rounded(x, w, **options):
        y = original(x, w, **options)
        return y * (1 + 1e-6) if x.dtype == torch.float32 else y

    monkeypatch.setattr("ptq_course.grids.exact.F.conv2d", rounded)
    assert not float32_is_exact.__wrapped__("cpu", 255)
