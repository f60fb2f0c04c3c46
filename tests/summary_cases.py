"""Shared by the tests of summaries: generated data, merge trees, comparison to the last bit."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
from ptq_course.ranges.summaries import BatchExtremaMean, MinMax, Moments, MovingAverage

# Every kind of summary, small bin counts included: they must coarsen again and again.
MERGEABLE = {
    "MinMax": MinMax,
    "Moments": Moments,
    "FloatBitHistogram": FloatBitHistogram,
    "DyadicHistogram": DyadicHistogram,
    "DyadicHistogram(128)": lambda: DyadicHistogram(128),
    "DyadicHistogram(100)": lambda: DyadicHistogram(100),
    "DyadicHistogram(2)": lambda: DyadicHistogram(2),
}
EVERY = MERGEABLE | {"MovingAverage": MovingAverage, "BatchExtremaMean": BatchExtremaMean}

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)  # subnormals, -0.0, 3e38
everyday = st.floats(-8, 8, width=32)
activations = st.one_of(st.just(0.0), st.floats(0, 6, width=32))  # after a ReLU6
data = st.one_of(
    *(st.lists(value, min_size=1, max_size=40) for value in (any_float32, everyday, activations)),
    st.tuples(any_float32, st.integers(1, 40)).map(lambda c: [c[0]] * c[1]),
).map(lambda values: torch.tensor(values, dtype=torch.float32))


def collected(make, *batches):
    """A new summary that has seen the batches."""
    summary = make()
    for batch in batches:
        summary.update(batch)
    return summary


def merged_in_random_order(make, x, random):
    """x cut, shuffled, collected by several summaries and merged along a random tree."""
    order = list(range(len(x)))
    random.shuffle(order)
    batches = x[order].tensor_split(random.randint(1, 6))
    parts = [make()]  # one that sees nothing
    for batch in batches:
        if random.random() < 0.3 and len(batch):
            parts[-1].update(batch)
        else:
            parts.append(collected(make, *(piece for piece in batch.split(3) if len(piece))))
    while len(parts) > 1:
        other = parts.pop(random.randrange(len(parts)))
        random.choice(parts).merge(other)
    return parts[0]


def assert_same_bits(one, other):
    """Equal states; for floats to the sign of zero."""
    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert type(value) is type(theirs[key]), key
        assert np.array_equal(value, theirs[key]), (key, value, theirs[key])
        if isinstance(value, float):
            assert math.copysign(1, value) == math.copysign(1, theirs[key]), key
