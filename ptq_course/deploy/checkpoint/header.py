"""What a quantized checkpoint says about itself, and the digests that notice a changed byte.

The metadata of the safetensors file holds three strings: "format", "header" (JSON, see `Header`)
and "header_sha256". The header holds a digest of every tensor, so that damage is named.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq_course.errors import DataIntegrityError, QuantizationError, UnsupportedError
from ptq_course.grids.affine import IntGrid
from ptq_course.grids.blocks import BlockSize
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
    grid: list | None  # bits, signed, narrow; None where a codebook decodes
    block_size: list[int] | None
    dtype: str  # of the float weight, and so of what the layer computes
    bias: str | None = None  # "float" or "int32"; None: the layer has none
    bias_from: str | None = None  # value whose scale, times the weight's, is that of the int32 bias
    raised_channels: int = 0


@dataclass
class ValueEntry:
    """How to decode the QParams of one activation; its scales are a part of values/scale."""

    grid: list
    block_size: list[int] | None
    shape: list[int]


@dataclass
class Header:
    """Everything but the tensors. ``granularity`` is that of dynamic activations, else None;
    ``structure`` that of the network (`structure_digest`), ``types`` says which of its nodes
    give floating-point numbers, where an example was needed to tell."""

    config: dict[str, Any]
    traced: bool
    granularity: str | None = None
    structure: str = ""
    types: dict[str, bool] = field(default_factory=dict)
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    values: dict[str, ValueEntry] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def metadata(self) -> dict[str, str]:
        """The strings that go into the file."""
        text = json.dumps(asdict(self), separators=(",", ":"))
        return {"format": FORMAT, "header": text, "header_sha256": _sha256(text.encode())}

    @property
    def qconfig(self) -> QConfig:
        """The config as an object; UnsupportedError where it has settings that are not known."""
        known = set(QConfig.__dataclass_fields__)
        for name in self.config:
            if name not in known:
                raise UnsupportedError(
                    f"the checkpoint's config has {name!r}, which this version of ptq_course does "
                    "not know: update the package."
                )
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in self.config.items()}
        return QConfig(**settings)


def grid_entry(grid: IntGrid) -> list:
    """bits, signed, narrow."""
    return [grid.bits, grid.signed, grid.narrow]


def listed(block_size: BlockSize) -> list[int] | None:
    """A block size as JSON holds it."""
    return None if block_size is None else list(block_size)


def tupled(block_size: list[int] | None) -> BlockSize:
    """A block size from JSON."""
    return None if block_size is None else tuple(block_size)


def digest(name: str, tensor: Tensor) -> str:
    """Digest of a tensor's bytes together with its name, dtype and shape."""
    about = f"{name} {tensor.dtype} {list(tensor.shape)} ".encode()
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return _sha256(about + data)[:DIGITS]


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
        fields = json.loads(text)
        version = fields.get("version")
        if version == VERSION:
            layers = {name: LayerEntry(**entry) for name, entry in fields["layers"].items()}
            values = {name: ValueEntry(**entry) for name, entry in fields["values"].items()}
            return Header(**{**fields, "layers": layers, "values": values})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise DataIntegrityError(
            f"{path}: the header does not hold what it should ({type(error).__name__}: {error}); "
            "save the model again."
        ) from error
    raise UnsupportedError(
        f"{path} has format version {version}, this package reads {VERSION}: update ptq_course, or "
        "save the model again with this version."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
