"""Frames of sound, loud and quiet, and a small network that names their waveform: a construction.

Chapter 07. Real recordings have such frames, but this data is made so that tokens differ in range
and in nothing else that matters: the network has no bias, so a frame a thousand times quieter has
logits a thousand times smaller and the same answer. Whatever quiet frames lose is lost to scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = 8  # waveforms: the base tone and one of its overtones
LENGTH = 64  # samples a frame
WIDTH = 256
QUIETEST = 60.0  # decibels below the loudest frame: a factor of 1,000


def frames(count: int, seed: int, quietest: float = QUIETEST) -> tuple[Tensor, Tensor, Tensor]:
    """Frames float32 [count, 64], kinds int64 [count], loudness in dB [count], 0 to -quietest.

    A frame is a tone and its (2 + kind)th harmonic of half the amplitude, of random pitch and
    phase, with noise of a tenth. Computed in float64, so that processors agree.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, KINDS, (count,), generator=generator)
    pitch, phase, shift, quiet = torch.rand(4, count, 1, generator=generator, dtype=torch.float64)
    time = torch.arange(LENGTH, dtype=torch.float64) / LENGTH
    tone = 2 * math.pi * ((2 + 2 * pitch) * time + phase)
    overtone = (2 + kinds).unsqueeze(1) * tone + 2 * math.pi * shift
    x = torch.sin(tone) + 0.5 * torch.sin(overtone)
    x = x + 0.1 * torch.randn(count, LENGTH, generator=generator, dtype=torch.float64)
    loudness = -quietest * quiet
    return (x * 10 ** (loudness / 20)).float(), kinds, loudness.squeeze(1).float()


def frame_network(steps: int = 300, batch: int = 256) -> nn.Sequential:
    """Linear 64 -> 256 -> 256 -> 8 with ReLU and without biases, trained here in a second or two.

    Trained on frames of equal loudness, in float64, which keeps the weights (returned in float32)
    the same on different processors.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(LENGTH, WIDTH, bias=False),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH, bias=False),
        nn.ReLU(),
        nn.Linear(WIDTH, KINDS, bias=False),
    ).double()
    x, kinds, _ = frames(steps * batch, seed=1, quietest=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for inputs, labels in zip(x.double().split(batch), kinds.split(batch), strict=True):
        loss = F.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.float().eval()
