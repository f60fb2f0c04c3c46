"""Reference solutions of the capstone (chapter 17), from the first idea to a good release.

python benchmarks/capstone.py            print them
python benchmarks/capstone.py --write    and record them beside the chapter
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from ptq_classroom import load_split, loader
from ptq_classroom.chapters.ch17 import task
from ptq_course import PTQQuantizer, QConfig
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.walk import improved

PLACE = Path(task.__file__).with_name("references.json")


def solutions():
    """(name, quantized network), the simplest first."""
    int8, int4 = QConfig.onnxruntime(), replace(QConfig.onnxruntime(), weight_bits=4)
    daylight = [x for x, _ in loader(load_split("calibration"), limit=300)]
    dusk = task.calibration()
    first = PTQQuantizer(task.network(), config=int8).observe(daylight, progress=False)
    yield "INT8, min-max, daylight", first.compute_qparams("minmax").convert()
    yield "INT8, KL, daylight", first.compute_qparams("kl").convert()
    own = PTQQuantizer(task.network(), config=int8).observe(dusk, progress=False)
    yield "INT8, min-max, dusk", own.compute_qparams("minmax").convert()
    yield "INT8, KL, dusk", own.compute_qparams("kl").convert()
    yield "INT8, KL, dusk, bias", improved(own, dusk, [CorrectBias()], progress=False)
    small = PTQQuantizer(task.network(), config=int4).observe(dusk, progress=False)
    small.compute_qparams("kl")
    yield "INT4, KL, dusk", small.convert()
    yield "INT4, GPTQ", improved(small, dusk, [GPTQ()], progress=False)
    yield "INT4, AdaRound, bias", improved(small, dusk, [AdaRound(), CorrectBias()], progress=False)


def main(arguments: list[str]) -> None:
    """Measure, print, and write where asked for."""
    found = {}
    for name, quantized in solutions():
        accuracy = task.right(quantized, "score").mean().item()
        found[name] = {"accuracy": accuracy, "size": round(task.size_ratio(quantized), 4)}
        print(f"{name:26} {100 * accuracy:.1f} %  {found[name]['size']:.3f} of FP32", flush=True)
    if arguments == ["--write"]:
        PLACE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
