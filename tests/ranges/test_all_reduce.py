"""Two real processes of torch.distributed (gloo) give the bits of a single one."""

import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from summary_cases import MERGEABLE, assert_same_bits, collected

from ptq_course.errors import CalibrationError
from ptq_course.ranges.calibrators import KLCalibrator, PercentileCalibrator
from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
from ptq_course.ranges.reduction import gather_texts
from ptq_course.ranges.summaries import BatchExtremaMean, MinMax, Moments, MovingAverage

SUMMARIES = MERGEABLE | {"BatchExtremaMean": BatchExtremaMean}
# What the two processes hold that must not be reduced: other settings, other kinds.
UNLIKE = {
    "settings": (lambda: DyadicHistogram(128), lambda: DyadicHistogram(256)),
    "kinds": (MinMax, Moments),
    "histograms": (FloatBitHistogram, DyadicHistogram),
    "what does not merge": (MovingAverage, MinMax),
}
CALIBRATORS = {"KLCalibrator": KLCalibrator, "PercentileCalibrator": PercentileCalibrator}


def shares():
    """For every case the batches of process 0 and of process 1: other ranges, other sizes."""
    torch.manual_seed(3)
    bulk, outliers = torch.randn(40, 25), torch.randn(300).relu() * 1e3
    return {
        "other ranges": ([bulk, bulk * 0.01], [outliers]),
        "nothing on one": ([], [bulk, outliers]),
        "tiny and huge": ([torch.tensor([-1e-45, 0.0])], [torch.tensor([3e38, -0.0])]),
    }


def process(rank, folder):
    """What each process runs: collect its share, reduce, and write down what it then knows."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    dist.__dict__["all_gather_object"] = None  # a call would fail: nothing may be unpickled
    found = {}
    for case, batches in shares().items():
        for name, make in (SUMMARIES | CALIBRATORS).items():
            reduced = collected(make, *batches[rank])
            reduced.all_reduce()
            found[case, name] = reduced
    for case, makes in UNLIKE.items():
        unlike = collected(makes[rank], torch.tensor([1.0, 2.0]))
        before = unlike.state()
        with pytest.raises(CalibrationError) as refused:
            unlike.all_reduce()
        assert_same_bits(unlike, type(unlike).from_state(before))
        found[case] = str(refused.value)
    # MERGEABLE holds lambdas, so that only the objects are written, not how they were made.
    with open(f"{folder}/{rank}", "wb") as file:
        pickle.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes knew at the end."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(process, args=(str(folder),), nprocs=2)
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in (0, 1)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", SUMMARIES)
@pytest.mark.parametrize("case", shares())
def test_summary_equals_one_process(found, rank, name, case):
    first, second = shares()[case]
    assert_same_bits(found[rank][case, name], collected(SUMMARIES[name], *first, *second))


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_decide_alike(found, name):
    first, second = shares()["other ranges"]
    alone = collected(CALIBRATORS[name], *first, *second)
    scales = [process["other ranges", name].compute_scale() for process in found]
    assert scales == [alone.compute_scale()] * 2


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("settings", "DyadicHistogram(max_bins=128), DyadicHistogram(max_bins=256)"),
        ("kinds", "MinMax(), Moments()"),
        ("histograms", "FloatBitHistogram(), DyadicHistogram(max_bins=65536)"),
        ("what does not merge", "MovingAverage(), MinMax()"),
    ],
)
def test_what_is_unlike_is_an_error_in_every_process(found, case, named):
    assert [named in process[case] for process in found] == [True, True]


def test_texts_are_gathered_whole(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert gather_texts('{"größe": Infinity}', None) == ['{"größe": Infinity}']
    finally:
        dist.destroy_process_group()


def test_the_cases_would_notice(found):
    """Reducing changed something: no process knew the answer from its own share."""
    own = collected(DyadicHistogram, *shares()["other ranges"][0])
    assert not np.array_equal(own.counts, found[0]["other ranges", "DyadicHistogram"].counts)
