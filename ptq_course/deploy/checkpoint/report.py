"""Where the bytes of a quantized checkpoint go: codes, scales, biases, and the rest.

Chapters 05, 07 and 13 quote it: a model of 4 bits is not an eighth of its FP32 size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ptq_course.deploy.checkpoint.header import LayerEntry, read

DECODERS = ("scale", "zero_point", "codebook")
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

    @property
    def ratio(self) -> float:
        """File over FP32: 0.25 is four times smaller."""
        return self.file_bytes / self.fp32_bytes

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
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [f"{'layer':<{width}} {'bits':>4} {'weights':>9} {'codes':>9} {'scales':>8}"]
        lines[0] += f" {'bias':>6} {'bits/weight':>12}"
        for s in self.layers:
            lines.append(
                f"{s.name:<{width}} {s.bits:>4} {s.weights:>9,} {s.code_bytes:>9,} "
                f"{s.scale_bytes:>8,} {s.bias_bytes:>6,} {s.bits_per_weight:>12.2f}"
            )
        lines.append(
            f"activation scales {self.activation_bytes:,} bytes, other parameters "
            f"{self.other_bytes:,}, header {self.header_bytes:,}"
        )
        lines.append(
            f"file {self.file_bytes:,} bytes, FP32 {self.fp32_bytes:,}: {self.ratio:.3f} of it"
        )
        return "\n".join(lines)


def size_report(path: str | Path) -> SizeReport:
    """Read a checkpoint that `storage.save` wrote and count its bytes.

    Raises what `storage.load` raises for a missing or damaged file.
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
