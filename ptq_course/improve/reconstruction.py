"""Reconstruction: learn weights, steps and ranges until the outputs are FP32's. Chapter 14.

Rules choose ranges value by value, AdaRound and GPTQ round layer by layer; what is left is that
the choices do not know of each other. Here all of them - weight codes, weight scales, biases, the
scale and zero point of every activation - move together, down the gradient of the squared
difference from the float network's outputs, through straight-through rounding. Labels are not
used, and a thousand steps do, so this is still post-training quantization, not training.

Sources: Esser et al., "Learned Step Size Quantization", 2020 and Bhalgat et al., "LSQ+", 2020 for
what is learned; Li, Gong, Tan, Yang, Hu, Zhang, Yu, Wang, Gu, "BRECQ: Pushing the Limit of
Post-Training Quantization by Block Reconstruction", 2021, for the objective (theirs is per block,
since a whole network fits a few examples too well; here more examples do the same, see
`reconstruct`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError, number, whole
from ptq_course.improve.inputs import some_of
from ptq_course.improve.learning import (
    LearningLayer,
    LearningQuantizer,
    learning_copy,
    write_layers,
)
from ptq_course.simulation.observe import output_tensors, placed
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer

EXAMPLES = 64  # at a time
# Of one rate, in units of a weight's step, the share for the others: logarithms of scales, zero
# points as a share of the grid, biases as a share of their mean size.
SCALES, RANGES, ZEROS, BIASES = 0.5, 0.5, 0.25, 0.1


def reconstruct(
    quantizer: PTQQuantizer,
    batches: Iterable,
    steps: int = 1000,
    *,
    start: QuantizedModel | None = None,
    rate: float = 0.01,
    num_batches: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> QuantizedModel:
    """`convert()`, then everything learned from the outputs of the float network.

    quantizer: one that has its scales (``calibrate``), or quantizes weights only; it stays as it
    is. batches: inputs, or (inputs, labels), kept in memory. The result fits them as far as
    ``steps`` allow: with fewer than about a thousand examples give varied copies, too (mirrored,
    shifted), which need no labels.
    start: what `walk.improved` made of the same quantizer, else ``quantizer.convert()``. It is
    given back where nothing nearer to FP32 on these batches was learned.
    rate: of Adam, in steps of the weight grid, falling to 0 along half a cosine.

    Raises CalibrationError where no batch comes, QuantizationError for other settings, a start of
    another network, and outputs that are not finite or not real, UnsupportedError for weights in
    codebooks and for floats.
    """
    if not isinstance(quantizer, PTQQuantizer):
        raise QuantizationError(
            f"reconstruct: takes the PTQQuantizer that converts, got a {type(quantizer).__name__}."
        )
    steps, rate = whole("reconstruct: steps", steps, 1), number("reconstruct: rate", rate, "(0, 1)")
    only_weights = quantizer.config.activation_bits is None
    base = quantizer.quantize_weights() if only_weights else quantizer.convert()
    begin = base if start is None else start
    if begin.quantized_layers().keys() != base.quantized_layers().keys():
        raise QuantizationError("reconstruct: start was made by another quantizer.")
    names = quantizer.network.input_names
    some = some_of(batches, num_batches, "reconstruct")
    data = [placed(batch, names, base) for batch in some]
    if not data:
        raise CalibrationError("reconstruct: the loader gave no batch: pass at least one.")
    values = quantizer.network.plan.values.items()
    free = [name for name, value in values if value.range is None]
    network = learning_copy(begin, learn_scales=True, learn_ranges=free, margin=0.0)
    with torch.no_grad():
        targets = [answers(quantizer.float_model, inputs) for inputs in data]
    for number_of_batch, outputs in enumerate(targets):
        if not all(bool(torch.isfinite(t).all()) for t in outputs):
            raise QuantizationError(
                f"reconstruct: the float network gives NaN or infinity for batch {number_of_batch} "
                "(counted from 0): check these inputs."
            )
    optimizer = torch.optim.Adam(in_steps(network, rate))
    rates = [group["lr"] for group in optimizer.param_groups]
    size = spread(targets)
    order = draws(data, targets, torch.Generator().manual_seed(seed))
    bar = tqdm(range(steps), desc="reconstruction", disable=not progress, leave=False)
    for step in bar:
        inputs, wanted = next(order)
        found = answers(network, inputs)
        loss = distance(found, wanted, size)
        if not bool(torch.isfinite(loss)):
            raise QuantizationError(
                f"reconstruct: the loss is {loss.item()} at step {step}: use a smaller rate."
            )
        for group, first in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = first * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            bar.set_postfix(dB=f"{-10 * math.log10(max(loss.item(), 1e-12)):.1f}")
    made = decided(network, quantizer)
    return made if error(made, data, targets, size) < error(begin, data, targets, size) else begin


def distance(found: list[Tensor], wanted: list[Tensor], size: list[float]) -> Tensor:
    """Mean squared difference of the outputs, each relative to its ``size``, added up: 0-d."""
    parts = [(a - b).square().mean() / s for a, b, s in zip(found, wanted, size, strict=True)]
    return torch.stack(parts).sum()


def error(
    network: nn.Module, data: list[list[Tensor]], targets: list[list[Tensor]], size: list[float]
) -> float:
    """The mean distance of all batches."""
    with torch.no_grad():
        found = [
            distance(answers(network, inputs), wanted, size).item()
            for inputs, wanted in zip(data, targets, strict=True)
        ]
    return sum(found) / len(found)


class Moved(nn.Module):
    """A parametrization: what is learned is how far a tensor has moved, in units of ``unit``."""

    base: Tensor
    unit: Tensor

    def __init__(self, base: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone())
        self.register_buffer("unit", unit.detach())

    def forward(self, learned: Tensor) -> Tensor:
        return self.base + learned * self.unit

    def right_inverse(self, tensor: Tensor) -> Tensor:
        return (tensor - self.base) / self.unit


class Grown(nn.Module):
    """A parametrization: what is learned is the logarithm of a positive tensor's growth."""

    base: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone())

    def forward(self, learned: Tensor) -> Tensor:
        return self.base * learned.exp()

    def right_inverse(self, tensor: Tensor) -> Tensor:
        return (tensor / self.base).log()


def in_steps(network: nn.Module, rate: float) -> list[dict]:
    """Parameter groups for Adam, whose steps have one size: every parameter in a unit of its own.

    A weight is measured in the steps of its grid, a scale by the logarithm of its growth, a zero
    point as a share of the grid, a bias by the mean size of its layer's.
    """
    groups: dict[float, list[nn.Parameter]] = {}

    def learn(part: nn.Module, name: str, change: nn.Module, share: float) -> None:
        if getattr(part, name).requires_grad:
            parametrize.register_parametrization(part, name, change)
            original = part.get_parameter(f"parametrizations.{name}.original")
            groups.setdefault(share, []).append(original)

    for part in list(network.modules()):
        if isinstance(part, LearningLayer):
            learn(part, "weight", Moved(part.weight, part.step_of_each_weight()), 1.0)
            learn(part, "scale", Grown(part.scale), SCALES)
            if part.bias is not None:
                unit = part.bias.detach().abs().mean().clamp(min=1e-12)
                learn(part, "bias", Moved(part.bias, unit), BIASES)
        elif isinstance(part, LearningQuantizer):
            grid = part.made_from.grid
            learn(part, "scale", Grown(part.scale), RANGES)
            levels = torch.tensor(float(grid.qmax - grid.qmin))
            learn(part, "zero_point", Moved(part.zero_point, levels), ZEROS)
    return [{"params": found, "lr": rate * share} for share, found in groups.items()]


def answers(network: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The real-valued tensors that a network gives; inputs stay as they are if it works in place.

    Raises QuantizationError where it gives none, such as classes alone.
    """
    outputs = output_tensors(network(*[x.clone() for x in inputs]))
    found = [t for t in outputs if t.is_floating_point()]
    if not found:
        raise QuantizationError(
            "reconstruct: the network gives no real-valued output to learn from (its classes have "
            "no gradient); pass the part that gives the scores."
        )
    return found


def spread(targets: list[list[Tensor]]) -> list[float]:
    """Variance of each output over all batches: what an error is compared to."""
    return [
        max(torch.cat([t.flatten() for t in output]).var(correction=0).item(), 1e-30)
        for output in zip(*targets, strict=True)
    ]


def draws(
    data: list[list[Tensor]], targets: list[list[Tensor]], generator: torch.Generator
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """(inputs, outputs) of EXAMPLES examples at most, from the batches in random order, for ever.

    Batches stay whole where a tensor need not have one row an example: with several inputs (one may
    be a mask of positions), and where first dimensions differ.
    """
    while True:
        parts = []
        for which in torch.randperm(len(data), generator=generator).tolist():
            tensors = [*data[which], *targets[which]]
            counts = {len(t) if t.dim() else None for t in tensors}
            if len(data[which]) > 1 or len(counts) > 1 or None in counts:
                parts.append((which, None))
                continue
            rows = torch.randperm(len(tensors[0]), generator=generator)
            parts += [(which, some) for some in rows.split(EXAMPLES)]
        for at in torch.randperm(len(parts), generator=generator).tolist():
            which, rows = parts[at]
            inputs, wanted = data[which], targets[which]
            if rows is not None:
                inputs, wanted = [t[rows] for t in inputs], [t[rows] for t in wanted]
            yield inputs, wanted


def decided(network: nn.Module, quantizer: PTQQuantizer) -> QuantizedModel:
    """The quantized network with what was learned: integers, as `convert` gives them."""
    other = quantizer.fork()
    learned = {m.name: m.qparams for m in network.modules() if isinstance(m, LearningQuantizer)}
    other.qparams = {**quantizer.qparams, **learned}
    only_weights = quantizer.config.activation_bits is None
    result = other.quantize_weights() if only_weights else other.convert()
    return write_layers(network, result)
