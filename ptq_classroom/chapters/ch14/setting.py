"""The network, the data and the ways of training that chapter 14 and its benchmark share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.datasets import Split, load_split, loader
from ptq_classroom.pictures.evaluate import logits
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.models import load_model
from ptq_course.grids.metrics import correct
from ptq_course.improve.gptq import GPTQ
from ptq_course.improve.walk import LayerStep, improved
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer

CONFIG = replace(QConfig.onnxruntime(), weight_bits=2)
STEPS, EVERY, BATCH, RATE = 200, 50, 64, 2e-4
FRESH = 9  # the chapter's own draw of new pictures; the recorded draws are others
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


def few(draw: int = 0) -> Split:
    """512 calibration pictures: the first ones, or those of a draw without replacement."""
    pictures = load_split("calibration")
    if draw == 0:
        return pictures[:512]
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(draw))
    return pictures[order[:512].sort().values.numpy()]


def rounded(step: LayerStep, draw: int = 0) -> QuantizedModel:
    """The network with its weights rounded by ``step``, which sees `few` pictures."""
    return improved(quantizer(), loader(few(draw)), [step], progress=False)


@cache
def start(draw: int = 0) -> QuantizedModel:
    """Where training starts: the codes of GPTQ."""
    return rounded(GPTQ(), draw)


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
