"""Quantized checkpoints on disk: integer codes, scales and zero points in a safetensors file.

Chapters 00, 05, 07 and 13. `save` writes what `PTQQuantizer.convert`, `quantize_weights` or
`quantize_dynamic` gave; `load` puts it into the float architecture again, bit for bit: the loaded
model computes the same outputs. `storage_report.size_report` says where the bytes went.

    layers/<name>/codes         up to 7 bits: packed bit by bit; 8: bytes; 9 to 16: int16
    layers/<name>/scale         float32 (or float16), one for each block
    layers/<name>/zero_point    where they are not all 0
    layers/<name>/codebook      instead of scales, where a codebook decodes the codes
    layers/<name>/bias_codes    int32
    layers/<name>/bias_scale    only where it is not the product of the scales of input and weight
    layers/<name>/bias          the bias, where it stays in floating point
    values/scale, zero_point    of all activations
    float/<name>                every other parameter or buffer of the fused network
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.checkpoint.header import (
    Header,
    ValueEntry,
    digest,
    grid_entry,
    listed,
    read,
    tupled,
)
from ptq_course.deploy.checkpoint.layers import check_tensor, layer_from_tensors, layer_to_tensors
from ptq_course.deploy.checkpoint.structure import structure_digest
from ptq_course.deploy.files import write_atomically
from ptq_course.errors import DataIntegrityError, QuantizationError
from ptq_course.graph.reading import types_of
from ptq_course.grids.affine import IntGrid, QParams
from ptq_course.simulation.dynamic import DynamicModel, round_inputs
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.network import TracedNetwork
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.untraced import UntracedNetwork

SCALE_DTYPES = {"float32": torch.float32, "float16": torch.float16}
Network = TracedNetwork | UntracedNetwork


def save(model: QuantizedModel | DynamicModel, path: str | Path, scales: str = "float32") -> Path:
    """Write a quantized model to ``path`` and return it; the file appears only when complete.

    scales: "float32" keeps everything exact. "float16" halves the cost of the weight scales and is
    *not* exact: each scale moves by up to 2^-11 (0.05 %) of itself, and a channel's weights and
    int32 bias with it, so the loaded model's outputs differ a little from the saved one's. (To
    save what was loaded is exact again.) A layer with a scale outside the normal range of float16,
    6.1e-5 to 65504, keeps float32.
    Raises QuantizationError for another model or word, and where the folder does not exist.
    """
    path = Path(path)
    if not isinstance(model, QuantizedModel | DynamicModel):
        raise QuantizationError(
            f"save: needs a quantized model, got {type(model).__name__}; call convert(), "
            "quantize_weights() or quantize_dynamic() first."
        )
    if scales not in SCALE_DTYPES:
        raise QuantizationError(f"save: scales must be 'float32' or 'float16', got {scales!r}.")
    if not path.parent.is_dir() or path.is_dir():
        raise QuantizationError(f"save: {path} is no file in an existing folder; create it first.")
    traced = isinstance(model.module, fx.GraphModule)
    header = Header(
        config=asdict(model.config),
        traced=traced,
        granularity=getattr(model, "granularity", None),
        structure=structure_digest(model.module),
        types=types_of(model.module) if traced else {},
    )
    qparams: dict[str, QParams] = getattr(model, "qparams", {})
    tensors = {f"float/{name}": tensor for name, tensor in float_state(model.module).items()}
    for name, layer in model.quantized_layers().items():
        entry, stored = layer_to_tensors(layer, qparams, SCALE_DTYPES[scales])
        header.layers[name] = entry
        tensors |= {f"layers/{name}/{part}": tensor for part, tensor in stored.items()}
    if qparams:
        header.values = {
            name: ValueEntry(grid_entry(q.grid), listed(q.block_size), list(q.scale.shape))
            for name, q in qparams.items()
        }
        tensors["values/scale"] = torch.cat([q.scale.flatten() for q in qparams.values()])
        tensors["values/zero_point"] = torch.cat([q.zero_point.flatten() for q in qparams.values()])
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header.digests = {name: digest(name, tensor) for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(tensors, header.metadata()))
    return path


def load(
    path: str | Path, model: nn.Module, example: Sequence[Tensor] | None = None
) -> QuantizedModel | DynamicModel:
    """The quantized model that was saved at ``path``, in the structure of ``model``.

    example: inputs, for layers whose forward() asks for their shape (see `PTQQuantizer`).
    model: the float architecture, with any weights; it is copied and left alone. The float weights
    are not in the file: ``float_layer`` of each layer holds what its codes stand for.
    Raises DataIntegrityError, naming file and tensor, where a byte has changed or a tensor is not
    what the header says, and QuantizationError for another architecture, naming the first layer
    that does not fit (but for a stride, an activation or the like, which have no tensor to name).
    Nothing is returned half loaded.
    """
    path = Path(path)
    header, tensors = read(path)
    try:
        return _assemble(header, tensors, model, example)
    except QuantizationError as error:
        raise type(error)(f"load {path}: {error}") from error


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that stand outside quantized layers and activation quantizers."""
    inside = tuple(
        f"{name}."
        for name, part in module.named_modules()
        if isinstance(part, QuantizedLayer | ActivationQuantizer)
    )
    return {n: t for n, t in module.state_dict().items() if not n.startswith(inside)}


# --- reading -------------------------------------------------------------------------------------


def _assemble(
    header: Header, tensors: dict[str, Tensor], model: nn.Module,
    example: Sequence[Tensor] | None,
) -> QuantizedModel | DynamicModel:  # fmt: skip
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"model must be an nn.Module, got {type(model).__name__}.")
    try:
        config = header.qconfig
    except TypeError as error:
        raise DataIntegrityError(f"the header's config is none ({error}).") from error
    network = _network(header, model, example)
    try:
        loaded = _filled(header, tensors, network, config)
    except QuantizationError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as e:
        raise DataIntegrityError(
            f"header and tensors do not fit each other ({type(e).__name__}: {e}); restore the file."
        ) from e
    if structure_digest(loaded.module) != header.structure:
        raise QuantizationError(
            "it was saved from a network with other operations or settings (a stride, an "
            "activation, the order of calls), though all its tensors fit; pass the architecture "
            "that was quantized."
        )
    return loaded


def _filled(
    header: Header, tensors: dict[str, Tensor], network: Network, config: QConfig
) -> QuantizedModel | DynamicModel:
    network.types = header.types
    _check_layers(header, network)
    qparams = _values_from_tensors(header, tensors, network)
    layers = {
        name: layer_from_tensors(name, entry, tensors, network.module.get_submodule(name), qparams)
        for name, entry in header.layers.items()
    }
    quantizers = {name: ActivationQuantizer(q, name=name) for name, q in qparams.items()}
    module = network.with_quantizers(layers, quantizers)
    _load_float_state(module, tensors)
    left_in_float = dict(network.plan.left_in_float)
    if header.granularity is None:
        return QuantizedModel(module, config, qparams, left_in_float)
    ahead = QuantizedModel(module, replace(config, activation_bits=None), {}, left_in_float)
    return round_inputs(ahead, config, header.granularity)


def _network(header: Header, model: nn.Module, example: Sequence[Tensor] | None) -> Network:
    config = header.qconfig
    if header.traced:
        return TracedNetwork(model, config.float_layers, config.fused_activations, example)
    return UntracedNetwork(model, config.float_layers)


def _check_layers(header: Header, network: Network) -> None:
    """Raise for the first layer, in the order of the network, that the file does not fit."""
    for name in network.plan.layers:
        layer, entry = network.module.get_submodule(name), header.layers.get(name)
        if entry is None:
            if header.layers and name not in header.qconfig.float_layers:
                raise QuantizationError(f"layer {name!r} of the model is not in it.")
            continue
        here, there = tuple(layer.weight.shape), tuple(entry.shape)
        if (type(layer).__name__, here) != (entry.kind, there):
            raise QuantizationError(
                f"layer {name!r} is {entry.kind} with a weight of {there} in it and "
                f"{type(layer).__name__} with {here} in the model."
            )
        if (getattr(layer, "bias", None) is None) != (entry.bias is None):
            where = "model" if entry.bias is None else "file"
            raise QuantizationError(f"layer {name!r} has a bias in the {where} only.")
    for name in header.layers:
        if name not in network.plan.layers:
            raise QuantizationError(f"it has a layer {name!r}, the model has not.")
    for name in header.values:
        if name not in network.plan.values:
            raise QuantizationError(f"it has a value {name!r}, the model has not.")
    for name in network.plan.values if header.values else ():
        if name not in header.values:
            raise QuantizationError(f"value {name!r} of the model is not in it.")


def _values_from_tensors(
    header: Header, tensors: dict[str, Tensor], network: Network
) -> dict[str, QParams]:
    stored = {part: tensors[f"values/{part}"] for part in ("scale", "zero_point") if header.values}
    count = sum(math.prod(entry.shape) for entry in header.values.values())
    for part, tensor in stored.items():
        dtype = torch.float32 if part == "scale" else torch.int32
        check_tensor(f"values/{part}", tensor, dtype, (count,))
    qparams, start = {}, 0
    for name, entry in header.values.items():
        end = start + math.prod(entry.shape)
        scale, zero_point = (
            stored[part][start:end].reshape(entry.shape).clone() for part in ("scale", "zero_point")
        )
        qparams[name] = QParams(scale, zero_point, IntGrid(*entry.grid), tupled(entry.block_size))
        start = end
    return qparams


def _load_float_state(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    saved = {n.removeprefix("float/"): t for n, t in tensors.items() if n.startswith("float/")}
    expected = float_state(module)
    for name in [*expected, *saved]:
        here = tuple(expected[name].shape) if name in expected else "nothing"
        there = tuple(saved[name].shape) if name in saved else "nothing"
        if here != there:
            raise QuantizationError(f"parameter {name!r} is {there} in it, {here} in the model.")
    module.load_state_dict(saved, strict=False, assign=True)
