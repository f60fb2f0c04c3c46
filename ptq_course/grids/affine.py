"""Affine quantization: from real numbers to integers and back (chapter 01; block sizes: 05).

    q     = clamp(round(x / scale) + zero_point, qmin, qmax)      quantize
    x_hat = (q - zero_point) * scale                              dequantize

One version of each serves per-tensor, per-channel, per-group and per-token quantization: a
`block_size` says which elements of x share a scale (the idea is torchao's).

Method: Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018. Rounding is half to even and
saturation comes before the cast to an integer, as ONNX's QuantizeLinear specifies.

The same four functions serve grids of small floats (FP8, MXFP4, chapter 13): `floats.FloatFormat`
stands where an `IntGrid` stands, and `FloatQParams`, which have no zero point, for `QParams`.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, flag, whole
from ptq_course.grids.blocks import (
    BlockSize,
    checked_block_size,
    parameter_for_blocks,
    split_into_blocks,
)
from ptq_course.grids.float_grids import check_bit_patterns
from ptq_course.grids.float_scales import (
    FloatQParams,
    dequantize_float,
    fake_quantize_float,
    quantize_float,
)
from ptq_course.grids.floats import FloatFormat, format_name
from ptq_course.grids.tensors import FLOAT_DTYPES, INTEGER_DTYPES, SCALE_FLOOR, check_tensor

FLOAT32_MAX = torch.finfo(torch.float32).max
ZERO = torch.zeros((), device="cpu")  # of any device and dtype to what is added to it


@dataclass(frozen=True)
class IntGrid:
    """The integers that codes may take: qmin, qmin + 1, ..., qmax.

    bits: 2 to 16. signed: two's complement, else from 0. narrow: leave out the lowest code, so that
    8 bits mean [-127, 127] and the grid is as long on the left as on the right.
    Raises QuantizationError for other bits, and for a narrow grid that is not signed.
    """

    bits: int = 8
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole("bits", self.bits, 2, 16))
        signed, narrow = flag("signed", self.signed), flag("narrow", self.narrow)
        if narrow and not signed:
            raise QuantizationError("a narrow grid must be signed: use IntGrid(bits, narrow=False)")

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def levels(self) -> int:
        """How many codes there are: 2^bits, or one fewer on a narrow grid."""
        return self.qmax - self.qmin + 1

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch dtype that holds every code."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.qmax <= torch.iinfo(torch.int16).max else torch.int32


@dataclass(frozen=True, eq=False)
class QParams:
    """Scale and zero point, the grid they lead to, and which elements share them.

    block_size None: one pair for the whole tensor, both 0-d. Otherwise one entry for each dimension
    of x, -1 standing for the whole dimension; scale and zero_point then have one entry per block:

        per channel of a convolution's weight   (1, -1, -1, -1)   scale [C, 1, 1, 1]
        per group of 64 of a Linear's weight    (1, 64)           scale [out, in / 64]
        per token of a [B, T, D] activation     (1, 1, -1)        scale [B, T, 1]

    scale: float32, positive and finite. zero_point: int32, inside the grid, same shape.
    Raises QuantizationError when one of these does not hold.
    """

    scale: Tensor
    zero_point: Tensor
    grid: IntGrid
    block_size: BlockSize = None

    def __post_init__(self) -> None:
        scale, zero_point = self.scale, self.zero_point
        check_grid(self.grid)
        check_tensor(scale, "scale (choose_qparams makes one)", (torch.float32,))
        check_tensor(zero_point, "zero_point (choose_qparams makes one)", (torch.int32,))
        if scale.shape != zero_point.shape:
            raise QuantizationError(
                f"scale has shape {tuple(scale.shape)}, zero_point {tuple(zero_point.shape)}: they "
                "must be alike"
            )
        object.__setattr__(self, "block_size", checked_block_size(self.block_size, scale))
        if torch.compiler.is_compiling():  # torch.export asks no tensor what it holds
            return
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise QuantizationError("every scale must be positive and finite: call choose_qparams")
        if bool(((zero_point < self.grid.qmin) | (zero_point > self.grid.qmax)).any()):
            raise QuantizationError(
                f"zero_point must lie in [{self.grid.qmin}, {self.grid.qmax}], found "
                f"[{int(zero_point.min())}, {int(zero_point.max())}]"
            )

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0, so that codes times scale are the values."""
        return not bool(self.zero_point.any())

    def to(self, device: torch.device | str) -> QParams:
        return QParams(
            self.scale.to(device), self.zero_point.to(device), self.grid, self.block_size
        )


AnyQParams = QParams | FloatQParams
AnyGrid = IntGrid | FloatFormat


@overload
def choose_qparams(
    low: float | Tensor, high: float | Tensor, grid: IntGrid, symmetric: bool = False,
    block_size: BlockSize = None,
) -> QParams: ...  # fmt: skip
@overload
def choose_qparams(
    low: float | Tensor, high: float | Tensor, grid: FloatFormat, symmetric: bool = False,
    block_size: BlockSize = None,
) -> FloatQParams: ...  # fmt: skip
@overload
def choose_qparams(
    low: float | Tensor, high: float | Tensor, grid: AnyGrid, symmetric: bool = False,
    block_size: BlockSize = None,
) -> AnyQParams: ...  # fmt: skip
def choose_qparams(
    low: float | Tensor,
    high: float | Tensor,
    grid: AnyGrid,
    symmetric: bool = False,
    block_size: BlockSize = None,
) -> AnyQParams:
    """Scale and zero point that map the real range [low, high] onto the grid.

    symmetric: zero_point = 0, scale = max(|low|, |high|) / qmax (an unsigned grid needs low >= 0).
    affine:    the range is widened to contain 0, so that real zero is a code exactly, then
               scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale).
    a FloatFormat is always symmetric: its scale puts max(|low|, |high|) on its largest value.

    low, high: numbers or tensors of equal shape: 0-d for block_size None, else one entry per block,
    as block_minmax returns them. Computed in float64, stored as float32 with a floor at the
    smallest normal number (1.2e-38). A range that is only zero gets scale 1.
    Error of a value inside the range: half a step, plus the rounding of the float32 scale, which
    is under (qmax - qmin) * 2^-24 of a step. Where the last code would decode beyond float32
    (ranges within a step of 3.4e38) the scale shrinks until it does not, and the end clips by up
    to a step.

    Raises QuantizationError for bounds that are no real numbers, NaN, infinite, beyond float32, or
    low > high.
    """
    if not isinstance(grid, FloatFormat):
        check_grid(grid)
    device = low.device if isinstance(low, Tensor) else torch.device("cpu")
    low, high = _as_bounds(low, high)
    if isinstance(grid, FloatFormat):
        return grid.from_largest(torch.maximum(low.abs(), high.abs()).to(device), block_size)
    if symmetric:
        if not grid.signed and bool((low < 0).any()):
            raise QuantizationError(
                f"a symmetric range on an unsigned grid needs low >= 0, got {float(low.min()):g}: "
                "use a signed grid or symmetric=False"
            )
        scale = torch.maximum(low.abs(), high.abs()) / grid.qmax
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = (high - low) / (grid.qmax - grid.qmin)

    scale = torch.where(scale > 0, scale, 1.0).to(torch.float32).clamp(min=SCALE_FLOOR)
    if symmetric:
        zero_point = torch.zeros_like(low)
    else:
        zero_point = (grid.qmin - low / scale.double()).round().clamp(grid.qmin, grid.qmax)
    scale = torch.minimum(scale, _largest_scale(zero_point, grid))
    zero_point = zero_point.to(torch.int32)
    return QParams(scale.to(device), zero_point.to(device), grid, block_size)


def block_minmax(x: Tensor, block_size: BlockSize = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each block, shaped "number of blocks in each dimension".

    x: floating point, not empty. block_size None gives two 0-d tensors. NaN comes out as NaN.
    Raises QuantizationError for an empty x or one that `check_tensor` refuses, and for a block_size
    that does not fit x.
    """
    check_tensor(x, "block_minmax", filled=True)
    if block_size is None:
        low, high = torch.aminmax(x)
        return low, high
    blocks = split_into_blocks(x, block_size)
    inside = tuple(range(1, blocks.ndim, 2))
    return blocks.amin(dim=inside), blocks.amax(dim=inside)


def quantize(x: Tensor, qparams: AnyQParams) -> Tensor:
    """Integer codes of x: clamp(round(x / scale) + zero_point, qmin, qmax), in the grid's dtype.

    x: any floating dtype and shape; float16 and bfloat16 are computed in float32. Plus and minus
    infinity saturate. On a grid of floats a code is the bit pattern of the rounded x / scale.
    Raises QuantizationError for integer x, NaN, or blocks that do not fit x.
    """
    if isinstance(qparams, FloatQParams):
        return quantize_float(x, qparams)
    return _codes_as_float(x, qparams).to(qparams.grid.dtype)


def dequantize(codes: Tensor, qparams: AnyQParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """The reals that integer codes stand for: (codes - zero_point) * scale.

    codes: integer tensor, taken to lie inside the grid. Computed in float64 for dtype float64,
    else in float32; a value that float16 or bfloat16 cannot hold becomes their largest finite one.
    Raises QuantizationError for codes that are no integers and for a dtype other than these four.
    """
    check_tensor(codes, "dequantize", INTEGER_DTYPES)
    if isinstance(qparams, FloatQParams):
        _check_dtype(dtype)
        return dequantize_float(codes, qparams, dtype)
    return _decode(codes.to(_compute_dtype(dtype)), qparams, dtype)


def fake_quantize(x: Tensor, qparams: AnyQParams) -> Tensor:
    """dequantize(quantize(x)) in x's dtype, without the trip through integer storage.

    Same values and same errors as the two calls; x is of one of FLOAT_DTYPES. PyTorch's
    fake_quantize functions multiply by 1 / scale where this divides: equal except at near-ties, a
    few in ten million up to 8 bits, a hundred at 12, two thousand at 16. They compute float64 in
    float32, too.

    Rounding has gradient zero, so no gradient comes through. Learning through it takes the
    straight-through estimator: chapter 14.
    """
    if isinstance(qparams, FloatQParams):
        return fake_quantize_float(x, qparams)
    check_tensor(x, "quantize")
    if qparams.block_size is not None or x.requires_grad or torch.compiler.is_compiling():
        return _decode(_codes_as_float(x, qparams), qparams, x.dtype)
    # The same numbers in fewer passes over x, for the activations of a simulation: codes less their
    # zero point. Adding 0 makes a +0 of every -0, as subtracting a zero point does.
    grid, zero_point, scale = qparams.grid, qparams.zero_point.item(), qparams.scale.item()
    values = x.to(_compute_dtype(x.dtype))
    values = (values / qparams.scale.to(values)).round_()  # CUDA would multiply by 1 / a number
    values.clamp_(grid.qmin - zero_point, grid.qmax - zero_point)
    _check_no_nan(values, x)
    return _cast(torch.add(ZERO, values, alpha=scale, out=values), x.dtype)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized tensor: integer codes with the QParams, or the codebook, that decode them.

    codes: integers of the tensor's shape. qparams: value = (code - zero_point) * scale, or
    bit patterns of floats (`FloatQParams`).
    codebook: float tensor [K], value = codebook[code] (weight clustering, chapter 13).
    Exactly one of the two is given. Raises QuantizationError otherwise, and for codes out of range.
    """

    codes: Tensor
    qparams: AnyQParams | None = None
    codebook: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.qparams is None) == (self.codebook is None):
            raise QuantizationError("QTensor needs either qparams or codebook, and not both")
        lowest, highest = 0, 0
        if isinstance(self.qparams, QParams):
            lowest, highest = self.qparams.grid.qmin, self.qparams.grid.qmax
        elif self.codebook is not None:
            check_tensor(self.codebook, "codebook", filled=True)
            if self.codebook.ndim != 1:
                raise QuantizationError(
                    f"codebook has shape {tuple(self.codebook.shape)}, needs [K]: one value a code"
                )
            lowest, highest = 0, len(self.codebook) - 1
        check_tensor(self.codes, "codes", INTEGER_DTYPES)
        if torch.compiler.is_compiling():
            return
        if isinstance(self.qparams, FloatQParams):
            check_bit_patterns(self.codes, self.qparams.grid)
        elif self.codes.numel():
            found_low, found_high = (int(v) for v in torch.aminmax(self.codes))
            if found_low < lowest or found_high > highest:
                raise QuantizationError(
                    f"codes must lie in [{lowest}, {highest}], found [{found_low}, {found_high}]"
                )

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def require_qparams(self) -> QParams:
        """The QParams; QuantizationError where a codebook or a grid of floats decodes the codes."""
        if not isinstance(self.qparams, QParams):
            raise QuantizationError(
                f"{self.decoded_by} decodes these codes, and products of integers need a scale and "
                "a zero point: use weights on a grid of integers, or dequantize()"
            )
        return self.qparams

    @property
    def decoded_by(self) -> str:
        """What decodes the codes, in words: a codebook, an integer grid, or a named format."""
        if self.codebook is not None:
            return "a codebook"
        if isinstance(self.qparams, FloatQParams):
            return f"the floating-point format {format_name(self.qparams)}"
        return "an integer grid"

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        if self.codebook is not None:
            return max(1, math.ceil(math.log2(len(self.codebook))))
        assert self.qparams is not None
        return self.qparams.grid.bits

    @property
    def nbits_per_value(self) -> float:
        """Bits of storage for one value, its share of scales, zero points or codebook included.

        Scales and codebook entries count 32 bits; zero points count as a code, or 0 bits where all
        of them are 0.
        """
        if isinstance(self.qparams, FloatQParams):
            return self.qparams.nbits_per_value(self.codes.numel())
        if self.codebook is not None:
            shared_bits = 32 * len(self.codebook)
        else:
            qparams = self.require_qparams()
            zero_point_bits = 0 if qparams.symmetric else self.code_bits
            shared_bits = (32 + zero_point_bits) * qparams.scale.numel()
        return self.code_bits + shared_bits / max(1, self.codes.numel())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.codebook is not None:
            _check_dtype(dtype)
            return self.codebook.to(dtype)[self.codes.long()]
        assert self.qparams is not None
        return dequantize(self.codes, self.qparams, dtype)


# --- the two formulas, on floats ---------------------------------------------------------------


def unclamped_codes(x: Tensor, qparams: QParams) -> Tensor:
    """The codes of a floating-point x before they saturate, as floats of x's shape."""
    values, scale, zero_point = _aligned(x.to(_compute_dtype(x.dtype)), qparams)
    return (values / scale).round_().add_(zero_point).reshape(x.shape)


def _codes_as_float(x: Tensor, qparams: QParams) -> Tensor:
    """The codes as floats, which is all that fake_quantize needs."""
    check_tensor(x, "quantize")
    codes = unclamped_codes(x, qparams)
    codes.clamp_(qparams.grid.qmin, qparams.grid.qmax)  # saturate, then cast: never the other way
    if not torch.compiler.is_compiling():  # a NaN stays a NaN there
        _check_no_nan(codes, x)
    return codes


def _check_no_nan(codes: Tensor, x: Tensor) -> None:
    if math.isnan(codes.sum().item()):  # clamped codes are finite: only a NaN makes the sum NaN
        raise QuantizationError(
            f"quantize: {int(torch.isnan(x).sum())} of {x.numel()} values are NaN, which no code "
            "stands for: find the layer that produces them"
        )


def _decode(codes: Tensor, qparams: QParams, dtype: torch.dtype) -> Tensor:
    """(codes - zero_point) * scale; `codes` is a fresh float tensor and is overwritten."""
    values, scale, zero_point = _aligned(codes, qparams)
    return _cast(values.sub_(zero_point).mul_(scale).reshape(codes.shape), dtype)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Fresh values in the dtype asked for; what float16 or bfloat16 cannot hold saturates."""
    _check_dtype(dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return values
    largest = torch.finfo(dtype).max
    return values.clamp_(-largest, largest).to(dtype)


def _aligned(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor, Tensor]:
    """x cut into blocks, with scale and zero point on its device, ready to broadcast against it."""
    scale = qparams.scale.to(x.device, x.dtype)
    zero_point = qparams.zero_point.to(x.device, x.dtype)
    if qparams.block_size is None:
        return x, scale, zero_point
    blocks = split_into_blocks(x, qparams.block_size)
    return blocks, parameter_for_blocks(scale, blocks), parameter_for_blocks(zero_point, blocks)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _largest_scale(zero_point: Tensor, grid: IntGrid) -> Tensor:
    """The largest float32 scale, less one ulp, whose last code decodes finite."""
    steps = torch.maximum(grid.qmax - zero_point, zero_point - grid.qmin)
    bound = (FLOAT32_MAX / steps).to(torch.float32)
    return torch.nextafter(bound, torch.zeros_like(bound))


# --- checks --------------------------------------------------------------------------------------


def check_grid(grid: IntGrid) -> None:
    """Raise QuantizationError for what is no IntGrid (a number of bits, say)."""
    if not isinstance(grid, IntGrid):
        raise QuantizationError(f"grid must be an IntGrid, got {grid!r}: IntGrid(bits=8)")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in FLOAT_DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
        raise QuantizationError(f"codes decode to {names}, got {dtype}: convert afterwards")


def _as_bounds(low: float | Tensor, high: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64 on the CPU (some devices have no float64), checked."""
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, Tensor):
            check_tensor(bound, name, (*FLOAT_DTYPES, *INTEGER_DTYPES))
    bounds = (b.detach().cpu() if isinstance(b, Tensor) else b for b in (low, high))
    try:
        low, high = (torch.as_tensor(b, dtype=torch.float64) for b in bounds)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise QuantizationError(
            "low and high must be real numbers, or tensors of them, that float64 holds; got "
            f"{reprlib.repr(low)} and {reprlib.repr(high)}"
        ) from None
    if low.shape != high.shape:
        raise QuantizationError(
            f"low has shape {tuple(low.shape)}, high {tuple(high.shape)}: they must be alike"
        )
    if torch.compiler.is_compiling():  # torch.export asks no tensor what it holds
        return low, high
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise QuantizationError("a bound is NaN or infinite: look for NaN or infinity in the data")
    if bool((torch.maximum(low.abs(), high.abs()) > FLOAT32_MAX).any()):
        raise QuantizationError("a bound lies beyond float32 (3.4e38), in which scales are stored")
    if bool((low > high).any()):
        worst = int((low - high).argmax())
        raise QuantizationError(
            f"low {float(low.flatten()[worst]):g} is above high {float(high.flatten()[worst]):g}"
        )
    return low, high
