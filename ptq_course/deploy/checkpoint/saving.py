"""Saving and loading quantized models, and counting what their files hold. Chapters 00, 07."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from ptq_course.deploy.checkpoint.format import (
    Header,
    LayerEntry,
    ValueEntry,
    digest,
    entered_grid,
    grid_entry,
    read,
    structure_digest,
)
from ptq_course.deploy.checkpoint.packing import (
    DTYPES,
    ValueNames,
    check_stored,
    layer_from_tensors,
    layer_to_tensors,
)
from ptq_course.deploy.files import write_atomically
from ptq_course.errors import DataIntegrityError, QuantizationError
from ptq_course.graph import Plan, Value
from ptq_course.graph.layer_types import layer_type, weight_of
from ptq_course.graph.reading import mark_types, types_of
from ptq_course.grids.affine import AnyQParams, FloatQParams, QParams
from ptq_course.grids.float_grids import FloatGrid
from ptq_course.simulation.dynamic import DynamicModel, round_inputs
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.network import TracedNetwork, rounded_places
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.untraced import UntracedNetwork
from ptq_course.tables import text_table

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
    places, inside = rounded_places(model.module)
    header = Header(
        config=asdict(model.config),
        traced=isinstance(model.module, fx.GraphModule),
        granularity=getattr(model, "granularity", None),
        structure=structure_digest(model.module),
        package=importlib.import_module("ptq_course").__version__,
        types=types_of(model.module) if isinstance(model.module, fx.GraphModule) else {},
        inside=inside,
        left_in_float=model.left_in_float,
    )
    qparams: dict[str, AnyQParams] = getattr(model, "qparams", {})
    tensors = {f"float/{name}": tensor for name, tensor in float_state(model.module).items()}
    names = ValueNames(qparams)
    for name, layer in model.quantized_layers().items():
        entry, stored = layer_to_tensors(layer, names, SCALE_DTYPES[scales])
        header.layers[name] = entry
        tensors |= {f"layers/{name}/{part}": tensor for part, tensor in stored.items()}
    if qparams:
        header.values = {
            name: ValueEntry(
                grid_entry(q.grid),
                None if q.block_size is None else list(q.block_size),
                list(q.scale.shape),
                places.get(name, []),
            )
            for name, q in qparams.items()
        }
        tensors["values/scale"] = torch.cat([q.scale.flatten() for q in qparams.values()])
        zeros = [_zero_point(q).flatten() for q in qparams.values()]
        tensors["values/zero_point"] = torch.cat(zeros)
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


def _zero_point(qparams: AnyQParams) -> Tensor:
    """The zero points; zeros for floats, which have none."""
    if isinstance(qparams, FloatQParams):
        return torch.zeros_like(qparams.scale, dtype=torch.int32)
    return qparams.zero_point


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that stand outside quantized layers and activation quantizers."""
    inside = {
        name
        for name, part in module.named_modules()
        if isinstance(part, QuantizedLayer | ActivationQuantizer)
    }
    return {n: t for n, t in module.state_dict().items() if inside.isdisjoint(_around(n))}


def _around(name: str) -> Iterator[str]:
    """The modules around a tensor, as paths: "a" and "a.b" for "a.b.weight"."""
    while name := name.rpartition(".")[0]:
        yield name


# --- reading -------------------------------------------------------------------------------------


def _assemble(
    header: Header, tensors: dict[str, Tensor], model: nn.Module,
    example: Sequence[Tensor] | None,
) -> QuantizedModel | DynamicModel:  # fmt: skip
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"model must be an nn.Module, got {type(model).__name__}.")
    config = header.qconfig
    if header.traced:
        network: Network = TracedNetwork(model, example)
        mark_types(network.module, header.types)
    else:
        network = UntracedNetwork(model)
    if header.left_in_float is None:
        _plan_again(header, network, config)
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


def _plan_again(header: Header, network: Network, config: QConfig) -> None:
    """Enter into the header of an early file what a plan for its network says."""
    network.plan_for(config)
    values = network.full_plan.values | network.plan.values
    for name, entry in header.values.items():
        if name in values:
            entry.nodes = [values[name].node, *values[name].inherited_by]
    header.inside, header.left_in_float = network.plan.inner, network.plan.left_in_float


def _filled(
    header: Header, tensors: dict[str, Tensor], network: Network, config: QConfig
) -> QuantizedModel | DynamicModel:
    left_in_float = dict(header.left_in_float or {})
    values = {
        name: Value(name, first, inherited_by=others)
        for name, (first, *others) in ((n, e.nodes) for n, e in header.values.items() if e.nodes)
    }
    network.plan = Plan(values, {}, left_in_float, header.inside)
    stored: dict[str, dict[str, Tensor]] = {name: {} for name in header.layers}
    for path, tensor in tensors.items():
        room, _, rest = path.partition("/")
        name, _, part = rest.rpartition("/")
        if room == "layers" and name in stored:
            stored[name][part] = tensor
        elif room not in ("values", "float"):
            raise DataIntegrityError(f"tensor {path!r} belongs to no layer.")
    _check_layers(header, network, tensors)
    qparams = _values_from_tensors(header, tensors)
    layers = {
        name: layer_from_tensors(name, entry, stored[name], network.module, qparams)
        for name, entry in header.layers.items()
    }
    quantizers = {name: ActivationQuantizer(qparams[name], name=name) for name in values}
    module = network.with_quantizers(
        layers, quantizers, config.activation_grid if qparams else None
    )
    _load_float_state(module, tensors)
    if header.granularity is None:
        return QuantizedModel(module, config, qparams, left_in_float)
    ahead = QuantizedModel(module, replace(config, activation_bits=None), {}, left_in_float)
    return round_inputs(ahead, config, header.granularity)


def _check_layers(header: Header, network: Network, tensors: dict[str, Tensor]) -> None:
    """Raise for the first layer, in the order of the network, that the file does not fit."""
    formats: dict[torch.dtype, str] = {}  # of the model's layers, and of the file's
    layers = {n: part for n, part in network.module.named_modules() if layer_type(part)}
    for name, layer in layers.items():
        entry = header.layers.get(name)
        if entry is None:
            if f"float/{name}.weight" not in tensors:
                raise QuantizationError(f"layer {name!r} of the model is not in it.")
            continue
        weight = weight_of(layer)
        here, there = tuple(weight.shape), tuple(entry.shape)
        if (type(layer).__name__, here) != (entry.kind, there):
            raise QuantizationError(
                f"layer {name!r} is {entry.kind} with a weight of {there} in it and "
                f"{type(layer).__name__} with {here} in the model."
            )
        if entry.dtype not in DTYPES:
            raise DataIntegrityError(f"layer {name!r} computes in {entry.dtype!r} by the header.")
        computed = formats.setdefault(weight.dtype, entry.dtype)
        if computed != entry.dtype:
            raise QuantizationError(
                f"layer {name!r} computes in {entry.dtype} in it, another one in {computed}, and "
                "in the model both are alike: give them the formats that were saved."
            )
        if (getattr(layer, "bias", None) is None) != (entry.bias is None):
            where = "model" if entry.bias is None else "file"
            raise QuantizationError(f"layer {name!r} has a bias in the {where} only.")
    for name in header.layers:
        if name not in layers:
            raise QuantizationError(f"it has a layer {name!r}, the model has not.")
    places = network.places
    for name, entry in header.values.items():
        if not entry.nodes or not places.issuperset(entry.nodes):
            raise QuantizationError(f"it has a value {name!r}, the model has not.")
    for name in header.inside:
        if name not in places:
            raise QuantizationError(f"it rounds inside {name!r}, which the model has not.")


def _values_from_tensors(header: Header, tensors: dict[str, Tensor]) -> dict[str, AnyQParams]:
    stored = {part: tensors[f"values/{part}"] for part in ("scale", "zero_point") if header.values}
    count = sum(math.prod(entry.shape) for entry in header.values.values())
    for part, tensor in stored.items():
        dtype = torch.float32 if part == "scale" else torch.int32
        check_stored(f"values/{part}", tensor, dtype, (count,))
    qparams, start = {}, 0
    for name, entry in header.values.items():
        end = start + math.prod(entry.shape)
        scale, zero_point = (
            stored[part][start:end].reshape(entry.shape).clone() for part in ("scale", "zero_point")
        )
        block_size = None if entry.block_size is None else tuple(entry.block_size)
        grid = entered_grid(entry.grid)
        if not isinstance(grid, FloatGrid):
            qparams[name] = QParams(scale, zero_point, grid, block_size)
        elif bool(zero_point.any()):
            raise DataIntegrityError(f"value {name!r} lies on floats, and has a zero point.")
        else:
            qparams[name] = FloatQParams(scale, grid, block_size)
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


# --- where the bytes go --------------------------------------------------------------------------

DECODERS = ("scale", "zero_point", "tensor_scale", "codebook")
FP32 = 4  # bytes a number


@dataclass(frozen=True)
class LayerSize:
    """Bytes of one layer's weight, and what its bias takes."""

    name: str
    bits: int
    weights: int  # how many
    code_bytes: int
    scale_bytes: int  # scales, zero points, codebook
    bias_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage for one weight, its share of scales included."""
        return 8 * (self.code_bytes + self.scale_bytes) / max(1, self.weights)


@dataclass(frozen=True)
class SizeReport:
    """Bytes of a checkpoint. ``print(report)`` gives the table.

    ``fp32_bytes``: the same numbers (weights, biases and other parameters of the fused network) at
    four bytes each, without any header. ``activation_bytes``: scales and zero points of the
    activations. ``other_bytes``: parameters that stay in floating point. ``header_bytes``: the
    safetensors header with config and digests.
    """

    path: Path
    layers: tuple[LayerSize, ...]
    fp32_bytes: int
    file_bytes: int
    activation_bytes: int
    other_bytes: int
    header_bytes: int
    package: str  # the version of ptq_course that wrote it, "" where the file does not say

    @property
    def ratio(self) -> float:
        """File over FP32: 0.25 is four times smaller."""
        return self.file_bytes / max(1, self.fp32_bytes)

    @property
    def scale_bytes(self) -> int:
        """What the weights' scales, zero points and codebooks cost."""
        return sum(layer.scale_bytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Over all quantized layers, scales included."""
        stored = sum(layer.code_bytes + layer.scale_bytes for layer in self.layers)
        return 8 * stored / max(1, sum(layer.weights for layer in self.layers))

    def __str__(self) -> str:
        numbers = ("weights", "code_bytes", "scale_bytes", "bias_bytes")
        rows = [
            (
                s.name,
                str(s.bits),
                *(f"{getattr(s, n):,}" for n in numbers),
                f"{s.bits_per_weight:.2f}",
            )
            for s in self.layers
        ]
        columns = ("layer", "bits", "weights", "codes", "scales", "bias", "bits/weight")
        return (
            f"{text_table(columns, rows)}\n"
            f"activation scales {self.activation_bytes:,} bytes, other parameters "
            f"{self.other_bytes:,}, header {self.header_bytes:,}\n"
            f"file {self.file_bytes:,} bytes, FP32 {self.fp32_bytes:,}: {self.ratio:.3f} of it, "
            f"written by {f'ptq_course {self.package}' if self.package else 'an early ptq_course'}"
        )


def size_report(path: str | Path) -> SizeReport:
    """Read a checkpoint that `save` wrote and count its bytes.

    Raises what `load` raises for a missing or damaged file.
    """
    path = Path(path)
    header, tensors = read(path)
    layers = tuple(_layer_size(name, entry, tensors) for name, entry in header.layers.items())
    stored = {name: _bytes(tensor) for name, tensor in tensors.items()}
    floats = [t for name, t in tensors.items() if name.startswith("float/")]
    biases = [t for name, t in tensors.items() if name.endswith(("/bias_codes", "/bias"))]
    numbers = sum(layer.weights for layer in layers)
    numbers += sum(t.numel() for t in [*floats, *biases])
    file_bytes = path.stat().st_size
    return SizeReport(
        path=path,
        layers=layers,
        fp32_bytes=FP32 * numbers,
        file_bytes=file_bytes,
        activation_bytes=sum(b for name, b in stored.items() if name.startswith("values/")),
        other_bytes=sum(b for name, b in stored.items() if name.startswith("float/")),
        header_bytes=file_bytes - sum(stored.values()),
        package=header.package,
    )


def _layer_size(name: str, entry: LayerEntry, tensors: dict[str, Tensor]) -> LayerSize:
    def of(*parts: str) -> int:
        names = [f"layers/{name}/{part}" for part in parts]
        return sum(_bytes(tensors[n]) for n in names if n in tensors)

    return LayerSize(
        name=name,
        bits=entry.bits,
        weights=math.prod(entry.shape),
        code_bytes=of("codes"),
        scale_bytes=of(*DECODERS),
        bias_bytes=of("bias_codes", "bias_scale", "bias"),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
