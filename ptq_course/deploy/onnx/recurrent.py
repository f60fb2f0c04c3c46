"""Recurrent layers in the form in which they are written to a file. Chapters 07 and 15.

ONNX holds one node a layer: LSTM, GRU and RNN with weights in floating point, here what a
DequantizeLinear makes of integer codes; and ONNX Runtime's DynamicQuantizeLSTM, whose weights are
int8 with a scale for each row of a gate, and which rounds input and state to uint8 as it runs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ptq_course.deploy.onnx import ops as onnx_ops  # noqa: F401  (registers the operators)
from ptq_course.errors import UnsupportedError
from ptq_course.graph.recurrent import Recurrent
from ptq_course.simulation.dynamic_layers import DynamicLayer
from ptq_course.simulation.layers import QuantizedLayer

# Where ONNX's gates stand among PyTorch's: i o f c of i f c o, z r h of r z h.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


class ExportedRecurrent(nn.Module):
    """A `Recurrent` with its integer or floating-point weights; one child for each layer."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.batch_first, self.mode = layer.batch_first, layer.mode
        self.count, self.directions = layer.num_layers, layer.directions
        parts, pairs = layer.parts(), 2 * layer.directions
        self.layers = nn.ModuleList(
            _Layer(parts[i : i + pairs], layer) for i in range(0, len(parts), pairs)
        )

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        if x.dim() != 3:
            raise UnsupportedError(
                "export: a recurrent layer reads one sequence without a batch; give it a batch "
                "dimension (x.unsqueeze)."
            )
        given = () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
        x = x.transpose(0, 1) if self.batch_first else x
        ends = []
        for number, layer in enumerate(self.layers):
            first = number * self.directions
            x, *end = layer(x, [state[first : first + self.directions] for state in given])
            ends.append(end)
        states = tuple(torch.cat(values) for values in zip(*ends, strict=True))
        x = x.transpose(0, 1) if self.batch_first else x
        return x, states if self.mode == "LSTM" else states[0]


class _Layer(nn.Module):
    """One layer in one or two directions, as one node."""

    w_codes: Tensor
    w_scale: Tensor | None
    w_zero_point: Tensor | None
    r_codes: Tensor
    r_scale: Tensor | None
    r_zero_point: Tensor | None
    bias: Tensor | None

    def __init__(self, parts: list[nn.Module], layer: Recurrent) -> None:
        super().__init__()
        self.mode, self.hidden = layer.mode, layer.hidden_size
        self.directions = layer.directions
        self.dynamic = isinstance(parts[0], DynamicLayer)
        for side, of_side in (("w", parts[0::2]), ("r", parts[1::2])):
            found = [self._constants(part) for part in of_side]
            for name in ("codes", "scale", "zero_point"):
                values = [value for f in found if (value := f[name]) is not None]
                joined = torch.cat(values) if values else None
                self.register_buffer(f"{side}_{name}", joined)
        self.register_buffer("bias", None)
        if layer.bias:
            biases = [self._by_gate(cast(Any, part).bias.detach()) for part in parts]
            self.bias = torch.cat(biases).reshape(self.directions, -1)
        if self.dynamic:  # [directions, in, rows], the scales [directions, rows]
            for side in ("w", "r"):
                codes = getattr(self, f"{side}_codes").unflatten(0, (self.directions, -1))
                setattr(self, f"{side}_codes", codes.transpose(1, 2).contiguous())
                for name in (f"{side}_scale", f"{side}_zero_point"):
                    setattr(self, name, getattr(self, name).reshape(self.directions, -1))

    def _by_gate(self, rows: Tensor) -> Tensor:
        """Rows of PyTorch's gates in the order of ONNX's."""
        order = _GATES[self.mode]
        gates = rows.unflatten(0, (len(order), -1))
        return torch.cat([gates[gate] for gate in order])

    def _constants(self, part: nn.Module) -> dict[str, Tensor | None]:
        part = part.quantized if isinstance(part, DynamicLayer) else part
        if not isinstance(part, QuantizedLayer):
            weight = cast(Tensor, part.weight).detach()
            return {"codes": self._by_gate(weight), "scale": None, "zero_point": None}
        if part.weight_qparams is None:
            raise UnsupportedError(
                f"export: {part.name} decodes its weights with {part.weight_qtensor.decoded_by}, "
                "for which no recurrent layer has a form; use integer weights, or keep it in "
                "floating point (float_layers)."
            )
        codes, scale = part.weight_codes.to(torch.int8), part.weight_scale
        if scale.numel() not in (1, len(codes)):
            raise UnsupportedError(
                f"export: {part.name} has weights per group, for which no recurrent kernel exists; "
                "use weight_granularity='per_channel', or keep it in floating point (float_layers)."
            )
        zeros = part.weight_zero_point.to(torch.int8)
        return {
            "codes": self._by_gate(codes),
            "scale": self._by_gate(scale.flatten().expand(len(codes))),
            "zero_point": self._by_gate(zeros.flatten().expand(len(codes))),
        }

    def _weight(self, codes: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
        """[directions, rows, in]"""
        if scale is not None:
            codes = torch.ops.ptq.dequantize(codes, scale, zero_point, 0)
        return codes.unflatten(0, (self.directions, -1))

    def forward(self, x: Tensor, given: list[Tensor]) -> tuple[Tensor, ...]:
        w = (self.w_codes, self.w_scale, self.w_zero_point)
        r = (self.r_codes, self.r_scale, self.r_zero_point)
        h, c = (*given, None, None)[:2]
        if self.dynamic:
            y, *ends = torch.ops.ptq.dynamic_lstm(x, *w, *r, self.bias, h, c, self.hidden)
        elif self.mode == "LSTM":
            y, *ends = torch.ops.ptq.lstm(
                x, self._weight(*w), self._weight(*r), self.bias, h, c, self.hidden
            )
        else:
            y, *ends = torch.ops.ptq.recurrent(
                x, self._weight(*w), self._weight(*r), self.bias, h, self.hidden, self.mode
            )
        # [steps, directions, batch, hidden] -> [steps, batch, directions * hidden]
        return y.squeeze(1) if self.directions == 1 else y.transpose(1, 2).flatten(2), *ends
