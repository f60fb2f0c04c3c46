"""torch.nn's attention and Transformer modules replaced by forms that torch.fx can read.

Chapter 04. In evaluation mode those modules take a fast path, one kernel for a whole layer, which
would skip every quantizer. The modules here have the same children under the same names and compute
the same (layers after Vaswani et al., "Attention Is All You Need", 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ptq_course.graph.attention import Attention
from ptq_course.graph.layer_types import plain_type
from ptq_course.graph.masks import ZeroPadding
from ptq_course.graph.recurrent import GRU, LSTM, RNN


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer without its fast path; the layers keep their names."""

    self_attn: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module

    def __init__(self, original: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        for name in ("self_attn", "linear1", "linear2", "norm1", "norm2"):
            setattr(self, name, getattr(original, name))
        self.activation, self.norm_first = original.activation, original.norm_first

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, attn_mask=src_mask, key_padding_mask=src_key_padding_mask,
                need_weights=False,
            )[0]  # fmt: skip

        x = _residual(src, attend, self.norm1, self.norm_first)
        return _residual(x, self._feed_forward, self.norm2, self.norm_first)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))


class DecoderLayer(nn.Module):
    """nn.TransformerDecoderLayer; the layers keep their names."""

    self_attn: nn.Module
    multihead_attn: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module

    def __init__(self, original: nn.TransformerDecoderLayer) -> None:
        super().__init__()
        children = ("self_attn", "multihead_attn", "linear1", "linear2", "norm1", "norm2", "norm3")
        for name in children:
            setattr(self, name, getattr(original, name))
        self.activation, self.norm_first = original.activation, original.norm_first

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, attn_mask=tgt_mask, key_padding_mask=tgt_key_padding_mask,
                need_weights=False,
            )[0]  # fmt: skip

        def look_up(x: Tensor) -> Tensor:
            return self.multihead_attn(
                x, memory, memory, attn_mask=memory_mask,
                key_padding_mask=memory_key_padding_mask, need_weights=False,
            )[0]  # fmt: skip

        x = _residual(tgt, attend, self.norm1, self.norm_first)
        x = _residual(x, look_up, self.norm2, self.norm_first)
        return _residual(x, self._feed_forward, self.norm3, self.norm_first)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))


class LayerStack(nn.Module):
    """nn.TransformerEncoder or nn.TransformerDecoder without nested tensors."""

    def __init__(self, original: nn.TransformerEncoder | nn.TransformerDecoder) -> None:
        super().__init__()
        self.layers, self.norm = original.layers, original.norm

    def run(self, x: Tensor, *others: Tensor, **masks: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x, *others, **masks)
        return x

    def normalized(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)


class Encoder(LayerStack):
    """nn.TransformerEncoder: layers one after the other, padding as its fast path leaves it."""

    def __init__(self, original: nn.TransformerEncoder) -> None:
        super().__init__(original)
        self.zero_padding = ZeroPadding() if original.use_nested_tensor else None

    def forward(
        self, src: Tensor, mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool | None = None,
    ) -> Tensor:  # fmt: skip
        x = self.run(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        if self.zero_padding is not None and mask is None and src_key_padding_mask is not None:
            x = self.zero_padding(x, src_key_padding_mask)
        return self.normalized(x)


class Decoder(LayerStack):
    """nn.TransformerDecoder: layers one after the other."""

    def forward(
        self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        x = self.run(
            tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
        )  # fmt: skip
        return self.normalized(x)


class Transformer(nn.Module):
    """nn.Transformer without its checks of shapes, which torch.fx cannot follow."""

    def __init__(self, original: nn.Transformer) -> None:
        super().__init__()
        self.encoder, self.decoder = original.encoder, original.decoder

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        memory = self.encoder(src, src_mask, src_key_padding_mask)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        )


_REWRITES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MultiheadAttention: Attention,
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerDecoderLayer: DecoderLayer,
    nn.TransformerEncoder: Encoder,
    nn.TransformerDecoder: Decoder,
    nn.Transformer: Transformer,
    nn.LSTM: LSTM.of,
    nn.GRU: GRU.of,
    nn.RNN: RNN.of,
}


def rewrite_modules(model: nn.Module) -> nn.Module:
    """``model``, in place, its attention and recurrent modules replaced; paths of layers stay.

    A subclass with a changed forward(), attention with bias_k or add_zero_attn, and an LSTM with
    proj_size are left as they are; the plan names them among what stays in floating point.
    """
    done: dict[nn.Module, nn.Module] = {}  # a module that stands at two places stays one

    def rewritten(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = module
            for name, child in list(module._modules.items()):
                if child is not None:
                    module._modules[name] = rewritten(child)
            rewrite = _REWRITES.get(plain_type(type(module)))
            if rewrite is not None and not _is_unusual(module):
                done[module] = rewrite(module).eval()
        return done[module]

    return rewritten(model)


def _is_unusual(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return module.bias_k is not None or module.add_zero_attn
    return isinstance(module, nn.RNNBase) and module.proj_size > 0  # no file format has it


def _residual(x: Tensor, branch: Any, norm: nn.Module, norm_first: bool) -> Tensor:
    return x + branch(norm(x)) if norm_first else norm(x + branch(x))
