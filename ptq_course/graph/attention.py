"""Attention written as linear layers, products and a softmax, so that each can be quantized.

Chapter 04. torch.nn's attention modules call one fused kernel that no quantizer can enter. The
modules here have the same parameters, compute the same in evaluation mode, and are plain enough for
torch.fx: scores = softmax(q k^T / sqrt(d) + mask), output = scores v (Vaswani et al., "Attention Is
All You Need", 2017, section 3.2). Dropout is left out: it does nothing in evaluation mode.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer
from torch.nn import functional as F

from ptq_course.graph.masks import AttentionMask, DotProductMask, MaskedSoftmax


class Attention(nn.Module):
    """nn.MultiheadAttention with its projections as layers: q_proj, k_proj, v_proj, out_proj."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        width = original.embed_dim
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first = original.batch_first
        if original.in_proj_weight is not None:
            weights = original.in_proj_weight.split(width)
        else:
            weights = (
                original.q_proj_weight, original.k_proj_weight, original.v_proj_weight
            )  # fmt: skip
        packed = original.in_proj_bias
        biases = (None, None, None) if packed is None else packed.split(width)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, f"{name}_proj", _linear(weight, bias))
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias)
        self.mask, self.masked_softmax = AttentionMask(), MaskedSoftmax()

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, length, width], or length first, or no batch -> [.., heads, length, head_dim]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(-3, -2) if self.batch_first else x.movedim(0, -2)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention; ``is_causal`` only says what ``attn_mask`` is."""
        q = self._heads(self.q_proj(query))
        k = self._heads(self.k_proj(key))
        v = self._heads(self.v_proj(value))
        scores = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(self.head_dim))
        if attn_mask is not None or key_padding_mask is not None:
            weights = self.masked_softmax(self.mask(scores, attn_mask, key_padding_mask))
        else:
            weights = torch.softmax(scores, dim=-1)
        mixed = torch.matmul(weights, v)
        mixed = mixed.transpose(-3, -2) if self.batch_first else mixed.movedim(-2, 0)
        output = self.out_proj(mixed.flatten(-2))
        if not need_weights:
            return output, None
        return output, weights.mean(-3) if average_attn_weights else weights


def _proxies(given: dict[str, Any], tracer: GraphAppendingTracer) -> list[Any]:
    """Query, key and value; a proxy stands for a tensor, which types do not know."""
    return [fx.Proxy(given[name], tracer) for name in ("query", "key", "value")]


def expand_dot_product_attention(traced: fx.GraphModule) -> None:
    """Write F.scaled_dot_product_attention, in place, as two products and a softmax."""
    for node in list(traced.graph.nodes):
        if node.target is not F.scaled_dot_product_attention:
            continue
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if given.get("enable_gqa") or isinstance(given.get("is_causal"), fx.Node):
            continue
        mask, is_causal = given.get("attn_mask"), bool(given.get("is_causal", False))
        tracer = GraphAppendingTracer(traced.graph)
        with traced.graph.inserting_before(node):
            query, key, value = _proxies(given, tracer)
            scale = given.get("scale")
            scale = query.size(-1) ** -0.5 if scale is None else scale
            scores = torch.matmul(query, key.transpose(-2, -1)) * scale
            if mask is not None or is_causal:
                path = f"{node.name}_mask"
                traced.add_submodule(path, DotProductMask(is_causal))
                traced.add_submodule(f"{node.name}_softmax", MaskedSoftmax())
                inputs = (scores.node,) if mask is None else (scores.node, mask)
                masked = traced.graph.call_module(path, inputs)
                softmax = traced.graph.call_module(f"{node.name}_softmax", (masked,))
                weights: Any = fx.Proxy(softmax, tracer)
            else:
                weights = torch.softmax(scores, dim=-1)
            output: Any = torch.matmul(weights, value)
        node.replace_all_uses_with(output.node)
        traced.graph.erase_node(node)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
