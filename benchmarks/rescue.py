"""What each technique of `improve/` saves on a shipped network: decibels, top-1, seconds.

    python benchmarks/rescue.py resnet --bits 4 --activation-bits 8

All techniques get the same calibration pictures and the same activation ranges (rule "mse").
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ptq_classroom import load_split, loader
from ptq_classroom.pictures.evaluate import accuracy, logits
from ptq_classroom.pictures.models import ARCHITECTURES, load_model
from ptq_course.errors import UnsupportedError
from ptq_course.grids.metrics import snr_pooled
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.awq import AWQ
from ptq_course.improve.bias_correction import CorrectBias, correct_bias_without_data
from ptq_course.improve.equalization import Equalize, unequalize
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer


def main() -> None:
    parser = argparse.ArgumentParser(description="what each technique of improve/ saves")
    parser.add_argument("network", choices=sorted(ARCHITECTURES))
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--activation-bits", type=int, default=8, help="0: floating point")
    parser.add_argument("--granularity", default="per_channel")
    parser.add_argument("--weight-range", default="minmax", help="or mse")
    parser.add_argument("--pictures", type=int, default=500, help="of the test split")
    parser.add_argument("--calibration", type=int, default=250)
    parser.add_argument("--only", nargs="*", help="techniques whose names contain one of these")
    asked = parser.parse_args()
    test = load_split("test")[: asked.pictures]
    batches = loader(load_split("calibration")[: asked.calibration])
    model = load_model(asked.network)
    reference = logits(model, test)
    config = replace(
        QConfig.onnxruntime(), weight_bits=asked.bits,
        activation_bits=asked.activation_bits or None, weight_granularity=asked.granularity,
        weight_range=asked.weight_range,
    )  # fmt: skip

    def quantizer(network: nn.Module = model, steps: tuple = ()) -> PTQQuantizer:
        made = PTQQuantizer(network, config=config, steps=steps)
        return made.calibrate(batches, ranges="mse", progress=False)

    shared = quantizer()

    def walk(*steps) -> nn.Module:
        return improved(shared, batches, steps, progress=False)

    def analytic() -> nn.Module:
        made = shared.convert()
        correct_bias_without_data(made, shared.float_model)
        return made

    def ruined(*steps) -> nn.Module:
        return quantizer(steps=(lambda module, _: unequalize(module), *steps)).convert()

    techniques: dict[str, Callable[[], nn.Module]] = {
        "rounding to nearest": shared.convert,
        "equalization": lambda: quantizer(steps=(Equalize(),)).convert(),
        "inverse equalization": ruined,
        "inverse, then equalization": lambda: ruined(Equalize()),
        "analytic bias correction": analytic,
        "empirical bias correction": lambda: walk(CorrectBias()),
        "bias correction, inherited": lambda: walk(CorrectBias(inherited=True)),
        "AWQ": lambda: quantizer(steps=(AWQ(batches, explicit=True),)).convert(),
        "GPTQ": lambda: walk(GPTQ()),
        "GPTQ + bias correction": lambda: walk(GPTQ(), CorrectBias()),
        "AdaRound": lambda: walk(AdaRound()),
    }
    print(
        f"{asked.network}: FP32 top-1 {accuracy(reference, test.labels):.1%}, weights "
        f"{asked.bits} bits {asked.granularity}, {asked.weight_range}, activations "
        f"{asked.activation_bits or 32} bits"
    )
    print(f"{'technique':<28} {'pooled':>9} {'top-1':>7} {'seconds':>8}")
    for name, make in techniques.items():
        if asked.only and not any(word in name for word in asked.only):
            continue
        start = time.perf_counter()
        try:
            found = make()
        except UnsupportedError as error:
            print(f"{name:<28} refused: {error}")
            continue
        seconds = time.perf_counter() - start
        outputs = logits(found, test)
        top1 = accuracy(outputs, test.labels)
        decibels = snr_pooled(reference, outputs)
        print(f"{name:<28} {decibels:6.1f} dB {top1:7.1%} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
