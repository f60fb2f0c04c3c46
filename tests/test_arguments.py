"""What an import without its extra says, and the checks of arguments that all functions share."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from ptq_course.deploy.session import timings
from ptq_course.diagnosis import compare
from ptq_course.errors import (
    CalibrationError,
    MissingExtraError,
    QuantizationError,
    flag,
    needs,
    number,
    whole,
)
from ptq_course.grids.affine import IntGrid
from ptq_course.ranges.calibrators import MovingAverageCalibrator, PercentileCalibrator
from ptq_course.simulation.dynamic import quantize_dynamic
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers(value):
    found = whole("count", value, 1, 3)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", None, 0, 4, [2], torch.tensor([1, 2])])
def test_what_is_no_such_integer(value):
    with pytest.raises(CalibrationError, match=r"count must be an integer from 1 to 3, got "):
        whole("count", value, 1, 3, CalibrationError)


def test_an_integer_without_an_upper_end():
    assert whole("count", 10**30, 1) == 10**30
    with pytest.raises(QuantizationError, match="count must be an integer of at least 1, got 0"):
        whole("count", 0, 1)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, np.float32(0.9)), (1, -0.1, math.nan, True, "0.5", None)),
        ("(50, 100]", (100, 50.01), (50, 101, math.inf, [99], 99j)),
    ],
)
def test_real_numbers(interval, inside, outside):
    for value in inside:
        assert number("share", value, interval) == value
    for value in outside:
        with pytest.raises(QuantizationError) as refusal:
            number("share", value, interval)
        assert str(refusal.value) == f"share must lie in {interval}, got {value!r}."


@pytest.mark.parametrize("value", [1, 0, None, "yes", np.True_])
def test_what_is_neither_true_nor_false(value):
    assert flag("narrow", False) is False
    with pytest.raises(QuantizationError, match="narrow is True or False, got"):
        flag("narrow", value)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2))


DATA = [torch.ones(2, 4)]


def quantizer() -> PTQQuantizer:
    return PTQQuantizer(network())


@pytest.mark.parametrize(
    "call",
    [
        lambda: IntGrid(True),
        lambda: IntGrid(8, signed=1),
        lambda: IntGrid(8, narrow="no"),
        lambda: PTQQuantizer(network(), bits=True),
        lambda: quantizer().observe(DATA, num_batches=True, progress=False),
        lambda: quantizer().observe(DATA, num_batches=2.5, progress=False),
        lambda: quantizer().calibrate(DATA, num_batches="2", progress=False, ranges="minmax"),
        lambda: QConfig(weight_granularity=True),
        lambda: quantize_dynamic(network(), weights_only="no"),
        lambda: MovingAverageCalibrator("0.9"),
        lambda: PercentileCalibrator("99.9"),
        lambda: timings({"a": len}, [], rounds=1.5),
        lambda: compare(network(), network(), DATA, num_batches=-1),
    ],
)
def test_where_the_package_takes_them(call):
    with pytest.raises(QuantizationError):
        call()


def test_numpys_integers_count():
    made = PTQQuantizer(network(), bits=np.int64(4))
    made.calibrate(DATA, num_batches=np.int32(1), progress=False, ranges="minmax")
    assert type(made.config.weight_bits) is int


def test_what_is_missing_is_named_with_the_command():
    said = r"no_such_library is not installed; .*pip install 'ptq-course\[onnx\]'"
    with pytest.raises(MissingExtraError, match=said) as caught, needs("onnx"):
        importlib.import_module("no_such_library")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, QuantizationError)


def test_the_first_refusal_is_the_one_that_is_read():
    said = r"ptq-course\[onnx\]"
    with pytest.raises(MissingExtraError, match=said), needs("course"), needs("onnx"):
        importlib.import_module("no_such_library")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), needs("onnx"):
        1 / 0  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name") as caught, needs("onnx"):
        from json import no_such_name  # noqa: F401
    assert not isinstance(caught.value, QuantizationError)
