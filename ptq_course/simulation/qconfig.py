"""QConfig: what to quantize, with how many bits, and how. One preset for each kind of runtime.

Chapters 05, 06 and 15.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ptq_course.errors import QuantizationError, flag, whole
from ptq_course.graph.kinds import ALWAYS_FUSED, FUSABLE
from ptq_course.grids.affine import AnyGrid, IntGrid
from ptq_course.grids.floats import FLOAT_FORMATS, FloatFormat, float_format
from ptq_course.ranges.calibrators import CALIBRATORS
from ptq_course.ranges.weights import WEIGHT_RANGES

GROUP_LENGTH = "weight_granularity (where it is neither 'per_tensor' nor 'per_channel')"
SEARCH = "search"  # the rule is the one that `range_search` finds best
TARGETS = ("onnxruntime", "tensorrt", "arm")  # those of deploy.targets


class DefaultBits(int):
    """A width that nobody gave: equal to the number, and a format of floats may take its place."""


@dataclass(frozen=True)
class QConfig:
    """Every choice that chapter 06 teaches, in one place; ``dataclasses.replace`` changes one.

    weight_bits, activation_bits: 2 to 16, or None to leave them in floating point (W8A32, W32A8).
    weight_granularity: "per_tensor", "per_channel", or a group length along the input channels.
    weight_symmetric: zero_point 0 for weights, which most integer kernels need. Affine weights
        (False) shift their range to the data, at the price of one more sum a product.
    weight_range: "minmax", the extremes of the weights, or "mse", the range that rounds them with
        the least squared error (for 4 bits and fewer).
    weight_narrow: leave out the lowest code, [-127, 127] at 8 bits (symmetric weights).
    activation_signed, activation_symmetric: the grid of activations and whether zero_point is 0.
    activation_range: rule that turns statistics into a range, a name in CALIBRATORS; or "search",
        which tries them all on calibration data and takes the one nearest to FP32. No single rule
        wins everywhere, so "search" is the default: two to four times the time of calibration.
    float_layers: module paths that stay in floating point (chapter 10).
    layer_bits: widths of single layers' weights in place of ``weight_bits``, as {"fc": 4} or pairs,
        or formats, {"fc": "fp8_e4m3"}; kept as a tuple of pairs (chapters 10 and 13). Activations
        keep theirs.
    fused_activations: those that the runtime computes inside the layer before them, so that no
        quantizer stands between the two; of FUSABLE. ReLU and ReLU6 are clamps, which every
        integer runtime fuses; Hardswish and SiLU stay apart in ONNX Runtime (a convolution whose
        output is not quantized would stay in floating point there); TensorRT may fuse them, which
        was not tried here.
    quantize_bias: int32 bias with scale s_x * s_w, as integer runtimes add it.
    target: the runtime that the preset was made for, one of TARGETS. A label: it goes into saved
        checkpoints and recipes, and nothing is computed from it. `deploy.onnx.export` has a
        `target` of its own and checks the network against that.
    weight_format: floats in place of integers, a name in FLOAT_FORMATS (chapter 13): "fp8_e4m3",
        "fp8_e5m2" and "fp4_e2m1" with scales as ``weight_granularity`` says; "mxfp4" and "nvfp4"
        with blocks of 32 and 16 along each row of the weight (its last one may be shorter). The
        bits are then the format's (others given beside it are refused, 8 too), biases stay in
        floating point, and products are those of floats.
    activation_format: "fp8_e4m3", "fp8_e5m2" or "fp4_e2m1", with one calibrated scale a tensor, in
        the places where the target's integer kernels would want a value rounded.

    Raises QuantizationError, naming the choices, for any other value.
    """

    weight_bits: int | None = DefaultBits(8)
    activation_bits: int | None = DefaultBits(8)
    weight_granularity: str | int = "per_channel"
    weight_symmetric: bool = True
    weight_narrow: bool = True
    activation_signed: bool = False
    activation_symmetric: bool = False
    activation_range: str = SEARCH
    quantize_bias: bool = True
    float_layers: tuple[str, ...] = ()
    fused_activations: tuple[str, ...] = ALWAYS_FUSED
    target: str = "onnxruntime"
    weight_range: str = "minmax"
    layer_bits: Any = ()  # in: a mapping or pairs; kept: a tuple of pairs
    weight_format: str | None = None
    activation_format: str | None = None

    def __post_init__(self) -> None:
        for name in ("weight_symmetric", "weight_narrow", "activation_signed",
                     "activation_symmetric", "quantize_bias"):  # fmt: skip
            flag(name, getattr(self, name))
        for what in ("weight", "activation"):
            self._check_format(what)
        for name, grid in (("weight", self.weight_grid), ("activation", self.activation_grid)):
            given = getattr(self, f"{name}_bits")
            if grid is not None and not isinstance(given, DefaultBits):  # the grid has checked them
                object.__setattr__(self, f"{name}_bits", grid.bits)
        for name, choices in (
            ("activation_range", (SEARCH, *CALIBRATORS)),
            ("weight_range", WEIGHT_RANGES),
            ("target", TARGETS),
        ):
            if getattr(self, name) not in choices:
                raise QuantizationError(
                    f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}."
                )
        if self.weight_granularity not in ("per_tensor", "per_channel"):
            length = whole(GROUP_LENGTH, self.weight_granularity, 1)
            object.__setattr__(self, "weight_granularity", length)
        if not _are_names(self.float_layers):
            raise QuantizationError(
                f"float_layers is a tuple of names, got {self.float_layers!r}; one name alone is "
                f"({str(self.float_layers)!r},)."
            )
        if not _are_names(self.fused_activations) or set(self.fused_activations) - set(FUSABLE):
            raise QuantizationError(
                f"fused_activations is a tuple of names from {', '.join(FUSABLE)}, "
                f"got {self.fused_activations!r}."
            )
        object.__setattr__(self, "layer_bits", self._checked_layer_bits())
        if self.activation_symmetric and not self.activation_signed:
            raise QuantizationError(
                "symmetric activations have zero_point 0 and need a signed grid: "
                "set activation_signed=True."
            )

    def _check_format(self, what: str) -> None:
        """Give the bits that the format has; QuantizationError for what does not go with it."""
        name, bits = getattr(self, f"{what}_format"), getattr(self, f"{what}_bits")
        if name is None:
            return
        if bits is None:  # what stays in floating point has no format
            object.__setattr__(self, f"{what}_format", None)
            return
        kind = _format(f"{what}_format", name)
        refused = None
        if bits != kind.bits and not isinstance(bits, DefaultBits):
            refused = (
                f"{what}_bits={bits!r}: it has {kind.bits}; leave {what}_bits out, or set "
                f"{what}_format=None for integers"
            )
        elif what == "activation" and kind.block is not None:
            choices = ", ".join(n for n, f in FLOAT_FORMATS.items() if f.block is None)
            refused = (
                "activations, which have one calibrated scale a tensor, and it has one for each "
                f"block of {kind.block}; use one of {choices}"
            )
        elif what == "weight" and self.weight_range != "minmax":
            refused = f"weight_range={self.weight_range!r}, which searches a grid of integers"
        elif what == "weight" and not self.weight_symmetric:
            refused = "weight_symmetric=False: floats have no zero point"
        elif what == "weight" and kind.block is not None:
            wanted = self.weight_granularity
            if wanted not in ("per_channel", kind.block):
                refused = (
                    f"weight_granularity={wanted!r}: its blocks have {kind.block} values; leave "
                    "weight_granularity out"
                )
        if refused:
            raise QuantizationError(f"{what}_format={name!r} does not go with {refused}.")
        object.__setattr__(self, f"{what}_bits", kind.bits)

    def _checked_layer_bits(self) -> tuple[tuple[str, int | str], ...]:
        """``layer_bits`` as a tuple of pairs; QuantizationError names the layer."""
        given = self.layer_bits
        iterable = isinstance(given, Collection) and not isinstance(given, str)
        listed = given.items() if isinstance(given, Mapping) else given if iterable else [None]
        pairs: list[Any] = list(listed)
        if not all(isinstance(p, tuple | list) and len(p) == 2 for p in pairs):
            raise QuantizationError(
                f'layer_bits is a mapping of layers to widths, {{"fc": 4}}, got {given!r}.'
            )
        if not _are_names([name for name, _ in pairs]) or len(dict(pairs)) < len(pairs):
            raise QuantizationError(
                f"layer_bits names each layer once, by its module path; got {given!r}."
            )
        if pairs and self.weight_bits is None:
            raise QuantizationError(
                f"layer_bits: {pairs[0][0]!r} has a width, but weight_bits=None leaves all weights "
                "in floating point; set weight_bits, and keep the other layers with float_layers."
            )
        for name, _ in pairs:
            if name in self.float_layers:
                raise QuantizationError(
                    f"layer_bits: {name!r} stands in float_layers, too; take it out of one of them."
                )
        return tuple((name, self._checked_width(name, width)) for name, width in pairs)

    def _checked_width(self, name: str, width: object) -> int | str:
        """One entry of ``layer_bits``: a number of bits or the name of a format."""
        where = f"layer_bits of {name!r}"
        if not isinstance(width, str):
            return whole(where, width, 2, 16)
        _format(where, width)
        if self.weight_range != "minmax" or not self.weight_symmetric:
            raise QuantizationError(
                f"{where}: {width!r} does not go with weight_range={self.weight_range!r}, "
                f"weight_symmetric={self.weight_symmetric}, which are for integers."
            )
        return width

    @property
    def weight_grid(self) -> AnyGrid | None:
        if self.weight_bits is None:
            return None
        if self.weight_format is not None:
            return FLOAT_FORMATS[self.weight_format]
        return IntGrid(self.weight_bits, signed=True, narrow=self.weight_narrow)

    def weight_grid_of(self, layer: str) -> AnyGrid | None:
        """The grid of one layer's weight: ``layer_bits`` where it names the layer."""
        width = dict(self.layer_bits).get(layer)
        if width is None:
            return self.weight_grid
        if isinstance(width, str):
            return FLOAT_FORMATS[width]
        return IntGrid(width, signed=True, narrow=self.weight_narrow)

    @property
    def activation_grid(self) -> AnyGrid | None:
        if self.activation_bits is None:
            return None
        if self.activation_format is not None:
            return FLOAT_FORMATS[self.activation_format]
        return IntGrid(self.activation_bits, signed=self.activation_signed)

    @property
    def formats(self) -> list[str]:
        """Names of the formats of floats that it asks for, each once."""
        widths = [width for _, width in self.layer_bits if isinstance(width, str)]
        named = [self.weight_format, self.activation_format, *widths]
        return list(dict.fromkeys(name for name in named if name is not None))

    def with_bits(self, bits: int) -> QConfig:
        """The same choices with ``bits`` for all that is quantized (None stays None).

        Layers that ``layer_bits`` names keep their own width. Raises QuantizationError where a
        format of floats, which has a width of its own, stands against it.
        """
        for what in ("weight", "activation"):
            name = getattr(self, f"{what}_format")
            if name is not None and bits != FLOAT_FORMATS[name].bits:
                raise QuantizationError(
                    f"{what}_format={name!r} has {FLOAT_FORMATS[name].bits} bits, asked for are "
                    f"{bits!r}; name another format, or integers by {what}_format=None."
                )
        return replace(
            self,
            weight_bits=None if self.weight_bits is None else bits,
            activation_bits=None if self.activation_bits is None else bits,
        )

    def as_code(self) -> str:
        """Python that makes this config: only what differs from the default is written."""
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"QConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def with_integers(self, bits: int) -> QConfig:
        """The same choices with integers of ``bits`` for the weights of every layer."""
        return replace(self, weight_bits=bits, weight_format=None, layer_bits=())

    @classmethod
    def onnxruntime(cls) -> QConfig:
        """Affine uint8 activations, narrow int8 weights per channel: what ONNX Runtime fuses."""
        return cls()

    @classmethod
    def tensorrt(cls) -> QConfig:
        """Symmetric int8 everywhere, zero point 0: TensorRT's explicit quantization."""
        return cls(
            activation_signed=True,
            activation_symmetric=True,
            fused_activations=FUSABLE,
            target="tensorrt",
        )

    @classmethod
    def arm(cls) -> QConfig:
        """Affine int8 activations, narrow int8 weights per channel: LiteRT and CMSIS-NN kernels."""
        return cls(activation_signed=True, target="arm")


def _format(where: str, name: object) -> FloatFormat:
    try:
        return float_format(str(name))
    except QuantizationError as error:
        raise QuantizationError(f"{where}: {error}") from None


def _are_names(given: object) -> bool:
    if not isinstance(given, Collection) or isinstance(given, str):
        return False
    return all(isinstance(name, str) for name in given)
