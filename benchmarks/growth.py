"""How the time of each step grows with the number of layers: it should grow in proportion.

    python benchmarks/growth.py                 two to four minutes on two idle cores
    python benchmarks/growth.py --layers 2000   one size only

Networks of Linear(8, 8) and ReLU, so thin that only the work for each layer counts. A column: CPU
seconds of tracing (`PTQQuantizer(model)`), calibrating, converting, saving and loading, and of
writing the file (`onnx.export`) as a multiple of `torch.onnx.export` for the float model, the
median of three turns. The last row is the exponent: 1 is proportional, 2 is quadratic. MISS: 2,000
layers take over 5 s in a step, an exponent exceeds 1.3, or writing takes over twice PyTorch's own.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy import checkpoint, onnx

STEPS = ("trace", "calibrate", "convert", "save", "load")
MOST_SECONDS, MOST_EXPONENT, MOST_RATIO = 5.0, 1.3, 2.0


def network(layers: int) -> nn.Module:
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(*parts).eval()


T = TypeVar("T")


def clock(step: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = step()
    return time.process_time() - start, result


def measure(layers: int, folder: Path) -> dict[str, float]:
    model, x = network(layers), torch.randn(4, 8)
    file = folder / f"{layers}.safetensors"
    row = {}
    row["trace"], quantizer = clock(lambda: PTQQuantizer(model, config=QConfig.onnxruntime()))
    row["calibrate"], _ = clock(lambda: quantizer.calibrate([x], ranges="minmax", progress=False))
    row["convert"], quantized = clock(quantizer.convert)
    row["save"], _ = clock(lambda: checkpoint.save(quantized, file))
    row["load"], _ = clock(lambda: checkpoint.load(file, network(layers)))
    return row


def measure_export(layers: int, folder: Path) -> dict[str, float]:
    """Seconds of our export, and of PyTorch's for the float model."""
    model, x = network(layers), torch.randn(4, 8)
    quantizer = PTQQuantizer(model, config=QConfig.onnxruntime())
    quantizer.calibrate([x], ranges="minmax", progress=False)
    quantized = quantizer.convert()
    turns = []
    for _ in range(3):  # in turns, so that what else the machine does meets both
        theirs, _ = clock(
            lambda: torch.onnx.export(model, (x,), folder / "a.onnx", dynamo=True, verbose=False)
        )
        ours, _ = clock(lambda: onnx.export(quantized, x, folder / "int8.onnx"))
        turns.append((ours / theirs, ours, theirs))
    ratio, ours, theirs = sorted(turns)[1]
    return {"ours": ours, "theirs": theirs, "ratio": ratio}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope between the two largest sizes, in logarithms."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--export", type=int, nargs="*", default=[100, 200, 400])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(10, folder)  # imports, first calls
        print(f"{'layers':>8}" + "".join(f"{step:>11}" for step in STEPS))
        rows = [measure(layers, folder) for layers in chosen.layers]
        for layers, row in zip(chosen.layers, rows, strict=True):
            print(f"{layers:>8}" + "".join(f"{row[step]:>9.2f} s" for step in STEPS))
            missed += [f"{s} {layers}" for s in STEPS if layers <= 2000 and row[s] > MOST_SECONDS]
        if len(rows) > 1:
            slopes = {s: exponent(chosen.layers, [row[s] for row in rows]) for s in STEPS}
            print(f"{'exponent':>8}" + "".join(f"{slopes[step]:>11.2f}" for step in STEPS))
            missed += [f"{s} grows as n^{n:.2f}" for s, n in slopes.items() if n > MOST_EXPONENT]
        if chosen.export:
            measure_export(5, folder)
            print(f"\n{'layers':>8}{'export':>11}{'PyTorch':>11}{'ratio':>11}")
        written = []
        for layers in chosen.export or ():
            row = measure_export(layers, folder)
            written.append(row["ours"])
            ratio = row["ratio"]
            print(f"{layers:>8}{row['ours']:>9.2f} s{row['theirs']:>9.2f} s{ratio:>10.2f}x")
            missed += [f"export {layers}: {ratio:.2f}x"] if ratio > MOST_RATIO else []
        if len(written) > 1:
            print(f"{'exponent':>8}{exponent(chosen.export, written):>11.2f}")
    for miss in missed:
        print(f"MISS {miss}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
