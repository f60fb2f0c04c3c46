"""What calibrating costs over the plain FP32 forward pass of the same pictures. One run, ratios.

    python benchmarks/calibration_cost.py [--network mobilenet] [--pictures 1000] [--rounds 7]

Timed for each range rule: `observe` with the statistics that the rule needs, and `compute_qparams`.
Against it: the unchanged network over the same batches, without gradients. All take turns, so that
what else the machine does hits all of them, and the best round of each is compared. The quantizer
observes its own copy of the network, in which batch norm is folded into the convolutions: that
saves time, and a ratio may fall below 1. Peer, in the same turns: PyTorch's HistogramObserver on
the same values of the same folded network.

Budgets stand in the last column; the exit code is 1 when one is missed. Counting and the KL search
share their work between as many threads as PyTorch uses: on a machine whose processors are busy
otherwise, the ratios say little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.ao.quantization import HistogramObserver

from ptq_classroom import load_model, load_split, loader
from ptq_course import CALIBRATORS, PTQQuantizer

BUDGETS = {"minmax": 1.4, "kl": 2.0}
Batches = list[tuple[Tensor, Tensor]]


def plain(model: nn.Module, batches: Batches) -> Callable[[], None]:
    """The forward pass that every evaluation does."""

    def run() -> None:
        with torch.no_grad():
            for x, _ in batches:
                model(x)

    return run


def ours(model: nn.Module, batches: Batches, rule: str) -> Callable[[], None]:
    """Observe and decide with one rule; the quantizer is prepared before the clock starts."""
    prepared = [PTQQuantizer(model, bits=8)]

    def run() -> None:
        quantizer = prepared.pop()
        start = time.perf_counter()
        quantizer.observe(batches, ranges=rule, progress=False).compute_qparams(rule)
        run.seconds = time.perf_counter() - start
        prepared.append(PTQQuantizer(model, bits=8))

    return run


def pytorch(model: nn.Module, batches: Batches) -> Callable[[], None]:
    """PyTorch's HistogramObserver on as many values, and its search for a range."""
    quantizer = PTQQuantizer(model, bits=8)

    def run() -> None:
        observers = {name: HistogramObserver() for name in quantizer.network.full_plan.values}
        start = time.perf_counter()
        observed = quantizer.network.with_observers(observers)
        with torch.no_grad():
            for x, _ in batches:
                observed(x)
        for observer in observers.values():
            observer.calculate_qparams()
        run.seconds = time.perf_counter() - start

    return run


def turns(contest: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of the best round of each, after one warm-up, taking turns."""
    seconds = dict.fromkeys(contest, float("inf"))
    for warm in (True, *[False] * rounds):
        for name, run in contest.items():
            start = time.perf_counter()
            run()
            spent = getattr(run, "seconds", time.perf_counter() - start)
            if not warm:
                seconds[name] = min(seconds[name], spent)
    return seconds


def main() -> int:
    """Print the table; the exit code says whether both budgets were met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("resnet", "mobilenet"), default="resnet")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    model = load_model(options.network)
    batches = loader(load_split("calibration"), limit=options.pictures)
    contest = {"plain FP32 forward pass": plain(model, batches)}
    contest |= {rule: ours(model, batches, rule) for rule in CALIBRATORS}
    contest["PyTorch HistogramObserver"] = pytorch(model, batches)
    seconds = turns(contest, options.rounds)
    base = seconds["plain FP32 forward pass"]
    pictures = sum(len(x) for x, _ in batches)
    print(f"{options.network}, {pictures} pictures, {torch.get_num_threads()} threads, "
          f"best of {options.rounds} rounds")  # fmt: skip
    met = True
    for name, spent in seconds.items():
        ratio, budget = spent / base, BUDGETS.get(name, float("inf"))
        met &= ratio <= budget
        verdict = "" if name not in BUDGETS else (
            f"   budget {budget}x  {'PASS' if ratio <= budget else 'MISS'}"
        )  # fmt: skip
        print(f"  {name:28}{spent:8.2f} s{ratio:8.2f}x{verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
