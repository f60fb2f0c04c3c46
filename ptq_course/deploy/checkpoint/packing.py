"""Codes of a few bits as bytes: two INT4 codes to a byte, eight codes of 3 bits to three bytes.

Chapters 05 and 13. Codes form one stream of bits, the first code in the lowest bits of the first
byte (as ONNX stores INT4). So every width from 1 to 7 bits costs exactly that many bits, whether it
divides 8 or not; only the last byte is filled up with zeros. 8 bits are bytes, 9 to 16 are int16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptq_course.errors import QuantizationError, whole

AT_ONCE = 8  # eight codes of b bits fill b bytes, and with b < 8 they fit into one int64


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer codes of any shape as a stored tensor of one dimension.

    codes: signed (two's complement) or unsigned integers that fit ``bits`` (1 to 16).
    Returns uint8 [ceil(n * bits / 8)] for up to 8 bits, int16 [n] above.
    Raises QuantizationError for other bits, floating-point codes, or a code that does not fit.
    """
    bits = whole("pack: bits", bits, 1, 16)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise QuantizationError(f"pack: codes must be integers, got {codes.dtype}; quantize first.")
    flat = codes.detach().cpu().flatten().long()
    if flat.numel():
        low, high = (int(v) for v in torch.aminmax(flat))
        if low < -(2 ** (bits - 1)) or high >= 2**bits or (low < 0 and high >= 2 ** (bits - 1)):
            raise QuantizationError(f"pack: codes from {low} to {high} do not fit {bits} bits.")
    flat = flat & (2**bits - 1)  # two's complement in `bits` bits
    if bits > 8:
        return torch.where(flat >= 2**15, flat - 2**16, flat).to(torch.int16)
    if bits == 8:
        return flat.to(torch.uint8)
    count = flat.numel()
    rows = torch.nn.functional.pad(flat, (0, -count % AT_ONCE)).reshape(-1, AT_ONCE)
    words = (rows << _shifts(AT_ONCE, bits)).sum(1, keepdim=True)
    stored = (words >> _shifts(bits, 8)) & 255
    return stored.to(torch.uint8).flatten()[: math.ceil(count * bits / 8)].clone()


def unpack(stored: Tensor, bits: int, shape: tuple[int, ...], signed: bool) -> Tensor:
    """The codes that `pack` stored, in the smallest dtype that holds every code of ``bits``.

    Raises QuantizationError where ``stored`` has another type or length than ``shape`` needs.
    """
    bits = whole("unpack: bits", bits, 1, 16)
    count = math.prod(shape)
    dtype, length = (torch.int16, count) if bits > 8 else (torch.uint8, math.ceil(count * bits / 8))
    if stored.dtype != dtype or stored.shape != (length,):
        raise QuantizationError(
            f"unpack: {count} codes of {bits} bits are stored as {dtype} [{length}], got "
            f"{stored.dtype} {list(stored.shape)}."
        )
    flat = stored.long()
    if bits < 8:
        rows = torch.nn.functional.pad(flat, (0, -length % bits)).reshape(-1, bits)
        words = (rows << _shifts(bits, 8)).sum(1, keepdim=True)
        flat = (words >> _shifts(AT_ONCE, bits)).flatten()[:count]
    flat = flat & (2**bits - 1)
    if signed:
        flat = torch.where(flat >= 2 ** (bits - 1), flat - 2**bits, flat)
        return flat.reshape(shape).to(torch.int8 if bits <= 8 else torch.int16)
    wide = torch.int16 if bits < 16 else torch.int32
    return flat.reshape(shape).to(torch.uint8 if bits <= 8 else wide)


def _shifts(count: int, step: int) -> Tensor:
    return torch.arange(count) * step
