"""Architectures written for the tests: what other people's networks look like, at toy size.

Each is one structural idea of a published network or one way of writing PyTorch. `ARCHITECTURES`
lists them with the data they take and what must stay in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import DataDependent, InvertedResidual, Residual, SharedLayer


def conv_bn(c_in: int, c_out: int, kernel: int = 3, **kwargs) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=padding, bias=False, **kwargs), nn.BatchNorm2d(c_out)
    )


class PreActivation(nn.Module):
    """BN-ReLU-conv: the first batch norm of each block follows an add, so it cannot be folded."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm3, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(torch.relu(self.norm1(x)))
        x = x + self.conv2(torch.relu(self.norm2(y)))
        return self.head(torch.relu(self.norm3(x)).mean((2, 3)))


class DenseConcat(nn.Module):
    """Every layer reads the concatenation of all before it, the last batch norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layers = nn.ModuleList(conv_bn(8 + 4 * i, 4) for i in range(3))
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [F.relu(self.stem(x))]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        x = F.relu(self.norm(torch.cat(features, dim=1)))
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.expand(s))


class InvertedSE(nn.Module):
    """Inverted residual with squeeze-and-excite and SiLU (EfficientNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, stride=2), nn.SiLU())
        self.block = nn.Sequential(
            *conv_bn(8, 24, 1), nn.SiLU(), *conv_bn(24, 24, groups=24), nn.SiLU(),
            SqueezeExcite(24, nn.Sigmoid()), *conv_bn(24, 8, 1),
        )  # fmt: skip
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.block(x)).mean([2, 3]))


class HardswishBlock(nn.Module):
    """MobileNetV3: Hardswish, squeeze-and-excite with Hardsigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8, stride=2), nn.Hardswish())
        self.block = nn.Sequential(
            *conv_bn(8, 16, 1), nn.Hardswish(), *conv_bn(16, 16, 5, groups=16), nn.Hardswish(),
            SqueezeExcite(16, nn.Hardsigmoid()), *conv_bn(16, 8, 1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(8, 12), nn.Hardswish(), nn.Dropout(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.adaptive_avg_pool2d(x + self.block(x), 1).flatten(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.down2 = nn.Sequential(*conv_bn(8, 16), nn.ReLU())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.fuse = nn.Sequential(*conv_bn(16, 8), nn.ReLU())
        self.resize = nn.Upsample(scale_factor=2, mode="bilinear")
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        deep = self.down2(F.max_pool2d(skip, 2))
        x = self.fuse(torch.cat([self.up(deep), skip], 1))
        return self.out(torch.cat((x, self.resize(deep)), 1))


class Siamese(nn.Module):
    """Two inputs through one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(2), *conv_bn(8, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.encoder(left), self.encoder(right)
        return self.head(torch.abs(a - b).mean((-2, -1)))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with a residual around it; returns the attention weights too."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x, x, x)
        return self.head(self.norm(x + y)), weights


class TextEncoder(nn.Module):
    """Token and position embeddings, nn.TransformerEncoder with a padding mask, mean pooling."""

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, 16, padding_idx=0), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        x = self.encoder(x, src_key_padding_mask=tokens == 0)
        return self.head(x.mean(1))


class Translator(nn.Module):
    """nn.Transformer: encoder, decoder with a causal mask, two inputs of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 30)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(7))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.transformer(self.embed(source), self.embed(target), tgt_mask=self.mask)
        return self.head(x)


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, pre-norm encoder with fused attention."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 10, width) * 0.2)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class TemporalConvolution(nn.Module):
    """Dilated causal 1-d convolutions with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(4 if i == 0 else 8, 8, 3, dilation=2**i) for i in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(3))
        self.shortcut, self.head = nn.Conv1d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = F.relu(norm(conv(F.pad(x, (2 * 2**i, 0)))))
            x = y + shortcut if i == 0 else y + x
        return self.head(x[:, :, -1])


class FunctionalStyle(nn.Module):
    """No submodules at all: parameters and torch.nn.functional."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.3), nn.Parameter(torch.randn(8))
        self.w2 = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.2)
        self.gamma, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8) * 0.3)
        self.register_buffer("var", torch.rand(8) + 0.5)
        self.w3, self.b3 = nn.Parameter(torch.randn(5, 8) * 0.5), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1, self.b1, stride=2, padding=1).clamp(min=0)
        x = F.conv2d(x, self.w2, padding="same")
        x = F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, training=self.training)
        x = F.dropout(torch.clamp(x, 0, 6), 0.3, training=self.training)
        return F.linear(x.mean(dim=(2, 3)), self.w3, self.b3)


class Nested(nn.Module):
    """ModuleDict, ModuleList and Sequential in each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "stem": nn.Sequential(nn.Sequential(*conv_bn(3, 8)), nn.ReLU(inplace=True)),
                "blocks": nn.ModuleList(
                    [nn.ModuleDict({"a": conv_bn(8, 8), "b": conv_bn(8, 8)}) for _ in range(2)]
                ),
                "head": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["stem"](x)
        for block in self.parts["blocks"]:
            x = F.relu(block["b"](F.relu(block["a"](x), inplace=True)) + x, inplace=True)
        return self.parts["head"](x)


class Inception(nn.Module):
    """Four branches side by side, one of them pooling, joined by a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.one, self.three, self.five = conv_bn(8, 4, 1), conv_bn(8, 4, 3), conv_bn(8, 4, 5)
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), *conv_bn(8, 4, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [self.one(x), self.three(x), self.five(x), self.pooled(x)]
        return self.head(torch.cat([F.relu(b) for b in branches], 1).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, then the channels are shuffled (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.branch = nn.Sequential(
            *conv_bn(4, 4, 1), nn.ReLU(), *conv_bn(4, 4, groups=4), *conv_bn(4, 4, 1), nn.ReLU()
        )
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        passing, worked = self.stem(x).chunk(2, dim=1)
        x = torch.cat((passing, self.branch(worked)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return self.out(x.view(batch, channels, height, width))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm on the last axis, GELU, layer scale."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, stride=2)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))


class Mixer(nn.Module):
    """Linear layers over patches and over channels in turn (MLP-Mixer)."""

    def __init__(self, width: int = 16, patches: int = 9) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 16), nn.GELU(), nn.Linear(16, patches))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class ResNeXt(nn.Module):
    """Grouped 3x3 convolution in a bottleneck, and a grouped transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16, stride=2), nn.ReLU())
        self.body = nn.Sequential(
            *conv_bn(16, 8, 1), nn.ReLU(), *conv_bn(8, 8, groups=4), nn.ReLU(), *conv_bn(8, 16, 1)
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.up(torch.relu(x + self.body(x)))


class Recurrent(nn.Module):
    """A convolution, an LSTM that stays in floating point, a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, (hidden, _) = self.lstm(F.relu(self.conv(x)).transpose(1, 2))
        return self.head(torch.cat([y[:, -1], hidden[-1]], 1))


class Gru(nn.Module):
    """nn.GRU over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(30, 8), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(tokens))[0].mean(1))


class Autoencoder(nn.Module):
    """Strided convolutions, a bottleneck, unflatten, transposed convolutions, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *conv_bn(3, 8, stride=2), nn.LeakyReLU(0.1), *conv_bn(8, 8, stride=2),
            nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(72, 16),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(16, 72), nn.ReLU(), nn.Unflatten(1, (8, 3, 3)),
            nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 2, stride=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class EinsumAttention(nn.Module):
    """Attention written with einsum, which has no integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bid,bjd->bij", self.q(x), self.k(x)) / math.sqrt(16)
        return self.head(torch.einsum("bij,bjd->bid", scores.softmax(-1), self.v(x)))


class DictOutput(nn.Module):
    """A pyramid that returns its levels by name, and a dict as its input's container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
        self.deep = nn.Sequential(*conv_bn(8, 8, stride=2), nn.ReLU())
        self.lateral, self.boxes = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        high = self.stem(x)
        low = self.deep(high)
        merged = self.lateral(high) + F.interpolate(low, scale_factor=2.0, mode="nearest")
        return {"low": self.boxes(low), "high": self.boxes(merged)}


class RootMeanSquare(nn.Module):
    """A norm written as a formula (RMSNorm) in front of a gated feed-forward layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.up, self.gate = nn.Linear(width, 32), nn.Linear(width, 32)
        self.down = nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class MaskedAttention(nn.Module):
    """Causal attention by masked_fill, a mask as input added to scores, optional arguments."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, 4)
        self.register_buffer("future", torch.ones(6, 6, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor, bias: Tensor, scale: float = 0.25, cache=None) -> Tensor:
        q, k, v = self.qkv(x).split(16, dim=-1)
        scores = (q @ k.transpose(-2, -1)) * scale
        scores = scores.masked_fill(self.future, float("-inf")) if cache is None else scores
        first = F.softmax(scores, dim=-1) @ v
        second = torch.softmax(torch.bmm(q, k.mT) * scale + bias, dim=-1) @ v
        return self.head(first + second)


class PixelShuffler(nn.Module):
    """Sub-pixel upsampling with a global skip (super-resolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.b(F.relu6(self.a(x))), 2)
        return y + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class WindowShift(nn.Module):
    """torch.roll, windows by view and permute, slices joined again (Swin, Focus)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(12, 8, 1), nn.Linear(4 * 8, 4 * 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(
            [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
        )
        x = torch.roll(F.relu(self.stem(x)), (1, 1), (2, 3))
        batch, width, side, _ = x.shape
        windows = x.view(batch, width, side // 2, 2, side // 2, 2).permute(0, 2, 4, 3, 5, 1)
        y = self.mix(windows.reshape(batch, side // 2, side // 2, -1))
        y = y.view(batch, side // 2, side // 2, 2, 2, width).permute(0, 5, 1, 3, 2, 4)
        return self.head(x + y.reshape(batch, width, side, side))


class LanguageModel(nn.Module):
    """Positions and a causal mask are cut from buffers by the length of the input (BERT, GPT)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(30, 16), nn.Embedding(12, 16)
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 30), nn.LayerNorm(16)
        self.register_buffer("position_ids", torch.arange(12).expand(1, -1))
        self.register_buffer("causal", torch.ones(12, 12, dtype=torch.bool).tril())

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.size(1)
        x = self.tokens(tokens) + self.positions(self.position_ids[:, :length])
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 4
        scores = scores.masked_fill(~self.causal[:length, :length], float("-inf"))
        return self.out(x + scores.softmax(-1) @ v)


class InPlaceInput(nn.Module):
    """Normalizes the very tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.2).mul_(3.0)
        return self.head(F.relu(self.a(x)).mean((2, 3)))


class WorksOnViews(nn.Module):
    """What is added to a view is read through the tensor that it is a view of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        rows = x.view(x.size(0), -1)
        rows *= 2
        y = self.b(x)
        y += x  # nobody else reads y
        return self.head(F.relu(y).mean((2, 3)))


class UntraceableAttention(SelfAttention):
    """Branches on its data, so that only its layers can be quantized."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x if x.mean() > -10 else -x)


def realistic(model: nn.Module, seed: int = 0) -> nn.Module:
    """Kaiming weights, small biases, batch norms as training leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: Tensor, center: float, spread: float) -> None:
        tensor.data.copy_(center + spread * torch.randn(tensor.shape, generator=generator))

    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            near(module.running_mean, 0.0, 0.5)
            size = module.running_var.shape
            module.running_var.copy_(torch.rand(size, generator=generator) * 2 + 0.3)
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, norms):
                near(parameter, float(name == "weight"), 0.3)
            elif name.endswith("bias"):
                near(parameter, 0.0, 0.1)
            elif parameter.dim() > 1 and not isinstance(module, nn.Embedding):
                fan_in = parameter[0].numel()
                near(parameter, 0.0, math.sqrt(2 / fan_in))
    return model.eval()


def pictures(count: int = 1) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return floats(*[(3, 12, 12)] * count)


def floats(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    return lambda generator: tuple(torch.randn(16, *s, generator=generator) for s in shapes)


def tokens(*lengths: int) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """Tokens 1 to 29, with padding (0) at the end of some rows."""

    def make(generator: torch.Generator) -> tuple[Tensor, ...]:
        rows = [torch.randint(1, 30, (16, n), generator=generator) for n in lengths]
        rows[0][::3, -2:] = 0
        return tuple(rows)

    return make


@dataclass
class Architecture:
    """What to build, what to feed, and what stays in floating point: name -> part of the reason."""

    build: Callable[[], nn.Module]
    data: Callable[[torch.Generator], tuple[Tensor, ...]] = field(default_factory=pictures)
    in_float: dict[str, str] = field(default_factory=dict)
    traceable: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return realistic(self.build(), seed)

    def batches(self, count: int, seed: int) -> list[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        return [self.data(generator) for _ in range(count)]


def _norms(count: int) -> list[str]:
    return [*(f"layers.0.norm{i + 1}" for i in range(count)), "norm"]


NO_KERNEL = "ONNX Runtime has no integer kernel for"
NOT_READ = "no integer kernel of ONNX Runtime reads its result"  # an add before a LayerNorm, say


def _unread(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, NOT_READ)


ARCHITECTURES: dict[str, Architecture] = {
    "residual": Architecture(Residual),
    "preactivation": Architecture(PreActivation),
    "dense_concat": Architecture(DenseConcat),
    "inverted_residual": Architecture(InvertedResidual),
    "inverted_se": Architecture(
        InvertedSE, in_float=dict.fromkeys(("stem.2", "block.2", "block.5"), NO_KERNEL)
    ),
    "hardswish": Architecture(HardswishBlock),
    "unet": Architecture(UNet, in_float=dict.fromkeys(("up.0", "resize"), NO_KERNEL)),
    "shared_layer": Architecture(SharedLayer, floats((6,))),
    "siamese": Architecture(Siamese, pictures(2), dict.fromkeys(("sub", "abs_1"), NO_KERNEL)),
    "attention": Architecture(
        SelfAttention, floats((6, 16)), {"norm": "LayerNorm", **_unread("add", "mean")}
    ),
    "attention_length_first": Architecture(
        lambda: SelfAttention(False),
        floats((6, 16)),
        {"norm": "LayerNorm", **_unread("add", "mean")},
    ),
    "text_encoder": Architecture(
        TextEncoder,
        tokens(10),
        {
            **{f"encoder.layers.{i}.self_attn.mask": "AttentionMask" for i in (0, 1)},
            **{f"encoder.layers.{i}.self_attn.masked_softmax": "masked scores" for i in (0, 1)},
            **{f"encoder.layers.{i}.norm{j}": "LayerNorm" for i in (0, 1) for j in (1, 2)},
            **dict.fromkeys(("gelu", "gelu_1"), "gelu"),
            **_unread("add_1", "add_2", "add_3", "add_4"),
        },
    ),
    "text_encoder_packed": Architecture(
        lambda: TextEncoder(nested=True),
        tokens(10),
        {
            **{f"encoder.layers.{i}.self_attn.mask": "AttentionMask" for i in (0, 1)},
            **{f"encoder.layers.{i}.self_attn.masked_softmax": "masked scores" for i in (0, 1)},
            **{f"encoder.layers.{i}.norm{j}": "LayerNorm" for i in (0, 1) for j in (1, 2)},
            **dict.fromkeys(("gelu", "gelu_1"), "gelu"),
            **_unread("add_1", "add_2", "add_3", "add_4"),
        },
    ),
    "language_model": Architecture(
        LanguageModel,
        tokens(9),
        {"norm": "LayerNorm", "masked_fill": "no integer form", "softmax": "masked scores"},
    ),
    "normalizes_its_input_in_place": Architecture(InPlaceInput, in_float={"sub_": NO_KERNEL}),
    "works_on_views": Architecture(WorksOnViews, in_float=_unread("mul")),
    "translator": Architecture(
        Translator,
        tokens(9, 7),
        {
            **{f"transformer.encoder.{n}": "LayerNorm" for n in _norms(2)},
            **{f"transformer.decoder.{n}": "LayerNorm" for n in _norms(3)},
            "transformer.decoder.layers.0.self_attn.mask": "AttentionMask",
            "transformer.decoder.layers.0.self_attn.masked_softmax": "masked scores",
            **_unread("add", "add_1", "add_2", "add_3", "add_4"),
        },
    ),
    "vision_transformer": Architecture(
        VisionTransformer,
        in_float={
            "mlp.1": "GELU",
            **dict.fromkeys(("norm1", "norm2", "norm"), "LayerNorm"),
            **_unread("cat", "add", "add_1", "add_2"),
        },
    ),
    "temporal": Architecture(TemporalConvolution, floats((4, 20))),
    "functional": Architecture(FunctionalStyle),
    "nested": Architecture(Nested),
    "inception": Architecture(Inception),
    "shuffle": Architecture(ShuffleUnit),
    "convnext": Architecture(ConvNeXtBlock, in_float={"norm": "LayerNorm", "gelu": "gelu"}),
    "mixer": Architecture(
        Mixer,
        in_float={
            **dict.fromkeys(("norm1", "norm2"), "LayerNorm"),
            **dict.fromkeys(("tokens.1", "channels.1"), "GELU"),
        },
    ),
    "resnext": Architecture(ResNeXt, in_float={"up.0": NO_KERNEL, **_unread("add")}),
    "lstm": Architecture(Recurrent, floats((4, 10)), {"lstm": "LSTM is recurrent"}),
    "gru": Architecture(Gru, tokens(10), {"gru": "GRU is recurrent"}),
    "autoencoder": Architecture(
        Autoencoder,
        in_float={
            **dict.fromkeys(("decoder.3", "decoder.6"), NO_KERNEL),
            **_unread("decoder.7"),
        },
    ),
    "einsum": Architecture(
        EinsumAttention,
        floats((6, 16)),
        {
            **dict.fromkeys(("einsum", "einsum_1"), "write it as matmul"),
            **_unread("truediv", "softmax"),
        },
    ),
    "dict_output": Architecture(DictOutput),
    "rms_norm": Architecture(
        RootMeanSquare,
        floats((6, 16)),
        {
            **dict.fromkeys(("pow_1", "mean", "add", "rsqrt", "mul", "mul_1"), "part of a formula"),
            "silu": NO_KERNEL,
            **_unread("add_1"),
        },
    ),
    "masked_attention": Architecture(
        MaskedAttention,
        floats((6, 16), (6, 6)),
        {
            "masked_fill": "no integer form",
            "add": "input of the network",
            **dict.fromkeys(("softmax", "softmax_1"), "masked scores"),
        },
    ),
    "pixel_shuffle": Architecture(
        PixelShuffler, in_float={"interpolate": NO_KERNEL, **_unread("add")}
    ),
    "window_shift": Architecture(WindowShift),
    "data_dependent": Architecture(
        DataDependent,
        floats((6,)),
        {"(between layers)": "could not be traced"},
        traceable=False,
    ),
    "data_dependent_attention": Architecture(
        UntraceableAttention,
        floats((6, 16)),
        {
            "(between layers)": "could not be traced",
            "attention.mask": "AttentionMask",
            "attention.masked_softmax": "MaskedSoftmax",
            "norm": "LayerNorm",
        },
        traceable=False,
    ),
}
