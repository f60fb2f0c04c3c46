"""Brightened copies of dark pictures, for the eyes of the reader; no network gets to see them."""

from __future__ import annotations

import torch
from torch import Tensor

from ptq_classroom.pictures.camera import light_of_codes, respond

DIM, LIFTED = 0.15, 0.8  # light that 95 % of a picture stay below: of a dark one, of its copy


def light_of(picture: Tensor) -> Tensor:
    """Linear light, float64 of any shape, of bytes uint8."""
    return torch.from_numpy(light_of_codes())[picture.int()]


def gain_of(light: Tensor) -> int:
    """How many times its light a dark picture needs to be seen; 1 for one that is not dark."""
    high = float(light.double().quantile(0.95))
    return 1 if high > DIM else round(LIFTED / max(high, 0.01))


def developed(light: Tensor) -> Tensor:
    """Bytes uint8 of linear light of any shape, as the camera writes them."""
    return respond(light).round().clamp(0, 255).to(torch.uint8)
