"""Affine quantization: its promises as properties, and its peers as oracles."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import (
    SCALE_FLOOR,
    IntGrid,
    QParams,
    QTensor,
    block_minmax,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)

FLOAT_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
FLOAT32_MAX = torch.finfo(torch.float32).max

grids = st.builds(
    lambda bits, kind: IntGrid(bits, signed=kind != "unsigned", narrow=kind == "narrow"),
    st.integers(2, 16),
    st.sampled_from(["signed", "unsigned", "narrow"]),
)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ranges = st.tuples(finite, finite).map(sorted)


def qparams_for(low, high, grid, symmetric):
    assume(not symmetric or grid.signed or low >= 0)
    return choose_qparams(low, high, grid, symmetric)


def decoded_range(qparams):
    """The reals that the lowest and the highest code stand for, in float64."""
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    return tuple((q - zero_point) * scale for q in (qparams.grid.qmin, qparams.grid.qmax))


# --- the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "qmin", "qmax", "levels", "dtype"),
    [
        (IntGrid(8), -128, 127, 256, torch.int8),
        (IntGrid(8, narrow=True), -127, 127, 255, torch.int8),
        (IntGrid(8, signed=False), 0, 255, 256, torch.uint8),
        (IntGrid(2), -2, 1, 4, torch.int8),
        (IntGrid(2, narrow=True), -1, 1, 3, torch.int8),
        (IntGrid(4, signed=False), 0, 15, 16, torch.uint8),
        (IntGrid(9, signed=False), 0, 511, 512, torch.int16),
        (IntGrid(15, signed=False), 0, 32767, 32768, torch.int16),
        (IntGrid(16), -32768, 32767, 65536, torch.int16),
        (IntGrid(16, signed=False), 0, 65535, 65536, torch.int32),
    ],
)
def test_grid(grid, qmin, qmax, levels, dtype):
    assert (grid.qmin, grid.qmax, grid.levels, grid.dtype) == (qmin, qmax, levels, dtype)


@pytest.mark.parametrize("bits", [1, 17, 0, -8, 8.0, "8", True, None])
def test_grid_refuses_other_bits(bits):
    with pytest.raises(QuantizationError, match="bits"):
        IntGrid(bits)


def test_bits_and_blocks_may_be_numpy_integers():
    grid = IntGrid(np.int64(8))
    assert type(grid.bits) is int
    assert grid == IntGrid(8)
    x = torch.randn(4, 6)
    sizes = (np.int64(1), np.int32(3))
    qparams = choose_qparams(*block_minmax(x, sizes), grid, block_size=sizes)
    assert qparams.block_size == (1, 3)
    assert all(type(entry) is int for entry in qparams.block_size)


def test_narrow_grid_must_be_signed():
    with pytest.raises(QuantizationError, match="narrow"):
        IntGrid(8, signed=False, narrow=True)


# --- choosing parameters -------------------------------------------------------------------------


def test_by_hand():
    """[-1, 1.55] on 0..255: steps of 0.01, zero at code 100."""
    qparams = choose_qparams(-1.0, 1.55, IntGrid(8, signed=False))
    assert float(qparams.scale) == pytest.approx(0.01, rel=1e-7)
    assert int(qparams.zero_point) == 100
    x = torch.tensor([-1.0, 0.0, 0.004, 0.006, 1.55, 99.0])
    assert quantize(x, qparams).tolist() == [0, 100, 100, 101, 255, 255]


@given(ranges, grids, st.booleans())
def test_parameters_are_always_valid(bounds, grid, symmetric):
    qparams = qparams_for(*bounds, grid, symmetric)
    assert qparams.scale.dtype == torch.float32
    assert qparams.zero_point.dtype == torch.int32
    assert math.isfinite(1 / float(qparams.scale))
    assert float(qparams.scale) >= SCALE_FLOOR
    assert grid.qmin <= int(qparams.zero_point) <= grid.qmax
    if symmetric:
        assert qparams.symmetric
    codes = torch.tensor([grid.qmin, grid.qmax])
    for dtype in FLOAT_DTYPES:
        assert torch.isfinite(dequantize(codes, qparams, dtype)).all()


@given(ranges, grids, st.booleans())
def test_range_is_covered_to_half_a_step(bounds, grid, symmetric):
    """But for ranges within a step of float32's end, where the last code must stay finite."""
    low, high = bounds
    qparams = qparams_for(low, high, grid, symmetric)
    assume(max(-low, high) < FLOAT32_MAX / 2)
    slack = float(qparams.scale) * (0.5 + grid.levels * 2.0**-24)
    if symmetric and -low > high:
        high = -low
    lowest, highest = decoded_range(qparams)
    assert highest >= high - slack
    if not symmetric:
        assert lowest <= low + slack


@pytest.mark.parametrize("grid", [IntGrid(8), IntGrid(8, signed=False), IntGrid(2), IntGrid(16)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("low", [-3.4e38, -FLOAT32_MAX, 0.0, 3.4e38])
def test_end_of_float32(grid, symmetric, low):
    high = max(low, 3.4e38)
    if symmetric and not grid.signed:
        low = max(low, 0.0)
    qparams = choose_qparams(low, high, grid, symmetric)
    x = torch.tensor([low, high, math.inf, -math.inf])
    result = fake_quantize(x, qparams)
    assert torch.isfinite(result).all()
    off = (result[:2].double() - x[:2].double()).abs().max()
    assert off <= 1.001 * float(qparams.scale)


@given(st.floats(SCALE_FLOOR * 2**16, FLOAT32_MAX / 2, width=32), grids, st.booleans(), st.data())
def test_constant_decodes_to_itself_within_one_ulp(constant, grid, symmetric, data):
    """scale = c / 255 is rounded to float32, so 255 * scale may be the next float32."""
    if grid.signed or not symmetric:
        constant *= data.draw(st.sampled_from([-1.0, 1.0]))
    qparams = choose_qparams(constant, constant, grid, symmetric)
    x = torch.full((3,), constant)
    ulp = np.spacing(np.float32(abs(constant)))
    assert (fake_quantize(x, qparams) - x).abs().max() <= ulp


@given(st.floats(0, SCALE_FLOOR * 2**16, width=32), grids)
def test_tiny_constant_is_kept_to_half_the_smallest_scale_or_one_ulp(constant, grid):
    qparams = choose_qparams(constant, constant, grid)
    off = abs(float(fake_quantize(torch.tensor(constant), qparams)) - constant)
    assert off <= max(SCALE_FLOOR / 2, float(np.spacing(np.float32(constant))))


@pytest.mark.parametrize("symmetric", [False, True])
def test_all_zero(symmetric):
    qparams = choose_qparams(0.0, 0.0, IntGrid(8), symmetric)
    assert float(qparams.scale) == 1.0
    assert torch.equal(fake_quantize(torch.zeros(5), qparams), torch.zeros(5))


@given(ranges, grids, st.booleans())
def test_zero_is_exact(bounds, grid, symmetric):
    qparams = qparams_for(*bounds, grid, symmetric)
    zero = torch.tensor(0.0)
    assert int(quantize(zero, qparams)) == int(qparams.zero_point)
    assert float(fake_quantize(zero, qparams)) == 0.0


def test_range_away_from_zero_is_widened():
    """[2, 6] becomes [0, 6]; its mirror image [-6, 0]."""
    for sign in (1, -1):
        low, high = sorted((2.0 * sign, 6.0 * sign))
        qparams = choose_qparams(low, high, IntGrid(8, signed=False))
        assert sorted(map(abs, decoded_range(qparams))) == pytest.approx([0, 6])


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (math.nan, 1.0, "NaN"),
        (0.0, math.inf, "infinite"),
        (torch.tensor([0.0, math.nan]), torch.tensor([1.0, 1.0]), "NaN"),
        (0.0, 1e39, "float32"),
        (1.0, 0.5, "above"),
        (torch.zeros(2), torch.zeros(3), "shape"),
        (torch.zeros(2), torch.ones(2), "block_size"),
        (None, 1.0, "real numbers.*None"),
        (0.0, "1", "real numbers.*'1'"),
        (0.0, 1j, "real numbers"),
        (torch.zeros(1) * 1j, torch.zeros(1), "complex"),
    ],
)
def test_bad_bounds(low, high, words):
    with pytest.raises(QuantizationError, match=words):
        choose_qparams(low, high, IntGrid(8))


def test_symmetric_on_unsigned_grid_needs_non_negative_data():
    with pytest.raises(QuantizationError, match="signed"):
        choose_qparams(-1.0, 1.0, IntGrid(8, signed=False), symmetric=True)
    qparams = choose_qparams(0.0, 2.55, IntGrid(8, signed=False), symmetric=True)
    assert float(qparams.scale) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": torch.tensor(0.1, dtype=torch.float64)}, "float32"),
        ({"zero_point": torch.tensor(0)}, "int32"),
        ({"scale": torch.tensor(0.0)}, "positive"),
        ({"scale": torch.tensor(math.inf)}, "positive"),
        ({"scale": torch.tensor(math.nan)}, "positive"),
        ({"zero_point": torch.tensor(128, dtype=torch.int32)}, "zero_point"),
        ({"scale": torch.ones(2)}, "alike"),
        ({"block_size": (1, -1)}, "dimension"),
        ({"block_size": (0,)}, "positive"),
        ({"block_size": (-2,)}, "positive"),
        ({"block_size": (True,)}, "positive"),
        ({"block_size": 4}, "tuple"),
        ({"scale": 0.1}, "tensors, got float and Tensor"),
        ({"zero_point": 0}, "tensors, got Tensor and int"),
    ],
)
def test_qparams_check_themselves(changes, words):
    given_ = {
        "scale": torch.tensor(0.1),
        "zero_point": torch.tensor(0, dtype=torch.int32),
        "grid": IntGrid(8),
    }
    QParams(**given_)
    with pytest.raises(QuantizationError, match=words):
        QParams(**(given_ | changes))


# --- quantizing ----------------------------------------------------------------------------------


@given(ranges, grids, st.booleans(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_error_is_at_most_half_a_step_inside_the_range(bounds, grid, symmetric, shares):
    qparams = qparams_for(*bounds, grid, symmetric)
    low, high = decoded_range(qparams)
    assume(high - low < FLOAT32_MAX)
    x = torch.tensor([low + share * (high - low) for share in shares], dtype=torch.float64)
    x = x.clamp(low, high)
    error = (fake_quantize(x, qparams) - x).abs().max()
    assert error <= float(qparams.scale) * (0.5 + 1e-9)


@given(ranges, grids, st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_codes_survive_the_round_trip(bounds, grid, symmetric, dtype):
    qparams = qparams_for(*bounds, grid, symmetric)
    codes = torch.arange(grid.qmin, grid.qmax + 1).to(grid.dtype)
    assert torch.equal(quantize(dequantize(codes, qparams, dtype), qparams), codes)


@given(ranges, grids, st.booleans(), st.lists(finite, min_size=1, max_size=20))
def test_idempotent_monotone_and_saturating(bounds, grid, symmetric, values):
    qparams = qparams_for(*bounds, grid, symmetric)
    x = torch.tensor([-math.inf, *sorted(values), math.inf])
    codes = quantize(x, qparams)
    assert codes.dtype == grid.dtype
    assert codes[0] == grid.qmin
    assert codes[-1] == grid.qmax
    assert (codes.int().diff() >= 0).all()
    once = fake_quantize(x, qparams)
    assert torch.equal(fake_quantize(once, qparams), once)


def test_rounds_half_to_even():
    qparams = choose_qparams(-128.0, 127.0, IntGrid(8))
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert quantize(x, qparams).tolist() == [0, 2, 2, 0, -2, -2]


def test_saturates_before_the_cast():
    """A cast first would wrap 128 around to -128, and 1.02 would decode to a negative number."""
    qparams = choose_qparams(-1.0, 1.0, IntGrid(8), symmetric=True)
    assert quantize(torch.tensor([1.02, 3.0, 1e30]), qparams).tolist() == [127, 127, 127]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 11, 16])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block_size", [None, (1, -1, -1), (-1, 1, -1), (1, 2, -1), (2, 3, 4)])
def test_every_dtype_and_granularity(dtype, bits, signed, block_size):
    torch.manual_seed(bits)
    x = torch.randn(4, 6, 8).to(dtype)
    before = x.clone()
    qparams = choose_qparams(
        *block_minmax(x, block_size), IntGrid(bits, signed=signed), block_size=block_size
    )
    codes = quantize(x, qparams)
    assert codes.dtype == qparams.grid.dtype
    result = fake_quantize(x, qparams)
    assert result.dtype == dtype
    assert torch.equal(result, dequantize(codes, qparams, dtype))
    assert torch.equal(x, before)
    step = float(qparams.scale.max())
    off = (result.double() - x.double()).abs().max()
    assert off <= step * 0.51 + 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_never_decodes_to_infinity(dtype):
    """The highest code may stand for up to half a step more than the largest value."""
    largest = torch.finfo(dtype).max
    for low in (-1000.0, -largest, -largest / 3):
        x = torch.tensor([low, largest], dtype=dtype)
        qparams = choose_qparams(low, largest, IntGrid(4))
        assert torch.isfinite(fake_quantize(x, qparams)).all()


# --- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
def test_blocks_equal_a_loop_over_the_blocks(symmetric):
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8) * torch.logspace(-2, 2, 4)[:, None, None]
    sizes = {(1, -1, -1): (1, 6, 8), (1, 1, -1): (1, 1, 8), (2, 3, 4): (2, 3, 4)}
    for block_size, (a, b, c) in sizes.items():
        low, high = block_minmax(x, block_size)
        assert low.shape == high.shape == (4 // a, 6 // b, 8 // c)
        qparams = choose_qparams(low, high, IntGrid(8), symmetric, block_size)
        codes = quantize(x, qparams)
        for i, j, k in np.ndindex(*low.shape):
            part = (slice(i * a, i * a + a), slice(j * b, j * b + b), slice(k * c, k * c + c))
            alone = choose_qparams(*block_minmax(x[part]), IntGrid(8), symmetric)
            assert torch.equal(qparams.scale[i, j, k], alone.scale)
            assert torch.equal(codes[part], quantize(x[part], alone))


def test_per_channel_of_a_convolution():
    weight = torch.randn(16, 3, 5, 5)
    low, high = block_minmax(weight, (1, -1, -1, -1))
    assert low.shape == (16, 1, 1, 1)
    assert torch.equal(low.flatten(), weight.flatten(1).amin(1))
    assert torch.equal(high.flatten(), weight.flatten(1).amax(1))


def test_memory_format_is_kept():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    for block_size in (None, (-1, 1, -1, -1)):
        qparams = choose_qparams(
            *block_minmax(x, block_size), IntGrid(8), False, block_size=block_size
        )
        assert fake_quantize(x, qparams).is_contiguous(memory_format=torch.channels_last)


def test_blocks_that_do_not_fit():
    x = torch.randn(4, 6)
    with pytest.raises(QuantizationError, match=r"dimension 1 has 6 elements.*of 4"):
        block_minmax(x, (1, 4))
    with pytest.raises(QuantizationError, match="3 entries"):
        block_minmax(x, (1, 1, -1))
    for wrong in ((0, -1), (1.0, -1), (-2, 1)):
        with pytest.raises(QuantizationError, match="positive"):
            block_minmax(x, wrong)
    qparams = choose_qparams(*block_minmax(x, (1, -1)), IntGrid(8), block_size=(1, -1))
    with pytest.raises(QuantizationError, match=r"\(4, 1\) blocks.*\(5, 1\)"):
        quantize(torch.randn(5, 6), qparams)


def test_empty_tensor_has_codes_but_no_range():
    qparams = choose_qparams(-1.0, 1.0, IntGrid(8))
    assert quantize(torch.empty(0, 3), qparams).shape == (0, 3)
    with pytest.raises(QuantizationError, match="empty"):
        block_minmax(torch.empty(0, 3))


# --- bad input -----------------------------------------------------------------------------------


@given(st.integers(0, 99), st.sampled_from(FLOAT_DTYPES), grids)
def test_nan_is_an_error_wherever_it_stands(place, dtype, grid):
    x = torch.linspace(-1, 1, 100).to(dtype)
    x[place] = math.nan
    qparams = choose_qparams(-1.0, 1.0, grid)
    for function in (quantize, fake_quantize):
        with pytest.raises(QuantizationError, match="1 of 100 values are NaN"):
            function(x, qparams)


@pytest.mark.parametrize("x", [torch.arange(3), torch.tensor([True]), [0.5], torch.zeros(1) * 1j])
def test_only_floats_are_quantized(x):
    qparams = choose_qparams(-1.0, 1.0, IntGrid(8))
    for call in (lambda: quantize(x, qparams), lambda: fake_quantize(x, qparams)):
        with pytest.raises(QuantizationError, match="floating-point"):
            call()
    with pytest.raises(QuantizationError, match="floating-point"):
        block_minmax(x)


def test_only_integers_are_dequantized():
    with pytest.raises(QuantizationError, match="integers"):
        dequantize(torch.zeros(3), choose_qparams(-1.0, 1.0, IntGrid(8)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_codes_decode_to_the_four_float_dtypes(dtype):
    codes, qparams = torch.zeros(3, dtype=torch.int8), choose_qparams(-1.0, 1.0, IntGrid(8))
    for tensor in (QTensor(codes, qparams), QTensor(codes, codebook=torch.ones(1))):
        with pytest.raises(QuantizationError, match=r"decode to float16.*convert afterwards"):
            tensor.dequantize(dtype)
    with pytest.raises(QuantizationError, match="float8"):
        fake_quantize(torch.zeros(3).to(torch.float8_e5m2), qparams)


def test_no_gradient_comes_through():
    x = torch.randn(5, requires_grad=True)
    fake_quantize(x, choose_qparams(-1.0, 1.0, IntGrid(8))).sum().backward()
    assert not x.grad.any()


# --- peers ---------------------------------------------------------------------------------------


def near_tie(x, scale):
    """Where x / scale is so close to a half that x * (1 / scale) may round to the other side."""
    quotient = x.double() / scale.double()
    return (quotient - quotient.floor() - 0.5).abs() < 2.0**-21 * (1 + quotient.abs())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize(
    "grid", [IntGrid(8), IntGrid(8, signed=False), IntGrid(2), IntGrid(4), IntGrid(12), IntGrid(16)]
)
def test_equals_torch_per_tensor(grid, dtype, seed):
    """Bit for bit off the near-ties; in float64, which PyTorch computes in float32, to that."""
    torch.manual_seed(seed)
    x = (torch.randn(100_000) * 10 ** float(torch.randn(()))).to(dtype)
    qparams = choose_qparams(float(x.min()) * 0.7, float(x.max()) * 0.7, grid)
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    ours = fake_quantize(x, qparams)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.qmin, grid.qmax)
    tie = near_tie(x, qparams.scale)
    assert tie.float().mean() < 0.05
    assert ours.dtype == theirs.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(ours[~tie], theirs[~tie], rtol=2.0**-22, atol=0)
    else:
        assert torch.equal(ours[~tie], theirs[~tie])
    rounding = max(2**-22, torch.finfo(dtype).eps)  # of the decoded values, both of float32 at best
    one_step = scale + rounding * float(x.abs().max())
    assert (ours - theirs).abs().max() <= one_step


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_torch_per_channel(symmetric, bits, dtype):
    torch.manual_seed(0)
    weight = torch.randn(32, 16, 3, 3) * torch.logspace(-3, 3, 32)[:, None, None, None]
    weight, grid = weight.to(dtype), IntGrid(bits)
    block_size = (1, -1, -1, -1)
    qparams = choose_qparams(*block_minmax(weight, block_size), grid, symmetric, block_size)
    theirs = torch.fake_quantize_per_channel_affine(
        weight, qparams.scale.flatten(), qparams.zero_point.flatten(), 0, grid.qmin, grid.qmax
    )
    ours = fake_quantize(weight, qparams)
    tie = near_tie(weight, qparams.scale)
    assert tie.float().mean() < 0.05
    assert torch.equal(ours[~tie], theirs[~tie])


@pytest.mark.parametrize("signed", [True, False])
def test_equals_onnx_runtime_bit_for_bit(signed):
    """QuantizeLinear divides and rounds half to even, as quantize does: ties included."""
    torch.manual_seed(1)
    grid = IntGrid(8, signed=signed)
    qparams = choose_qparams(-2.0, 3.1, grid)
    ties = (torch.arange(-200, 300) + 0.5) * qparams.scale
    x = torch.cat([torch.randn(100_000) * 2, ties, torch.tensor([1e30, -1e30])])
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("q", kind, [None])],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [float(qparams.scale)]),
            helper.make_tensor("z", kind, [], [int(qparams.zero_point)]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (theirs,) = session.run(None, {"x": x.numpy()})
    assert torch.equal(quantize(x, qparams), torch.from_numpy(theirs))


# --- QTensor -------------------------------------------------------------------------------------


def test_qtensor_with_parameters():
    x = torch.randn(8, 128)
    qparams = choose_qparams(*block_minmax(x, (1, 64)), IntGrid(4), True, (1, 64))
    tensor = QTensor(quantize(x, qparams), qparams)
    assert tensor.shape == (8, 128)
    assert tensor.nbits_per_value == 4 + 32 / 64
    assert torch.equal(tensor.dequantize(), fake_quantize(x, qparams))
    assert tensor.dequantize(torch.float16).dtype == torch.float16


def test_qtensor_counts_zero_points():
    x = torch.rand(4, 64) + 0.1
    qparams = choose_qparams(*block_minmax(x, (1, 32)), IntGrid(4), False, (1, 32))
    assert QTensor(quantize(x, qparams), qparams).nbits_per_value == 4 + (32 + 4) / 32


def test_qtensor_with_codebook():
    codebook = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    tensor = QTensor(torch.tensor([[0, 3, 1], [2, 2, 1]]), codebook=codebook)
    assert tensor.dequantize().tolist() == [[-1.0, 2.0, 0.0], [0.5, 0.5, 0.0]]
    assert tensor.nbits_per_value == 2 + 4 * 32 / 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either"),
        ({"codebook": torch.zeros(4), "qparams": True}, "not both"),
        ({"codebook": torch.zeros(3)}, r"\[0, 2\], found \[0, 3\]"),
        ({"codebook": torch.zeros(2, 2)}, "shape"),
        ({"codebook": torch.zeros(0)}, "shape"),
        ({"codebook": torch.arange(4)}, "floating-point"),
        ({"codebook": torch.zeros(4), "codes": torch.zeros(3)}, "integers"),
    ],
)
def test_qtensor_refuses(arguments, words):
    arguments = {"codes": torch.tensor([0, 3, 1])} | arguments
    if "qparams" in arguments:
        arguments["qparams"] = choose_qparams(-1.0, 1.0, IntGrid(8))
    with pytest.raises(QuantizationError, match=words):
        QTensor(**arguments)
