"""SmoothQuant: divide the channels of an activation, multiply the weights that read it. Chapter 12.

Outlier channels of a transformer's activations set the one scale that all channels share. Dividing
channel j by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) moves the difficulty into the weights,
which have a scale per row. The division costs nothing where a LayerNorm stands before: its gamma
and beta take it. All layers that read the LayerNorm (query, key and value) share one s.

Xiao, Lin, Seznec, Wu, Demouth, Han, "SmoothQuant: Accurate and Efficient Post-Training
Quantization for Large Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError, number
from ptq_course.graph import required_inputs
from ptq_course.improve.equalization import input_ranges
from ptq_course.improve.pairs import prepared
from ptq_course.simulation.observe import placed


def smoothing_factors(activations: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    """s [C] = activations^alpha / weights^(1 - alpha), equation 4 of the paper.

    activations, weights: [C], the largest |x| of each channel and the largest |w| that reads it.
    Channels that are zero in one of them keep their scale. Raises QuantizationError for lengths
    that differ, values that are negative or not finite, an alpha outside [0, 1].
    """
    number("alpha", alpha, "[0, 1]")
    if activations.shape != weights.shape or activations.dim() != 1:
        raise QuantizationError(
            f"smoothing_factors: {tuple(activations.shape)} activations and {tuple(weights.shape)} "
            "weights; both need one entry for each channel."
        )
    both = torch.stack([activations, weights]).double()
    if not bool((torch.isfinite(both) & (both >= 0)).all()):
        raise QuantizationError("smoothing_factors: ranges are finite and not negative.")
    alive = (both > 0).all(0)
    return torch.where(alive, both[0] ** alpha / both[1] ** (1 - alpha), 1.0).to(weights.dtype)


def smooth(norm: nn.Module, readers: Sequence[nn.Linear], factors: Tensor) -> None:
    """Divide a LayerNorm's output by ``factors`` [C], multiply what ``readers`` read; in place.

    Raises UnsupportedError where the norm has no gamma of that length to take them, and
    QuantizationError where a factor is not positive.
    """
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, Tensor) or gamma.shape != factors.shape:
        raise UnsupportedError(
            f"{type(norm).__name__}: no gamma with {len(factors)} entries, which a fold needs "
            "(elementwise_affine=True, over the last dimension)."
        )
    if not bool((torch.isfinite(factors) & (factors > 0)).all()):
        raise QuantizationError("smooth: factors are positive and finite.")
    with torch.no_grad():
        for name in ("weight", "bias"):
            if isinstance(values := getattr(norm, name, None), Tensor):
                values.div_(factors)
        for layer in readers:
            layer.weight.mul_(factors)


def find_norms(module: fx.GraphModule) -> dict[str, list[str]]:
    """LayerNorms, by path, that nothing but Linear layers read, with these layers' paths.

    Where something else reads one (the residual of a post-norm transformer) nothing can be folded.
    """
    calls = [n.target for n in module.graph.nodes if n.op == "call_module"]
    found = {}
    for node in module.graph.nodes:
        if node.op != "call_module" or not node.users or calls.count(node.target) > 1:
            continue
        norm = module.get_submodule(str(node.target))
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            continue
        readers = [n.target for n in node.users if n.op == "call_module"]
        layers = [module.get_submodule(str(t)) for t in readers]
        own = all(
            sum(m is x for x in map(module.get_submodule, map(str, calls))) == 1 for m in layers
        )
        linear = all(isinstance(layer, nn.Linear) for layer in layers)
        if len(readers) == len(node.users) and linear and own and norm.weight is not None:
            found[str(node.target)] = [str(t) for t in readers]
    return found


class SmoothQuant:
    """A step: ``PTQQuantizer(model, steps=[SmoothQuant(batches)])``; the network computes the same.

    batches: some calibration data (labels are not used), alpha: 0 leaves the outliers with the
    activations, 1 moves all of them into the weights. Raises CalibrationError without data,
    UnsupportedError where no LayerNorm is read by Linear layers alone.
    """

    def __init__(self, batches: Iterable, alpha: float = 0.5, num_batches: int = 16) -> None:
        self.alpha, self.batches, self.num_batches = (
            number("alpha", alpha, "[0, 1]"),
            batches,
            num_batches,
        )

    def __call__(self, module: fx.GraphModule, quantizer: object) -> fx.GraphModule:
        module = prepared(module)
        norms = find_norms(module)
        if not norms:
            raise UnsupportedError(
                "SmoothQuant: no LayerNorm that only Linear layers read, so nothing can be folded."
            )
        largest = channel_ranges(module, list(norms), islice(self.batches, self.num_batches))
        for name, readers in norms.items():
            layers = [module.get_submodule(reader) for reader in readers]
            linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
            weights = torch.stack([input_ranges(layer) for layer in linear]).amax(0)
            factors = smoothing_factors(largest[name], weights, self.alpha)
            smooth(module.get_submodule(name), linear, factors)
        return module


def channel_ranges(
    module: fx.GraphModule, names: Sequence[str], batches: Iterable
) -> dict[str, Tensor]:
    """Largest |value| of each channel, the last dimension, that the parts ``names`` put out."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        largest = output.detach().abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: keep(str(name), output)
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                module(*placed(batch, required_inputs(module), module))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise CalibrationError("SmoothQuant: the loader gave no batch: pass at least one.")
    return found
