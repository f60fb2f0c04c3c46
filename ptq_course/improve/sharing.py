"""Which layers a technique may change: those whose tensors nothing else reads. Chapters 11 to 13.

A tied head shares its weight with an Embedding, a layer that is called twice with itself, and a
model may read ``layer.weight`` in a formula of its own. What is undone for one reader of such a
tensor is not undone for the others, so the network would no longer compute the same.
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor, fx

from ptq_course.graph.reading import attribute

SHARED = "its weight is used more than once, for inputs of their own"


def read_alone(module: fx.GraphModule) -> set[str]:
    """Paths of the called modules whose parameters no other node of the graph reads."""
    calls: list[tuple[str, set[int]]] = []
    readers: Counter[int] = Counter()
    for node in module.graph.nodes:
        tensors: set[int] = set()
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            tensors = {id(part), *map(id, part.parameters())}
            calls.append((str(node.target), tensors))
        elif node.op == "get_attr":
            value = attribute(module, str(node.target))
            tensors = {id(value)} if isinstance(value, Tensor) else set()
        readers.update(tensors)
    return {path for path, tensors in calls if all(readers[t] == 1 for t in tensors)}
