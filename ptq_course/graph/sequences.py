"""Batch norms beside a Linear: of features, or of sequences. Chapter 04.

Of rows [N, C] a BatchNorm1d normalizes the features, which a Linear in front or behind can absorb.
Of sequences [N, L, C] it normalizes axis 1, and no Linear can. Where L equals C, the graph tells
the two no more apart: an example does. What was found is noted at the node, so that every copy of
the graph knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_course.graph.norms import STAYS, batch_norm_at, may_read_rows


def place_of(node: fx.Node) -> str:
    """The name under which a plan says that a node stays in floating point."""
    return str(node.target) if node.op == "call_module" else node.name


def norms_of_sequences(module: fx.GraphModule, inputs: Sequence[Any]) -> list[str]:
    """Places of the batch norms that do not read rows of features, on this input.

    Runs the network once, unless it has no norm that could be one of either, or no Linear.
    """
    nodes = [node for node in module.graph.nodes if may_read_rows(module, node)]
    if not nodes or not any(isinstance(part, nn.Linear) for part in module.modules()):
        return []
    ranks = _Ranks(module)
    with torch.no_grad():
        ranks.run(*[x.clone() if isinstance(x, Tensor) else x for x in inputs])
    return [place_of(node) for node in nodes if ranks.found.get(node) != 2]


def leave_norms(module: fx.GraphModule, places: Collection[str]) -> None:
    """Note at these batch norms that no Linear may absorb them; other places are passed over."""
    for node in module.graph.nodes:
        if place_of(node) in places and batch_norm_at(module, node) is not None:
            node.meta[STAYS] = True


class _Ranks(fx.Interpreter):
    """Notes how many dimensions each node's result has."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.dim()
        return result
