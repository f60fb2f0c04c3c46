"""The integer network as a module, and how far its codes agree with the simulation's.

Chapter 08.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ptq_course.errors import QuantizationError
from ptq_course.grids.affine import QParams
from ptq_course.integer.accumulators import AccumulatorTable, accumulator_table
from ptq_course.integer.layers import IntegerLayer, IntegerOp


class IntegerModel(nn.Module):
    """A network that computes with integers only, between its first quantize and last dequantize.

    Takes and returns real numbers like the model it came from: [N, ...] in, logits out. Activations
    are uint8 or int8 codes, weights int8, accumulators and biases int32. ``module`` is the graph,
    ``quantizers`` says which node holds the codes of which quantizer of the simulation, ``qparams``
    on which scale, zero point and grid.
    """

    def __init__(
        self, module: fx.GraphModule, quantizers: dict[str, str], batch_size: int = 64,
        qparams: dict[str, QParams] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if batch_size < 1:
            raise QuantizationError(f"IntegerModel: batch_size must be positive, got {batch_size}.")
        self.module = module
        self.quantizers = quantizers
        self.batch_size = batch_size
        self.qparams = qparams or {}
        self.eval()

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        if len({len(x) for x in inputs}) > 1:
            raise QuantizationError(
                f"IntegerModel: inputs of {', '.join(str(len(x)) for x in inputs)} rows; the first "
                "dimension of each is the batch."
            )
        pieces = list(zip(*(x.split(self.batch_size) for x in inputs), strict=True))
        outputs = [self.module(*piece) for piece in pieces]
        if len(outputs) == 1:
            return outputs[0]
        flat = [pytree.tree_leaves(output) for output in outputs]  # of tuples, dicts, ...
        for piece, leaves in zip(pieces, flat, strict=True):
            self._check_rows(len(piece[0]), leaves)
        joined = [torch.cat(parts) for parts in zip(*flat, strict=True)]
        return pytree.tree_unflatten(joined, pytree.tree_structure(outputs[0]))

    def _check_rows(self, rows: int, leaves: list[Any]) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != rows:
                found = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise QuantizationError(
                    f"IntegerModel: an output is {found} for {rows} inputs, so its first dimension "
                    "is not the batch, and outputs of several pieces cannot be joined. Give "
                    f"to_integer() a batch_size of as many inputs as you pass (now "
                    f"{self.batch_size})."
                )

    def operations(self) -> Iterator[IntegerOp]:
        """Everything with an accumulator, in the order of execution."""
        for node in self.module.graph.nodes:
            if node.op == "call_module":
                part = self.module.get_submodule(node.target)
                if isinstance(part, IntegerOp):
                    yield part

    def layers(self) -> dict[str, IntegerOp]:
        """The operations by their name: a layer's path in the user's model, or ``add_1``."""
        return {op.name: op for op in self.operations()}

    def accumulators(self) -> AccumulatorTable:
        """The bound of every accumulator, the bits it needs, and the multipliers and shifts."""
        return accumulator_table(list(self.operations()))

    def extra_repr(self) -> str:
        count = sum(isinstance(op, IntegerLayer) for op in self.operations())
        return f"{count} layers with int8 weights, int32 accumulators"
