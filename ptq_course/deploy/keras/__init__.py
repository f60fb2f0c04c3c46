"""From a Keras model to a PyTorch module that the rest of the package accepts. Chapter 15.

    network = from_keras("model.keras")        # or a model in memory
    network(torch.rand(1, 3, 224, 224))        # the channels first, as PyTorch has them

The module is plain: layers of torch.nn and a torch.fx graph (``print(network.code)``), in floating
point, for inference. Sizes and order of Flatten and Reshape are Keras's.

Known difference: average pooling with padding="same" over a border of uneven width. Keras 3.15 on
its PyTorch backend repeats the picture at the border; TensorFlow and JAX leave the border out, and
so does the converted module, since most models were trained with those.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx

from ptq_course.deploy.keras.calls import Target, first_order, last_order
from ptq_course.deploy.keras.files import import_keras, open_model
from ptq_course.deploy.keras.walk import CONVERTERS, check_graph, convert, is_model
from ptq_course.errors import QuantizationError

__all__ = ["CONVERTERS", "from_keras"]

Layout = Literal["channels_first", "channels_last"]


def from_keras(model: Any, layout: Layout = "channels_first") -> fx.GraphModule:
    """A PyTorch module that computes what a Keras 3 model predicts.

    model: a Sequential or functional model, or the path of a `.keras` or `.h5` file. layout: of
    the module's inputs and outputs with three and more dimensions; "channels_first" is
    PyTorch's [N, C, H, W], "channels_last" Keras's [N, H, W, C]. Several outputs come as a tuple.
    Raises UnsupportedError with the path of a layer that has no form here, and for files that
    hold code (Lambda layers); MissingExtraError without Keras; QuantizationError for a model that
    is not built, and a file that cannot be read.
    """
    if layout not in ("channels_first", "channels_last"):
        raise QuantizationError(
            f"from_keras: layout is 'channels_first' or 'channels_last', got {layout!r}."
        )
    import_keras()
    if isinstance(model, (str, os.PathLike)):
        model = open_model(Path(model))
    if not is_model(model):
        raise QuantizationError(
            f"from_keras: takes a keras.Model or a path, got {type(model).__name__}."
        )
    check_graph(model, model.name)
    target, inside = Target(), layout == "channels_first"
    feeds = []
    for given in model.inputs:
        node = target.graph.placeholder(given.name)
        feeds.append(node if inside else _reordered(target, node, first_order(len(given.shape))))
    results = convert(model, target, feeds)
    if not inside:
        results = [
            _reordered(target, node, last_order(len(output.shape)))
            for node, output in zip(results, model.outputs, strict=True)
        ]
    target.graph.output(results[0] if len(results) == 1 else tuple(results))
    made = fx.GraphModule(target.root, target.graph, class_name=type(model).__name__)
    made.graph.lint()
    return made.eval().requires_grad_(False)


def _reordered(target: Target, node: fx.Node, order: list[int]) -> fx.Node:
    if order == sorted(order):
        return node
    return target.graph.call_function(torch.permute, (node, tuple(order)))
