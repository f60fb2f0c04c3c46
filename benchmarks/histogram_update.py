"""What one update of each summary costs. calibration_cost.py times calibrating a whole network.

    python benchmarks/histogram_update.py            about half a minute on two cores
    python benchmarks/histogram_update.py --quick    fewer rounds

One update on a 32x64x24x24 activation is set against torch.aminmax, torch.histc and PyTorch's
HistogramObserver. All contestants take turns inside one run, so that what else the machine does
hits all of them; a figure is the ratio of the best rounds, once by the clock and once by processor
time, which other programs on the machine disturb less (and which counts what PyTorch's threads
spend in waiting for work). Budget: Moments at most 2 ns a value by the clock; the exit code is 1
when it is missed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch
from contest import best_of
from torch import Tensor, nn

from ptq_course.ranges.histograms import DyadicHistogram, FloatBitHistogram
from ptq_course.ranges.summaries import MinMax, Moments, Summary

SHAPE = (32, 64, 24, 24)
SUMMARIES: dict[str, type[Summary]] = {
    "MinMax": MinMax,
    "FloatBitHistogram": FloatBitHistogram,
    "DyadicHistogram": DyadicHistogram,
    "Moments": Moments,
}
BUDGETS = {"Moments": 2.0}  # ns a value


def pytorch_observer() -> Callable[[], nn.Module] | None:
    """PyTorch's HistogramObserver, or None (with the reason printed) where it is gone."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        from torch.ao.quantization.observer import HistogramObserver

        HistogramObserver()(torch.randn(10))
    except Exception as error:  # whatever a future PyTorch does here, the rest must still run
        print(f"(left out: torch.ao HistogramObserver: {type(error).__name__}: {error})")
        return None
    return HistogramObserver


def updates(x: Tensor, observer: Callable[[], nn.Module] | None) -> dict[str, Callable]:
    """One more update of each contestant, all of which have seen data of this range before."""
    contestants: dict[str, Callable] = {
        "torch.aminmax": lambda: torch.aminmax(x),
        "torch.histc 2048": lambda: torch.histc(x, 2048),
    }
    if observer is not None:
        theirs = observer()
        contestants["HistogramObserver"] = lambda: theirs(x)
    for name, make in SUMMARIES.items():
        contestants[name] = partial(make().update, x)
    return contestants


def report(title: str, seconds: dict[str, tuple[float, float]], base: str, values: int) -> bool:
    """Print one row a contestant; returns whether the budgets were met."""
    print(f"\n{title}\n  {'times ' + base:<22}   clock  processor      ns a value by either")
    met = True
    for name, (clock, processor) in seconds.items():
        ratios = clock / seconds[base][0], processor / seconds[base][1]
        each, spent = clock / values * 1e9, processor / values * 1e9
        verdict = ""
        if name in BUDGETS:
            met &= each <= BUDGETS[name]
            passed = "PASS" if each <= BUDGETS[name] else "MISS"
            verdict = f"   budget {BUDGETS[name]:g} ns  {passed}"
        print(
            f"  {name:<22} {ratios[0]:7.2f} {ratios[1]:10.2f}   {each:9.2f} {spent:6.2f}{verdict}"
        )
    return met


def main() -> int:
    """Print a table for either kind of data; the exit code says whether the budget was met."""
    rounds = 5 if "--quick" in sys.argv[1:] else 20
    torch.manual_seed(0)
    observer = pytorch_observer()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {rounds} rounds")
    x, met = torch.randn(SHAPE), True
    with torch.no_grad():
        for kind, data in (("normal", x), ("after a ReLU", x.relu())):
            seconds = best_of(updates(data, observer), rounds)
            title = f"One update, {'x'.join(map(str, SHAPE))}, {kind}"
            met &= report(title, seconds, "torch.histc 2048", data.numel())
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
