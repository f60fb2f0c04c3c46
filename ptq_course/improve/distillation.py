"""Quantization-aware training: learn through the rounding, from labels or from FP32. Chapter 14.

The gradients are those of `straight_through`, what learns stands in `learning`. The teacher is the
float network: its answers to unlabelled data are softer than labels, and as many as there are data
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError, number, whole
from ptq_course.graph import required_inputs
from ptq_course.improve.inputs import some_of
from ptq_course.improve.learning import learning_copy, written_back
from ptq_course.simulation.observe import LABELS, placed
from ptq_course.simulation.quantized import QuantizedModel

Loss = Callable[[Any, Any], Tensor]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch: a scalar.

    student, teacher: logits [N, classes], or [N, L, classes]. The factor T^2 keeps the gradients'
    size as T grows. Raises QuantizationError for a temperature that is not positive, shapes that
    differ, and pictures of logits, whose classes are not last.
    """
    number("temperature", temperature, "(0, inf)")
    if student.shape != teacher.shape:
        raise QuantizationError(
            f"distillation_loss: student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)} differ in shape."
        )
    if student.dim() > 3:
        raise QuantizationError(
            f"distillation_loss: logits {tuple(student.shape)}, whose last dimension is taken for "
            "the classes: move them there, or use a loss of your own."
        )
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def fine_tune(
    quantized: QuantizedModel,
    batches: Iterable,
    steps: int = 100,
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    rate: float = 1e-3,
    learn_scales: bool = False,
    watch: Callable[[int, QuantizedModel], None] | None = None,
    every: int = 0,
    progress: bool = True,
) -> QuantizedModel:
    """Train a quantized network through its rounding; the one given stays as it is.

    quantized: of `PTQQuantizer.convert`, or of `walk.improved`, which is a better start.
    batches: as for ``observe``, with the labels behind the inputs (or by name), read again and
    again until ``steps`` are done. With a ``teacher``, which answers in evaluation mode and stays
    as it is, labels are not used, and ``loss`` compares what the two networks return, by default by
    `distillation_loss`; without one it is cross entropy to the labels. A network that returns
    several tensors needs a ``loss`` of its own.
    rate: Adam's, falling to 0 along half a cosine (Kingma, Ba, "Adam", 2015). Weight scales learn
    where ``learn_scales`` says so; activation ranges stay as calibrated.
    watch: called with the step and the network so far, every ``every`` steps and at the end.

    Raises CalibrationError where no batch comes, QuantizationError for other settings, labels that
    are missing, several outputs without a loss, and a loss that is not finite; UnsupportedError for
    weights in codebooks and for floats.
    """
    steps, every = whole("fine_tune: steps", steps, 1), whole("fine_tune: every", every, 0)
    number("fine_tune: rate", rate, "(0, inf)")
    if not isinstance(quantized, QuantizedModel):
        raise QuantizationError(
            f"fine_tune: trains what convert() or improved() returned, got a "
            f"{type(quantized).__name__}; a float network goes through PTQQuantizer first."
        )
    network = learning_copy(quantized, learn_scales)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    compare = loss or (F.cross_entropy if teacher is None else distillation_loss)
    names = required_inputs(quantized.module)
    some_of(batches, None, "fine_tune")
    bar = tqdm(total=steps, desc="training", disable=not progress, leave=False)
    step = 0
    with bar, evaluating(teacher):
        while step < steps:
            before = step
            for batch in batches:
                if step == steps:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                inputs, wanted = _split(batch, names, teacher, network)
                outputs = network(*inputs)
                if loss is None and not isinstance(outputs, Tensor):
                    raise QuantizationError(
                        f"fine_tune: the network returns a {type(outputs).__name__}: pass loss=, a "
                        "function of what it returns and of what it should return."
                    )
                found = compare(outputs, wanted)
                if not bool(torch.isfinite(found)):
                    raise QuantizationError(
                        f"fine_tune: the loss is {found.item()} at step {step}: use a smaller "
                        "rate, or find the NaN or infinity in the data."
                    )
                optimizer.zero_grad(set_to_none=True)
                found.backward()
                optimizer.step()
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{found.item():.3f}")
                if watch is not None and step < steps and every and step % every == 0:
                    watch(step, _written(network, quantized))
            if step == before:
                raise CalibrationError(
                    "fine_tune: the loader gave no batch: pass at least one."
                    if not step
                    else f"fine_tune: after {step} steps the loader gave no batch: it is read "
                    "again and again, so pass a list or a DataLoader instead of an iterator."
                )
    result = _written(network, quantized)
    if watch is not None:
        watch(steps, result)
    return result


@contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """``model`` in evaluation mode for a while, each part back in its own behind it."""
    modes = {} if model is None else {part: part.training for part in model.modules()}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _written(network: nn.Module, quantized: QuantizedModel) -> QuantizedModel:
    """`written_back`, with the parameters in floating point, too (norms, slopes)."""
    result = written_back(network, quantized)
    learned = dict(network.named_parameters())
    with torch.no_grad():
        for path, parameter in result.module.named_parameters():
            if path in learned:
                parameter.copy_(learned[path])
    return result


def _split(
    batch: Any, names: list[str], teacher: nn.Module | None, network: nn.Module
) -> tuple[list[Tensor], Any]:
    """Copies of the inputs, since some networks work in place, and what the answer should be."""
    if teacher is not None:
        inputs = placed(batch, names, network)
        with torch.no_grad():
            return inputs, teacher(*[x.clone() for x in inputs])
    labels = None
    if isinstance(batch, Mapping):
        labels = next((batch[key] for key in LABELS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and len(batch) == len(names) + 1:
        labels = batch[-1]
    if not isinstance(labels, Tensor):
        raise QuantizationError(
            "fine_tune: without a teacher each batch is (inputs, labels); pass "
            "teacher=float_model to learn from unlabelled data."
        )
    inputs = placed(batch, names, network)
    return inputs, labels.to(inputs[0].device)
