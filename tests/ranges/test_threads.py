"""Shares of several threads: equal results, errors that arrive, and a fork that does not hang."""

import multiprocessing

import numpy as np
import pytest
import torch
from summary_cases import MERGEABLE, assert_same_bits, collected

from ptq_course.ranges.counting import SHARE
from ptq_course.ranges.kl import kl_divergences
from ptq_course.ranges.threads import in_shares


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("length", [0, 1, 9, 10, 39, 40, 1000])
def test_shares_are_consecutive_and_not_too_small(length):
    shares = in_shares(lambda share: share, np.arange(length), least=10)
    assert np.array_equal(np.concatenate(shares), np.arange(length))
    assert len(shares) == max(1, min(4, length // 10))


@pytest.mark.parametrize("make", MERGEABLE.values(), ids=MERGEABLE.keys())
def test_threads_leave_no_trace(make):
    x = torch.randn(3 * SHARE + 5, generator=torch.Generator().manual_seed(0)).exp()
    shared = collected(make, x, x.relu() - 1)
    torch.set_num_threads(1)
    assert_same_bits(shared, collected(make, x, x.relu() - 1))
    assert_same_bits(shared, collected(make, *x.split(SHARE - 1), x.relu() - 1))


def test_a_kl_search_by_several_threads_finds_the_same_numbers():
    counts = np.random.default_rng(0).poisson(3, 3000)
    shared = kl_divergences(counts, 256)
    torch.set_num_threads(1)
    assert np.array_equal(shared, kl_divergences(counts, 256))


def test_an_error_of_any_share_arrives():
    def fail_late(share):
        if share[-1] == 39:
            raise ValueError("the last share")

    with pytest.raises(ValueError, match="the last share"):
        in_shares(fail_late, np.arange(40), least=10)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    """Those of its parent do not live there, and work handed to them would never come back."""
    in_shares(np.sum, np.arange(40), least=10)
    child = multiprocessing.get_context("fork").Process(
        target=in_shares, args=(np.sum, np.arange(40), 10)
    )
    child.start()
    child.join(20)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0
