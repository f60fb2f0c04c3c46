"""Copies of dark pictures are the same light, many times over; others are left alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptq_classroom.pictures.brighten import DIM, LIFTED, developed, gain_of, light_of


def test_every_byte_comes_back_from_its_light():
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(developed(light_of(codes)), codes)


@given(st.floats(1e-4, 2.0))
def test_a_dark_picture_is_lifted_and_another_one_is_not(level: float):
    light = torch.full((3, 8, 8), level, dtype=torch.float64)
    gain = gain_of(light)
    assert isinstance(gain, int)
    if level > DIM:
        assert gain == 1
    else:
        assert gain > 1
        assert level * gain <= LIFTED + level / 2
        assert level < 0.01 or level * gain >= LIFTED - level / 2


def test_a_few_bright_pixels_do_not_hide_that_a_picture_is_dark():
    light = torch.full((3, 10, 10), 0.02, dtype=torch.float64)
    light[:, 0, :3] = 5.0  # three in a hundred
    assert gain_of(light) == round(LIFTED / 0.02)


def test_light_beyond_the_camera_becomes_its_last_byte():
    assert developed(torch.tensor([0.0, 1e9])).tolist() == [0, 255]
    assert light_of(torch.tensor([192], dtype=torch.uint8)).item() == pytest.approx(1.0)
