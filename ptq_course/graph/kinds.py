"""What each operation does to integers: the tables behind the plan.

Chapters 04 and 06. An operation is a module's type, a function, or the name of a tensor's method.
What is in no table stays in floating point, and the plan says so.
"""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ptq_course.graph.layer_types import LAYER_TYPES, plain_type, rescales, swap_last
from ptq_course.graph.masks import MaskedSoftmax, ZeroPadding
from ptq_course.graph.recurrent import GRU, LSTM, RNN, STAYS_FLOAT

# Activations that a runtime may compute inside the layer before them.
FUSABLE = ("relu", "relu6", "hardswish", "silu")
ALWAYS_FUSED = ("relu", "relu6")

Operation = Any  # type[nn.Module], a function, or a method's name


class Kind(Enum):
    """What an operation does to integers."""

    WEIGHTED = "has a weight, computes with integers"
    BINARY = "computes with two or more integer values, each with its own scale"
    CLAMP = "only clamps or scales (or is fused): merges into the operation before it"
    CURVE = "a function of one value: integers in, integers out"
    SOFTMAX = "a curve whose output range is known to be [0, 1]"
    INHERIT = "moves or averages codes: the output keeps the scale of its input"
    FLOAT = "stays in floating point"


WEIGHTED_MODULES: tuple[type[nn.Module], ...] = tuple(LAYER_TYPES)


def every_form(names: str) -> frozenset[Operation]:
    """Each name as a method, and as a function of torch, torch.nn.functional and operator."""
    places = (torch, F, operator)
    found = [getattr(place, name, None) for name in names.split() for place in places]
    return frozenset(names.split()) | frozenset(filter(callable, found))


def _modules(names: str) -> frozenset[type[nn.Module]]:
    return frozenset(getattr(nn, name) for name in names.split())


MEANS = every_form("mean")
AVERAGING = MEANS | every_form(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
) | _modules(
    "AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d"
)  # fmt: skip
RESIZING = _modules("Upsample UpsamplingNearest2d UpsamplingBilinear2d") | {
    F.interpolate, F.upsample
}  # fmt: skip
_PADDING = {F.pad}
ADDITIONS = every_form("add add_ iadd")
SUBTRACTIONS = every_form("sub sub_ isub subtract")
PRODUCTS = every_form("mul mul_ imul multiply")  # element by element
DIVISIONS = every_form("div truediv div_ itruediv divide true_divide")
SCALINGS = DIVISIONS | PRODUCTS
JOINS = every_form("cat concat concatenate")
# Sums and products, as opposed to contractions (matmul) and joins (cat).
ARITHMETIC = ADDITIONS | SUBTRACTIONS | PRODUCTS | MEANS | every_form("neg abs sum div truediv")
# Small changes of their input are large changes of their output: rounding it would ruin a formula.
FORMULAS = DIVISIONS | {torch.linalg.norm, torch.linalg.vector_norm} | every_form(
    "pow square sqrt rsqrt reciprocal exp expm1 log log2 log1p var std var_mean norm logsumexp"
)  # fmt: skip
SOFTMAXES = every_form("softmax") | {nn.Softmax, nn.Softmax2d, MaskedSoftmax}
# The activations that a runtime may fuse into the layer before (QConfig.fused_activations).
ACTIVATIONS: dict[str, frozenset[Operation]] = {
    "relu": every_form("relu relu_") | {nn.ReLU},
    "relu6": every_form("relu6") | {nn.ReLU6},
    "hardswish": every_form("hardswish") | {nn.Hardswish},
    "silu": every_form("silu") | {nn.SiLU},
}
# Max pooling: over how many dimensions, and its settings in order.
MAX_POOLS: dict[Operation, tuple[int, tuple[str, ...]]] = {
    operation: (dims, names)
    for dims in (1, 2, 3)
    for function, kind, names in (
        ("max_pool", "MaxPool", ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
        ("adaptive_max_pool", "AdaptiveMaxPool", ("output_size",)),
    )
    for operation in (*every_form(f"{function}{dims}d"), getattr(nn, f"{kind}{dims}d"))
}
# They move codes, or choose among them, whatever the scale: the same numbers in another shape or
# order, or the largest of them.
MOVES = {swap_last, *MAX_POOLS} | every_form(
    "flatten reshape view transpose permute squeeze unsqueeze contiguous clone detach chunk split "
    "tensor_split unbind t T mT swapaxes swapdims movedim moveaxis expand expand_as view_as "
    "reshape_as repeat tile repeat_interleave roll flip narrow select index_select getitem "
    "unflatten unfold gather diagonal pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle broadcast_to cpu cuda dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_alpha_dropout amax amin"
) | _modules(
    "Flatten Unflatten PixelShuffle PixelUnshuffle ChannelShuffle Identity Dropout Dropout1d "
    "Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"
)  # fmt: skip
# x.float() of an input: integers until here, so that the scale belongs behind it.
CONVERSIONS = every_form("float to type_as")
BORDERS = _PADDING | {ZeroPadding} | _modules(  # zero is on every grid
    "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d "
    "ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d"
)  # fmt: skip
CONTRACTIONS = every_form("matmul imatmul mm bmm mv dot addmm baddbmm")
_CURVES = DIVISIONS | every_form(
    "hardswish hardsigmoid silu sigmoid sigmoid_ tanh tanh_ leaky_relu leaky_relu_ hardtanh clamp "
    "clamp_ clip clamp_min clamp_max neg abs sum"
) | _modules("Hardswish Hardsigmoid SiLU Sigmoid Tanh LeakyReLU Hardtanh")  # fmt: skip
KINDS: dict[Operation, Kind] = {
    operation: kind
    for operations, kind in (
        (AVERAGING | RESIZING | BORDERS | MOVES | CONVERSIONS, Kind.INHERIT),
        (ADDITIONS | SUBTRACTIONS | PRODUCTS | JOINS | CONTRACTIONS, Kind.BINARY),
        (every_form("stack hstack vstack dstack maximum minimum"), Kind.BINARY),
        (_CURVES, Kind.CURVE),
        (ACTIVATIONS["relu"] | ACTIVATIONS["relu6"], Kind.CLAMP),
        (SOFTMAXES, Kind.SOFTMAX),
        (WEIGHTED_MODULES, Kind.WEIGHTED),
    )
    for operation in operations
}

# Their results are shapes and numbers, never a tensor that could be quantized.
NOT_TENSORS = {torch._assert, vars(torch)["_shape_as_tensor"], len, int, float} | every_form(
    "size dim ndim numel stride floordiv item tolist is_floating_point"
)
# x.T is a tensor, x.shape is not
TENSOR_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "values", "real", "imag"}
CREATING = every_form(
    "arange zeros ones full empty eye linspace rand randn zeros_like ones_like full_like "
    "empty_like rand_like randn_like new_zeros new_ones new_full new_empty"
)
# Their results are integers or truth values whatever they read.
INTEGER_MAKING = every_form(
    "eq ne lt le gt ge logical_not logical_and logical_or isnan isinf isfinite bool long int "
    "argmax argmin argsort bucketize arange and_ or_ xor invert inv nonzero one_hot"
)
# Their arguments are angles, sampling addresses, sides of a comparison or what becomes an index:
# the position of that argument, None for all. Rounding it to 8 bits would be another angle.
ADDRESSING: dict[Operation, int | None] = {
    **dict.fromkeys(
        every_form(
            "sin cos tan eq ne lt le gt ge argmax argmin argsort bucketize searchsorted floor ceil "
            "round long int bool"
        )
    ),
    **dict.fromkeys(every_form("grid_sample"), 1),
}
# They give (values, indices): the values are numbers of the network, the indices are integers.
CHOOSING = every_form("topk sort max min kthvalue median nanmedian mode cummax cummin")
FLOAT_MAKING = DIVISIONS | every_form("float to type_as half double sigmoid mean")
MASKING = every_form("masked_fill masked_fill_ where triu tril")


def called(module: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for functions, methods and inputs."""
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def operation_of(module: nn.Module, node: fx.Node) -> Operation:
    """The type of a node's module, its function, or its method's name; None for inputs."""
    if not node.op.startswith("call"):
        return None
    if (part := called(module, node)) is not None:
        return plain_type(type(part))
    if node.target is getattr and len(node.args) == 2 and node.args[1] in TENSOR_ATTRIBUTES:
        return node.args[1]
    return node.target


def averages(module: nn.Module, node: fx.Node) -> bool:
    """Whether an inheriting operation leaves the grid of its input, so that it must round again."""
    operation = operation_of(module, node)
    if operation in RESIZING:
        return not str(_setting(module, node, "mode", 3, "nearest")).startswith("nearest")
    return operation in AVERAGING


def refusal(module: nn.Module, node: fx.Node) -> str | None:
    """Why an operation in the tables stays in floating point with these settings, or None."""
    operation = operation_of(module, node)
    kind = KINDS.get(operation, Kind.FLOAT)
    if kind is Kind.FLOAT:
        return _WHY.get(operation, f"{_name(operation)} has no integer form here")
    given = len(node.args) + len(node.kwargs)
    if kind is Kind.WEIGHTED and given != 1:
        return f"{_name(operation)} is called with more than its input (output_size?)"
    if kind is Kind.WEIGHTED and rescales(module.get_submodule(str(node.target))):
        return f"{_name(operation)} with max_norm rescales its weight at run time"
    if operation in RESIZING and "cubic" in str(_setting(module, node, "mode", 3, "nearest")):
        return "bicubic interpolation leaves the range of its input"
    if operation in _PADDING or (isinstance(operation, type) and "ConstantPad" in _name(operation)):
        filled = _setting(module, node, "mode", 2, "constant") == "constant"
        if filled and _setting(module, node, "value", 3, 0.0) not in (0, None):
            return "padding with a constant other than 0"
    if kind is Kind.INHERIT and _setting(module, node, "return_indices", 9, False):
        return f"{_name(operation)} with return_indices gives two tensors"
    return None


def _setting(module: nn.Module, node: fx.Node, name: str, position: int, default: Any) -> Any:
    """A setting of a module, or an argument of a function by keyword or position."""
    if node.op == "call_module":
        return getattr(module.get_submodule(str(node.target)), name, default)
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def is_known(kind: type[nn.Module]) -> bool:
    """Whether a module computes as a class that the tables know."""
    return plain_type(kind) in KINDS or plain_type(kind) in _WHY


def _name(operation: Operation) -> str:
    return getattr(operation, "__name__", str(operation))


_RECURRENT = "is recurrent; only nn.LSTM without proj_size, nn.GRU and nn.RNN get integer weights"
_STATISTICS = "normalizes with statistics of its input"
_WHY: dict[Operation, str] = {
    **{kind: f"{_name(kind)} {_RECURRENT}" for kind in _modules(
        "RNN LSTM GRU RNNCell LSTMCell GRUCell")},
    **{kind: STAYS_FLOAT.format(_name(kind)) for kind in (RNN, LSTM, GRU)},
    **{kind: f"{_name(kind)} {_STATISTICS}" for kind in _modules(
        "LayerNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm")},
    **{kind: f"{_name(kind)} follows no layer that could absorb it" for kind in _modules(
        "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm")},
    nn.EmbeddingBag: "EmbeddingBag sums rows of its table inside one kernel",
    nn.MultiheadAttention: "MultiheadAttention with bias_k, add_zero_attn or a changed forward()",
    **dict.fromkeys(FORMULAS - DIVISIONS, "part of a formula that is computed in floating point"),
    **dict.fromkeys(every_form("einsum"), "einsum has no integer kernel; write it as matmul"),
    **dict.fromkeys(every_form("batch_norm"),
                    "batch_norm follows no layer that could absorb it, or uses the batch"),
    **dict.fromkeys([*every_form("layer_norm group_norm instance_norm rms_norm")],
                    f"the norm {_STATISTICS}"),
    **dict.fromkeys(
        [*(row.function for row in LAYER_TYPES.values()), *every_form("bilinear")],
        "its weight is computed from data, or its settings are not constants"),
}  # fmt: skip
