"""Summaries: the merge law, exact sums, and what bad data leave behind (nothing)."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from summary_cases import (
    EVERY,
    MERGEABLE,
    assert_same_bits,
    collected,
    data,
    merged_in_random_order,
)

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.ranges.histograms import DyadicHistogram
from ptq_course.ranges.summaries import BatchExtremaMean, MinMax, Moments, MovingAverage

every_summary = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
mergeable = pytest.mark.parametrize("make", MERGEABLE.values(), ids=MERGEABLE.keys())


# --- the merge law -------------------------------------------------------------------------------


@mergeable
@given(x=data, random=st.randoms(use_true_random=False))
def test_any_partition_order_and_merge_tree_gives_the_same_bits(make, x, random):
    assert_same_bits(merged_in_random_order(make, x, random), collected(make, x))


@mergeable
def test_merging_leaves_the_other_alone(make):
    one, other = collected(make, torch.randn(50)), collected(make, torch.randn(50) * 100)
    before = other.state()
    one.merge(other)
    one.update(torch.randn(50) * 1e4)
    after = other.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@mergeable
def test_merging_nothing_with_nothing_is_nothing(make):
    summary = make()
    summary.merge(make())
    assert_same_bits(summary, make())


@mergeable
def test_merging_with_itself_counts_twice(make):
    x = torch.randn(50)
    summary = collected(make, x)
    summary.merge(summary)
    assert_same_bits(summary, collected(make, x, x))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (MinMax(), Moments(), "cannot merge Moments"),
        (DyadicHistogram(64), DyadicHistogram(128), "max_bins=128"),
        (MinMax(name="conv1"), None, "conv1"),
    ],
)
def test_merging_what_does_not_fit(one, other, words):
    with pytest.raises(CalibrationError, match=words):
        one.merge(other)


@every_summary
def test_state_round_trip(make):
    summary = collected(make, torch.randn(50), torch.randn(50).relu())
    state = summary.state()
    restored = type(summary).from_state(state, name="restored")
    assert_same_bits(restored, summary)
    restored.update(torch.randn(50) * 1000)
    assert_same_bits(type(summary).from_state(state), summary)


@pytest.mark.parametrize("other", [MinMax, Moments, MovingAverage, DyadicHistogram])
def test_the_state_of_another_class_is_refused(other):
    state = collected(BatchExtremaMean, torch.randn(5)).state()
    with pytest.raises(CalibrationError, match=f"^fc: the state holds batches.*{other.__name__}"):
        other.from_state(state, name="fc")


@every_summary
def test_negative_views_are_read(make):
    """A view with the negative bit set, which NumPy cannot read as it lies."""
    view = torch.randn(50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    view = view.conj().imag
    assert view.is_neg()
    assert_same_bits(collected(make, view), collected(make, view.clone().resolve_neg()))


# --- bad data ------------------------------------------------------------------------------------

BAD = {
    "nan": (torch.tensor([1.0, math.nan, 2.0, math.nan]), "2 NaN and 0 infinite among 4 values"),
    "inf": (torch.tensor([1.0, -math.inf]), "0 NaN and 1 infinite among 2 values"),
    "both": (torch.tensor([[math.nan, math.inf], [0.0, 0.0]]), "1 NaN and 1 infinite among 4"),
    "half": (torch.tensor([1.0, math.inf], dtype=torch.float16), "1 infinite"),
    "float64": (torch.tensor([1e39], dtype=torch.float64), "after conversion to float32"),
    "empty": (torch.empty(0, 3), r"empty \(shape \(0, 3\)\)"),
    "integers": (torch.arange(6).reshape(2, 3), r"torch.int64 of shape \(2, 3\).*x.float\(\)"),
    "bool": (torch.tensor([True]), "torch.bool"),
    "complex": (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
    "list": ([1.0, 2.0], "got list, needs a tensor"),
    "none": (None, "got NoneType"),
    "numpy": (np.zeros(3), "got ndarray"),
}


@every_summary
@pytest.mark.parametrize(("x", "words"), BAD.values(), ids=BAD.keys())
def test_bad_data_say_what_and_change_nothing(make, x, words):
    for summary in (make(), collected(make, torch.randn(20))):
        summary.name = "layer4.conv2"
        before = type(summary).from_state(summary.state())
        with pytest.raises(CalibrationError, match=f"^layer4.conv2: .*{words}"):
            summary.update(x)
        assert_same_bits(summary, before)


@given(st.integers(0, 99), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_one_bad_value_is_found_wherever_it_stands(place, bad, power):
    x = torch.randn(100 * 10**power)
    x[place * 10**power] = bad
    with pytest.raises(CalibrationError, match=f"among {len(x)} values"):
        MinMax().update(x)


@every_summary
def test_no_data_is_an_error_that_names_the_layer(make):
    summary = make()
    summary.name = "fc"
    with pytest.raises(CalibrationError, match="fc: no calibration data yet"):
        summary.require_data()
    summary.update(torch.zeros(1))
    summary.require_data()


def test_calibration_errors_are_value_errors():
    assert issubclass(CalibrationError, QuantizationError)
    assert issubclass(QuantizationError, ValueError)


# --- what is accepted ----------------------------------------------------------------------------


@every_summary
def test_layout_gradient_and_shape_do_not_matter(make):
    x = torch.randn(4, 6, 5, 3)
    flat = collected(make, x.reshape(-1))
    for same in (
        x,
        x.clone().requires_grad_(),
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3),
        x[..., None],
    ):
        assert_same_bits(collected(make, same), flat)
    scalar = collected(make, torch.tensor(2.5))
    assert scalar.count == 1


@every_summary
def test_views_with_repeated_or_skipped_elements(make):
    x = torch.randn(8, 6)
    for view in (x[:, :1].expand(8, 5), x[::2, 1::3], x.flip(0)):
        assert_same_bits(collected(make, view), collected(make, view.contiguous()))


@every_summary
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_their_float32_values(make, dtype):
    x = (torch.randn(200) * 30).to(dtype)
    x[0] = 0.1  # rounds in each dtype, and once more from float64
    assert_same_bits(collected(make, x), collected(make, x.to(torch.float32)))


# --- one by one ----------------------------------------------------------------------------------


def test_minmax():
    summary = MinMax()
    assert (summary.min_val, summary.max_val, summary.count) == (math.inf, -math.inf, 0)
    summary.update(torch.tensor([[1.0, -2.0]]))
    summary.update(torch.tensor([0.5]))
    assert (summary.min_val, summary.max_val, summary.count) == (-2.0, 1.0, 3)


def test_a_zero_extreme_has_no_sign():
    """Or the bits would depend on which zero came first."""
    for x in ([-0.0, 0.0], [0.0, -0.0], [-0.0]):
        assert math.copysign(1, collected(MinMax, torch.tensor(x)).min_val) == 1


@given(data)
def test_moments_are_exact_then_rounded_once(x):
    summary = collected(Moments, x)
    values = [Fraction(v) for v in x.tolist()]
    mean = sum(values) / len(values)
    assert summary.mean == float(mean)
    assert summary.var == float(sum((v - mean) ** 2 for v in values) / len(values))
    assert summary.std == math.sqrt(summary.var)


def test_variance_survives_a_large_mean():
    """Sums of squares in float32 would leave nothing of it, or less than nothing."""
    x = 1e6 + torch.randn(10_000)
    assert collected(Moments, x).var == pytest.approx(np.var(x.double().numpy()), rel=1e-12)


def test_moments_of_more_than_one_block():
    x = torch.randn(3, 2**17) + 5
    assert collected(Moments, x).mean == pytest.approx(x.double().mean().item(), rel=1e-12)


def test_moving_average_by_hand():
    summary = MovingAverage(momentum=0.5)
    summary.update(torch.tensor([-1.0, 1.0]))
    assert (summary.min_val, summary.max_val) == (-1.0, 1.0)
    summary.update(torch.tensor([-3.0, 2.0]))
    assert (summary.min_val, summary.max_val) == (-2.0, 1.5)
    summary.update(torch.tensor([0.0, 0.0]))
    assert (summary.min_val, summary.max_val) == (-1.0, 0.75)


def test_moving_average_depends_on_the_order_and_does_not_merge():
    batches = [torch.tensor([float(i)]) for i in range(5)]
    there, back = (collected(MovingAverage, *order) for order in (batches, batches[::-1]))
    assert there.max_val != back.max_val
    for call in (lambda: there.merge(back), there.all_reduce):
        with pytest.raises(UnsupportedError, match="BatchExtremaMean"):
            call()


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_moving_average_refuses_other_momenta(momentum):
    with pytest.raises(CalibrationError, match="momentum"):
        MovingAverage(momentum)


@given(st.lists(data, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_batch_extrema_mean_does_not_depend_on_the_order_of_the_batches(batches, random):
    one = collected(BatchExtremaMean, *batches)
    assert one.min_val == float(sum(Fraction(float(b.min())) for b in batches) / len(batches))
    assert one.max_val == float(sum(Fraction(float(b.max())) for b in batches) / len(batches))
    random.shuffle(batches)
    cut = random.randint(0, len(batches))
    other = collected(BatchExtremaMean, *batches[:cut])
    other.merge(collected(BatchExtremaMean, *batches[cut:]))
    assert_same_bits(one, other)


def test_batch_extrema_mean_before_data():
    summary = BatchExtremaMean()
    assert (summary.min_val, summary.max_val) == (math.inf, -math.inf)


@mergeable
def test_all_reduce_without_a_process_group_says_how_to_start_one(make):
    with pytest.raises(UnsupportedError, match="init_process_group"):
        collected(make, torch.randn(5)).all_reduce()
