"""What a quantized checkpoint says about itself, and the digests that notice a changed byte.

The metadata of the safetensors file holds three strings: "format", "header" (JSON, see `Header`)
and "header_sha256". The header holds a digest of every tensor, so that damage is named, and one of
the network's structure: shapes alone do not tell a stride of 2 from one of 1, or ReLU from ReLU6,
and a checkpoint would load into another network without a word and compute something else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, astuple, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, fx, nn

from ptq_course.errors import DataIntegrityError, QuantizationError, UnsupportedError
from ptq_course.graph.kinds import called
from ptq_course.grids.affine import IntGrid
from ptq_course.grids.float_grids import FloatGrid
from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer
from ptq_course.simulation.qconfig import QConfig

FORMAT = "ptq_course quantized checkpoint"
VERSION = 2  # 2 added the structure of the network
DIGITS = 16  # hexadecimal digits of SHA-256 kept for each tensor: 64 bits notice any accident


@dataclass
class LayerEntry:
    """How to decode one layer's tensors."""

    kind: str  # class of the float layer, for messages
    shape: list[int]
    bits: int  # of the stored codes
    grid: list | None  # as `grid_entry` writes it; None where a codebook decodes
    block_size: list[int] | None
    dtype: str  # of the float weight, and so of what the layer computes
    bias: str | None = None  # "float" or "int32"; None: the layer has none
    bias_from: str | None = None  # value whose scale, times the weight's, is that of the int32 bias
    raised_channels: int = 0
    row_axis: int | None = None  # of floats, as in FloatQParams, as the next
    scale_format: str = "float32"


def grid_entry(grid: IntGrid | FloatGrid) -> list:
    """A grid as JSON: bits, signed, narrow; or "float", exponent, mantissa, largest."""
    return [*(["float"] if isinstance(grid, FloatGrid) else []), *astuple(grid)]


def entered_grid(entry: list) -> IntGrid | FloatGrid:
    """The grid that `grid_entry` wrote; QuantizationError or TypeError for another list."""
    return FloatGrid(*entry[1:]) if entry[:1] == ["float"] else IntGrid(*entry)


@dataclass
class ValueEntry:
    """How to decode the QParams of one activation; its scales are a part of values/scale.

    nodes: what is rounded to them (`rounded_places`).
    """

    grid: list
    block_size: list[int] | None
    shape: list[int]
    nodes: list[str] = field(default_factory=list)


@dataclass
class Header:
    """Everything but the tensors, the plan included, so that loading decides nothing.

    granularity: of dynamic activations, else None. structure: of the network (`structure_digest`).
    package: the version of ptq_course that wrote the file, "" before it was noted. types: which of
    the network's nodes give floating-point numbers, where an example was needed to tell. inside:
    what is rounded inside operations (`rounded_places`). left_in_float: what is not rounded, and
    why; None in files from before the plan was noted.
    """

    config: dict[str, Any]
    traced: bool
    granularity: str | None = None
    structure: str = ""
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    values: dict[str, ValueEntry] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    version: int = VERSION
    package: str = ""
    types: dict[str, bool] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    left_in_float: dict[str, str] | None = None

    def metadata(self) -> dict[str, str]:
        """The strings that go into the file."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return {"format": FORMAT, "header": text, "header_sha256": _sha256(text.encode())}

    @property
    def qconfig(self) -> QConfig:
        """The config as an object.

        Raises UnsupportedError where it has settings that are not known, QuantizationError for
        wrong ones.
        """
        known = set(QConfig.__dataclass_fields__)
        for name in self.config:
            if name not in known:
                raise UnsupportedError(
                    f"the checkpoint's config has {name!r}, which this version of ptq_course does "
                    "not know: update the package."
                )
        settings: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in self.config.items()
        }
        return QConfig(**settings)


def digest(name: str, tensor: Tensor) -> str:
    """Digest of a tensor's bytes together with its name, dtype and shape."""
    found = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
    found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:DIGITS]


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a checkpoint, every byte of them checked.

    Raises QuantizationError where there is no such file, DataIntegrityError, naming the tensor,
    where it is damaged or something else, UnsupportedError for a format of a later version.
    """
    if not path.is_file():
        raise QuantizationError(f"load: there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = _header(path, metadata)
            # Copies: what safetensors gives is the file's memory, which keeps the file open.
            tensors = {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise DataIntegrityError(
            f"{path} is damaged or not a safetensors file ({error}); restore it or save it again."
        ) from error
    for name in sorted(set(header.digests) ^ set(tensors)):
        found = "is missing" if name in header.digests else "does not belong to it"
        raise DataIntegrityError(f"{path}: tensor {name!r} {found}; restore the file.")
    for name, tensor in tensors.items():
        if digest(name, tensor) != header.digests[name]:
            raise DataIntegrityError(
                f"{path}: tensor {name!r} is damaged, its SHA-256 is not the one that was saved "
                "with it; restore the file."
            )
    return header, tensors


def _header(path: Path, metadata: dict[str, str]) -> Header:
    if metadata.get("format") != FORMAT or not {"header", "header_sha256"} <= set(metadata):
        raise DataIntegrityError(
            f"{path} is not a {FORMAT}: its metadata does not say so. Was it written by save()?"
        )
    text = metadata["header"]
    if _sha256(text.encode()) != metadata["header_sha256"]:
        raise DataIntegrityError(f"{path}: the header is damaged; restore the file.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataIntegrityError(
            f"{path}: the header is no JSON ({type(error).__name__}); save the model again."
        ) from error
    version = found.get("version") if isinstance(found, dict) else VERSION
    if isinstance(version, int) and version != VERSION:
        raise UnsupportedError(
            f"{path} has format version {version}, this package reads {VERSION}: update "
            "ptq_course, or save the model again with this version."
        )
    try:
        return _as(Header, found, "header")
    except DataIntegrityError as error:
        raise DataIntegrityError(f"{path}: {error} Save the model again.") from error


def _as(wanted: Any, value: Any, place: str) -> Any:
    """A JSON value as the type that a field declares; else DataIntegrityError, with the place."""
    kind, inner = get_origin(wanted), get_args(wanted)
    if isinstance(wanted, type) and is_dataclass(wanted) and isinstance(value, dict):
        types = _types(wanted)
        needed = {f.name for f in fields(wanted) if f.default is f.default_factory is MISSING}
        for name in [*(needed - set(value)), *(set(value) - set(types))]:
            found = "lacks" if name in needed else "has an unknown"
            raise DataIntegrityError(f"the {place} {found} {shortened(name)}.")
        return wanted(**{n: _as(types[n], v, f"{place}'s {n}") for n, v in value.items()})
    if kind is dict and isinstance(value, dict):
        return {n: _as(inner[1], v, f"{place} {n!r}") for n, v in value.items()}
    if kind is list and isinstance(value, list):
        return [_as(inner[0], v, f"{place}'s entry") for v in value]
    if NoneType in inner:
        return None if value is None else _as(inner[0], value, place)
    if wanted is Any or type(value) is wanted:
        return value
    raise DataIntegrityError(f"the {place} is {shortened(value)}, which it cannot be.")


@cache
def _types(wanted: type) -> dict[str, Any]:
    return get_type_hints(wanted)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- structure ---------------------------------------------------------------------------------

# Settings that do not change what a module computes at inference.
IGNORED = {"training", "inplace"}


def structure_digest(module: nn.Module) -> str:
    """SHA-256 of the structure: graph targets, module types and settings, arguments but tensors.

    Of a module that could not be traced: the types and settings of all its parts. Weights, scales
    and the names of nodes do not count.
    """
    if isinstance(module, fx.GraphModule):
        numbers = {node: number for number, node in enumerate(module.graph.nodes)}
        parts = [_node(module, node, numbers) for node in module.graph.nodes]
    else:
        parts = [[name, *_settings(part)] for name, part in module.named_modules()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _node(module: fx.GraphModule, node: fx.Node, numbers: dict[fx.Node, int]) -> list:
    part = called(module, node)
    target = getattr(node.target, "__name__", str(node.target)) if part is None else _settings(part)
    arguments = [_plain(node.args, numbers), _plain(node.kwargs, numbers)]
    return [node.op, target, *(arguments if node.op != "placeholder" else [])]


def _settings(part: nn.Module) -> list:
    """The type of a module, and the numbers and words that it was made with."""
    if isinstance(part, DynamicLayer):
        part = part.quantized
    if isinstance(part, QuantizedLayer):
        part = part.float_layer
    kind = type(part)
    if isinstance(part, ActivationQuantizer) or not kind.__module__.startswith("torch."):
        return [kind.__name__]
    plain = {
        name: _plain(value, {})
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in IGNORED
    }
    return [kind.__name__, plain]


def _plain(value: Any, numbers: dict[fx.Node, int]) -> Any:
    """A value as JSON holds it; nodes by their number, tensors and other objects by their type."""
    if isinstance(value, fx.Node):
        return f"node {numbers[value]}"
    if isinstance(value, tuple | list):
        return [_plain(item, numbers) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, numbers) for key, item in value.items()}
    if isinstance(value, slice):
        return ["slice", *(_plain(v, numbers) for v in (value.start, value.stop, value.step))]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device | torch.memory_format):
        return str(value)
    return (
        "Tensor" if isinstance(value, Tensor) else getattr(value, "__name__", type(value).__name__)
    )
