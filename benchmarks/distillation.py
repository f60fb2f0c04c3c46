"""What minutes of training buy a 2-bit network, for chapter 14: recorded over several draws.

    python benchmarks/distillation.py            about ten minutes on two idle cores
    python benchmarks/distillation.py --write    writes chapter 14's recorded.json, too

The ResNet-like network with 2-bit weights and 8-bit activations, started from GPTQ. Short runs, as
the chapter makes one, over three draws of fresh pictures: the chapter's own curve must lie in their
band. And one long run of each kind, which is too long for a lesson.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from ptq_classroom.chapters.ch14 import setting
from ptq_course.improve.distillation import fine_tune

PLACE = Path(setting.__file__).with_name("recorded.json")
DRAWS = (1, 2, 3)
LONG = 2000


def curve(kind: str, seed: int, steps: int, every: int) -> list[float]:
    """Accuracy in percent at every so many steps."""
    found: list[float] = []
    fine_tune(
        setting.start(), setting.fresh(seed, 64 * min(steps, 400)), steps,
        watch=lambda step, network: found.append(setting.accuracy(network)), every=every,
        progress=False, rate=setting.RATE, **setting.KINDS[kind](),
    )  # fmt: skip
    print(f"{kind}, draw {seed}, {steps} steps:", " ".join(f"{a:.1f}" for a in found), flush=True)
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, and write where asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write recorded.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    record = {"steps": setting.STEPS, "every": setting.EVERY, "short": {}, "long": {}}
    for kind in setting.KINDS:
        record["short"][kind] = [curve(kind, seed, setting.STEPS, setting.EVERY) for seed in DRAWS]
        record["long"][kind] = curve(kind, 4, LONG, LONG // 4)
    if options.write:
        PLACE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
