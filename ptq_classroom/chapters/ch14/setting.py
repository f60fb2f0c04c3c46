"""The network, the data and the ways of training that chapter 14 and its benchmark share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.datasets import Split, load_split, loader
from ptq_classroom.pictures.evaluate import logits
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.models import load_model
from ptq_course.grids.metrics import correct
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.walk import improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer

CONFIG = replace(QConfig.onnxruntime(), weight_bits=2)
STEPS, EVERY, BATCH, RATE = 200, 50, 64, 2e-4
KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "labels": dict,
    "distillation": lambda: {"teacher": teacher()},
    "distillation, scales too": lambda: {"teacher": teacher(), "learn_scales": True},
}


@cache
def teacher() -> nn.Module:
    """The float network, which knows all that the quantized one has lost."""
    return load_model("resnet")


@cache
def test() -> Split:
    """A thousand test pictures."""
    return load_split("test")[:1000]


@cache
def quantizer() -> PTQQuantizer:
    """Ready to convert: 2-bit weights, 8-bit activations with KL ranges."""
    made = PTQQuantizer(teacher(), config=CONFIG)
    made.observe(loader(load_split("calibration")), ranges="kl", progress=False)
    return made.compute_qparams("kl")


@cache
def start() -> QuantizedModel:
    """The best that rounding alone brings here: GPTQ on 512 calibration pictures."""
    return improved(
        quantizer(), loader(load_split("calibration"), limit=512), [GPTQ()], progress=False
    )


def fresh(seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of new pictures with labels, as the FP32 network was trained on."""
    images, labels = EmojiGenerator(seed=1_400_000 + seed).batch(count)
    pictures = to_input(images)
    return [(pictures[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, count, BATCH)]


def right(network: nn.Module) -> Tensor:
    """1.0 for each test picture that is answered right, else 0.0."""
    return correct(logits(network, test()), test().labels).double()


def accuracy(network: nn.Module) -> float:
    """Top-1 in percent."""
    return 100 * right(network).mean().item()


def recorded() -> dict[str, Any]:
    """What `benchmarks/distillation.py --write` measured."""
    return json.loads(Path(__file__).with_name("recorded.json").read_text(encoding="utf-8"))
