"""A small vision transformer: attention over 36 patches, pre-LayerNorm, GELU.

After Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
Scale", 2021. Two strided convolutions make the patches, which a small network trained on few
pictures needs (Xiao, Singh, Mintun, Darrell, Dollar, Girshick, "Early Convolutions Help
Transformers See Better", 2021); the tokens are averaged at the end. Attention is written out of
Linear layers and matrix products, so that each of them can be traced, quantized and looked at.
"""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention: [N, T, D] -> [N, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """[N, T, D] -> [N, heads, T, D / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            self.split(self.query(x)),
            self.split(self.key(x)),
            self.split(self.value(x)),
        )
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """LayerNorm, attention, add; LayerNorm, feed-forward with GELU, add."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.act = nn.Linear(width, expansion * width), nn.GELU()
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))


class ViT(nn.Module):
    """float32 [N, 3, 48, 48] -> logits [N, classes]; 36 tokens."""

    def __init__(
        self, num_classes: int = 48, width: int = 64, depth: int = 5, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, 4), nn.GELU(), nn.Conv2d(width // 2, width, 2, 2)
        )
        self.position = nn.Parameter(torch.randn(1, 36, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.fc(self.norm(self.blocks(tokens)).mean(dim=1))
