"""Each door that takes a tensor refuses what is no dense tensor of real numbers, in words."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ptq_course import (
    CALIBRATORS,
    CalibrationError,
    IntGrid,
    KLCalibrator,
    MinMaxCalibrator,
    PercentileCalibrator,
    QParams,
    QTensor,
    QuantizationError,
    block_minmax,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from ptq_course.deploy.checkpoint.packing import pack, unpack
from ptq_course.ranges.kl import clipped_histogram, kl_divergences, requantized_histogram
from ptq_course.ranges.summaries import Moments, MovingAverage

X = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
EIGHT = IntGrid(8)
QP = choose_qparams(-1.0, 1.0, EIGHT, symmetric=True)
ROWS = QParams(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int32), EIGHT, (1, -1))


class Wrapper(torch.Tensor):
    """A subclass that changes nothing: welcome."""


def odd_tensors():
    """What is in the way, and the remedy that the message has to name."""
    return {
        "meta": (X.to("meta"), "load the weights"),
        "sparse": (X.to_sparse(), "to_dense"),
        "csr": (X.to_sparse_csr(), "to_dense"),
        "mkldnn": (X.to_mkldnn(), "to_dense"),
        "nested": (torch.nested.nested_tensor([X, X[:1]]), "unbind"),
        "jagged": (torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged), "unbind"),
        "masked": (torch.masked.masked_tensor(X, X > 0), "get_mask"),
        "quantized": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "dequantize"),
        "float8": (X.to(torch.float8_e4m3fn), "float"),
        "float8 e5m2": (X.to(torch.float8_e5m2), "float"),
        "bool": (X > 0, "float"),
        "complex": (X.to(torch.complex64), "float"),
        "uint16": (X.abs().to(torch.uint16), "float"),
        "lazy": (nn.LazyLinear(3).weight, "run the model"),
        "list": ([1.0, 2.0], "as_tensor"),
        "array": (np.ones(3, np.float32), "as_tensor"),
        "number": (1.0, "as_tensor"),
        "none": (None, "as_tensor"),
    }


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # prototypes, and PyTorch's quantized tensors, that will go
    ODD = odd_tensors()
DOORS = {
    "block_minmax": block_minmax,
    "block_minmax by rows": lambda x: block_minmax(x, (1, -1)),
    "quantize": lambda x: quantize(x, QP),
    "quantize by rows": lambda x: quantize(x, ROWS),
    "fake_quantize": lambda x: fake_quantize(x, QP),
    "codebook": lambda x: QTensor(torch.zeros(2, dtype=torch.int8), codebook=x),
    "moments": lambda x: Moments().update(x),
    **{name: (lambda x, kind=kind: kind().update(x)) for name, kind in CALIBRATORS.items()},
}
INTEGER_DOORS = {
    "dequantize": lambda x: dequantize(x, QP),
    "codes": lambda x: QTensor(x, QP),
    "pack": lambda x: pack(x, 8),
    "unpack": lambda x: unpack(x, 4, (4,), True),
    "zero_point": lambda x: QParams(torch.tensor(1.0), x, EIGHT),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_dense_tensor_of_real_numbers(door, odd):
    x, remedy = ODD[odd]
    if (door, odd) == ("codebook", "none"):
        remedy = "either qparams or codebook"
    kind = CalibrationError if door in CALIBRATORS or door == "moments" else QuantizationError
    with pytest.raises(kind, match=remedy):
        DOORS[door](x)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("door", INTEGER_DOORS)
def test_what_is_no_dense_tensor_of_integers(door, odd):
    x, remedy = ODD[odd]
    with pytest.raises(QuantizationError, match="int8|int32" if remedy == "float" else remedy):
        INTEGER_DOORS[door](x)


@pytest.mark.parametrize("odd", [o for o in ODD if o not in ("list", "array", "number", "none")])
def test_bounds_and_scales(odd):
    x, remedy = ODD[odd]
    words = "float" if remedy == "float" else remedy
    with pytest.raises(QuantizationError, match=words):
        choose_qparams(x, x, EIGHT)
    with pytest.raises(QuantizationError, match=words):
        QParams(x, torch.zeros(2, 2, dtype=torch.int32), EIGHT)


def test_a_subclass_and_a_parameter_are_welcome():
    for x in (X.as_subclass(Wrapper), nn.Parameter(X), X.t(), X.neg()):
        assert torch.equal(quantize(x, QP), quantize(x.detach().clone(), QP))
        MinMaxCalibrator().update(x)


@pytest.mark.parametrize(
    "bound", [10**400, float("nan"), float("inf"), "9", None, 1j, [1, [2]], object(), b"1", {}]
)
def test_bounds_that_are_no_numbers(bound):
    with pytest.raises(QuantizationError, match=r"low|bound"):
        choose_qparams(0, bound, EIGHT)
    with pytest.raises(QuantizationError, match=r"low|bound"):
        choose_qparams(bound, bound, EIGHT)


@pytest.mark.parametrize("grid", [8, "int8", None, torch.int8])
def test_a_grid_is_an_intgrid(grid):
    with pytest.raises(QuantizationError, match="IntGrid"):
        choose_qparams(0.0, 1.0, grid)
    with pytest.raises(QuantizationError, match="IntGrid"):
        QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), grid)


@pytest.mark.parametrize("shape", [(-1,), (2, -2), (-2, -2), (1.0,), ("4",), (None,)])
def test_sizes_of_packed_codes(shape):
    with pytest.raises(QuantizationError, match="sizes of at least 0"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, shape, True)


@pytest.mark.parametrize("wrong", ["9", None, True, float("nan"), 101, 10**400, [99]])
def test_percentiles(wrong):
    hist = PercentileCalibrator().summary
    hist.update(X)
    with pytest.raises(QuantizationError, match="percentile must lie in"):
        hist.percentile(wrong)
    with pytest.raises(QuantizationError, match="percentile must lie in"):
        PercentileCalibrator(wrong)
    if wrong != 101:
        with pytest.raises(QuantizationError, match="momentum must lie in"):
            MovingAverage(wrong)


@pytest.mark.parametrize("wrong", [2.0, "2", None, float("nan"), 2.5])
def test_windows_count_bins(wrong):
    counts = np.arange(1, 9)
    for call in (
        lambda: clipped_histogram(counts, wrong),
        lambda: clipped_histogram(counts, 4, wrong),
        lambda: requantized_histogram(counts, 2, wrong),
        lambda: kl_divergences(counts, 2, [wrong]),
    ):
        with pytest.raises(QuantizationError, match="counts bins: give integers"):
            call()
    with pytest.raises(QuantizationError, match="levels must be an integer"):
        requantized_histogram(counts, wrong, 4)


def test_a_refused_batch_changes_nothing():
    calibrator = KLCalibrator()
    calibrator.update(X)
    before = calibrator.summary.state()
    for x, _ in ODD.values():
        with pytest.raises(CalibrationError):
            calibrator.update(x)
    after = calibrator.summary.state()
    assert after.pop("counts").tolist() == before.pop("counts").tolist()
    assert after == before
