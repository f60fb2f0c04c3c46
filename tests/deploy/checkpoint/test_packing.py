from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ptq_course.deploy.checkpoint.packing import pack, unpack
from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import IntGrid


@settings(deadline=None, max_examples=150)
@given(
    bits=st.integers(1, 16), signed=st.booleans(), seed=st.integers(0, 2**31 - 1),
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
)  # fmt: skip
def test_round_trip_is_exact_and_costs_exactly_the_bits(bits, signed, seed, shape):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, shape, generator=generator)
    stored = pack(codes, bits)
    count = math.prod(shape)
    assert stored.numel() * stored.element_size() == (
        math.ceil(count * bits / 8) if bits <= 8 else 2 * count
    )
    back = unpack(stored, bits, shape, signed)
    assert back.shape == torch.Size(shape)
    assert torch.equal(back.long(), codes)
    if bits >= 2:
        assert back.dtype == IntGrid(bits, signed=signed).dtype


def test_the_first_code_stands_in_the_lowest_bits():
    assert pack(torch.tensor([1, 2]), 4).tolist() == [0x21]
    assert pack(torch.tensor([-1, 0, 7]), 4).tolist() == [0x0F, 0x07]
    assert pack(torch.tensor([0, 1, 2, 3]), 2).tolist() == [0b11_10_01_00]
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 7]), 3).tolist() == [1, 0, 0b11100000]
    assert pack(torch.tensor([-128, 127]), 8).tolist() == [128, 127]
    assert pack(torch.tensor([65535, 1]), 16).tolist() == [-1, 1]


@pytest.mark.parametrize("bits", range(1, 8))
def test_numpy_makes_the_same_stream_of_bits(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 101)
    stream = (codes[:, None] >> np.arange(bits)) & 1  # lowest bit of each code first
    expected = np.packbits(stream.ravel().astype(np.uint8), bitorder="little")
    assert pack(torch.from_numpy(codes), bits).tolist() == expected.tolist()


def test_onnx_stores_int4_the_same_way():
    codes = torch.randint(-8, 8, (15,))
    tensor = helper.make_tensor(
        "w", TensorProto.INT4, [15], bytes(pack(codes, 4).tolist()), raw=True
    )
    onnx.checker.check_tensor(tensor)
    assert numpy_helper.to_array(tensor).astype(int).tolist() == codes.tolist()


def test_refusals():
    with pytest.raises(QuantizationError, match=r"from 0 to 16 do not fit 4 bits"):
        pack(torch.tensor([0, 16]), 4)
    with pytest.raises(QuantizationError, match=r"from -1 to 8 do not fit 4 bits"):
        pack(torch.tensor([-1, 8]), 4)
    with pytest.raises(QuantizationError, match=r"got torch.float32 .* needs \(uint8, int8"):
        pack(torch.tensor([1.0]), 4)
    for bits in (0, 17, True, 4.0):
        with pytest.raises(QuantizationError, match="bits"):
            pack(torch.tensor([1]), bits)
    with pytest.raises(QuantizationError, match=r"5 codes of 4 bits .*\[3\], got .*\[4\]"):
        unpack(torch.zeros(4, dtype=torch.uint8), 4, (5,), True)
    with pytest.raises(QuantizationError, match=r"int16"):
        unpack(torch.zeros(5, dtype=torch.uint8), 12, (5,), True)


@pytest.mark.parametrize("bits", [3, 4, 8, 11])
def test_parts_of_a_large_tensor_make_one_stream(monkeypatch, bits):
    codes = torch.randint(0, 2**bits, (1003,), generator=torch.Generator().manual_seed(0))
    whole = pack(codes, bits)
    monkeypatch.setattr("ptq_course.deploy.checkpoint.packing.PART", 2)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, (1003,), False).long(), codes)
