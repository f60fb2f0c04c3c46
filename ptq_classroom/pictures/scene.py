"""What a picture is painted with: textures, layers, colour and blur, as pure functions."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def natural_textures(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Periodic 1/f noise, float32 [count, size, size], mean 0 and standard deviation 1 each."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((count, size, size))) / frequency
    texture = np.fft.irfft2(spectrum, s=(size, size))
    return (texture / texture.std((1, 2), keepdims=True)).astype(np.float32)


def over(layer: Tensor, scene: Tensor) -> Tensor:
    """A premultiplied layer [n, 4, H, W] laid over an opaque scene [n, 3, H, W]."""
    return layer[:, :3] + scene * (1 - layer[:, 3:])


def colour_matrix(hue: Tensor, saturation: Tensor) -> Tensor:
    """Turn colours about the grey axis by `hue` radians, scale the distance from it: [n, 3, 3]."""
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = hue.cos().view(-1, 1, 1), hue.sin().view(-1, 1, 1)
    turned = (torch.eye(3) - grey) * cos + cross * sin
    return grey + saturation.view(-1, 1, 1) * turned


def blur(light: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of light [n, 3, H, W] with a standard deviation of `sigma` pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(light, (reach,) * 4, mode="replicate")
    blurred = functional.conv2d(padded, kernel, groups=3)
    return functional.conv2d(blurred, kernel.transpose(2, 3), groups=3)
