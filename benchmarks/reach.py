"""`reach` on the shipped networks: what brings a quantized network back, and at which price.

    python benchmarks/reach.py                     all cases, a few minutes on two idle cores
    python benchmarks/reach.py resnet --drop 0.5   one of them, with another target

resnet: weights of 4 bits, activations of 8. mobilenet: one scale for each tensor at 8 bits.
collapsed: the same on a MobileNet whose channels were rescaled at random (it computes the same in
FP32, and next to nothing at 8 bits).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from torch import nn

from ptq_classroom import load_model, load_split, loader
from ptq_course import QConfig, reach, top1_on
from ptq_course.improve.equalization import unequalize
from ptq_course.improve.pairs import with_limits

PER_TENSOR = QConfig(weight_granularity="per_tensor")
CASES: dict[str, tuple[Callable[[], nn.Module], QConfig]] = {
    "resnet": (lambda: load_model("resnet"), QConfig(weight_bits=4)),
    "mobilenet": (lambda: load_model("mobilenet"), PER_TENSOR),
    "collapsed": (lambda: unequalize(with_limits(load_model("mobilenet"))), PER_TENSOR),
}


def main() -> None:
    """Print the log of each case."""
    parser = argparse.ArgumentParser(description="reach on the shipped networks")
    parser.add_argument("cases", nargs="*", help="some of: " + ", ".join(CASES))
    parser.add_argument("--drop", type=float, default=1.5, help="points")
    parser.add_argument("--pictures", type=int, default=4000, help="of the test split")
    parser.add_argument("--calibration", type=int, default=512)
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}: {', '.join(CASES)}")
    batches = loader(load_split("calibration"), limit=options.calibration)
    evaluate = top1_on(loader(load_split("test"), batch_size=250, limit=options.pictures))
    for case in options.cases or CASES:
        make, config = CASES[case]
        start = time.perf_counter()
        result = reach(make(), batches, evaluate, options.drop, config=config, progress=False)
        print(f"{case}, {time.perf_counter() - start:.0f} s\n{result}\n", flush=True)


if __name__ == "__main__":
    main()
