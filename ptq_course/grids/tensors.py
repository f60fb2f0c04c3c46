"""What arithmetic can read: dense tensors of real numbers. Chapters 01 and 02.

Every door that takes a tensor asks here, so that a tensor in another form is refused in one way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ptq_course.errors import QuantizationError

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SCALE_FLOOR = torch.finfo(torch.float32).tiny  # smallest normal float32: 1 / SCALE_FLOOR is finite


def check_tensor(
    x: Tensor,
    where: str,
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
    *,
    filled: bool = False,
    error: type[QuantizationError] = QuantizationError,
) -> None:
    """Raise ``error``, beginning with ``where``, unless x is a dense tensor of one of ``dtypes``.

    Refused are what is no tensor, tensors without values (on the device "meta", of a lazy layer),
    PyTorch's own quantized ones, sparse, nested, masked and other layouts, and other dtypes; with
    ``filled`` also an empty one. What to do instead is part of the message.
    """
    if not isinstance(x, Tensor):
        found, remedy = type(x).__name__, f"a tensor of {_kind(dtypes)}: torch.as_tensor(x)"
    elif is_lazy(x):
        found, remedy = "the parameter of a lazy layer", "values: run the model once before"
    elif x.is_nested:
        found, remedy = "a nested tensor", "its parts, one by one: x.unbind()"
    elif x.is_quantized:
        found, remedy = f"a quantized tensor ({x.dtype})", "its values: x.dequantize()"
    elif x.layout != torch.strided:
        found, remedy = f"a tensor in the layout {x.layout}", "a dense one: x.to_dense()"
    elif x.device.type == "meta":
        found, remedy = "a tensor on the device 'meta'", "values: load the weights or data first"
    elif isinstance(x, torch.masked.MaskedTensor):
        found, remedy = "a masked tensor", "the values that count: x.get_data()[x.get_mask()]"
    elif x.dtype not in dtypes:
        found = f"{x.dtype} of shape {tuple(x.shape)}"
        remedy = f"{_kind(dtypes)}: " + ("x.float()" if torch.float32 in dtypes else "quantize")
    elif filled and x.numel() == 0:
        found, remedy = f"a tensor that is empty (shape {tuple(x.shape)})", "values: leave it out"
    else:
        return
    raise error(f"{where}: got {found}, needs {remedy}")


def _kind(dtypes: tuple[torch.dtype, ...]) -> str:
    floats = "floating-point values " if dtypes == FLOAT_DTYPES else ""
    return f"{floats}({', '.join(str(d).removeprefix('torch.') for d in dtypes)})"
