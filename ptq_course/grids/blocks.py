"""Which elements of a tensor share a scale: per-tensor, per-channel, per-group, per-token as one.

A block size has one entry for each dimension of x; -1 stands for the whole dimension. Cutting x
into such blocks makes two dimensions of each: [D0, D1] becomes [D0 / b0, b0, D1 / b1, b1]. A
parameter with one entry per block, [D0 / b0, D1 / b1], broadcasts as [D0 / b0, 1, D1 / b1, 1].

    x [4, 6] in blocks (2, -1):   view [2, 2, 1, 6]   scales [2, 1] -> [2, 1, 1, 1]
"""

from __future__ import annotations

from torch import Tensor

from ptq_course.errors import QuantizationError, whole

BlockSize = tuple[int, ...] | None  # None: the whole tensor is one block, its parameters are 0-d


def split_into_blocks(x: Tensor, block_size: tuple[int, ...]) -> Tensor:
    """View x [D0, D1, ...] as [D0 / b0, b0, D1 / b1, b1, ...].

    Raises QuantizationError when block_size has another length than x has dimensions, an entry that
    is neither positive nor -1, or a block that does not divide its dimension.
    """
    block_size = _checked_entries(block_size)
    if len(block_size) != x.ndim:
        raise QuantizationError(
            f"block_size {block_size} has {len(block_size)} entries for a tensor of {x.ndim} "
            f"dimensions (shape {tuple(x.shape)}): give one entry for each, -1 for the whole"
        )
    split: list[int] = []
    for dimension, (size, entry) in enumerate(zip(x.shape, block_size, strict=True)):
        block = max(1, size) if entry == -1 else entry
        if size % block:
            raise QuantizationError(
                f"block_size {block_size}: dimension {dimension} has {size} elements, which blocks "
                f"of {block} do not divide: choose a divisor of {size}, or -1 for the whole"
            )
        split += [size // block, block]
    return x.reshape(split)


def parameter_for_blocks(parameter: Tensor, blocks: Tensor) -> Tensor:
    """View `parameter`, one entry per block, so that it broadcasts against split_into_blocks' view.

    Raises QuantizationError when there are more or fewer blocks than entries.
    """
    if parameter.shape != blocks.shape[0::2]:
        raise QuantizationError(
            f"there are parameters for {tuple(parameter.shape)} blocks, and this tensor has "
            f"{tuple(blocks.shape[0::2])}: choose parameters on a tensor of this shape"
        )
    return parameter.reshape([n for entries in parameter.shape for n in (entries, 1)])


def checked_block_size(block_size: BlockSize, parameter: Tensor) -> BlockSize:
    """block_size as a tuple of int, if it is well formed and as long as parameter.ndim.

    Raises QuantizationError otherwise. NumPy's integers become int.
    """
    if block_size is None:
        if parameter.ndim != 0:
            raise QuantizationError(
                f"one block (block_size None) has 0-d parameters, got {tuple(parameter.shape)}: "
                "name the blocks, for example block_size=(1, -1) for the rows of a matrix"
            )
        return None
    block_size = _checked_entries(block_size)
    if parameter.ndim != len(block_size):
        raise QuantizationError(
            f"parameters of shape {tuple(parameter.shape)} do not fit block_size {block_size}: one "
            "dimension for each entry is needed (block_minmax returns such shapes)"
        )
    return block_size


def _checked_entries(block_size: tuple[int, ...]) -> tuple[int, ...]:
    """The entries as int, each positive or -1."""
    if not isinstance(block_size, (tuple, list)):
        raise QuantizationError(f"block_size must be a tuple of integers, got {block_size!r}")
    entries = tuple(
        whole(f"block_size {block_size}: an entry, positive or -1,", entry, -1)
        for entry in block_size
    )
    if 0 in entries:
        raise QuantizationError(f"block_size {block_size}: entries are positive, or -1")
    return entries
