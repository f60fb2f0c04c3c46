from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_course.errors import QuantizationError
from ptq_course.grids.metrics import (
    Noise,
    correct,
    flips,
    paired_bootstrap,
    snr_median,
    snr_pooled,
    sqnr_db,
    top1,
)


def test_sqnr_of_a_tenth_of_error_is_20_db():
    x = torch.ones(1000)
    assert sqnr_db(x, x * 0.9) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf


def test_sqnr_refuses_other_shapes():
    with pytest.raises(QuantizationError, match=r"\(2,\).*\(3,\)"):
        sqnr_db(torch.ones(2), torch.ones(3))


def test_equal_infinities_are_no_difference():
    """Attention masks hold -inf; neither signal nor noise."""
    x = torch.cat([torch.ones(500), torch.full((500,), -math.inf), torch.tensor([math.inf])])
    assert sqnr_db(x, x) == math.inf
    worse = x.masked_fill(x == 1, 0.9)
    assert sqnr_db(x, worse) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.ones(0, 3), torch.ones(0, 3), r"empty, shape \(0, 3\)"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "NaN"),
        (torch.ones(2), torch.tensor([1.0, math.nan]), "NaN"),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), "NaN"),
        (torch.tensor([1.0, math.inf]), torch.ones(2), "infinity"),
        (torch.ones(2), torch.tensor([1.0, -math.inf]), "infinity"),
        (torch.tensor([math.inf]), torch.tensor([-math.inf]), "infinity"),
    ],
)
def test_sqnr_refuses_what_has_no_ratio(first, second, words):
    with pytest.raises(QuantizationError, match=words):
        sqnr_db(first, second)


def test_two_decibels_answer_two_questions():
    """Nine examples at 20 dB and a loud one at 0 dB: the median is 20 dB, pooled it is 0."""
    x = torch.ones(10, 4)
    x[9] = 1000.0
    approximation = x * 0.9
    approximation[9] = 0.0
    assert snr_median(x, approximation) == pytest.approx(20.0, abs=1e-4)
    assert snr_pooled(x, approximation) == pytest.approx(0.0, abs=1e-3)
    assert sqnr_db is snr_pooled


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.integers(1, 5))
def test_noise_is_the_same_however_the_examples_are_cut(count, seed, size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 2, generator=generator)
    x_hat = x + 0.1 * torch.randn(count, 3, 2, generator=generator)
    ratios = (x.double() ** 2).sum((1, 2)) / ((x.double() - x_hat.double()) ** 2).sum((1, 2))
    noise = Noise()
    for pair in zip(x.split(size), x_hat.split(size), strict=True):
        noise.add(*pair)
    assert noise.snr_median == snr_median(x, x_hat)
    assert noise.snr_median == pytest.approx(10 * float(np.median(np.log10(ratios.numpy()))))
    assert noise.snr_pooled == pytest.approx(snr_pooled(x, x_hat))


def test_noise_without_anything_to_measure():
    noise = Noise()
    noise.add(torch.zeros(3, 2), torch.zeros(3, 2))
    noise.add(torch.tensor([1, 2]), torch.tensor([1, 2]))  # integers are no signal
    noise.add("a name", "a name")
    assert noise.snr_median is None
    assert noise.snr_pooled is None
    assert snr_median(torch.zeros(3, 2), torch.zeros(3, 2)) == math.inf
    masked = torch.tensor([[1.0, -math.inf], [math.nan, 1.0]])  # a mask is no signal, NaN no value
    noise.add(masked, torch.tensor([[0.9, -math.inf], [math.nan, 1.0]]))
    assert noise.snr_median == pytest.approx(20.0, abs=1e-4)
    assert noise.snr_pooled == pytest.approx(20.0, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000))
def test_flips_account_for_every_example(count, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, 4, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    result = flips(first, second, labels)
    assert result.both_right + result.lost + result.gained + result.both_wrong == result.total
    assert result.changed >= result.lost + result.gained
    assert top1(first, labels) - top1(second, labels) == pytest.approx(result.net / count)


def test_flips_see_changes_that_the_accuracy_hides():
    first = torch.eye(3)[[0, 1, 2, 0]]
    second = torch.eye(3)[[1, 1, 2, 1]]
    labels = torch.tensor([0, 1, 2, 1])
    result = flips(first, second, labels)
    assert (result.lost, result.gained, result.net, result.changed) == (1, 1, 0, 2)
    assert top1(first, labels) == top1(second, labels)


def test_paired_interval_contains_the_difference_and_is_tighter_than_unpaired():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(2000, generator=generator) < 0.1
    first = (~hard).double()
    second = first.clone()
    second[:20] = 0
    difference, low, high = paired_bootstrap(first, second)
    assert low <= difference <= high
    assert high < 0, "20 lost answers of 2000 are significant when paired"
    shuffled = second[torch.randperm(2000, generator=generator)]
    _, low_unpaired, high_unpaired = paired_bootstrap(first, shuffled)
    assert high_unpaired - low_unpaired > 2 * (high - low)


def test_equal_scores_give_a_zero_interval():
    scores = torch.tensor([1.0, 0.0, 1.0])
    assert paired_bootstrap(scores, scores) == (0, 0, 0)


@pytest.mark.parametrize(
    ("first", "second"), [(torch.ones(0), torch.ones(0)), (torch.ones(3), torch.ones(4))]
)
def test_bootstrap_refuses_what_is_not_paired(first, second):
    with pytest.raises(QuantizationError, match="equally long"):
        paired_bootstrap(first, second)


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (torch.tensor([1.0, math.nan, 0.0]), {}, "NaN"),
        (torch.tensor([1.0, math.inf, 0.0]), {}, "infinite"),
        (torch.ones(3), {"confidence": 95}, r"confidence .* must lie in \(0, 1\), got 95"),
        (torch.ones(3), {"confidence": 0.0}, "confidence"),
        (torch.ones(3), {"confidence": math.nan}, "confidence"),
        (torch.ones(3), {"samples": 0}, "samples"),
        (torch.ones(3), {"samples": 2.5}, "samples"),
        (torch.ones(3), {"samples": True}, "samples"),
    ],
)
def test_bootstrap_checks_scores_and_options(scores, options, words):
    with pytest.raises(QuantizationError, match=words):
        paired_bootstrap(torch.zeros(3), scores, **options)
    paired_bootstrap(torch.zeros(3), torch.ones(3), samples=1, confidence=0.5)


def test_nan_logits_are_an_error():
    with pytest.raises(QuantizationError, match="NaN"):
        correct(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
