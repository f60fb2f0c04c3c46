"""Quantization-aware training: let gradients through the rounding, and learn from FP32. Chapter 14.

Rounding has gradient zero almost everywhere, so nothing could be learned through it. The
straight-through estimator takes 1 instead where the value is inside the grid, and 0 where it is
clipped (Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons
for Conditional Computation", 2013). A scale learns through the same formula (Esser, McKinstry,
Bablani, Appuswamy, Modha, "Learned Step Size Quantization", 2020). The teacher is the float
network: its answers to unlabelled data are softer than labels, and as many as there are data
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015).

Batch norm is folded before all this, so nothing here has a training mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError, number, whole
from ptq_course.graph.layer_types import bias_of, known_type, weight_of
from ptq_course.grids.affine import SCALE_FLOOR, IntGrid, QParams, QTensor, quantize
from ptq_course.grids.blocks import parameter_for_blocks, split_into_blocks
from ptq_course.grids.floats import format_name
from ptq_course.improve.walk import put_weight
from ptq_course.simulation.bias import quantize_bias, scale_per_output
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer, check_call
from ptq_course.simulation.quantized import QuantizedModel

Loss = Callable[[Tensor, Tensor], Tensor]


class RoundThrough(torch.autograd.Function):
    """round(x), whose gradient is that of x: the straight-through estimator."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_through(x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntGrid) -> Tensor:
    """x on the grid, with gradients: for x where it is not clipped, and for the scale.

    scale, zero_point: shaped to broadcast against x. The gradient of the scale is the code less
    x / scale inside the grid, and the end of the grid outside (equation 3 of Esser et al.).
    """
    codes = (x / scale).clamp(grid.qmin - zero_point, grid.qmax - zero_point)
    return cast(Tensor, RoundThrough.apply(codes)) * scale


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over the batch: a scalar.

    student, teacher: logits [N, classes]. The factor T^2 keeps the gradients' size as T grows.
    Raises QuantizationError for a temperature that is not positive and shapes that differ.
    """
    number("temperature", temperature, "(0, inf)")
    if student.shape != teacher.shape:
        raise QuantizationError(
            f"distillation_loss: student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)} differ in shape."
        )
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class LearningLayer(nn.Module):
    """A quantized layer whose float weight, bias and scales are learned through the rounding."""

    def __init__(self, layer: QuantizedLayer, learn_scales: bool) -> None:
        super().__init__()
        qparams, floating = (
            layer.require_integers("training through the rounding"),
            layer.float_layer,
        )
        self.name, self.floating, self.qparams = layer.name, floating, qparams
        self.weight = nn.Parameter(near_codes(weight_of(floating).detach(), layer))
        bias = bias_of(floating) if layer.bias is None else layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.scale = nn.Parameter(qparams.scale.clone(), requires_grad=learn_scales)

    def rounded(self) -> Tensor:
        """The weight on its grid, with gradients."""
        weight, scale = self.weight, self.scale.clamp(min=SCALE_FLOOR)
        zero_point = self.qparams.zero_point.to(weight.dtype)
        if self.qparams.block_size is None:
            return round_through(weight, scale, zero_point, self.qparams.grid)
        blocks = split_into_blocks(weight, self.qparams.block_size)
        scale, zero_point = (parameter_for_blocks(p, blocks) for p in (scale, zero_point))
        return round_through(blocks, scale, zero_point, self.qparams.grid).reshape(weight.shape)

    def forward(self, input: Tensor, **options: object) -> Tensor:
        check_call(self.floating, self.name, input, options)
        return known_type(self.floating).compute(self.floating, input, self.rounded(), self.bias)

    def write_to(self, layer: QuantizedLayer) -> None:
        """Put what was learned into the quantized layer, as codes."""
        scale = self.scale.detach().abs().clamp(min=SCALE_FLOOR)
        old = self.qparams
        qparams = QParams(scale, old.zero_point, old.grid, old.block_size)
        input_scale = None
        if layer.bias_codes is not None and layer.bias_scale is not None:
            per_output = scale_per_output(self.floating, old.scale)
            assert per_output is not None  # or the bias would have no codes
            input_scale = (layer.bias_scale / per_output).median()
        put_weight(layer, QTensor(quantize(self.weight.detach(), qparams), qparams))
        if self.bias is None:
            return
        per_output = scale_per_output(self.floating, scale)
        if input_scale is None or per_output is None:
            floating = copy.deepcopy(self.floating)
            floating.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
            layer.float_layer = floating
        else:
            layer.bias_codes, layer.bias_scale = quantize_bias(
                self.bias.detach(), input_scale, per_output
            )


class LearningQuantizer(nn.Module):
    """An activation quantizer that lets gradients through; its range stays."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        q = quantizer.qparams
        if not isinstance(q, QParams):
            raise UnsupportedError(
                f"value {quantizer.name!r} is rounded to {format_name(q)}, and training through "
                "the rounding needs a grid of integers; leave activation_format out."
            )
        self.qparams = q

    def forward(self, x: Tensor) -> Tensor:
        q = self.qparams
        return round_through(x, q.scale, q.zero_point.to(x.dtype), q.grid)


def near_codes(weight: Tensor, layer: QuantizedLayer) -> Tensor:
    """The float weight, moved inside the half step of the code that the layer has.

    So training starts from the quantized network as it is, also where the codes are not the nearest
    ones (AdaRound, GPTQ).
    """
    decoded, codes = layer.weight.detach(), layer.weight_qtensor
    q = codes.require_qparams()
    scale = q.scale
    if q.block_size is not None:
        blocks = split_into_blocks(decoded, q.block_size)
        scale = parameter_for_blocks(scale, blocks).expand(blocks.shape).reshape(decoded.shape)
    margin = 0.49 * scale
    return torch.maximum(torch.minimum(weight, decoded + margin), decoded - margin)


def learning_copy(quantized: QuantizedModel, learn_scales: bool = False) -> nn.Module:
    """The quantized network with float weights behind its codes, ready for an optimizer."""
    module = copy.deepcopy(quantized.module)
    for path, part in list(module.named_modules()):
        new: nn.Module | None = None
        if isinstance(part, QuantizedLayer):
            new = LearningLayer(part, learn_scales)
        elif isinstance(part, ActivationQuantizer):
            new = LearningQuantizer(part)
        if new is not None:
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, new)
    return module


def written_back(learned: nn.Module, quantized: QuantizedModel) -> QuantizedModel:
    """A copy of ``quantized`` with the codes of what was learned."""
    result = copy.deepcopy(quantized)
    layers = dict(result.module.named_modules())
    with torch.no_grad():
        for path, part in learned.named_modules():
            if isinstance(part, LearningLayer):
                part.write_to(cast(QuantizedLayer, layers[path]))
    return result


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
    batches: inputs, or (inputs, labels), read again and again until ``steps`` are done. With a
    ``teacher`` labels are not used, and ``loss`` compares logits, by default `distillation_loss`;
    without one it is cross entropy to the labels.
    rate: Adam's, falling to 0 along half a cosine (Kingma, Ba, "Adam", 2015). Weight scales learn
    where ``learn_scales`` says so; activation ranges stay as calibrated.
    watch: called with the step and the network so far, every ``every`` steps and at the end.

    Raises CalibrationError where no batch comes, QuantizationError for other settings, labels that
    are missing and a loss that is not finite, UnsupportedError for weights in
    codebooks and for floats.
    """
    steps, every = whole("fine_tune: steps", steps, 1), whole("fine_tune: every", every, 0)
    number("fine_tune: rate", rate, "(0, inf)")
    network = learning_copy(quantized, learn_scales)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    compare = loss or (F.cross_entropy if teacher is None else distillation_loss)
    bar = tqdm(total=steps, desc="training", disable=not progress, leave=False)
    step = 0
    while step < steps:
        before = step
        for batch in batches:
            if step == steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            inputs, wanted = _split(batch, teacher)
            found = compare(network(inputs), wanted)
            if not bool(torch.isfinite(found)):
                raise QuantizationError(
                    f"fine_tune: the loss is {found.item()} at step {step}: use a smaller rate."
                )
            optimizer.zero_grad(set_to_none=True)
            found.backward()
            optimizer.step()
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{found.item():.3f}")
            if watch is not None and step < steps and every and step % every == 0:
                watch(step, written_back(network, quantized))
        if step == before:
            raise CalibrationError("fine_tune: the loader gave no batch: pass at least one.")
    bar.close()
    result = written_back(network, quantized)
    if watch is not None:
        watch(steps, result)
    return result


def _split(batch: object, teacher: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Inputs, and what the network should answer to them."""
    if teacher is None:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise QuantizationError(
                "fine_tune: without a teacher each batch is (inputs, labels); pass "
                "teacher=float_model to learn from unlabelled data."
            )
        return batch[0], batch[1]
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    with torch.no_grad():
        return cast(Tensor, inputs), teacher(inputs)
