"""Tracing beside an example: Python's questions about shapes are answered. Chapter 04.

A convolution that pads by its input's size asks ``if padding > 0``. A graph has no answer; the same
forward pass on an example has. Only what follows from shapes is answered: a branch on the values of
a tensor differs from input to input, and is still refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from ptq_course.errors import UnsupportedError
from ptq_course.graph.aliasing import InPlaceProxy
from ptq_course.graph.reading import attribute


class AnsweringProxy(InPlaceProxy):
    """Knows what its node gives on the example, where Python must have a number."""

    tracer: ExampleTracer

    def __len__(self) -> int:
        return len(self.tracer.values[self.node])

    def __index__(self) -> int:
        return self.tracer.answer(self, int)

    __int__ = __index__

    def __float__(self) -> float:
        return self.tracer.answer(self, float)


def same_answer(value: Any, answer: Any, name: str) -> None:
    """Raise UnsupportedError where the network's Python would now take another way."""
    if type(answer)(value) != answer:
        raise UnsupportedError(
            f"forward() decides by the shape of its input, and {name} is {value} here where it was "
            f"{answer} for the example: give inputs of the example's shape, or quantize with an "
            "example of this one."
        )


class ExampleTracer(fx.Tracer):
    """Runs every node that it records on an example as well; None for no example."""

    def __init__(self, example: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.example = None if example is None else [x.clone() for x in example]
        self.values: dict[fx.Node, Any] = {}
        self.running = False  # a node, on the example: modules are then called as ever
        self.thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (InPlaceProxy if self.example is None else AnsweringProxy)(node, self)

    def answer(self, proxy: fx.Proxy, kind: type) -> Any:
        """What Python is told of a proxy; every later input must get the same answer.

        TraceError for a tensor.
        """
        value = self.values[proxy.node]
        if isinstance(value, Tensor):
            raise TraceError(f"Python asks for the value of the tensor {proxy.node}")
        self.create_proxy("call_function", same_answer, (proxy, kind(value), str(proxy.node)), {})
        return kind(value)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return super().to_bool(obj) if self.example is None else self.answer(obj, bool)

    def iter(self, obj: fx.Proxy) -> Iterator:
        if self.example is None:
            return super().iter(obj)
        items: Any = obj
        return iter([items[i] for i in range(len(self.values[obj.node]))])

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        if self.example is not None:
            self.running, before = True, self.running
            try:
                with torch.no_grad():
                    self.values[proxy.node] = self._run(proxy.node)
            finally:
                self.running = before
        return proxy

    def _run(self, node: fx.Node) -> Any:
        args = map_arg(node.args, self.values.__getitem__)
        kwargs = map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "placeholder":
            return args[0] if args else cast(list, self.example).pop(0)
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return cast(Callable, node.target)(*args, **kwargs)

    @property
    def _records(self) -> bool:
        """False while modules are to be called as ever, by another thread always.

        torch.fx puts its hooks on nn.Module itself, so that models of all threads come here.
        """
        return not self.running and threading.get_ident() == self.thread

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        if not self._records:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self._records:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
