"""Products of integers that come out exact, computed by floating-point kernels. Chapters 07 and 08.

float32 holds every integer up to 2^24 and float64 up to 2^53. So a sum of products of integers is
exact, in whatever order a kernel adds them up, as long as no partial sum can leave that range, and
as long as the kernel computes with the format that it was given. Both are checked here, every time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

FLOAT32_INTEGERS = 2**24  # float32 holds every integer up to here


def exact_product(
    operation: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, bound: float,
    largest: int = 128,
) -> Tensor:  # fmt: skip
    """``operation(x, w)`` as int32: a matrix product or convolution of integers, exact.

    x, w: tensors of any type that hold integers. bound: what the absolute value of no partial sum
    exceeds; the result has to fit into int32. largest: bound of |x|.
    In float32 while ``bound`` is one of its integers (2^24), the user did not allow shorter formats
    (`shortened`) and this device passed its test (`float32_is_exact`); else in float64, which is
    exact to 2^53, as in what torch.export reads, where nothing can be tested. Autocast is off.
    """
    device = x.device.type
    short = bound <= FLOAT32_INTEGERS and not shortened() and not torch.compiler.is_compiling()
    short = short and float32_is_exact(device, largest)
    dtype = torch.float32 if short else torch.float64
    with torch.autocast(device, enabled=False):
        return operation(x.to(dtype), w.to(dtype)).to(torch.int32)


def shortened() -> bool:
    """Whether PyTorch may compute float32 products in a shorter format now (bfloat16, TF32).

    Asked anew each time, since a user may change it at any time. PyTorch raises RuntimeError where
    its newer settings, one for each backend, have no single answer: then it may. Convolutions of
    the processor have a setting of their own.
    """
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return True
    except RuntimeError:
        return True
    conv = getattr(torch.backends.mkldnn, "conv", None)
    return getattr(conv, "fp32_precision", "none") not in ("none", "ieee")


@cache
def float32_is_exact(device: str, largest: int) -> bool:
    """Known-answer test: are float32 products of integers up to ``largest`` exact on this device?

    Adding products is, in any order, while the sums stay below 2^24. Some kernels do something
    else: Winograd convolutions add inputs first, TF32 and bfloat16 shorten them. A matrix product
    and a convolution are compared with float64, which the processor computes.
    """
    generator = torch.Generator().manual_seed(0)
    weights = max(1, min(127, FLOAT32_INTEGERS // (largest * 288)))

    def integers(limit: int, *shape: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=generator).double()

    x, w = integers(largest, 16, 32, 12, 12), integers(weights, 32, 32, 3, 3)
    a, b = integers(largest, 64, 288), integers(weights, 32, 288)
    with torch.no_grad(), torch.autocast(device, enabled=False):
        conv = F.conv2d(x.to(device, torch.float32), w.to(device, torch.float32), padding=1)
        product = F.linear(a.to(device, torch.float32), b.to(device, torch.float32))
        exact = torch.equal(conv.cpu().double(), F.conv2d(x, w, padding=1))
        return exact and torch.equal(product.cpu().double(), F.linear(a, b))
