"""What minutes buy a 2-bit network, for chapter 14: every effort over five draws of the data.

    python benchmarks/distillation.py            ten minutes or more; goes on where it stopped
    python benchmarks/distillation.py --fresh    begins anew

The ResNet-like network with 2-bit weights and 8-bit activations. A draw is another 512 calibration
pictures to round the weights on and, for training, which starts from that draw's GPTQ, 6,400 other
new pictures. The chapter's own run is one more draw, and must lie in the band of the recorded five.
One long run of each kind is recorded as well, from the chapter's own start. Times are processor
seconds on one thread, data and measuring not counted, so that a busy machine hardly changes them.
Writes ptq_classroom/chapters/ch14/recorded.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

import torch

from ptq_classroom.chapters.ch14 import setting
from ptq_classroom.chapters.ch14.recorded import DRAWS, FILE
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.distillation import fine_tune
from ptq_course.improve.gptq import GPTQ
from ptq_course.simulation.quantized import QuantizedModel

LONG, PASSES = 2000, 5  # steps of a long run, and how often it sees each of its pictures
ROUNDINGS = {"GPTQ": GPTQ, "AdaRound": AdaRound}

Run = tuple[list[float], float]  # accuracy in percent, seconds


def timed(make: Callable[[], QuantizedModel]) -> tuple[QuantizedModel, float]:
    """What ``make`` makes, and the processor seconds that it took."""
    begin = process_time()
    made = make()
    return made, process_time() - begin


def rounding(name: str, draw: int) -> Run:
    """Weights rounded on the pictures of one draw."""
    network, seconds = timed(lambda: setting.rounded(ROUNDINGS[name](), draw))
    return [setting.accuracy(network)], seconds


def training(
    kind: str, few: int, new: int, steps: int = setting.STEPS, every: int = setting.EVERY
) -> Run:
    """Accuracy at every so many steps; the seconds hold the rounding that it starts from.

    few, new: which draw of calibration pictures, and which of new pictures.
    """
    begun, before = timed(lambda: setting.rounded(GPTQ(), few))
    batches = setting.fresh(new, setting.BATCH * min(steps, LONG // PASSES))
    found: list[float] = []
    measuring = 0.0

    def watch(_: int, network: QuantizedModel) -> None:
        nonlocal measuring
        begin = process_time()
        found.append(setting.accuracy(network))
        measuring += process_time() - begin

    options = setting.KINDS[kind]()
    _, seconds = timed(
        lambda: fine_tune(
            begun, batches, steps,
            rate=setting.RATE, every=every, watch=watch, progress=False, **options,
        )
    )  # fmt: skip
    return found, before + seconds - measuring


def plan() -> list[tuple[str, str, int, Callable[[], Run]]]:
    """Everything that is measured: part and name of the record, draw, and how."""
    jobs: list[tuple[str, str, int, Callable[[], Run]]] = []
    for draw in DRAWS:
        for name in ROUNDINGS:
            jobs.append(("rounding", name, draw, lambda n=name, d=draw: rounding(n, d)))
        for kind in setting.KINDS:
            jobs.append(("training", kind, draw, lambda k=kind, d=draw: training(k, d, d)))
    for kind in setting.KINDS:
        long = lambda k=kind: training(k, 0, 4, LONG, LONG // 4)  # noqa: E731
        jobs.append(("long", kind, 0, long))
    return jobs


def empty() -> dict[str, Any]:
    """A record without any run, but for rounding to nearest, which draws nothing."""
    nearest, seconds = timed(lambda: setting.quantizer().convert())
    return {
        "steps": setting.STEPS, "every": setting.EVERY, "long_steps": LONG,
        "nearest": {"accuracy": setting.accuracy(nearest), "seconds": round(seconds, 1)},
        "rounding": {}, "training": {}, "long": {},
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure what the record lacks, print it, and write after each run."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = FILE.is_file() and not options.fresh
    record = json.loads(FILE.read_text(encoding="utf-8")) if known else empty()
    for part, name, draw, run in plan():
        row = record[part].setdefault(name, {"accuracy": [], "seconds": []})
        if len(row["accuracy"]) >= max(draw, 1):
            continue
        accuracy, seconds = run()
        row["accuracy"].append([round(value, 1) for value in accuracy])
        row["seconds"].append(round(seconds, 1))
        print(f"{part}, {name}, draw {draw}: {row['accuracy'][-1]}, {seconds:.0f} s", flush=True)
        scratch = FILE.with_suffix(".new")
        scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, FILE)


if __name__ == "__main__":
    main(sys.argv[1:])
