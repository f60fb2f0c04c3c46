"""Rotation: spread an outlier channel over many, and the one scale fits all of them. Chapter 12.

y = W x = (W Q) (Q^T x) for every orthogonal Q: the network computes the same. Q is a Hadamard
matrix over blocks of channels, behind random signs, so that each rotated channel holds a share of
every channel of its block, and none is larger than the others for long.

Ashkboos, Mohtashami, Croci, Li, Cameron, Jaggi, Alistarh, Hoefler, Hensman, "QuaRot: Outlier-Free
4-Bit Inference in Rotated LLMs", 2024. There the rotation is folded into the layers, which takes a
norm that commutes with it (RMSNorm). A LayerNorm subtracts a mean and does not: here it is an
operation of its own, in floating point, in front of the quantizer.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ptq_course.errors import UnsupportedError, whole
from ptq_course.improve.inputs import (
    find_values,
    in_words,
    left_as_they_are,
    linear,
    put_before,
)
from ptq_course.improve.pairs import prepared

LEAST_BLOCK = 8  # shorter blocks spread hardly anything


def hadamard(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The Hadamard matrix of a power of two, divided by its root: symmetric, its own inverse.

    [size, size] in ``dtype``. Raises UnsupportedError for a size that is no power of two
    (Sylvester, "Thoughts on inverse orthogonal matrices", 1867, doubles [[1, 1], [1, -1]]).
    """
    if size < 1 or size & (size - 1):
        raise UnsupportedError(f"hadamard: {size} is no power of two; rotate blocks that are.")
    matrix = torch.ones(1, 1, dtype=dtype)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def block_of(channels: int) -> int:
    """The largest power of two that divides the number of channels: 384 = 3 * 128."""
    return channels & -channels


class Rotation(nn.Module):
    """x -> Q^T x along the last dimension: random signs, then a Hadamard matrix for each block.

    x of 16 bits is rotated in ``dtype`` and rounded once; the matrix itself has no exact 16 bits.
    Raises UnsupportedError where the largest power of two that divides ``channels`` is below 8.
    """

    def __init__(self, channels: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.block = block_of(whole("Rotation: channels", channels, 1))
        if self.block < LEAST_BLOCK:
            raise UnsupportedError(
                f"Rotation: {channels} channels have no blocks of {LEAST_BLOCK} or more whose "
                "length is a power of two."
            )
        generator = torch.Generator().manual_seed(whole("Rotation: seed", seed, 0))
        self.signs: Tensor
        self.matrix: Tensor
        signs = torch.randint(2, (channels,), generator=generator) * 2.0 - 1
        self.register_buffer("signs", signs.to(dtype))
        self.register_buffer("matrix", hadamard(self.block, dtype))

    def forward(self, x: Tensor) -> Tensor:
        blocks = (x * self.signs).unflatten(-1, (-1, self.block))
        return (blocks @ self.matrix).flatten(-2).to(x.dtype)


class Rotate:
    """A step: ``PTQQuantizer(model, steps=[Rotate()])``; the network computes the same. No data.

    Every value that Linear layers read is rotated, and their weights undo it. Values whose channels
    cannot be rotated stay as they are: afterwards ``left_out`` says of which Linear layers, and
    why. UnsupportedError where that leaves none.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = whole("seed", seed, 0)
        self.left_out: dict[str, str] = {}

    def __call__(self, module: fx.GraphModule, quantizer: object) -> fx.GraphModule:
        module = prepared(module)
        rotated: list[str] = []
        for number, (value, readers) in enumerate(find_values(module).items()):
            layers = [linear(module, name) for name in readers]
            channels = layers[0].in_features
            if block_of(channels) < LEAST_BLOCK:
                continue
            weight = layers[0].weight
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            rotation = Rotation(channels, self.seed + number, dtype).to(weight.device)
            put_before(module, value, readers, rotation)
            with torch.no_grad():
                for layer in layers:
                    layer.weight.copy_(rotation(layer.weight))
            rotated += readers
        self.left_out = left_as_they_are(
            module, rotated, f"no block of {LEAST_BLOCK} or more channels divides its inputs"
        )
        if not rotated:
            raise UnsupportedError(
                "Rotate: no Linear layer whose inputs come in blocks of a power of two. "
                + in_words(self.left_out)
            )
        module.recompile()
        return module
