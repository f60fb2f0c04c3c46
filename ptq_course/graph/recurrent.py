"""Recurrent layers whose products of matrices are layers of their own: nn.LSTM, nn.GRU, nn.RNN.

Chapters 04 and 07. PyTorch's recurrent layers hold their weights side by side. Here each is an
nn.Linear, so that it gets integer codes, a row in the report and a place in a checkpoint as any
other: ``ih_l0`` for the input of layer 0, ``hh_l0`` for its last state, ``_reverse`` behind both
for the second direction. Equations: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

STAYS_FLOAT = (
    "{} is recurrent: runtimes have no integer kernel for it with scales chosen beforehand; "
    "quantize_dynamic, or weights alone (quantize_weights), store its weights as integers"
)
GATES = "{}: its gates and its state are computed in floating point"


class Recurrent(nn.RNNBase):
    """Base of the three: PyTorch's own kernel, given the weights that the parts hold at present.

    A part may be replaced by a module with ``weight`` and ``bias``.
    """

    @classmethod
    def of(cls, layer: nn.RNNBase) -> Recurrent:
        """The same layer in parts; its parameters are shared."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        vars(new).update({k: v for k, v in vars(layer).items() if not k.startswith("_")})
        vars(new).update(_flat_weights_names=[], _flat_weight_refs=[])  # RNNBase's own caches
        for name in new.part_names():
            side, _, suffix = name.partition("_")
            weight = _parameter(getattr(layer, f"weight_{side}_{suffix}"))
            part = nn.Linear(*weight.shape[::-1], bias=layer.bias, device="meta")
            part.weight = weight
            if layer.bias:
                part.bias = _parameter(getattr(layer, f"bias_{side}_{suffix}"))
            new.add_module(name, part)
        return new

    def part_names(self) -> list[str]:
        """ih_l0, hh_l0, ih_l0_reverse, ..., in the order of PyTorch's weights."""
        ends = ("", "_reverse")[: self.directions]
        suffixes = [f"l{layer}{end}" for layer in range(self.num_layers) for end in ends]
        return [f"{side}_{suffix}" for suffix in suffixes for side in ("ih", "hh")]

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def parts(self) -> list[Any]:
        """The modules in that order; pairs of (input, state) for each layer and direction."""
        return [self._modules[name] for name in self.part_names()]

    @property
    def _flat_weights(self) -> list[Tensor]:  # what PyTorch's forward() gives to its kernel
        pairs = zip(self.parts()[0::2], self.parts()[1::2], strict=True)
        return [t for a, b in pairs for t in (a.weight, b.weight, a.bias, b.bias) if t is not None]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:  # RNNBase caches them after `to`
        pass

    def __getstate__(self) -> dict[str, Any]:
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)

    def flatten_parameters(self) -> None:
        """Nothing: there is no one buffer that the weights could share."""


class LSTM(Recurrent, nn.LSTM):
    """nn.LSTM in parts. Where a part rounds its input (``rounds_input``), step by step.

    The products of all steps with the input are one, and have one range, as in ONNX Runtime's
    DynamicQuantizeLSTM; each step's product with the state has its own.
    """

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        if not any(getattr(part, "rounds_input", False) for part in self.parts()):
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input, self.batch_first)
            output, state = self._steps(x, hx, lengths.to(x.device))
            return pack_padded_sequence(output, lengths, self.batch_first, False), state
        if input.dim() == 3:
            return self._steps(input, hx)
        batch = 0 if self.batch_first else 1
        hx = hx and (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        output, (h, c) = self._steps(input.unsqueeze(batch), hx)
        return output.squeeze(batch), (h.squeeze(1), c.squeeze(1))

    def _steps(
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = x.transpose(0, 1) if self.batch_first else x
        steps, batch = x.shape[:2]
        if hx is None:
            zeros = x.new_zeros(self.num_layers * self.directions, batch, self.hidden_size)
            hx = zeros, zeros
        lasts = steps if lengths is None else lengths
        # [steps, batch, 1]: a shorter sequence keeps its state where it has no element.
        inside = (torch.arange(steps, device=x.device)[:, None] < lasts).expand(steps, batch)
        inside, parts, ends = inside.unsqueeze(-1), self.parts(), []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                place = layer * self.directions + direction
                of_input, of_state = parts[2 * place : 2 * place + 2]
                h, c = hx[0][place], hx[1][place]
                products, output = of_input(x), [h] * steps
                for t in reversed(range(steps)) if direction else range(steps):
                    i, f, g, o = (products[t] + of_state(h)).chunk(4, -1)
                    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    state = o.sigmoid() * cell.tanh()
                    h, c = torch.where(inside[t], state, h), torch.where(inside[t], cell, c)
                    output[t] = h
                outputs.append(torch.stack(output) * inside)
                ends.append((h, c))
            x = torch.cat(outputs, -1)
        h, c = (torch.stack(values) for values in zip(*ends, strict=True))
        return x.transpose(0, 1) if self.batch_first else x, (h, c)


class GRU(Recurrent, nn.GRU):
    """nn.GRU in parts."""


class RNN(Recurrent, nn.RNN):
    """nn.RNN in parts."""


def _parameter(values: Tensor) -> nn.Parameter:
    if isinstance(values, nn.Parameter):
        return values
    return nn.Parameter(values.detach(), requires_grad=False)  # a hook had computed it
