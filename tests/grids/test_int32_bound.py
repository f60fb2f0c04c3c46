"""The bound of an accumulator, against every input that there is."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptq_course.grids.affine import IntGrid, QTensor, choose_qparams, quantize
from ptq_course.grids.int32_bound import (
    INT32_MAX,
    differences,
    fits_int32,
    largest,
    less_zero_point,
    sum_range,
    sum_ranges,
)

codes = st.integers(-3, 3)


@given(
    st.lists(st.tuples(codes, codes, codes), min_size=1, max_size=3),
    st.integers(-3, 0),
    st.integers(0, 3),
    st.integers(-9, 9),
)
def test_the_bound_is_the_extreme_of_all_partial_sums(rows, low, high, bias):
    weight = torch.tensor(rows)
    biases = torch.full((len(rows),), bias, dtype=torch.int32)
    inputs = torch.tensor(list(itertools.product(range(low, high + 1), repeat=3)))
    sums = inputs @ weight.t()
    lowest, highest = sum_ranges(weight, (low, high), biases)
    assert torch.equal(lowest, sums.amin(0) + min(bias, 0))
    assert torch.equal(highest, sums.amax(0) + max(bias, 0))
    for factors, axis in ((weight.double(), 0), (weight.t().contiguous(), 1)):
        assert sum_range(factors, (low, high), biases, axis) == (lowest.min(), highest.max())


def test_groups_of_a_transposed_convolution_share_a_row():
    weight = torch.tensor([[[2], [-1]], [[3], [0]]])  # [inputs, channels of a group, kernel]
    lowest, highest = sum_ranges(weight, (-1, 2), torch.tensor([0, 0, 7, -7]).int(), axis=1)
    assert lowest.tolist() == [-5, -2, -5, -9]
    assert highest.tolist() == [10, 1, 17, 1]


def test_ends_of_int32_and_of_grids():
    assert fits_int32((-INT32_MAX, INT32_MAX))
    assert not fits_int32((0, INT32_MAX + 1))
    assert not fits_int32((-INT32_MAX - 1, 0))
    qparams = choose_qparams(-1.0, 3.0, IntGrid(8, signed=False))
    assert differences(qparams) == (-64, 191)
    assert largest(differences(qparams)) == 191
    x = torch.tensor([-1.0, 0.0, 3.0])
    assert less_zero_point(QTensor(quantize(x, qparams), qparams)).tolist() == [-64, 0, 191]
