"""What `benchmarks/low_bit.py` measured for chapter 13: techniques by bits, and bits by groups."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ptq_course.grids.affine import FloatQParams
from ptq_course.simulation.quantized import QuantizedModel

FILE = Path(__file__).with_name("recorded.json")
SCALE_BITS = 16  # of a stored scale or codebook entry (checkpoint.save with scales="float16")
TOLERANCE = 0.01  # of an accuracy beside the recorded ones: other processors round sums otherwise


@cache
def recorded() -> dict[str, Any]:
    """The whole file: "fp32", "techniques" and "groups"."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def entry(network: str, technique: str, bits: int, activations: int = 32) -> dict[str, Any]:
    """Accuracies, gain over rounding to nearest and change against FP32 with their intervals."""
    return recorded()["techniques"][f"{network} W{bits}A{activations} {technique}"]


def accuracy(network: str, technique: str, bits: int, activations: int = 32) -> float:
    """Accuracy, a share, with the first set of calibration pictures."""
    return entry(network, technique, bits, activations)["accuracy"][0]


def in_band(live: float, network: str, technique: str, bits: int, activations: int = 32) -> bool:
    """Whether an accuracy that was just measured lies where the recorded ones do."""
    known = entry(network, technique, bits, activations)["accuracy"]
    return min(known) - TOLERANCE <= live <= max(known) + TOLERANCE


def by_bits(network: str, technique: str, bits: tuple[int, ...]) -> dict[int, float]:
    """bits -> accuracy in percent, weights only."""
    return {b: 100 * accuracy(network, technique, b) for b in bits}


def bits_per_weight(model: QuantizedModel) -> float:
    """Stored bits of a weight: codes, scales and codebooks, over all quantized layers."""
    layers = model.quantized_layers().values()
    stored = 0.0
    for layer in layers:
        weight = layer.weight_qtensor
        shared = weight.codebook if weight.qparams is None else weight.qparams.scale
        entries = 0 if shared is None else shared.numel()
        if isinstance(weight.qparams, FloatQParams) and weight.qparams.scale_format != "float32":
            stored += weight.nbits_per_value * weight.codes.numel()  # blocks, with short scales
        else:
            stored += weight.code_bits * weight.codes.numel() + SCALE_BITS * entries
    return stored / sum(layer.weight_codes.numel() for layer in layers)
