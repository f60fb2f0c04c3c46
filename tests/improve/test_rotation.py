"""Rotations are orthogonal, the network computes the same, outlier channels go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.rotation import Rotate, Rotation, block_of, hadamard
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_a_hadamard_matrix_is_symmetric_and_its_own_inverse(size):
    matrix = hadamard(size)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)
    assert matrix.abs().unique().numel() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.sampled_from([8, 16, 32]), st.integers(0, 100))
def test_products_of_two_rotated_vectors_stay(blocks, block, seed):
    channels = (2 * (blocks // 2) + 1) * block  # an odd number of blocks
    rotation = Rotation(channels, seed)
    assert rotation.block == block
    x, w = torch.randn(2, 3, channels, generator=torch.Generator().manual_seed(seed))
    expected = (x @ w.T).double()
    assert torch.allclose((rotation(x) @ rotation(w).T).double(), expected, atol=1e-3)


def test_what_cannot_be_rotated_is_refused():
    assert block_of(384) == 128
    with pytest.raises(UnsupportedError, match="12 is no power of two"):
        hadamard(12)
    with pytest.raises(UnsupportedError, match="20 channels have no blocks"):
        Rotation(20)
    with pytest.raises(QuantizationError, match="channels"):
        Rotation(0)
    with pytest.raises(UnsupportedError, match="no Linear layer"):
        PTQQuantizer(nn.Sequential(nn.Conv2d(3, 4, 3)), steps=[Rotate()])


def test_the_step_keeps_the_function_and_removes_the_outlier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    x = torch.randn(60, 24)
    x[:, 5] *= 50
    plain = PTQQuantizer(model, config=QConfig(activation_bits=6))
    rotated = PTQQuantizer(model, config=QConfig(activation_bits=6), steps=[Rotate()])
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(rotated.float_model(x), expected, rtol=1e-4, atol=1e-4)
        found = {}
        for name, quantizer in (("plain", plain), ("rotated", rotated)):
            quantizer.observe([x], ranges="minmax", progress=False)
            found[name] = snr_pooled(expected, quantizer.compute_qparams("minmax").convert()(x))
    assert found["rotated"] > found["plain"] + 3


def test_layers_that_share_a_value_share_a_rotation():
    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x):
            return self.q(x) * self.k(x)

    model, x = Twin().eval(), torch.randn(5, 16)
    quantizer = PTQQuantizer(model, steps=[Rotate()])
    rotations = [m for m in quantizer.float_model.modules() if isinstance(m, Rotation)]
    assert len(rotations) == 1
    with torch.no_grad():
        assert torch.allclose(quantizer.float_model(x), model(x), atol=1e-5)
