"""What 8 to 2 bits cost the shipped networks, by technique; chapter 13 reads the table it makes.

    python benchmarks/low_bit.py              half an hour on two cores; goes on where it stopped
    python benchmarks/low_bit.py --fresh      begins anew

Everything is measured on the first 1,000 test pictures. What needs data is repeated with three
other sets of 256 calibration pictures, and the table holds all three accuracies: their spread is
the band in which what the notebook computes live must fall. Writes
ptq_classroom/chapters/ch13/recorded.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ptq_classroom import load_split, loader, logits
from ptq_classroom.chapters.ch13.recorded import FILE, bits_per_weight
from ptq_classroom.kit import learner_file
from ptq_classroom.pictures.models import load_model
from ptq_course import PTQQuantizer, QConfig
from ptq_course.grids.floats import FLOAT_FORMATS
from ptq_course.grids.metrics import correct, paired_bootstrap
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.awq import AWQ
from ptq_course.improve.clustering import Cluster
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.pairs import prepared
from ptq_course.improve.walk import improved

NETWORKS = ("resnet", "mobilenet", "efficientnet")
BITS = (8, 4, 3, 2)
GROUP = 8  # divides the input channels of every layer of the first two networks
UNGROUPED = ("efficientnet",)  # a layer of its attention reads 28 channels
PICTURES, CALIBRATION, DRAWS = 1000, 256, 3
WIDGET_BITS, WIDGET_GROUPS = (2, 3, 4, 5, 6, 7, 8), ("row", 32, 8, 4)

# technique -> (granularity, steps of the walk by bits)
ROUND: dict[str, tuple[str | int, Callable[[int], list]]] = {
    "nearest": ("per_channel", lambda bits: []),
    "groups": (GROUP, lambda bits: []),
    "clustering": ("per_channel", lambda bits: [Cluster(bits)]),
    "AWQ": ("per_channel", lambda bits: []),
    "GPTQ": ("per_channel", lambda bits: [GPTQ()]),
    "AdaRound": ("per_channel", lambda bits: [AdaRound(100)]),
    "groups, AdaRound": (GROUP, lambda bits: [AdaRound(100)]),
}
# Floats at the stored bits of "nearest" (a scale for each channel), or in blocks (4.25, 4.5 bits).
FORMATS = {
    "E4M3": "fp8_e4m3", "E5M2": "fp8_e5m2", "E2M1": "fp4_e2m1", "MXFP4": "mxfp4", "NVFP4": "nvfp4",
}  # fmt: skip
WITHOUT_DATA = ("nearest", "groups", "clustering", *FORMATS)


def make(net: nn.Module, technique: str, bits: int, activations: int | None, batches: list) -> Any:
    """The network with weights of ``bits`` by this technique; beside floats activations are FP8."""
    if technique in FORMATS:
        floats = QConfig(
            weight_format=FORMATS[technique], activation_bits=activations,
            activation_format="fp8_e4m3", activation_range="minmax",
        )  # fmt: skip
        quantizer = PTQQuantizer(net, config=floats)
        if not activations:
            return quantizer.quantize_weights()
        return quantizer.calibrate(batches, progress=False).convert()
    granularity, steps = ROUND[technique]
    config = QConfig(
        weight_bits=bits, activation_bits=activations, weight_granularity=granularity,
        activation_range="kl",
    )  # fmt: skip
    before = [AWQ(batches, explicit=True)] if technique == "AWQ" else []
    quantizer = PTQQuantizer(net, config=config, steps=before)
    if activations:
        quantizer.calibrate(batches, progress=False)
    if not steps(bits):
        return quantizer.convert() if activations else quantizer.quantize_weights()
    return improved(quantizer, batches, steps(bits), progress=False)


def draws() -> list[list]:
    """Three sets of calibration batches, which share no picture."""
    split = load_split("calibration")
    return [
        loader(split[i * CALIBRATION : (i + 1) * CALIBRATION], batch_size=64) for i in range(DRAWS)
    ]


def jobs() -> Iterator[tuple[str, str, int, int | None]]:
    """(network, technique, weight bits, activation bits)."""
    for network in NETWORKS:
        for technique, (granularity, _) in ROUND.items():
            if network in UNGROUPED and granularity == GROUP:
                continue
            for bits in BITS:
                yield network, technique, bits, None
            if technique != "clustering":  # no integer kernel multiplies by a codebook
                yield network, technique, 4, 8
                yield network, technique, 4, 4
        for technique, form in FORMATS.items():
            yield network, technique, FLOAT_FORMATS[form].bits, None
            if FLOAT_FORMATS[form].bits == 4:
                yield network, technique, 4, 8


def measure(found: dict, write: Callable[[], None]) -> None:
    """Everything that is not in ``found`` yet."""
    test, data = load_split("test")[:PICTURES], draws()
    nets = {name: prepared(load_model(name)) for name in NETWORKS}

    def right(model: nn.Module) -> Tensor:
        return correct(logits(model, test), test.labels)

    fp32 = {name: right(net) for name, net in nets.items()}
    found["fp32"] = {name: row.mean().item() for name, row in fp32.items()}
    nearest: dict[tuple, Tensor] = {}
    for network, technique, bits, activations in jobs():
        name = f"{network} W{bits}A{activations or 32} {technique}"
        key = network, bits, activations
        if technique != "nearest" and name in found["techniques"]:
            continue
        needs_data = technique not in WITHOUT_DATA or activations
        rows, size = [], 0.0
        for batches in data if needs_data else data[:1]:
            model = make(nets[network], technique, bits, activations, batches)
            rows.append(right(model))
            size = bits_per_weight(model)
        if technique == "nearest":
            nearest[key] = rows[0]
        found["techniques"][name] = {
            "accuracy": [row.mean().item() for row in rows],
            "gain": list(paired_bootstrap(nearest[key], rows[0])),
            "change": list(paired_bootstrap(fp32[network], rows[0])),
            "bits_per_weight": round(size, 4),
        }
        write()
        print(name, found["techniques"][name], flush=True)
    for how, steps in (("nearest", []), ("GPTQ", [GPTQ()])):
        for bits in WIDGET_BITS:
            for group in WIDGET_GROUPS:
                name = f"{how} {bits} {group}"
                if name in found["groups"]:
                    continue
                config = replace(
                    QConfig(), weight_bits=bits, activation_bits=None,
                    weight_granularity="per_channel" if group == "row" else group,
                )  # fmt: skip
                quantizer = PTQQuantizer(nets["resnet"], config=config)
                model = improved(quantizer, data[0], steps, progress=False)
                found["groups"][name] = [
                    right(model).mean().item(), round(bits_per_weight(model), 4)
                ]  # fmt: skip
                write()
                print(name, found["groups"][name], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what is recorded")
    found: dict = {"techniques": {}, "groups": {}}
    if FILE.exists() and not parser.parse_args().fresh:
        found |= json.loads(FILE.read_text(encoding="utf-8"))

    def write() -> None:
        text = json.dumps(found, indent=1, sort_keys=True) + "\n"
        learner_file.write(FILE, text.encode("utf-8"))

    measure(found, write)
    write()


if __name__ == "__main__":
    main()
